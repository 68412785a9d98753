// Bounds of products: scalar/screen.cpp, sixteen outputs and up to kMaxScreened rows at a time.
#pragma once

#include "../sampling.h"
#include "linear.h"

namespace pio::PIO_ISA {

constexpr int kMaxScreened = 4;

// The upper six bits of the quants of a tile; see unpack_split.
class UpperTile {
   public:
    UpperTile() = default;
    PIO_INLINE_MEMBER explicit UpperTile(const uint8_t* tile) : tile_(tile) {}

    template <int Group>
    PIO_INLINE_MEMBER Bytes64 group() const {
        const Bytes64 both = load_bytes(tile_ + 64 * (Group % 4));
        const Bytes64 upper = bit_and(shift<Group < 4 ? 2 : -2>(both), broadcast_byte(0x3c));
        const Bytes64 pairs = load_bytes(tile_ + 256 + 64 * (Group / 4));
        return insert_bits(upper, shift<-2 * (Group % 4)>(pairs), broadcast_byte(3));
    }
    PIO_INLINE_MEMBER F32x16 scale() const { return load_f16(tile_ + TileTraits<kTileQ8Split>::kQuantBytes); }
    PIO_INLINE_MEMBER void forget() { asm volatile("" : "+r"(tile_)); }

   private:
    const uint8_t* tile_;
};

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

// Bounds of a strip's largest output for one row, from the products with the upper bits of its tiles and what these may be
// wrong by.
PIO_INLINE void write_bounds(const ScreenTask& task, int32_t strip, int32_t row, F32x16 estimates, F32x16 slack) {
    const Rows& x = *task.x;
    const int32_t blocks = x.stride / kTileInputs;
    const uint8_t* const tiles = strip_at<kTileQ8Split>(*task.weights, strip, blocks).tiles;
    const Outlier* outliers = x.outliers + static_cast<int64_t>(row) * blocks;
    for (int32_t i = 0; i < x.num_outliers[row]; ++i) {
        const uint8_t* tile = tiles + outliers[i].input / kTileInputs * TileTraits<kTileQ8Split>::kBytes;
        const F32x16 weights = middle_of_input(tile, outliers[i].input % kTileInputs);
        estimates = multiply_add(weights, broadcast(outliers[i].value), estimates);
    }
    // A bound that is no number says nothing.
    const F32x16 infinity = broadcast(__builtin_inff());
    const F32x16 nothing = subtract(zeros(), infinity);
    const F32x16 at_least = subtract(estimates, slack);
    const F32x16 at_most = add(estimates, slack);
    const int n = outputs_of(*task.weights, strip);
    const int64_t place = static_cast<int64_t>(row) * task.strips + strip;
    task.at_least[place] = largest_of(select_less(at_least, infinity, at_least, nothing), n);
    task.at_most[place] = largest_of(select_less(at_most, infinity, at_most, infinity), n);
}

// What a product with the upper bits starts from: minus the quant of value zero, `zero`, for each input, and the lower bits,
// which are taken for 1.5 each.
PIO_INLINE I32x16 screen_start(const QuantBlock& x, int32_t zero) {
    const int32_t sum = x.sums[0] + x.sums[1];
    return broadcast((3 * sum >> 1) - zero * sum);
}

// The bounds of strips strip, strip + share, ... (S of them) for rows [row, row + M) of a task.
template <int S, int M>
inline void screen_rows(const ScreenTask& task, int32_t strip, int32_t share, int32_t row) {
    using Traits = TileTraits<kTileQ8Split>;
    const Rows& x = *task.x;
    const int32_t blocks = x.stride / kTileInputs;
    const QuantBlock* inputs[M];
    find_rows<M>(x.blocks, blocks, {nullptr, row, true}, inputs);
    const float* slacks = task.slack + static_cast<int64_t>(row) * blocks;
    const uint8_t* tiles[S];
    for (int s = 0; s < S; ++s) tiles[s] = strip_at<kTileQ8Split>(*task.weights, strip + s * share, blocks).tiles;
    F32x16 estimates[S * M], slack[S * M];
    for (int i = 0; i < S * M; ++i) estimates[i] = slack[i] = zeros();
    for (int32_t block = 0; block < blocks; ++block) {
        const int64_t at = static_cast<int64_t>(block) * Traits::kBytes;
        const auto add_estimate = [&](int i, I32x16 product, F32x16 scale) __attribute__((always_inline)) {
            const int m = i % M;
            estimates[i] = add_product(product, scale, inputs[m][block], estimates[i]);
            slack[i] = multiply_add(absolute(scale), broadcast(slacks[m * blocks + block]), slack[i]);
        };
        if constexpr (kGroupByGroup) {
            UpperTile upper[S];
            I32x16 sums[S * M];
PIO_UNROLL
            for (int s = 0; s < S; ++s) upper[s] = UpperTile(tiles[s] + at);
PIO_UNROLL
            for (int i = 0; i < S * M; ++i) sums[i] = broadcast(0);
            const auto values = [&](int m) __attribute__((always_inline)) { return inputs[m][block].values; };
            dots<6, 0, 8, S, M>(upper, values, sums);
PIO_UNROLL
            for (int i = 0; i < S * M; ++i) {
                const I32x16 product = add(shift_left<2>(sums[i]), screen_start(inputs[i % M][block], 128));
                add_estimate(i, product, upper[i / M].scale());
            }
        } else {
            static_assert(S == 1, "a tile stays in registers");
            Bytes64 quants[8];
            unpack_split<false>(tiles[0] + at, nullptr, quants);
            const F32x16 scale = load_f16(tiles[0] + at + Traits::kQuantBytes);
PIO_UNROLL
            for (int m = 0; m < M; ++m) {
                const I32x16 start = screen_start(inputs[m][block], Traits::kZero);
                add_estimate(m, dot<8, 8>(quants, inputs[m][block].values, start), scale);
            }
        }
    }
    for (int i = 0; i < S * M; ++i) write_bounds(task, strip + i / M * share, row + i % M, estimates[i], slack[i]);
}

template <int M>
inline void screen_block(const ScreenTask& task, int32_t strip, int32_t row) {
    for (; row + M <= task.rows; row += M) screen_rows<1, M>(task, strip, 0, row);
    if constexpr (M > 1) {
        if (row < task.rows) screen_block<M / 2>(task, strip, row);
    }
}

inline void screen(const ScreenTask& task, int32_t first_strip, int32_t last_strip) {
    if constexpr (kGroupByGroup) {
        // As one_row has it
        constexpr int kStreams = 4;
        const int32_t share = (last_strip - first_strip) / kStreams;
        if (task.rows == 1) {
            for (int32_t i = 0; i < share; ++i) screen_rows<kStreams, 1>(task, first_strip + i, share, 0);
            first_strip += kStreams * share;
        }
    }
    for (int32_t strip = first_strip; strip < last_strip; ++strip) screen_block<kMaxScreened>(task, strip, 0);
}

}  // namespace pio::PIO_ISA
