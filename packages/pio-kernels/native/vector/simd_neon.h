// simd.h for 64-bit Arm with dot products of 8-bit numbers: sixteen lanes are four registers, four rows of a tile each.
#pragma once

#include <arm_neon.h>

namespace pio::PIO_ISA {

// Rows of activations that one pass over a strip serves
constexpr int kMaxRows = 4;
// A tile stays in registers while rows go by.
constexpr bool kGroupByGroup = false;

// Both factors of a dot product have a sign here.
constexpr int kEightBitZero = 0;

struct F32x16 {
    float32x4_t quads[4];
};
struct I32x16 {
    int32x4_t quads[4];
};
struct Bytes64 {
    uint8x16_t quads[4];
};

// operation(a_q, ...) of each of the four registers
template <typename Operation>
PIO_INLINE F32x16 each(Operation operation) {
    return {{operation(0), operation(1), operation(2), operation(3)}};
}
template <typename Operation>
PIO_INLINE I32x16 each_int(Operation operation) {
    return {{operation(0), operation(1), operation(2), operation(3)}};
}
template <typename Operation>
PIO_INLINE Bytes64 each_bytes(Operation operation) {
    return {{operation(0), operation(1), operation(2), operation(3)}};
}

PIO_INLINE F32x16 broadcast(float x) {
    return each([&](int) { return vdupq_n_f32(x); });
}
PIO_INLINE F32x16 zeros() { return broadcast(0.0f); }
PIO_INLINE F32x16 load(const float* x) {
    return each([&](int q) { return vld1q_f32(x + 4 * q); });
}
PIO_INLINE F32x16 load(const float* x, int n) {
    float padded[16] = {};
    for (int i = 0; i < n && i < 16; ++i) padded[i] = x[i];
    return load(padded);
}
PIO_INLINE void store(float* y, F32x16 x) {
    for (int q = 0; q < 4; ++q) vst1q_f32(y + 4 * q, x.quads[q]);
}
PIO_INLINE void store(float* y, F32x16 x, int n) {
    if (n >= 16) return store(y, x);
    float padded[16];
    store(padded, x);
    for (int i = 0; i < n; ++i) y[i] = padded[i];
}

PIO_INLINE F32x16 load_f16(const uint8_t* x) {
    return each([&](int q) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(x + 8 * q))); });
}

PIO_INLINE F32x16 add(F32x16 a, F32x16 b) {
    return each([&](int q) { return vaddq_f32(a.quads[q], b.quads[q]); });
}
PIO_INLINE F32x16 subtract(F32x16 a, F32x16 b) {
    return each([&](int q) { return vsubq_f32(a.quads[q], b.quads[q]); });
}
PIO_INLINE F32x16 multiply(F32x16 a, F32x16 b) {
    return each([&](int q) { return vmulq_f32(a.quads[q], b.quads[q]); });
}
PIO_INLINE F32x16 divide(F32x16 a, F32x16 b) {
    return each([&](int q) { return vdivq_f32(a.quads[q], b.quads[q]); });
}
PIO_INLINE F32x16 square_root(F32x16 a) {
    return each([&](int q) { return vsqrtq_f32(a.quads[q]); });
}
// a * b + c, rounded once
PIO_INLINE F32x16 multiply_add(F32x16 a, F32x16 b, F32x16 c) {
    return each([&](int q) { return vfmaq_f32(c.quads[q], a.quads[q], b.quads[q]); });
}
// minimum and maximum give NaN where b is
PIO_INLINE F32x16 minimum(F32x16 a, F32x16 b) {
    return each([&](int q) { return vminq_f32(a.quads[q], b.quads[q]); });
}
PIO_INLINE F32x16 maximum(F32x16 a, F32x16 b) {
    return each([&](int q) { return vmaxq_f32(a.quads[q], b.quads[q]); });
}
PIO_INLINE F32x16 absolute(F32x16 a) {
    return each([&](int q) { return vabsq_f32(a.quads[q]); });
}
// The magnitude of one with the sign of another
PIO_INLINE F32x16 copy_sign(F32x16 magnitude, F32x16 sign) {
    const uint32x4_t bit = vdupq_n_u32(0x80000000u);
    return each([&](int q) { return vbslq_f32(bit, sign.quads[q], magnitude.quads[q]); });
}
PIO_INLINE F32x16 round_to_even(F32x16 a) {
    return each([&](int q) { return vrndnq_f32(a.quads[q]); });
}
// x * 2^n for whole n in -126..127
PIO_INLINE F32x16 scale_by_power(F32x16 x, F32x16 n) {
    return each([&](int q) {
        const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n.quads[q]), vdupq_n_s32(127));
        return vmulq_f32(x.quads[q], vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
    });
}
// x where a < b, else y
PIO_INLINE F32x16 select_less(F32x16 a, F32x16 b, F32x16 x, F32x16 y) {
    return each([&](int q) { return vbslq_f32(vcltq_f32(a.quads[q], b.quads[q]), x.quads[q], y.quads[q]); });
}
// bit i: whether a[i] >= b[i]
PIO_INLINE uint32_t at_least(F32x16 a, F32x16 b) {
    const uint32x4_t places = {1, 2, 4, 8};
    uint32_t bits = 0;
    for (int q = 0; q < 4; ++q) bits |= vaddvq_u32(vandq_u32(vcgeq_f32(a.quads[q], b.quads[q]), places)) << 4 * q;
    return bits;
}
PIO_INLINE float sum(F32x16 a) {
    return vaddvq_f32(vaddq_f32(vaddq_f32(a.quads[0], a.quads[1]), vaddq_f32(a.quads[2], a.quads[3])));
}

