// simd.h for AVX-512 F, BW, DQ, VL and VNNI, with BF16 where the compiler is told that there is.
#pragma once

#include <immintrin.h>

namespace pio::PIO_ISA {

// Rows of activations that one pass over a strip serves
constexpr int kMaxRows = 8;
// A tile stays in registers while rows go by.
constexpr bool kGroupByGroup = false;

// Products take weights without a sign: 8-bit quants as they are stored, with zero at 128.
constexpr int kEightBitZero = 128;

using F32x16 = __m512;
using I32x16 = __m512i;
using Bytes64 = __m512i;

PIO_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

PIO_INLINE F32x16 zeros() { return _mm512_setzero_ps(); }
PIO_INLINE F32x16 broadcast(float x) { return _mm512_set1_ps(x); }
PIO_INLINE F32x16 load(const float* x) { return _mm512_loadu_ps(x); }
PIO_INLINE F32x16 load(const float* x, int n) { return _mm512_maskz_loadu_ps(first(n), x); }
PIO_INLINE void store(float* y, F32x16 x) { _mm512_storeu_ps(y, x); }
PIO_INLINE void store(float* y, F32x16 x, int n) { _mm512_mask_storeu_ps(y, first(n), x); }

PIO_INLINE F32x16 load_f16(const uint8_t* x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}

PIO_INLINE F32x16 add(F32x16 a, F32x16 b) { return _mm512_add_ps(a, b); }
PIO_INLINE F32x16 subtract(F32x16 a, F32x16 b) { return _mm512_sub_ps(a, b); }
PIO_INLINE F32x16 multiply(F32x16 a, F32x16 b) { return _mm512_mul_ps(a, b); }
PIO_INLINE F32x16 divide(F32x16 a, F32x16 b) { return _mm512_div_ps(a, b); }
// a * b + c, rounded once
PIO_INLINE F32x16 multiply_add(F32x16 a, F32x16 b, F32x16 c) { return _mm512_fmadd_ps(a, b, c); }
// minimum and maximum give b where either is NaN
PIO_INLINE F32x16 minimum(F32x16 a, F32x16 b) { return _mm512_min_ps(a, b); }
PIO_INLINE F32x16 maximum(F32x16 a, F32x16 b) { return _mm512_max_ps(a, b); }
PIO_INLINE F32x16 square_root(F32x16 a) { return _mm512_sqrt_ps(a); }
PIO_INLINE F32x16 absolute(F32x16 a) { return _mm512_abs_ps(a); }
// magnitude's absolute value with the sign of `sign`
PIO_INLINE F32x16 copy_sign(F32x16 magnitude, F32x16 sign) {
    const __m512i sign_bit = _mm512_set1_epi32(INT32_MIN);
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(sign_bit, _mm512_castps_si512(sign), _mm512_castps_si512(magnitude), 0xca));
}
PIO_INLINE F32x16 round_to_even(F32x16 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
// x * 2^n for whole n
PIO_INLINE F32x16 scale_by_power(F32x16 x, F32x16 n) { return _mm512_scalef_ps(x, n); }
// where a < b: x, else y
PIO_INLINE F32x16 select_less(F32x16 a, F32x16 b, F32x16 x, F32x16 y) {
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
}
// bit i: whether a[i] >= b[i]
PIO_INLINE uint32_t at_least(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
PIO_INLINE float sum(F32x16 a) { return _mm512_reduce_add_ps(a); }

PIO_INLINE I32x16 broadcast(int32_t x) { return _mm512_set1_epi32(x); }
PIO_INLINE I32x16 bits_of(F32x16 a) { return _mm512_castps_si512(a); }
PIO_INLINE I32x16 maximum(I32x16 a, I32x16 b) { return _mm512_max_epi32(a, b); }
PIO_INLINE int32_t largest(I32x16 a) { return _mm512_reduce_max_epi32(a); }
// sums[0] = sum a, sums[1] = sum b
PIO_INLINE void store_sums(int32_t* sums, I32x16 a, I32x16 b) {
    const __m512i pairs = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));  // of a, of b, ...
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(pairs), _mm512_extracti64x4_epi64(pairs, 1));
    const __m128i quarter = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(sums), _mm_add_epi32(quarter, _mm_shuffle_epi32(quarter, 0x4e)));
}
template <int Bits>
PIO_INLINE I32x16 shift_right(I32x16 a) { return _mm512_srai_epi32(a, Bits); }
template <int Bits>
PIO_INLINE I32x16 shift_left(I32x16 a) { return _mm512_slli_epi32(a, Bits); }
PIO_INLINE I32x16 add(I32x16 a, I32x16 b) { return _mm512_add_epi32(a, b); }
PIO_INLINE F32x16 to_float(I32x16 a) { return _mm512_cvtepi32_ps(a); }
// rounds to nearest, ties to even; |a| < 2^31
PIO_INLINE I32x16 to_int(F32x16 a) { return _mm512_cvtps_epi32(a); }
// 16 numbers of -128..127
PIO_INLINE void store_int8(int8_t* y, I32x16 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm512_cvtepi32_epi8(a));
}
// 16 numbers of -32768..32767
PIO_INLINE void store_int16(int16_t* y, I32x16 a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm512_cvtepi32_epi16(a));
}
// Rounds to bfloat16: to nearest, ties to even; a NaN stays one.
PIO_INLINE void store_bf16(uint16_t* y, F32x16 a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __m512i both = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
}

