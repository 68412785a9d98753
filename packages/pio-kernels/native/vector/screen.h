// Bounds of products: scalar/screen.cpp, sixteen outputs and up to kMaxScreened rows at a time.
#pragma once

#include "../sampling.h"
#include "linear.h"

namespace pio::PIO_ISA {

constexpr int kMaxScreened = 4;

// The middle of what the weight of each row and input k may be.
PIO_INLINE F32x16 middle_of_input(const uint8_t* tile, int k) {
    const F32x16 nibbles = to_float(bits_at(tile + 64 * (k / 4 % 4), 8 * (k % 4) + 4 * (k / 16), 15));
    const F32x16 upper = multiply_add(nibbles, broadcast(16.0f), pairs_of_input(tile + 256, k, 4.0f));
    return multiply(load_f16(tile + TileTraits<kTileQ8Split>::kQuantBytes), subtract(upper, broadcast(126.5f)));
}

// The largest of the n first of sixteen numbers, none of which is NaN. In whole numbers: their maximum is one instruction.
inline float largest_of(F32x16 x, int n) {
    float numbers[kTileRows];
    store(numbers, x);
    uint32_t most = ordered(-__builtin_inff());
    for (int i = 0; i < n; ++i) most = ordered(numbers[i]) > most ? ordered(numbers[i]) : most;
    return from_ordered(most);
}

// The bounds of one strip for rows [row, row + M) of a task.
template <int M>
inline void screen_rows(const ScreenTask& task, int32_t strip, int32_t row) {
    using Traits = TileTraits<kTileQ8Split>;
    const Rows& x = *task.x;
    const int32_t blocks = x.stride / kTileInputs;
    const uint8_t* const tiles = strip_at<kTileQ8Split>(*task.weights, strip, blocks).tiles;
    const QuantBlock* inputs = x.blocks + static_cast<int64_t>(row) * blocks;
    const float* slacks = task.slack + static_cast<int64_t>(row) * blocks;
    F32x16 estimates[M], slack[M];
    for (int m = 0; m < M; ++m) estimates[m] = slack[m] = zeros();
    const uint8_t* bytes = tiles;
    for (int32_t block = 0; block < blocks; ++block, bytes += Traits::kBytes) {
        Bytes64 quants[8];
        unpack_split<false>(bytes, nullptr, quants);
        const F32x16 scale = load_f16(bytes + Traits::kQuantBytes);
        const F32x16 magnitude = absolute(scale);
PIO_UNROLL
        for (int m = 0; m < M; ++m) {
            const QuantBlock& input = inputs[m * blocks + block];
            const int32_t sum = input.sums[0] + input.sums[1];
            // The lower bits are taken for 1.5 each.
            const I32x16 product = dot<8, 8>(quants, input.values, broadcast((3 * sum >> 1) - Traits::kZero * sum));
            estimates[m] = multiply_add(to_float(product), multiply(scale, broadcast(input.scale)), estimates[m]);
            slack[m] = multiply_add(magnitude, broadcast(slacks[m * blocks + block]), slack[m]);
        }
    }
    const int32_t left = task.weights->rows - kTileRows * strip;
    const int n = left < kTileRows ? left : kTileRows;
    const F32x16 infinity = broadcast(__builtin_inff());
    for (int m = 0; m < M; ++m) {
        const Outlier* outliers = x.outliers + static_cast<int64_t>(row + m) * blocks;
        for (int32_t i = 0; i < x.num_outliers[row + m]; ++i) {
            const uint8_t* tile = tiles + outliers[i].input / kTileInputs * Traits::kBytes;
            const F32x16 weights = middle_of_input(tile, outliers[i].input % kTileInputs);
            estimates[m] = multiply_add(weights, broadcast(outliers[i].value), estimates[m]);
        }
        // A bound that is no number says nothing.
        const F32x16 at_least = subtract(estimates[m], slack[m]);
        const F32x16 at_most = add(estimates[m], slack[m]);
        const F32x16 nothing = subtract(zeros(), infinity);
        const int64_t place = static_cast<int64_t>(row + m) * task.strips + strip;
        task.at_least[place] = largest_of(select_less(at_least, infinity, at_least, nothing), n);
        task.at_most[place] = largest_of(select_less(at_most, infinity, at_most, infinity), n);
    }
}

template <int M>
inline void screen_block(const ScreenTask& task, int32_t strip, int32_t row) {
    for (; row + M <= task.rows; row += M) screen_rows<M>(task, strip, row);
    if constexpr (M > 1) {
        if (row < task.rows) screen_block<M / 2>(task, strip, row);
    }
}

inline void screen(const ScreenTask& task, int32_t first_strip, int32_t last_strip) {
    for (int32_t strip = first_strip; strip < last_strip; ++strip) screen_block<kMaxScreened>(task, strip, 0);
}

}  // namespace pio::PIO_ISA