PIO_INLINE I32x16 broadcast(int32_t x) {
    return each_int([&](int) { return vdupq_n_s32(x); });
}
PIO_INLINE I32x16 bits_of(F32x16 a) {
    return each_int([&](int q) { return vreinterpretq_s32_f32(a.quads[q]); });
}
PIO_INLINE I32x16 maximum(I32x16 a, I32x16 b) {
    return each_int([&](int q) { return vmaxq_s32(a.quads[q], b.quads[q]); });
}
PIO_INLINE int32_t largest(I32x16 a) {
    return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.quads[0], a.quads[1]), vmaxq_s32(a.quads[2], a.quads[3])));
}
PIO_INLINE int32_t sum(I32x16 a) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(a.quads[0], a.quads[1]), vaddq_s32(a.quads[2], a.quads[3])));
}
// sums[0] = sum a, sums[1] = sum b
PIO_INLINE void store_sums(int32_t* sums, I32x16 a, I32x16 b) {
    sums[0] = sum(a);
    sums[1] = sum(b);
}
template <int Bits>
PIO_INLINE I32x16 shift_left(I32x16 a) {
    return each_int([&](int q) { return vshlq_n_s32(a.quads[q], Bits); });
}
PIO_INLINE I32x16 add(I32x16 a, I32x16 b) {
    return each_int([&](int q) { return vaddq_s32(a.quads[q], b.quads[q]); });
}
template <int Bits>
PIO_INLINE I32x16 shift_right(I32x16 a) {
    return each_int([&](int q) { return vshlq_s32(a.quads[q], vdupq_n_s32(-Bits)); });
}
PIO_INLINE F32x16 to_float(I32x16 a) {
    return each([&](int q) { return vcvtq_f32_s32(a.quads[q]); });
}
// To the nearest, ties to even; |a| < 2^31
PIO_INLINE I32x16 to_int(F32x16 a) {
    return each_int([&](int q) { return vcvtnq_s32_f32(a.quads[q]); });
}
// Sixteen numbers of -128..127
PIO_INLINE void store_int8(int8_t* y, I32x16 a) {
    const int16x8_t low = vcombine_s16(vmovn_s32(a.quads[0]), vmovn_s32(a.quads[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(a.quads[2]), vmovn_s32(a.quads[3]));
    vst1q_s8(y, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
// Sixteen numbers of -32768..32767
PIO_INLINE void store_int16(int16_t* y, I32x16 a) {
    for (int q = 0; q < 4; ++q) vst1_s16(y + 4 * q, vmovn_s32(a.quads[q]));
}
// Rounds to bfloat16: to the nearest, ties to even; a NaN stays one.
PIO_INLINE void store_bf16(uint16_t* y, F32x16 a) {
    for (int q = 0; q < 4; ++q) {
        const uint32x4_t bits = vreinterpretq_u32_f32(a.quads[q]);
        const uint32x4_t last = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(last, vdupq_n_u32(0x7fff)));
        const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
        const uint32x4_t is_number = vceqq_f32(a.quads[q], a.quads[q]);
        vst1_u16(y + 4 * q, vshrn_n_u32(vbslq_u32(is_number, rounded, quiet), 16));
    }
}

PIO_INLINE Bytes64 load_bytes(const uint8_t* x) {
    return each_bytes([&](int q) { return vld1q_u8(x + 16 * q); });
}
PIO_INLINE void store_bytes(uint8_t* y, Bytes64 a) {
    for (int q = 0; q < 4; ++q) vst1q_u8(y + 16 * q, a.quads[q]);
}
PIO_INLINE Bytes64 broadcast_byte(int x) {
    return each_bytes([&](int) { return vdupq_n_u8(static_cast<uint8_t>(x)); });
}
PIO_INLINE Bytes64 bit_and(Bytes64 a, Bytes64 b) {
    return each_bytes([&](int q) { return vandq_u8(a.quads[q], b.quads[q]); });
}
// a | (b & mask)
PIO_INLINE Bytes64 insert_bits(Bytes64 a, Bytes64 b, Bytes64 mask) {
    return each_bytes([&](int q) { return vorrq_u8(a.quads[q], vandq_u8(b.quads[q], mask.quads[q])); });
}
// Bits of a where the mask is set, of b elsewhere
PIO_INLINE Bytes64 select_bits(Bytes64 mask, Bytes64 a, Bytes64 b) {
    return each_bytes([&](int q) { return vbslq_u8(mask.quads[q], a.quads[q], b.quads[q]); });
}
// Bytes shifted to the left by `Bits`, or to the right by -Bits; what comes in is to be masked off.
template <int Bits>
PIO_INLINE Bytes64 shift(Bytes64 a) {
    return each_bytes([&](int q) {
        if constexpr (Bits > 0) return vshlq_n_u8(a.quads[q], Bits);
        if constexpr (Bits < 0) return vshrq_n_u8(a.quads[q], -Bits);
        return a.quads[q];
    });
}
// (x[r] >> shift) & mask for 16 words
PIO_INLINE I32x16 bits_at(const uint8_t* x, int shift, int32_t mask) {
    const Bytes64 words = load_bytes(x);
    return each_int([&](int q) {
        const uint32x4_t shifted = vshlq_u32(vreinterpretq_u32_u8(words.quads[q]), vdupq_n_s32(-shift));
        return vandq_s32(vreinterpretq_s32_u32(shifted), vdupq_n_s32(mask));
    });
}
// 8-bit quants as `dot` takes them
PIO_INLINE Bytes64 eight_bit_quants(Bytes64 a) {
    return each_bytes([&](int q) { return veorq_u8(a.quads[q], vdupq_n_u8(128)); });
}

// start + w[4 r..4 r + 3] . (number `Lane` of the fours in x)
template <int Lane>
PIO_INLINE I32x16 add_four(I32x16 start, const Bytes64& w, int8x16_t x) {
    return each_int([&](int q) { return vdotq_laneq_s32(start.quads[q], vreinterpretq_s8_u8(w.quads[q]), x, Lane); });
}

// start[r] + sum_{g < Groups, c < 4} w[g][4 r + c] * x[4 g + c], all with a sign.
template <int Bits, int Groups>
PIO_INLINE I32x16 dot(const Bytes64* w, const int8_t* x, I32x16 start) {
PIO_UNROLL
    for (int g = 0; g < Groups; g += 4) {
        const int8x16_t inputs = vld1q_s8(x + 4 * g);
        start = add_four<0>(start, w[g], inputs);
        start = add_four<1>(start, w[g + 1], inputs);
        start = add_four<2>(start, w[g + 2], inputs);
        start = add_four<3>(start, w[g + 3], inputs);
    }
    return start;
}

// acc[r] + w[2 r] * x[0] + w[2 r + 1] * x[1], w and x of 16 bits
PIO_INLINE I32x16 dot_pairs(I32x16 acc, Bytes64 w, const int16_t* x) {
    const int16x4_t inputs = {x[0], x[1], x[0], x[1]};
    return each_int([&](int q) {
        const int16x8_t pairs = vreinterpretq_s16_u8(w.quads[q]);
        const int32x4_t low = vmull_s16(vget_low_s16(pairs), inputs);
        return vaddq_s32(acc.quads[q], vpaddq_s32(low, vmull_s16(vget_high_s16(pairs), inputs)));
    });
}

// acc[r] + w[2 r] * x[0] + w[2 r + 1] * x[1], all bfloat16 but the float32 accumulators.
PIO_INLINE F32x16 dot_bf16(F32x16 acc, Bytes64 w, const uint16_t* x) {
    const float32x4_t even = vreinterpretq_f32_u32(vdupq_n_u32(static_cast<uint32_t>(x[0]) << 16));
    const float32x4_t odd = vreinterpretq_f32_u32(vdupq_n_u32(static_cast<uint32_t>(x[1]) << 16));
    return each([&](int q) {
        const uint32x4_t pairs = vreinterpretq_u32_u8(w.quads[q]);
        const float32x4_t first = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
        const float32x4_t second = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
        return vfmaq_f32(vfmaq_f32(acc.quads[q], first, even), second, odd);
    });
}

}  // namespace pio::PIO_ISA
