// Small floating-point formats, converted bit by bit. Static: each instruction set compiles its own.
#pragma once

#include <stdint.h>

namespace pio {

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float float_of_bf16(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }

// Rounds to nearest, ties to even; a NaN stays one.
static inline uint16_t bf16_of_float(float x) {
    const uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Shifts the 10 bits of a half's mantissa into place, then moves the exponent's bias from 15 to 127 by a product with
// 2^112, which is exact for subnormals too; the exponent of infinities and NaNs is made up of ones again.
static inline float float_of_f16(uint16_t x) {
    const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(x & 0x7fffu) << 13;
    if (magnitude >= 0x0f800000u) return float_of(sign | magnitude | 0x7f800000u);
    return float_of(sign | bits_of(float_of(magnitude) * float_of(0x77800000u)));
}

// Rounds to nearest, ties to even; beyond 65504 (rounded) is infinity, below 2^-14 subnormal; a NaN stays one. All cases
// are computed and one is chosen, since scales are of all kinds and branches on them would be guessed wrong.
static inline uint16_t f16_of_float(float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t rebiased = magnitude - 0x38000000u;
    const uint32_t normal = (rebiased + 0xfffu + ((rebiased >> 13) & 1u)) >> 13;
    // 0.5 has a last bit of 2^-24, as subnormal halves do: the sum's mantissa is the rounded half.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half;
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    return static_cast<uint16_t>(sign | half);
}

}  // namespace pio
