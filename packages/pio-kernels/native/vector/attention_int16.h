// Products of attention with pairs of int16, for AVX2: a multiplication of two vectors takes twice the numbers that one of
// float32 does, and its sums are exact.
//
// A tile has its keys and values rounded to whole numbers of steps:
//
//   keys [4 blocks][D / 2][16][2], steps [64]     2^15 steps are the Euclidean norm of a key, as they are of a query
//   values [32][W][2], steps [W]                  2^12 steps are the largest magnitude among a column's values
//
// and so are weights, of which 2^13 steps are that of a query's largest score in the tile. By Cauchy and Schwarz no score
// exceeds 2^30 steps, nor does a part of its sum; 64 weights of values stay below 2^31. Roundings move a score by about
// 2^-16 |q| |k|, mostly less, and what a tile adds by 2^-13 of its largest values: less than a cache in bfloat16 does.
#pragma once

#include "attention_work.h"

namespace pio::PIO_ISA::attention {

using Pairs = __m256i;  // of neighbouring int16

// sums + x_0 y_0 + x_1 y_1 in each lane
PIO_INLINE __m256i add_pairs(__m256i sums, Pairs x, Pairs y) {
#if defined(__AVXVNNI__)
    return _mm256_dpwssd_avx_epi32(sums, x, y);
#else
    return _mm256_add_epi32(sums, _mm256_madd_epi16(x, y));
#endif
}

PIO_INLINE Pairs load_pairs(const int16_t* x) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)); }

// One pair in all lanes
PIO_INLINE Pairs splat_pair(const int16_t* pair) {
    int32_t bits;
    __builtin_memcpy(&bits, pair, sizeof bits);
    return _mm256_set1_epi32(bits);
}

// (a_0, b_0, a_1, b_1, ...) rounded to the nearest; below 2^15 in magnitude
PIO_INLINE void store_pairs(int16_t* to, Floats a, Floats b) {
    const __m256i odd = _mm256_slli_epi32(_mm256_cvtps_epi32(b), 16);
    const __m256i pairs = _mm256_blend_epi16(_mm256_cvtps_epi32(a), odd, 0xaa);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), pairs);
}

// Eight numbers rounded to the nearest; below 2^15 in magnitude
PIO_INLINE void store_int16(int16_t* to, Floats a) {
    const __m256i wide = _mm256_cvtps_epi32(a);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), words);
}

struct Int16Products {
    static constexpr bool kRoughWeights = true;
    static constexpr bool kScaledWeights = false;
    static constexpr int32_t kTileWeightBits = 13;

    static constexpr float kNormSteps = 32767.0f;
    static constexpr int32_t kValueSteps = 4095;
    static_assert(static_cast<int64_t>(kTileKeys) * kValueSteps << kTileWeightBits < int64_t{1} << 31);
    // Stands for the norm of zeros. One that is not finite makes steps that are not, and all products with them.
    static constexpr float kLeast = 1e-30f;

    // Where the parts of a staged tile and of a row of `query` begin.
    PIO_INLINE int16_t* keys_of(const Work& work) { return reinterpret_cast<int16_t*>(work.tile_keys); }
    PIO_INLINE float* key_steps(const Work& work) {
        return reinterpret_cast<float*>(keys_of(work) + kTileKeys * work.width);
    }
    PIO_INLINE int16_t* values_of(const Work& work) { return reinterpret_cast<int16_t*>(work.tile_values); }
    PIO_INLINE float* value_steps(const Work& work) {
        return reinterpret_cast<float*>(values_of(work) + kTileKeys * work.width);
    }
    PIO_INLINE int16_t* query_of(const Work& work, int32_t query) {
        return reinterpret_cast<int16_t*>(work.query + query * work.width);
    }
    PIO_INLINE float& query_step(const Work& work, int32_t query) { return work.query[query * work.width + work.width / 2]; }

