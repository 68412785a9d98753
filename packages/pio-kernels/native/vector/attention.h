// Attention over pages of keys and values, in tiles of 64 keys with the softmax taken along (Dao et al. 2022,
// arXiv:2205.14135; the running softmax is Milakov and Gimelshein 2018, arXiv:1805.02867).
//
// The query vectors of an item are those of its rows and of the query heads that share its KV head. For each tile of
// keys, groups of up to 6 of them go through
//
//   scores   S = Q K^T         6 x 64 numbers in registers: a vector of 16 keys times one number of each query
//   weigh    m' = max(m, max S); P = 2^(S - m'); sums of P; the factor 2^(m - m') for what was summed before
//   gather   O = 2^(m - m') O + P V      6 x 64 numbers in registers: a vector of 16 dimensions times a weight of each
//
// Scores are in units of ln 2, so that weights are powers of two; the factor is part of the query.
//
// A few queries (decode) read keys and values straight from the pages, each once, and ask for those of the next tile
// ahead of time: memory bounds them. Many queries (prefill) have the tile converted first, into memory that the first
// cache level holds: to float32, or where the processor multiplies them (AVX-512 BF16) to pairs of bfloat16,
//
//   keys [4 blocks][D / 2][16][2], values [32][W][2]
//
// each of which a product takes two at a time. That rounds queries, keys and weights to 8 bits of mantissa; sums stay
// float32. A score is then within 2^-8 sum_d |q_d k_d| of the exact one, and mostly within a tenth of that. A float32
// cache is read as it is, by few queries and by many: its products are float32.
#pragma once

#include "attention_simd.h"

