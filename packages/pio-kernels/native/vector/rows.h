// Kernels over single rows of float32: scalar/rows.cpp and scalar/norm.cpp, sixteen numbers at a time.
#pragma once

#include "../scalar/scalar.h"
#include "simd.h"

namespace pio::PIO_ISA {

// One row of a table per token is too little work to be written anew.
using scalar::embed;

// sum x^2: one partial sum per lane
inline float sum_of_squares(const float* x, int32_t columns) {
    F32x16 squares = zeros();
    int32_t i = 0;
    for (; i + 16 <= columns; i += 16) {
        const F32x16 v = load(x + i);
        squares = multiply_add(v, v, squares);
    }
    if (i < columns) {
        const F32x16 v = load(x + i, columns - i);
        squares = multiply_add(v, v, squares);
    }
    return sum(squares);
}

inline void norm(const float* x, const Norm& norm, int32_t columns, float* y) {
    const float mean = sum_of_squares(x, columns) / static_cast<float>(columns);
    const F32x16 factor = divide(broadcast(1.0f), square_root(broadcast(mean + norm.eps)));
    const F32x16 offset = broadcast(norm.offset);
    int32_t i = 0;
    for (; i + 16 <= columns; i += 16) {
        store(y + i, multiply(multiply(load(x + i), factor), add(load(norm.weight + i), offset)));
    }
    if (i < columns) {
        const int n = columns - i;
        const F32x16 weight = add(load(norm.weight + i, n), offset);
        store(y + i, multiply(multiply(load(x + i, n), factor), weight), n);
    }
}

// Bits of the largest magnitude: they order as the magnitudes do, and those of NaN come last.
PIO_INLINE int32_t largest_magnitude(F32x16 low, F32x16 high) {
    return largest(maximum(bits_of(absolute(low)), bits_of(absolute(high))));
}

PIO_INLINE float float_of_bits(int32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

// Inputs 32 block to 32 block + 31 of a row; what is beyond its columns is zero.
struct InputBlock {
    F32x16 low, high;
};

PIO_INLINE InputBlock load_block(const float* x, int32_t columns, int32_t block) {
    const float* const inputs = x + 32 * block;
    const int32_t left = columns - 32 * block;
    if (left >= 32) return {load(inputs), load(inputs + 16)};
    if (left > 16) return {load(inputs), load(inputs + 16, left - 16)};
    return {load(inputs, left), zeros()};
}

PIO_INLINE void keep_apart(int32_t input, float value, int32_t row, Rows& out) {
    Outlier* outliers = out.outliers + static_cast<int64_t>(row) * (out.stride / 32);
    outliers[out.num_outliers[row]++] = {input, value};
}

// Keeps the outlier of a block apart, if there is one; see scalar/rows.cpp. Returns the largest magnitude of the rest,
// where that of all is `magnitude`.
PIO_INLINE float find_outlier(const InputBlock& x, float magnitude, int32_t row, int32_t block, Rows& out) {
    const F32x16 most = broadcast(magnitude);
    const F32x16 ratio = broadcast(kOutlierRatio);
    const uint32_t large = at_least(multiply(absolute(x.low), ratio), most) |
                           at_least(multiply(absolute(x.high), ratio), most) << 16;
    if ((large & (large - 1)) != 0) return magnitude;  // the largest is not the only one
    const F32x16 low_rest = select_less(absolute(x.low), most, x.low, zeros());
    const F32x16 high_rest = select_less(absolute(x.high), most, x.high, zeros());
    const float second = float_of_bits(largest_magnitude(low_rest, high_rest));
    if (second < kSmallestBlock) return magnitude;
    const int apart = __builtin_ctz(large);
    float inputs[32];
    store(inputs, x.low);
    store(inputs + 16, x.high);
    keep_apart(32 * block + apart, inputs[apart], row, out);
    return second;
}

// Rounds a block to steps of which `inverse` is one divided by; inputs beyond `magnitude` are zero.
template <bool Outliers>
PIO_INLINE void round_block(InputBlock x, float magnitude, float inverse, QuantBlock& to) {
    if constexpr (Outliers) {
        const F32x16 most = broadcast(magnitude);
        x.low = select_less(most, absolute(x.low), zeros(), x.low);
        x.high = select_less(most, absolute(x.high), zeros(), x.high);
    }
    const I32x16 low = to_int(multiply(x.low, broadcast(inverse)));
    const I32x16 high = to_int(multiply(x.high, broadcast(inverse)));
    store_int8(to.values, low);
    store_int8(to.values + 16, high);
    int32_t sums[2];
    store_sums(sums, low, high);
    to.sums[0] = static_cast<int16_t>(sums[0]);
    to.sums[1] = static_cast<int16_t>(sums[1]);
    to.zero_sum = -128 * (sums[0] + sums[1]);
    to.pair[0] = to.pair[1] = 0;
}

// Rounds the sums of a row's blocks to steps of the largest.
inline void round_sums(int32_t row, Rows& out) {
    const int32_t blocks = out.stride / 32;
    const float* sums = out.block_sums + static_cast<int64_t>(row) * blocks;
    const float most = static_cast<float>(most_rounded_sum(blocks));
    I32x16 bits = broadcast(0);
    const auto sums_from = [&](int32_t i) { return blocks - i < 16 ? load(sums + i, blocks - i) : load(sums + i); };
    for (int32_t i = 0; i < blocks; i += 16) bits = maximum(bits, bits_of(absolute(sums_from(i))));
    const float largest = float_of_bits(pio::PIO_ISA::largest(bits));
    const F32x16 inverse = broadcast(largest > 0.0f ? most / largest : 0.0f);
    QuantBlock* to = out.blocks + static_cast<int64_t>(row) * blocks;
    for (int32_t first = 0; first < blocks; first += 16) {
        int16_t rounded[16];
        store_int16(rounded, to_int(multiply(sums_from(first), inverse)));
        for (int32_t i = first; i < blocks && i < first + 16; i += 2) {
            __builtin_memcpy(to[i].pair, rounded + (i - first), sizeof to[i].pair);
        }
    }
    out.sum_steps[row] = largest / most;
}

// A row as int8: see scalar/rows.cpp. Sixteen blocks at a time: all magnitudes first, then what follows from them, then the
// rounding, since one block after the other would wait for each of these steps.
template <bool Outliers>
inline void prepare_int8(const float* x, int32_t row, Rows& out) {
    constexpr int kTogether = 16;
    const int32_t blocks = out.stride / 32;
    const int64_t place = static_cast<int64_t>(row) * blocks;
    out.num_outliers[row] = 0;
    for (int32_t first = 0; first < blocks; first += kTogether) {
        const int count = blocks - first < kTogether ? blocks - first : kTogether;
        float magnitudes[kTogether] = {}, inverses[kTogether], scales[kTogether];
        for (int i = 0; i < count; ++i) {
            const InputBlock inputs = load_block(x, out.columns, first + i);
            float magnitude = float_of_bits(largest_magnitude(inputs.low, inputs.high));
            if (!(magnitude <= kLargestBlock)) {
                keep_apart(32 * (first + i), __builtin_nanf(""), row, out);
                magnitude = 0.0f;
            } else if constexpr (Outliers) {
                magnitude = find_outlier(inputs, magnitude, row, first + i, out);
            }
            magnitudes[i] = magnitude;
        }
        const F32x16 most = broadcast(127.0f);
        store(inverses, divide(most, load(magnitudes)));
        store(scales, divide(load(magnitudes), most));
        for (int i = 0; i < count; ++i) {
            QuantBlock& to = out.blocks[place + first + i];
            if (magnitudes[i] >= kSmallestBlock) {
                round_block<Outliers>(load_block(x, out.columns, first + i), magnitudes[i], inverses[i], to);
                to.scale = scales[i];
            } else {
                to = {};
            }
            out.block_sums[place + first + i] = to.scale * static_cast<float>(to.sums[0] + to.sums[1]);
        }
    }
    round_sums(row, out);
}

inline void prepare(const float* x, uint32_t kinds, int32_t row, Rows& out) {
    if ((kinds & kRowsI8) && (kinds & kRowsOutliers)) prepare_int8<true>(x, row, out);
    if ((kinds & kRowsI8) && !(kinds & kRowsOutliers)) prepare_int8<false>(x, row, out);
    if ((kinds & (kRowsBF16 | kRowsF32)) == 0) return;
    for (int32_t block = 0; block < out.stride / 32; ++block) {
        const InputBlock inputs = load_block(x, out.columns, block);
        const int64_t at = static_cast<int64_t>(row) * out.stride + 32 * block;
        if (kinds & kRowsBF16) {
            store_bf16(out.bf16 + at, inputs.low);
            store_bf16(out.bf16 + at + 16, inputs.high);
        }
        if (kinds & kRowsF32) {
            store(out.f32 + at, inputs.low);
            store(out.f32 + at + 16, inputs.high);
        }
    }
}

PIO_INLINE F32x16 finish(F32x16 y, F32x16 scale, float softcap) {
    const F32x16 scaled = multiply(y, scale);
    if (softcap <= 0.0f) return scaled;
    const F32x16 cap = broadcast(softcap);
    return multiply(cap, tanh(divide(scaled, cap)));
}

inline void finish_logits(float* y, int64_t n, float scale, float softcap) {
    if (scale == 1.0f && softcap <= 0.0f) return;
    const F32x16 factor = broadcast(scale);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) store(y + i, finish(load(y + i), factor, softcap));
    if (i < n) {
        const int left = static_cast<int>(n - i);
        store(y + i, finish(load(y + i, left), factor, softcap), left);
    }
}

}  // namespace pio::PIO_ISA
