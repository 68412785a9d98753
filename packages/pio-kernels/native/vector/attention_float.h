// Products of attention with numbers of any format as float32.
#pragma once

#include "attention_work.h"

namespace pio::PIO_ISA::attention {

template <uint32_t format>
struct FloatProducts {
    static constexpr int32_t kBytes = bytes_of(format);
    static constexpr bool kRoughWeights = false;
    static constexpr bool kScaledWeights = true;
    static constexpr int32_t kTileWeightBits = 0;

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

    PIO_INLINE void store_weights(const Work& work, int32_t m, int32_t v, Floats weights) {
        store(work.scores + m * kTileKeys + v * kLanes, weights);
    }

    // Adds the first `keys` values of the tile to the sums of M queries, in C vectors of columns from `column` on.
    template <int32_t M, int32_t C>
    PIO_INLINE void gather_columns(const Work& work, const Tile& tile, const Tile& next, int32_t query, int32_t keys,
                                   const Shares& shares, int32_t column) {
        float* values = work.values + query * work.width + column;
        Floats sums[M][C];
        for (int32_t m = 0; m < M; m++) {
            for (int32_t c = 0; c < C; c++) {
                sums[m][c] = mul(load(values + m * work.width + c * kLanes), splat(shares.of_before[m]));
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
                       const Shares& shares) {
        int32_t column = 0;
        for (; column + kValueVectors * kLanes <= work.width; column += kValueVectors * kLanes) {
            gather_columns<M, kValueVectors>(work, tile, next, query, keys, shares, column);
        }
        for (; column < work.width; column += kLanes) {
            gather_columns<M, 1>(work, tile, next, query, keys, shares, column);
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

}  // namespace pio::PIO_ISA::attention