namespace pio::PIO_ISA::attention {

constexpr float kLog2E = 1.442695041f;
constexpr float kNoScore = -1e30f;      // below any score: 2^(kNoScore - m) vanishes
constexpr float kHidden = -3e38f;       // the score of a key that a query does not see
constexpr int32_t kDirectQueries = 8;   // that read the pages themselves
constexpr int32_t kTileBlocks = kTileKeys / kKeyBlock;
constexpr int32_t kBlockVectors = kKeyBlock / kLanes;
constexpr int32_t kTileVectors = kTileKeys / kLanes;

// Vectors of keys, and of a value, that are summed at once: together with 6 queries they fill the registers.
#if defined(__AVX512F__)
constexpr int32_t kScoreBlocks = 4;
constexpr int32_t kValueVectors = 4;
#elif defined(__AVX2__)
constexpr int32_t kScoreBlocks = 1;
constexpr int32_t kValueVectors = 2;
#else
constexpr int32_t kScoreBlocks = 1;
constexpr int32_t kValueVectors = 4;
#endif

// Into the second cache level: the tile at hand fills the first.
PIO_INLINE void prefetch(const uint8_t* address) { __builtin_prefetch(address, 0, 2); }

constexpr int32_t bytes_of(uint32_t format) { return format == kKVF32 ? 4 : format == kKVI8 ? 1 : 2; }

// Up to 64 keys and values from position `first` on.
struct Tile {
    int32_t first;
    int32_t keys;
    const uint8_t* block_keys[kTileBlocks];
    const uint8_t* block_values[kTileBlocks];
    const float* block_scales[kTileBlocks];  // of keys; those of values follow a page's
};

// An item and its scratch. Arrays begin at multiples of 64 bytes.
struct Work {
    const AttentionTask& task;
    const AttentionItem& item;
    const AttentionItem* following;  // what this thread probably attends for next, or null
    const AttentionOp& op;
    PageLayout layout;
    int32_t width;    // W, of a row of `query` and `values`
    int32_t queries;  // M
    float* query;           // (M, W) float32, or bfloat16
    float* values;          // (M, W) sum of weights times values
    float* weights;         // (M, kLanes) sums of weights, to be summed
    float* largest;         // (M,) largest score
    int32_t* positions;     // (M,)
    float* scores;          // (6, 64) of one group of queries, then their weights
    uint16_t* short_weights;  // (6, 64) in bfloat16
    uint8_t* tile_keys;
    uint8_t* tile_values;
    float* key_scales;    // (64,)
    float* value_scales;  // (64,)
};

template <class Number>
Number* take(uint8_t*& scratch, int64_t bytes) {
    auto* array = reinterpret_cast<Number*>(scratch);
    scratch += (bytes + 63) / 64 * 64;
    return array;
}

Work work_of(const AttentionTask& task, const AttentionItem& item, const AttentionItem* following, uint8_t* scratch) {
    const AttentionOp& op = *task.op;
    const PageLayout layout = page_layout(op.cache->format, op.cache->page_size, op.head_size);
    const int32_t width = layout.value_width;
    const int32_t queries = (item.row_end - item.row_begin) * group_size(op);
    const int64_t row = static_cast<int64_t>(width) * 4;
    constexpr int64_t kScores = kMaxTileQueries * kTileKeys * 4;
    scratch += -reinterpret_cast<uintptr_t>(scratch) & 63;
    return {task,
            item,
            following,
            op,
            layout,
            width,
            queries,
            take<float>(scratch, queries * row),
            take<float>(scratch, queries * row),
            take<float>(scratch, queries * static_cast<int64_t>(sizeof(Floats))),
            take<float>(scratch, queries * 4),
            take<int32_t>(scratch, queries * 4),
            take<float>(scratch, kScores),
            take<uint16_t>(scratch, kScores / 2),
            take<uint8_t>(scratch, kTileKeys * row),
            take<uint8_t>(scratch, kTileKeys * row),
            take<float>(scratch, kTileKeys * 4),
            take<float>(scratch, kTileKeys * 4)};
}

// The tile of an item's keys from position `first` on.
Tile tile_at(const Work& work, const AttentionItem& item, int32_t first) {
    const LayerCache& cache = *work.op.cache;
    const GroupTables& tables = work.task.batch->groups[cache.group];
    const int32_t* pages = tables.block_tables + item.sequence * tables.stride;
    const PageLayout& layout = work.layout;
    const int32_t left = item.key_end - first;
    Tile tile;
    tile.first = first;
    tile.keys = left < kTileKeys ? left : kTileKeys;
    for (int32_t b = 0; b < kTileBlocks; b++) {
        // Blocks past the end are the last one again: nobody looks at their scores.
        const int32_t position = first + (b * kKeyBlock < tile.keys ? b : (tile.keys - 1) / kKeyBlock) * kKeyBlock;
        const int32_t offset = position % cache.page_size;
        const uint8_t* head = cache.pages + pages[position / cache.page_size] * cache.page_bytes +
                              item.kv_head * layout.head_bytes;
        tile.block_keys[b] = head + static_cast<int64_t>(offset) * work.op.head_size * layout.element_bytes;
        tile.block_values[b] =
            head + layout.values + static_cast<int64_t>(offset) * layout.value_width * layout.element_bytes;
        tile.block_scales[b] = reinterpret_cast<const float*>(head + layout.scales) + offset;
    }
    return tile;
}

// Scales of int8 keys and values lie in several pages; here they come together, zero where there is no key.
void copy_scales(const Work& work, const Tile& tile) {
    for (int32_t t = 0; t < kTileKeys; t++) {
        const float* scales = tile.block_scales[t / kKeyBlock] + t % kKeyBlock;
        work.key_scales[t] = t < tile.keys ? scales[0] : 0.0f;
        work.value_scales[t] = t < tile.keys ? scales[work.op.cache->page_size] : 0.0f;
    }
}

// --- Products with float32 sums, from numbers of any format ---

template <uint32_t format>
struct FloatProducts {
    static constexpr int32_t kBytes = bytes_of(format);
    static constexpr bool kShortWeights = false;

    static void set_query(const Work& work, int32_t query, const float* x, float factor) {
        for (int32_t d = 0; d < work.op.head_size; d++) work.query[query * work.width + d] = factor * x[d];
    }