    static void set_query(const Work& work, int32_t query, const float* x, float factor) {
        Floats squares = splat(0.0f);
        for (int32_t d = 0; d < work.op.head_size; d += kLanes) squares = fma(load(x + d), load(x + d), squares);
        const float norm = max_of(max(splat(kLeast), splat(__builtin_sqrtf(sum_of(squares)))));
        const Floats steps = splat(kNormSteps / norm);
        int16_t* const to = query_of(work, query);
        for (int32_t d = 0; d < work.op.head_size; d += kLanes) store_int16(to + d, mul(load(x + d), steps));
        query_step(work, query) = factor * norm / kNormSteps;
    }

    template <int32_t M>
    static void block_scores(const Work& work, int32_t query, int32_t block) {
        __m256i sums[M][kBlockVectors];
        for (int32_t m = 0; m < M; m++) {
            for (int32_t v = 0; v < kBlockVectors; v++) sums[m][v] = _mm256_setzero_si256();
        }
        const int16_t* keys = keys_of(work) + block * work.op.head_size * kKeyBlock;
        const int16_t* x = query_of(work, query);
        for (int32_t pair = 0; pair < work.op.head_size / 2; pair++, keys += 2 * kKeyBlock, x += 2) {
            Pairs numbers[kBlockVectors];
            for (int32_t v = 0; v < kBlockVectors; v++) numbers[v] = load_pairs(keys + v * 2 * kLanes);
            for (int32_t m = 0; m < M; m++) {
                const Pairs factor = splat_pair(x + m * 2 * work.width);
                for (int32_t v = 0; v < kBlockVectors; v++) sums[m][v] = add_pairs(sums[m][v], numbers[v], factor);
            }
        }
        float* const scores = work.scores + block * kKeyBlock;
        const float* const steps = key_steps(work) + block * kKeyBlock;
#pragma GCC unroll 8
        for (int32_t m = 0; m < M; m++) {
            const Floats step = splat(query_step(work, query + m));
            for (int32_t v = 0; v < kBlockVectors; v++) {
                const Floats score = mul(_mm256_cvtepi32_ps(sums[m][v]), mul(load(steps + v * kLanes), step));
                store(scores + m * kTileKeys + v * kLanes, score);
            }
        }
    }

    template <int32_t M>
    static void scores(const Work& work, const Tile&, const Tile&, int32_t query, int32_t keys) {
        for (int32_t block = 0; block * kKeyBlock < keys; block++) block_scores<M>(work, query, block);
    }

    PIO_INLINE void store_weights(const Work& work, int32_t m, int32_t v, Floats weights) {
        int16_t* const place = reinterpret_cast<int16_t*>(work.short_weights) + m * kTileKeys + v * kLanes;
        store_int16(place, weights);
    }

    template <int32_t M, int32_t C>
    PIO_INLINE void gather_columns(const Work& work, int32_t query, int32_t keys, const Shares& shares, int32_t column) {
        __m256i sums[M][C];
        for (int32_t m = 0; m < M; m++) {
            for (int32_t c = 0; c < C; c++) sums[m][c] = _mm256_setzero_si256();
        }
        const int16_t* row = values_of(work) + 2 * column;
        const auto* weights = reinterpret_cast<const int16_t*>(work.short_weights);
        for (int32_t t = 0; t < keys; t += 2, row += 2 * work.width) {
            Pairs numbers[C];
            for (int32_t c = 0; c < C; c++) numbers[c] = load_pairs(row + c * 2 * kLanes);
            for (int32_t m = 0; m < M; m++) {
                const Pairs weight = splat_pair(weights + m * kTileKeys + t);
                for (int32_t c = 0; c < C; c++) sums[m][c] = add_pairs(sums[m][c], numbers[c], weight);
            }
        }
        float* values = work.values + query * work.width + column;
        const float* const steps = value_steps(work) + column;
#pragma GCC unroll 8
        for (int32_t m = 0; m < M; m++, values += work.width) {
            const Floats of_before = splat(shares.of_before[m]), of_tile = splat(shares.of_tile[m]);
            for (int32_t c = 0; c < C; c++) {
                const Floats before = mul(load(values + c * kLanes), of_before);
                const Floats step = mul(load(steps + c * kLanes), of_tile);
                store(values + c * kLanes, fma(_mm256_cvtepi32_ps(sums[m][c]), step, before));
            }
        }
    }

