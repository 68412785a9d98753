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

// Takes the outlier out of a block of finite inputs whose largest magnitude is `magnitude`, notes it, and changes
// `magnitude` to that of the rest; 0 if there is none. See scalar/rows.cpp.
PIO_INLINE float take_outlier(F32x16& low, F32x16& high, float& magnitude, int32_t row, int32_t block, Rows& out) {
    const F32x16 most = broadcast(magnitude);
    const F32x16 ratio = broadcast(kOutlierRatio);
    const uint32_t large = at_least(multiply(absolute(low), ratio), most) |
                           at_least(multiply(absolute(high), ratio), most) << 16;
    if ((large & (large - 1)) != 0) return 0.0f;  // the largest is not the only one
    const F32x16 low_rest = select_less(absolute(low), most, low, zeros());
    const F32x16 high_rest = select_less(absolute(high), most, high, zeros());
    const float second = float_of_bits(largest_magnitude(low_rest, high_rest));
    if (second < kSmallestBlock) return 0.0f;
    const int apart = __builtin_ctz(large);
    float x[32];
    store(x, low);
    store(x + 16, high);
    Outlier* outliers = out.outliers + static_cast<int64_t>(row) * (out.stride / 32);
    outliers[out.num_outliers[row]++] = {32 * block + apart, x[apart]};
    low = low_rest;
    high = high_rest;
    magnitude = second;
    return x[apart];
}

// One block of 32 inputs as int8: see scalar/rows.cpp.
PIO_INLINE void prepare_int8(F32x16 low, F32x16 high, bool outliers, int32_t row, int32_t block, Rows& out) {
    const int32_t bits = largest_magnitude(low, high);
    float magnitude = float_of_bits(bits);
    const bool finite = bits < 0x7f800000;
    const float exact = outliers && finite ? take_outlier(low, high, magnitude, row, block, out) : 0.0f;
    const bool quantised = finite && magnitude >= kSmallestBlock;
    const F32x16 inverse = broadcast(quantised ? 127.0f / magnitude : 0.0f);
    const I32x16 low_values = quantised ? to_int(multiply(low, inverse)) : broadcast(int32_t{0});
    const I32x16 high_values = quantised ? to_int(multiply(high, inverse)) : broadcast(int32_t{0});
    const float scale = quantised ? magnitude / 127.0f : finite ? 0.0f : __builtin_nanf("");
    QuantBlock& to = out.blocks[static_cast<int64_t>(row) * (out.stride / 32) + block];
    store_int8(to.values, low_values);
    store_int8(to.values + 16, high_values);
    store_sums(to.sums, low_values, high_values);
    to.scale = scale;
    to.offset = scale * static_cast<float>(to.sums[0] + to.sums[1]) + exact;
}

inline void prepare(const float* x, uint32_t kinds, int32_t row, Rows& out) {
    if (kinds & kRowsI8) out.num_outliers[row] = 0;
    for (int32_t i = 0; i < out.stride; i += 32) {
        const int32_t left = out.columns - i;
        const F32x16 low = left >= 16 ? load(x + i) : load(x + i, left);
        const F32x16 high = left >= 32 ? load(x + i + 16) : left > 16 ? load(x + i + 16, left - 16) : zeros();
        const int64_t at = static_cast<int64_t>(row) * out.stride + i;
        if (kinds & kRowsI8) prepare_int8(low, high, kinds & kRowsOutliers, row, i / 32, out);
        if (kinds & kRowsBF16) {
            store_bf16(out.bf16 + at, low);
            store_bf16(out.bf16 + at + 16, high);
        }
        if (kinds & kRowsF32) {
            store(out.f32 + at, low);
            store(out.f32 + at + 16, high);
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