    // Scores of M queries and the keys of B blocks, and a prefetch of the same blocks of the next tile.
    template <int32_t M, int32_t B>
    PIO_INLINE void block_scores(const Work& work, const Tile& tile, const Tile& next, int32_t query, int32_t block) {
        Floats sums[M][B * kBlockVectors];
        for (int32_t m = 0; m < M; m++) {
            for (int32_t v = 0; v < B * kBlockVectors; v++) sums[m][v] = splat(0.0f);
        }
        const float* x = work.query + query * work.width;
        const int64_t pair_bytes = 2 * kKeyBlock * kBytes;
        for (int32_t pair = 0; pair < work.op.head_size / 2; pair++, x += 2) {
            for (int32_t b = 0; b < B; b++) prefetch(next.block_keys[block + b] + pair * pair_bytes);
#pragma GCC unroll 2
            for (int32_t d = 0; d < 2; d++) {
                Floats keys[B * kBlockVectors];
                for (int32_t v = 0; v < B * kBlockVectors; v++) {
                    const uint8_t* column = tile.block_keys[block + v / kBlockVectors] + pair * pair_bytes;
                    keys[v] = widen<format>(column + (d * kKeyBlock + v % kBlockVectors * kLanes) * kBytes);
                }
                for (int32_t m = 0; m < M; m++) {
                    const Floats number = splat(x[m * work.width + d]);
                    for (int32_t v = 0; v < B * kBlockVectors; v++) sums[m][v] = fma(keys[v], number, sums[m][v]);
                }
            }
        }
        for (int32_t m = 0; m < M; m++) {
            for (int32_t v = 0; v < B * kBlockVectors; v++) {
                store(work.scores + m * kTileKeys + block * kKeyBlock + v * kLanes, sums[m][v]);
            }
        }
    }

    template <int32_t M>
    static void scores(const Work& work, const Tile& tile, const Tile& next, int32_t query, int32_t keys) {
        const int32_t blocks = (keys + kKeyBlock - 1) / kKeyBlock;
        int32_t block = 0;
        for (; block + kScoreBlocks <= blocks; block += kScoreBlocks) {
            block_scores<M, kScoreBlocks>(work, tile, next, query, block);
        }
        for (; block < blocks; block++) block_scores<M, 1>(work, tile, next, query, block);
    }

    // Adds the first `keys` values of the tile to the sums of M queries, in C vectors of columns from `column` on.
    template <int32_t M, int32_t C>
    PIO_INLINE void gather_columns(const Work& work, const Tile& tile, const Tile& next, int32_t query, int32_t keys,
                                   const float* factors, int32_t column) {
        float* values = work.values + query * work.width + column;
        Floats sums[M][C];
        for (int32_t m = 0; m < M; m++) {
            for (int32_t c = 0; c < C; c++) {
                sums[m][c] = mul(load(values + m * work.width + c * kLanes), splat(factors[m]));
            }
        }
        const int64_t row_bytes = work.width * static_cast<int64_t>(kBytes);
        for (int32_t t = 0; t < keys; t++) {
            const int64_t offset = (t % kKeyBlock) * row_bytes + column * kBytes;
            const uint8_t* row = tile.block_values[t / kKeyBlock] + offset;
            for (int32_t line = 0; line < C * kLanes * kBytes; line += 64) {
                prefetch(next.block_values[t / kKeyBlock] + offset + line);
            }
            Floats numbers[C];
            for (int32_t c = 0; c < C; c++) numbers[c] = widen<format>(row + c * kLanes * kBytes);
            for (int32_t m = 0; m < M; m++) {
                const Floats weight = splat(work.scores[m * kTileKeys + t]);
                for (int32_t c = 0; c < C; c++) sums[m][c] = fma(numbers[c], weight, sums[m][c]);
            }
        }
        for (int32_t m = 0; m < M; m++) {
            for (int32_t c = 0; c < C; c++) store(values + m * work.width + c * kLanes, sums[m][c]);
        }
    }