    template <int32_t M>
    static void gather(const Work& work, const Tile&, const Tile&, int32_t query, int32_t keys, const Shares& shares) {
        int32_t column = 0;
        for (; column + 2 * kLanes <= work.width; column += 2 * kLanes) {
            gather_columns<M, 2>(work, query, keys, shares, column);
        }
    }
};

// Converts the keys of a tile; those past its end are anything, with steps that are.
template <uint32_t format>
void stage_int16_keys(const Work& work, const Tile& tile) {
    constexpr int32_t kBytes = bytes_of(format);
    int16_t* to = Int16Products::keys_of(work);
    for (int32_t b = 0; b * kKeyBlock < tile.keys; b++, to += work.op.head_size * kKeyBlock) {
        for (int32_t v = 0; v < kBlockVectors; v++) {
            const auto column = [&](int32_t d) __attribute__((always_inline)) {
                return widen<format>(tile.block_keys[b] + (d * kKeyBlock + v * kLanes) * kBytes);
            };
            Floats squares = splat(0.0f);
            for (int32_t d = 0; d < work.op.head_size; d++) squares = fma(column(d), column(d), squares);
            const Floats norm = max(splat(Int16Products::kLeast), _mm256_sqrt_ps(squares));
            store(Int16Products::key_steps(work) + b * kKeyBlock + v * kLanes,
                  div(norm, splat(Int16Products::kNormSteps)));
            const Floats steps = div(splat(Int16Products::kNormSteps), norm);
            for (int32_t d = 0; d < work.op.head_size; d += 2) {
                store_pairs(to + (d / 2 * kKeyBlock + v * kLanes) * 2, mul(column(d), steps), mul(column(d + 1), steps));
            }
        }
    }
}

// Converts the values of a tile; one without a partner has zeros.
template <uint32_t format>
void stage_int16_values(const Work& work, const Tile& tile) {
    constexpr int32_t kBytes = bytes_of(format);
    for (int32_t column = 0; column < work.width; column += kLanes) {
        const auto value = [&](int32_t t) __attribute__((always_inline)) {
            const int64_t offset = (t % kKeyBlock) * work.width + column;
            const Floats numbers = widen<format>(tile.block_values[t / kKeyBlock] + offset * kBytes);
            return format == kKVI8 ? mul(numbers, splat(work.value_scales[t])) : numbers;
        };
        Floats largest = splat(Int16Products::kLeast), nothing = splat(0.0f);
        for (int32_t t = 0; t < tile.keys; t++) {
            const Floats x = value(t);
            largest = max(largest, max(x, sub(splat(0.0f), x)));
            nothing = add(nothing, sub(x, x));  // unless one is not finite
        }
        largest = add(largest, nothing);
        store(Int16Products::value_steps(work) + column, div(largest, splat(Int16Products::kValueSteps)));
        const Floats steps = div(splat(Int16Products::kValueSteps), largest);
        for (int32_t t = 0; t < tile.keys; t += 2) {
            const Floats odd = t + 1 < tile.keys ? value(t + 1) : splat(0.0f);
            store_pairs(Int16Products::values_of(work) + (t / 2 * work.width + column) * 2, mul(value(t), steps),
                        mul(odd, steps));
        }
    }
}

template <uint32_t format>
void stage_int16(const Work& work, Tile& tile) {
    stage_int16_keys<format>(work, tile);
    stage_int16_values<format>(work, tile);
}

}  // namespace pio::PIO_ISA::attention
