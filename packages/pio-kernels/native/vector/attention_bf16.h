// Products of attention with pairs of bfloat16, for AVX-512 BF16. A tile is converted to
//
//   keys [4 blocks][D / 2][16][2], values [32][W][2]
//
// each of which a product takes two at a time. That rounds queries, keys and weights to 8 bits of mantissa; sums stay
// float32. A score is then within 2^-8 sum_d |q_d k_d| of the exact one, and mostly within a tenth of that.
#pragma once

#include "attention_work.h"

namespace pio::PIO_ISA::attention {

// (a_0, b_0, a_1, b_1, ...) as bfloat16
PIO_INLINE __m512i pairs_of(Floats a, Floats b) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
}

// sums + x_0 y_0 + x_1 y_1 in each lane
PIO_INLINE Floats add_pairs(Floats sums, __m512i x, __m512i y) {
    return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(y));
}

PIO_INLINE __m512i splat_pair(const uint16_t* pair) {
    int32_t bits;
    __builtin_memcpy(&bits, pair, sizeof bits);
    return _mm512_set1_epi32(bits);
}

// Converts a tile to pairs of dimensions of keys, and pairs of values; a value without a partner has zeros.
template <uint32_t format>
void stage_bf16(const Work& work, Tile& tile) {
    constexpr int32_t kBytes = bytes_of(format);
    auto* keys = reinterpret_cast<__m512i*>(work.tile_keys);
    auto* values = reinterpret_cast<__m512i*>(work.tile_values);
    for (int32_t b = 0; b * kKeyBlock < tile.keys; b++) {
        __m512i* block = keys + b * work.op.head_size / 2;
        for (int32_t d = 0; d < work.op.head_size; d += 2) {
            const uint8_t* column = tile.block_keys[b] + d * kKeyBlock * kBytes;
            const Floats even = widen<format>(column);
            _mm512_store_si512(block + d / 2, pairs_of(even, widen<format>(column + kKeyBlock * kBytes)));
        }
    }
    const int32_t row_bytes = work.width * kBytes;
    for (int32_t t = 0; t < tile.keys; t += 2) {
        const uint8_t* row = tile.block_values[t / kKeyBlock] + t % kKeyBlock * row_bytes;
        for (int32_t column = 0; column < work.width; column += kLanes) {
            const Floats even = widen<format>(row + column * kBytes);
            const Floats odd = t + 1 < tile.keys ? widen<format>(row + row_bytes + column * kBytes) : splat(0.0f);
            _mm512_store_si512(values + (t / 2 * work.width + column) / kLanes, pairs_of(even, odd));
        }
    }
}

struct BF16Products {
    static constexpr bool kRoughWeights = true;
    static constexpr bool kScaledWeights = true;
    static constexpr int32_t kTileWeightBits = 0;

    static void set_query(const Work& work, int32_t query, const float* x, float factor) {
        auto* numbers = reinterpret_cast<uint8_t*>(reinterpret_cast<uint16_t*>(work.query) + query * work.width);
        for (int32_t d = 0; d < work.op.head_size; d += 8) {
            const Floats eight = _mm512_zextps256_ps512(_mm256_loadu_ps(x + d));
            const __m256i rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(mul(eight, splat(factor))));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(numbers + d * 2), _mm256_castsi256_si128(rounded));
        }
    }

    template <int32_t M, int32_t B>
    static void block_scores(const Work& work, int32_t query) {
        Floats sums[M][B];
        for (int32_t m = 0; m < M; m++) {
            for (int32_t b = 0; b < B; b++) sums[m][b] = splat(0.0f);
        }
        const int32_t pairs = work.op.head_size / 2;
        const auto* keys = reinterpret_cast<const __m512i*>(work.tile_keys);
        const uint16_t* x = reinterpret_cast<const uint16_t*>(work.query) + query * work.width;
        for (int32_t pair = 0; pair < pairs; pair++) {
            __m512i numbers[B];
            for (int32_t b = 0; b < B; b++) numbers[b] = _mm512_load_si512(keys + b * pairs + pair);
            for (int32_t m = 0; m < M; m++) {
                const __m512i factor = splat_pair(x + m * work.width + 2 * pair);
                for (int32_t b = 0; b < B; b++) sums[m][b] = add_pairs(sums[m][b], numbers[b], factor);
            }
        }
        for (int32_t m = 0; m < M; m++) {
            for (int32_t b = 0; b < B; b++) store(work.scores + m * kTileKeys + b * kKeyBlock, sums[m][b]);
        }
    }

    template <int32_t M>
    static void scores(const Work& work, const Tile&, const Tile&, int32_t query, int32_t keys) {
        static_assert(kTileBlocks == 4);
        switch ((keys + kKeyBlock - 1) / kKeyBlock) {
            case 1: return block_scores<M, 1>(work, query);
            case 2: return block_scores<M, 2>(work, query);
            case 3: return block_scores<M, 3>(work, query);
            default: return block_scores<M, 4>(work, query);
        }
    }

    PIO_INLINE void store_weights(const Work& work, int32_t m, int32_t v, Floats weights) {
        auto* place = reinterpret_cast<__m256i*>(work.short_weights + m * kTileKeys + v * kLanes);
        _mm256_store_si256(place, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(weights)));
    }

    template <int32_t M, int32_t C>
    PIO_INLINE void gather_columns(const Work& work, int32_t query, int32_t keys, const Shares& shares,
                                   int32_t column) {
        float* values = work.values + query * work.width + column;
        Floats sums[M][C];
        for (int32_t m = 0; m < M; m++) {
            for (int32_t c = 0; c < C; c++) {
                sums[m][c] = mul(load(values + m * work.width + c * kLanes), splat(shares.of_before[m]));
            }
        }
        const int32_t vectors = work.width / kLanes;
        const auto* row = reinterpret_cast<const __m512i*>(work.tile_values) + column / kLanes;
        for (int32_t t = 0; t < keys; t += 2, row += vectors) {
            __m512i numbers[C];
            for (int32_t c = 0; c < C; c++) numbers[c] = _mm512_load_si512(row + c);
            for (int32_t m = 0; m < M; m++) {
                const __m512i weights = splat_pair(work.short_weights + m * kTileKeys + t);
                for (int32_t c = 0; c < C; c++) sums[m][c] = add_pairs(sums[m][c], numbers[c], weights);
            }
        }
        for (int32_t m = 0; m < M; m++) {
            for (int32_t c = 0; c < C; c++) store(values + m * work.width + c * kLanes, sums[m][c]);
        }
    }

    template <int32_t M>
    static void gather(const Work& work, const Tile&, const Tile&, int32_t query, int32_t keys, const Shares& shares) {
        int32_t column = 0;
        for (; column + 4 * kLanes <= work.width; column += 4 * kLanes) {
            gather_columns<M, 4>(work, query, keys, shares, column);
        }
        for (; column + 2 * kLanes <= work.width; column += 2 * kLanes) {
            gather_columns<M, 2>(work, query, keys, shares, column);
        }
        for (; column < work.width; column += kLanes) gather_columns<M, 1>(work, query, keys, shares, column);
    }
};

}  // namespace pio::PIO_ISA::attention