    template <int32_t M>
    static void gather(const Work& work, const Tile& tile, const Tile& next, int32_t query, int32_t keys,
                       const float* factors) {
        int32_t column = 0;
        for (; column + kValueVectors * kLanes <= work.width; column += kValueVectors * kLanes) {
            gather_columns<M, kValueVectors>(work, tile, next, query, keys, factors, column);
        }
        for (; column < work.width; column += kLanes) {
            gather_columns<M, 1>(work, tile, next, query, keys, factors, column);
        }
    }
};

// Converts a tile to float32: [4 blocks][D][16] keys, [64][W] values.
template <uint32_t format>
void stage_floats(const Work& work, Tile& tile) {
    constexpr int32_t kBytes = bytes_of(format);
    auto* keys = reinterpret_cast<float*>(work.tile_keys);
    auto* values = reinterpret_cast<float*>(work.tile_values);
    const int32_t block_keys = work.op.head_size * kKeyBlock;
    const int32_t block_values = work.width * kKeyBlock;
    for (int32_t b = 0; b * kKeyBlock < tile.keys; b++) {
        for (int32_t i = 0; i < block_keys; i += kLanes) {
            store(keys + b * block_keys + i, widen<format>(tile.block_keys[b] + i * kBytes));
        }
        for (int32_t i = 0; i < block_values; i += kLanes) {
            store(values + b * block_values + i, widen<format>(tile.block_values[b] + i * kBytes));
        }
    }
    for (int32_t b = 0; b < kTileBlocks; b++) {
        tile.block_keys[b] = reinterpret_cast<const uint8_t*>(keys + b * block_keys);
        tile.block_values[b] = reinterpret_cast<const uint8_t*>(values + b * block_values);
    }
}

// --- Products of bfloat16 pairs ---

#if defined(__AVX512BF16__)

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
void stage_pairs(const Work& work, Tile& tile) {
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

struct PairProducts {
    static constexpr bool kShortWeights = true;

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

    template <int32_t M, int32_t C>
    PIO_INLINE void gather_columns(const Work& work, int32_t query, int32_t keys, const float* factors,
                                   int32_t column) {
        float* values = work.values + query * work.width + column;
        Floats sums[M][C];
        for (int32_t m = 0; m < M; m++) {
            for (int32_t c = 0; c < C; c++) {
                sums[m][c] = mul(load(values + m * work.width + c * kLanes), splat(factors[m]));
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
    static void gather(const Work& work, const Tile&, const Tile&, int32_t query, int32_t keys, const float* factors) {
        int32_t column = 0;
        for (; column + 4 * kLanes <= work.width; column += 4 * kLanes) {
            gather_columns<M, 4>(work, query, keys, factors, column);
        }
        for (; column + 2 * kLanes <= work.width; column += 2 * kLanes) {
            gather_columns<M, 2>(work, query, keys, factors, column);
        }
        for (; column < work.width; column += kLanes) gather_columns<M, 1>(work, query, keys, factors, column);
    }
};

#endif

// --- Softmax ---

// Scales of int8 keys, the soft cap, and kHidden for keys outside of [begin, end), on the scores of one query.
inline void adjust_scores(const Work& work, float* row, int32_t begin, int32_t end) {
    const bool scaled = work.op.cache->format == kKVI8;
    const float softcap = work.op.softcap;
    for (int32_t t = 0; t < kTileKeys; t += kLanes) {
        Floats scores = load(row + t);
        if (scaled) scores = mul(scores, load(work.key_scales + t));
        if (softcap > 0) scores = mul(tangent(scores), splat(softcap * kLog2E));
        store(row + t, keep_range(scores, t, begin, end, kHidden));
    }
}

// Finishes the scores of M queries and takes their largest along:
// factors[m] = 2^(the largest before - the largest now).
template <int32_t M>
void finish_scores(const Work& work, const Tile& tile, int32_t query, float* factors) {
    const bool changed = work.op.cache->format == kKVI8 || work.op.softcap > 0;
    for (int32_t m = 0; m < M; m++) {
        float* row = work.scores + m * kTileKeys;
        const int32_t seen = work.positions[query + m] + 1 - tile.first;
        const int32_t end = seen < tile.keys ? seen : tile.keys;
        const int32_t begin = work.op.window > 0 ? seen - work.op.window : 0;
        if (changed || begin > 0 || end < kTileKeys) adjust_scores(work, row, begin, end);
        Floats largest = load(row);
        for (int32_t t = kLanes; t < kTileKeys; t += kLanes) largest = max(largest, load(row + t));
        const float before = work.largest[query + m];
        const float now = max_of(largest);
        work.largest[query + m] = now > before ? now : before;
        factors[m] = before - work.largest[query + m];
    }
    for (int32_t m = 0; m < M; m += kLanes) store(factors + m, power_of_two(load(factors + m)));
}

// Weights of M queries from their scores, in place or as bfloat16, and their sums.
template <int32_t M, bool kShortWeights>
void weigh(const Work& work, int32_t query, const float* factors) {
    const bool scaled = work.op.cache->format == kKVI8;
    for (int32_t m = 0; m < M; m++) {
        float* row = work.scores + m * kTileKeys;
        float* sums = work.weights + (query + m) * kLanes;
        const Floats largest = splat(work.largest[query + m]);
        Floats sum = mul(load(sums), splat(factors[m]));
        for (int32_t v = 0; v < kTileVectors; v++) {
            Floats weights = power_of_two<kShortWeights>(sub(load(row + v * kLanes), largest));
            sum = add(sum, weights);
            if (scaled) weights = mul(weights, load(work.value_scales + v * kLanes));
#if defined(__AVX512BF16__)
            if constexpr (kShortWeights) {
                auto* place = reinterpret_cast<__m256i*>(work.short_weights + m * kTileKeys + v * kLanes);
                _mm256_store_si256(place, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(weights)));
                continue;
            }
#endif
            store(row + v * kLanes, weights);
        }
        store(sums, sum);
    }
}

// --- Items ---

template <class Products, int32_t M>
void attend_group(const Work& work, const Tile& tile, const Tile& next, int32_t query) {
    const int32_t seen = work.positions[query + M - 1] + 1 - tile.first;  // by the last query, which sees furthest
    const int32_t keys = seen < tile.keys ? seen : tile.keys;
    const bool left_behind = work.op.window > 0 && work.positions[query] - work.op.window >= tile.first + tile.keys - 1;
    if (keys <= 0 || left_behind) return;
    alignas(64) float factors[16] = {};
    Products::template scores<M>(work, tile, next, query, keys);  // of later keys they stay what they are: hidden below
    finish_scores<M>(work, tile, query, factors);
    weigh<M, Products::kShortWeights>(work, query, factors);
    Products::template gather<M>(work, tile, next, query, keys, factors);
}

// All queries of an item over one tile, in groups of nearly equal size.
template <class Products>
void attend_tile(const Work& work, const Tile& tile, const Tile& next) {
    int32_t groups = (work.queries + kMaxTileQueries - 1) / kMaxTileQueries;
    for (int32_t query = 0; query < work.queries; groups--) {
        const int32_t size = (work.queries - query + groups - 1) / groups;
        switch (size) {
            case 1: attend_group<Products, 1>(work, tile, next, query); break;
            case 2: attend_group<Products, 2>(work, tile, next, query); break;
            case 3: attend_group<Products, 3>(work, tile, next, query); break;
            case 4: attend_group<Products, 4>(work, tile, next, query); break;
            case 5: attend_group<Products, 5>(work, tile, next, query); break;
            default: attend_group<Products, 6>(work, tile, next, query); break;
        }
        query += size;
    }
}

template <class Products>
void start(const Work& work) {
    const AttentionOp& op = work.op;
    const int32_t group = group_size(op);
    const float factor = op.softcap > 0 ? op.scale / op.softcap : op.scale * kLog2E;
    for (int32_t query = 0; query < work.queries; query++) {
        const int32_t row = work.item.row_begin + query / group;
        const int32_t head = work.item.kv_head * group + query % group;
        Products::set_query(work, query, work.task.qkv + row * work.task.qkv_stride + head * op.head_size, factor);
        for (int32_t d = 0; d < work.width; d++) work.values[query * work.width + d] = 0.0f;
        store(work.weights + query * kLanes, splat(0.0f));
        work.largest[query] = kNoScore;
        work.positions[query] = static_cast<int32_t>(work.task.batch->positions[row]);
    }
}

using Stage = void (*)(const Work& work, Tile& tile);

// `stage` converts each tile to what Products read; null if they read pages.
template <class Products>
void attend_item(const Work& work, Stage stage) {
    start<Products>(work);
    const bool scaled = work.op.cache->format == kKVI8;
    const AttentionItem& item = work.item;
    Tile tile = tile_at(work, item, item.key_begin);
    for (int32_t first = tile.first; first < item.key_end; first += kTileKeys) {
        const Tile next = first + kTileKeys < item.key_end ? tile_at(work, item, first + kTileKeys)
                          : work.following != nullptr      ? tile_at(work, *work.following, work.following->key_begin)
                                                           : tile;
        if (scaled) copy_scales(work, tile);
        if (stage != nullptr) stage(work, tile);
        attend_tile<Products>(work, tile, next);
        tile = next;
    }
}

template <uint32_t format>
void attend_format(const Work& work) {
    if (format == kKVF32 || work.queries <= kDirectQueries) {
        attend_item<FloatProducts<format>>(work, nullptr);
    } else {
#if defined(__AVX512BF16__)
        attend_item<PairProducts>(work, stage_pairs<format>);
#else
        attend_item<FloatProducts<kKVF32>>(work, stage_floats<format>);
#endif
    }
}

float power_of_two(float x) {
    float powers[kLanes];
    store(powers, power_of_two(splat(x)));
    return powers[0];
}

// out = factor * values / (factor * weight), a sink being one more score that takes weight
void finish_query(const AttentionOp& op, int32_t head, float largest, float weight, const float* values, float* out) {
    float factor = 1.0f;
    if (op.sinks != nullptr) {
        const float sink = op.sinks[head] * kLog2E;
        const float now = sink > largest ? sink : largest;
        factor = power_of_two(largest - now);
        weight = weight * factor + power_of_two(sink - now);
    }
    const float scale = factor / weight;
    for (int32_t d = 0; d < op.head_size; d++) out[d] = scale * values[d];
}

float* output_of(const AttentionTask& task, const AttentionItem& item, int32_t query, int32_t& head) {
    const int32_t group = group_size(*task.op);
    head = item.kv_head * group + query % group;
    return task.out + (item.row_begin + query / group) * task.out_stride + head * task.op->head_size;
}

// --- Writing keys and values ---

void normalise(const Norm& norm, float* x, int32_t n) {
    if (norm.weight == nullptr) return;
    Floats squares = splat(0.0f);
    int32_t i = 0;
    for (; i + kLanes <= n; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
    float sum = sum_of(squares);
    for (; i < n; i++) sum += x[i] * x[i];
    const float factor = 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + norm.eps);
    for (i = 0; i < n; i++) x[i] = x[i] * factor * (norm.weight[i] + norm.offset);
}

void turn_halves(const float* rotary, int32_t pairs, float* __restrict a, float* __restrict b) {
    for (int32_t i = 0; i < pairs; i++) {
        const float turned = a[i] * rotary[i] - b[i] * rotary[pairs + i];
        b[i] = b[i] * rotary[i] + a[i] * rotary[pairs + i];
        a[i] = turned;
    }
}

void turn_neighbours(const float* rotary, int32_t pairs, float* x) {
    for (int32_t i = 0; i < pairs; i++) {
        const float a = x[2 * i];
        const float b = x[2 * i + 1];
        x[2 * i] = a * rotary[i] - b * rotary[pairs + i];
        x[2 * i + 1] = b * rotary[i] + a * rotary[pairs + i];
    }
}

// Norms and turns one head of a row.
void prepare_head(const AttentionTask& task, int32_t row, const Norm& norm, float* x) {
    const AttentionOp& op = *task.op;
    normalise(norm, x, op.head_size);
    if (task.rotary == nullptr) return;
    const float* rotary = task.rotary + static_cast<int64_t>(row) * 2 * op.pairs;
    if (op.interleaved != 0) {
        turn_neighbours(rotary, op.pairs, x);
    } else {
        turn_halves(rotary, op.pairs, x, x + op.pairs);
    }
}

// 16 numbers of x from d on, zero from n on, divided by `scale`, in `format`.
template <uint32_t format>
PIO_INLINE void narrow_block(const float* x, int32_t d, int32_t n, float scale, uint8_t* block) {
    alignas(64) float numbers[kKeyBlock] = {};
    const int32_t left = n - d < kKeyBlock ? n - d : kKeyBlock;
    for (int32_t i = 0; i < left; i++) numbers[i] = x[d + i];
    for (int32_t v = 0; v < kBlockVectors; v++) {
        const Floats part = load(numbers + v * kLanes);
        narrow<format>(format == kKVI8 ? div(part, splat(scale)) : part, block + v * kLanes * bytes_of(format));
    }
}

// Symmetric int8: the largest magnitude becomes 127. One for zeros, for them to stay zero.
inline float scale_of(const float* x, int32_t n) {
    float largest = 0.0f;
    for (int32_t i = 0; i < n; i++) {
        const float magnitude = __builtin_fabsf(x[i]);
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest > 0 ? largest / 127.0f : 1.0f;
}

template <uint32_t format>
void write_slot(const AttentionOp& op, int64_t slot, int32_t kv_head, const float* key, const float* value) {
    constexpr int32_t kBytes = bytes_of(format);
    const LayerCache& cache = *op.cache;
    const PageLayout layout = page_layout(format, cache.page_size, op.head_size);
    const int64_t offset = slot % cache.page_size;
    const int64_t lane = offset % kKeyBlock;
    uint8_t* head = cache.pages + slot / cache.page_size * cache.page_bytes + kv_head * layout.head_bytes;
    uint8_t* key_block = head + (offset - lane) * op.head_size * kBytes + lane * kBytes;
    uint8_t* value_row = head + layout.values + offset * layout.value_width * kBytes;
    float key_scale = 1.0f;
    float value_scale = 1.0f;
    if (format == kKVI8) {
        float* scales = reinterpret_cast<float*>(head + layout.scales) + offset;
        scales[0] = key_scale = scale_of(key, op.head_size);
        scales[cache.page_size] = value_scale = scale_of(value, op.head_size);
    }
    for (int32_t d = 0; d < op.head_size; d += kKeyBlock) {
        alignas(64) uint8_t block[kKeyBlock * kBytes];
        narrow_block<format>(key, d, op.head_size, key_scale, block);
        const int32_t left = op.head_size - d < kKeyBlock ? op.head_size - d : kKeyBlock;
        for (int32_t i = 0; i < left; i++) {
            uint8_t* place = key_block + (d + i) * static_cast<int64_t>(kKeyBlock) * kBytes;
            __builtin_memcpy(place, block + i * kBytes, kBytes);
        }
        narrow_block<format>(value, d, op.head_size, value_scale, value_row + d * kBytes);
    }
}

// --- The kernels ---

void write_kv(const AttentionTask& task, int32_t row, int32_t kv_head) {
    const AttentionOp& op = *task.op;
    const int32_t group = group_size(op);
    float* heads = task.qkv + row * task.qkv_stride;
    float* key = heads + (op.heads + kv_head) * static_cast<int64_t>(op.head_size);
    const float* value = key + op.kv_heads * static_cast<int64_t>(op.head_size);
    for (int32_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
        prepare_head(task, row, op.query_norm, heads + head * static_cast<int64_t>(op.head_size));
    }
    prepare_head(task, row, op.key_norm, key);
    const int64_t slot = task.batch->groups[op.cache->group].slots[row];
    switch (op.cache->format) {
        case kKVF16: write_slot<kKVF16>(op, slot, kv_head, key, value); break;
        case kKVBF16: write_slot<kKVBF16>(op, slot, kv_head, key, value); break;
        case kKVI8: write_slot<kKVI8>(op, slot, kv_head, key, value); break;
        default: write_slot<kKVF32>(op, slot, kv_head, key, value); break;
    }
}

void attend(const AttentionTask& task, const AttentionItem& item, const AttentionItem* following, uint8_t* scratch,
            float* partials) {
    const AttentionOp& op = *task.op;
    const Work work = work_of(task, item, following, scratch);
    switch (op.cache->format) {
        case kKVF16: attend_format<kKVF16>(work); break;
        case kKVBF16: attend_format<kKVBF16>(work); break;
        case kKVI8: attend_format<kKVI8>(work); break;
        default: attend_format<kKVF32>(work); break;
    }
    for (int32_t query = 0; query < work.queries; query++) {
        const float weight = sum_of(load(work.weights + query * kLanes));
        const float* values = work.values + query * work.width;
        if (item.partial < 0) {
            int32_t head;
            float* out = output_of(task, item, query, head);
            finish_query(op, head, work.largest[query], weight, values, out);
        } else {
            float* partial = partials + item.partial * attention_partial(op) + query * partial_stride(op);
            partial[0] = work.largest[query];
            partial[1] = weight;
            for (int32_t d = 0; d < work.width; d++) partial[2 + d] = values[d];
        }
    }
}

void merge(const AttentionTask& task, const AttentionItem& item, const float* partials) {
    const AttentionOp& op = *task.op;
    const int64_t stride = attention_partial(op);
    const int32_t queries = (item.row_end - item.row_begin) * group_size(op);
    for (int32_t query = 0; query < queries; query++) {
        const float* first = partials + item.partial * stride + query * partial_stride(op);
        float largest = kNoScore;
        for (int32_t p = 0; p < item.parts; p++) largest = first[p * stride] > largest ? first[p * stride] : largest;
        int32_t head;
        float* out = output_of(task, item, query, head);
        float weight = 0.0f;
        for (int32_t d = 0; d < op.head_size; d++) out[d] = 0.0f;
        for (int32_t p = 0; p < item.parts; p++) {
            const float* part = first + p * stride;
            const float factor = power_of_two(part[0] - largest);
            weight += factor * part[1];
            for (int32_t d = 0; d < op.head_size; d++) out[d] += factor * part[2 + d];
        }
        finish_query(op, head, largest, weight, out, out);
    }
}

}  // namespace pio::PIO_ISA::attention

namespace pio::PIO_ISA {

using attention::attend;
using attention::merge;
using attention::write_kv;

}  // namespace pio::PIO_ISA