PIO_INLINE Bytes64 load_bytes(const uint8_t* x) { return _mm512_loadu_si512(x); }
PIO_INLINE void store_bytes(uint8_t* y, Bytes64 a) { _mm512_storeu_si512(y, a); }
PIO_INLINE Bytes64 broadcast_byte(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
PIO_INLINE Bytes64 bit_and(Bytes64 a, Bytes64 b) { return _mm512_and_si512(a, b); }
// a | (b & mask)
PIO_INLINE Bytes64 insert_bits(Bytes64 a, Bytes64 b, Bytes64 mask) { return _mm512_ternarylogic_epi32(a, b, mask, 0xf8); }
// Bits of a where the mask is set, of b elsewhere
PIO_INLINE Bytes64 select_bits(Bytes64 mask, Bytes64 a, Bytes64 b) { return _mm512_ternarylogic_epi32(mask, a, b, 0xca); }
// Bytes shifted to the left by `Bits`, or to the right by -Bits; bits of neighbours come in, to be masked off.
template <int Bits>
PIO_INLINE Bytes64 shift(Bytes64 a) {
    if constexpr (Bits > 0) return _mm512_slli_epi16(a, Bits);
    if constexpr (Bits < 0) return _mm512_srli_epi16(a, -Bits);
    return a;
}
// (x[r] >> shift) & mask for 16 words
PIO_INLINE I32x16 bits_at(const uint8_t* x, int shift, int32_t mask) {
    const __m512i shifted = _mm512_srl_epi32(_mm512_loadu_si512(x), _mm_cvtsi32_si128(shift));
    return _mm512_and_si512(shifted, _mm512_set1_epi32(mask));
}
// 8-bit quants as `dot` takes them
PIO_INLINE Bytes64 eight_bit_quants(Bytes64 a) { return a; }

// Four inputs as one number
PIO_INLINE int32_t four_bytes(const int8_t* x) {
    int32_t four;
    __builtin_memcpy(&four, x, sizeof four);
    return four;
}

// start[r] + sum_{g < Groups, c < 4} w[g][4 r + c] * x[4 g + c]; w of `Bits` bits.
template <int Bits, int Groups>
PIO_INLINE I32x16 dot(const Bytes64* w, const int8_t* x, I32x16 start) {
    I32x16 even = start;
    I32x16 odd = _mm512_setzero_si512();
PIO_UNROLL
    for (int g = 0; g < Groups; g += 2) {
        even = _mm512_dpbusd_epi32(even, w[g], _mm512_set1_epi32(four_bytes(x + 4 * g)));
        odd = _mm512_dpbusd_epi32(odd, w[g + 1], _mm512_set1_epi32(four_bytes(x + 4 * g + 4)));
    }
    return _mm512_add_epi32(even, odd);
}

// acc[r] + w[2 r] * x[0] + w[2 r + 1] * x[1], w and x of 16 bits
PIO_INLINE I32x16 dot_pairs(I32x16 acc, Bytes64 w, const int16_t* x) {
    int32_t pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    return _mm512_dpwssd_epi32(acc, w, _mm512_set1_epi32(pair));
}

// acc[r] + w[2 r] * x[0] + w[2 r + 1] * x[1], all bfloat16 but the float32 accumulators.
PIO_INLINE F32x16 dot_bf16(F32x16 acc, Bytes64 w, const uint16_t* x) {
    int32_t pair;
    __builtin_memcpy(&pair, x, sizeof pair);
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32(pair));
#else
    const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
    const __m512i pairs = _mm512_set1_epi32(pair);
    acc = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(w, 16)),
                          _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), acc);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(w, upper)),
                           _mm512_castsi512_ps(_mm512_and_si512(pairs, upper)), acc);
#endif
}

}  // namespace pio::PIO_ISA
