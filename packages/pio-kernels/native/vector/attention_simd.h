// The few vector operations that attention is written in, for AVX-512, AVX2 and NEON. To be included inside of no
// namespace; PIO_ISA names the one of the instruction set.
//
//   Floats      kLanes float32 numbers
//   widen<f>    reads kLanes numbers of a KVFormat as float32; `narrow<f>` rounds them back
#pragma once

#include "../attention_layout.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define PIO_INLINE static inline __attribute__((always_inline))

namespace pio::PIO_ISA::attention {

constexpr float kF16Max = 65504.0f;

#if defined(__AVX512F__)

using Floats = __m512;
constexpr int32_t kLanes = 16;

PIO_INLINE Floats load(const float* x) { return _mm512_loadu_ps(x); }
PIO_INLINE void store(float* x, Floats a) { _mm512_storeu_ps(x, a); }
PIO_INLINE Floats splat(float x) { return _mm512_set1_ps(x); }
PIO_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
PIO_INLINE Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
PIO_INLINE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
PIO_INLINE Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
PIO_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
// max and min give `b` where `a` or `b` is NaN.
PIO_INLINE Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
PIO_INLINE Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
PIO_INLINE float sum_of(Floats a) { return _mm512_reduce_add_ps(a); }
PIO_INLINE float max_of(Floats a) { return _mm512_reduce_max_ps(a); }
// a 2^n, n being the last nine bits of `bits`, with sign
PIO_INLINE Floats add_to_exponent(Floats a, Floats bits) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(bits), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), exponent));
}
// Lanes l with begin <= first + l < end of a, `other` elsewhere.
PIO_INLINE Floats keep_range(Floats a, int32_t first, int32_t begin, int32_t end, float other) {
    const __m512i index = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                           _mm512_set1_epi32(first));
    const __mmask16 inside = _mm512_cmpge_epi32_mask(index, _mm512_set1_epi32(begin)) &
                             _mm512_cmplt_epi32_mask(index, _mm512_set1_epi32(end));
    return _mm512_mask_blend_ps(inside, _mm512_set1_ps(other), a);
}

template <uint32_t format>
PIO_INLINE Floats widen(const uint8_t* x) {
    if constexpr (format == kKVF32) return _mm512_loadu_ps(x);
    if constexpr (format == kKVF16) return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    if constexpr (format == kKVBF16) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    if constexpr (format == kKVI8) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
    }
}

template <uint32_t format>
PIO_INLINE void narrow(Floats a, uint8_t* x) {
    if constexpr (format == kKVF32) _mm512_storeu_ps(x, a);
    if constexpr (format == kKVF16) {
        const __m512 held = min(splat(kF16Max), max(splat(-kF16Max), a));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), _mm512_cvtps_ph(held, _MM_FROUND_TO_NEAREST_INT));
    }
    if constexpr (format == kKVBF16) {
        const __m512i bits = _mm512_castps_si512(a);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i round = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        // A NaN is not rounded, so that none becomes an infinity.
        const __mmask16 number = _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q);
        const __m512i bf16 = _mm512_srli_epi32(_mm512_mask_add_epi32(bits, number, bits, round), 16);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), _mm512_cvtepi32_epi16(bf16));
    }
    if constexpr (format == kKVI8) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
    }
}

#elif defined(__AVX2__)

using Floats = __m256;
constexpr int32_t kLanes = 8;

PIO_INLINE Floats load(const float* x) { return _mm256_loadu_ps(x); }
PIO_INLINE void store(float* x, Floats a) { _mm256_storeu_ps(x, a); }
PIO_INLINE Floats splat(float x) { return _mm256_set1_ps(x); }
PIO_INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
PIO_INLINE Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
PIO_INLINE Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
PIO_INLINE Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
PIO_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
PIO_INLINE Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
PIO_INLINE Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
PIO_INLINE float sum_of(Floats a) {
    const __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
PIO_INLINE float max_of(Floats a) {
    const __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
}
PIO_INLINE Floats add_to_exponent(Floats a, Floats bits) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(bits), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent));
}
PIO_INLINE Floats keep_range(Floats a, int32_t first, int32_t begin, int32_t end, float other) {
    const __m256i index = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
    const __m256i inside = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(begin), index),
                                               _mm256_cmpgt_epi32(_mm256_set1_epi32(end), index));
    return _mm256_blendv_ps(_mm256_set1_ps(other), a, _mm256_castsi256_ps(inside));
}

template <uint32_t format>
PIO_INLINE Floats widen(const uint8_t* x) {
    if constexpr (format == kKVF32) return _mm256_loadu_ps(reinterpret_cast<const float*>(x));
    if constexpr (format == kKVF16) return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    if constexpr (format == kKVBF16) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    if constexpr (format == kKVI8) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x))));
    }
}

template <uint32_t format>
PIO_INLINE void narrow(Floats a, uint8_t* x) {
    if constexpr (format == kKVF32) _mm256_storeu_ps(reinterpret_cast<float*>(x), a);
    if constexpr (format == kKVF16) {
        const __m256 held = min(splat(kF16Max), max(splat(-kF16Max), a));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm256_cvtps_ph(held, _MM_FROUND_TO_NEAREST_INT));
    }
    if constexpr (format == kKVBF16) {
        const __m256i bits = _mm256_castps_si256(a);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i round = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        // A NaN is not rounded, so that none becomes an infinity.
        const __m256i number = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_ORD_Q));
        const __m256i bf16 = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_and_si256(number, round)), 16);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm_packus_epi32(_mm256_castsi256_si128(bf16),
                                                                        _mm256_extracti128_si256(bf16, 1)));
    }
    if constexpr (format == kKVI8) {
        const __m256i wide = _mm256_cvtps_epi32(a);
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(x), _mm_packs_epi16(words, words));
    }
}

#elif defined(__aarch64__)

using Floats = float32x4_t;
constexpr int32_t kLanes = 4;

PIO_INLINE Floats load(const float* x) { return vld1q_f32(x); }
PIO_INLINE void store(float* x, Floats a) { vst1q_f32(x, a); }
PIO_INLINE Floats splat(float x) { return vdupq_n_f32(x); }
PIO_INLINE Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
PIO_INLINE Floats sub(Floats a, Floats b) { return vsubq_f32(a, b); }
PIO_INLINE Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
PIO_INLINE Floats div(Floats a, Floats b) { return vdivq_f32(a, b); }
PIO_INLINE Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
PIO_INLINE Floats max(Floats a, Floats b) { return vmaxq_f32(a, b); }
PIO_INLINE Floats min(Floats a, Floats b) { return vminq_f32(a, b); }
PIO_INLINE float sum_of(Floats a) { return vaddvq_f32(a); }
PIO_INLINE float max_of(Floats a) { return vmaxvq_f32(a); }
PIO_INLINE Floats add_to_exponent(Floats a, Floats bits) {
    const int32x4_t exponent = vshlq_n_s32(vreinterpretq_s32_f32(bits), 23);
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), exponent));
}
PIO_INLINE Floats keep_range(Floats a, int32_t first, int32_t begin, int32_t end, float other) {
    constexpr int32_t kCount[4] = {0, 1, 2, 3};
    const int32x4_t index = vaddq_s32(vld1q_s32(kCount), vdupq_n_s32(first));
    const uint32x4_t inside = vandq_u32(vcgeq_s32(index, vdupq_n_s32(begin)), vcltq_s32(index, vdupq_n_s32(end)));
    return vbslq_f32(inside, a, vdupq_n_f32(other));
}

template <uint32_t format>
PIO_INLINE Floats widen(const uint8_t* x) {
    if constexpr (format == kKVF32) return vld1q_f32(reinterpret_cast<const float*>(x));
    if constexpr (format == kKVF16) {
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(x))));
    }
    if constexpr (format == kKVBF16) {
        return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(reinterpret_cast<const uint16_t*>(x))), 16));
    }
    if constexpr (format == kKVI8) {
        uint32_t four;
        __builtin_memcpy(&four, x, sizeof four);
        const int16x8_t words = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
    }
}

template <uint32_t format>
PIO_INLINE void narrow(Floats a, uint8_t* x) {
    if constexpr (format == kKVF32) vst1q_f32(reinterpret_cast<float*>(x), a);
    if constexpr (format == kKVF16) {
        const float32x4_t held = min(splat(kF16Max), max(splat(-kF16Max), a));
        vst1_u16(reinterpret_cast<uint16_t*>(x), vreinterpret_u16_f16(vcvt_f16_f32(held)));
    }
    if constexpr (format == kKVBF16) {
        const uint32x4_t bits = vreinterpretq_u32_f32(a);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        const uint32x4_t round = vaddq_u32(odd, vdupq_n_u32(0x7fff));
        // A NaN is not rounded, so that none becomes an infinity.
        const uint32x4_t number = vceqq_f32(a, a);
        vst1_u16(reinterpret_cast<uint16_t*>(x), vshrn_n_u32(vaddq_u32(bits, vandq_u32(number, round)), 16));
    }
    if constexpr (format == kKVI8) {
        const int16x4_t words = vmovn_s32(vcvtnq_s32_f32(a));
        const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(vmovn_s16(vcombine_s16(words, words))), 0);
        __builtin_memcpy(x, &four, sizeof four);
    }
}

#else
#error "no vector instructions to compile attention for"
#endif

// 2^x for x <= 126; some number below 2^-125 where x is below -126. x = n + r with n whole, |r| <= 1/2, and the series
// of 2^r, relative to the result within 1.5e-7, or 5e-5 if `rough`, for results of eight bits.
template <bool rough = false>
PIO_INLINE Floats power_of_two(Floats x) {
    // 1.5 * 2^23: the last bits of kShift + x are those of the integer nearest to x.
    constexpr float kShift = 12582912.0f;
    x = max(splat(-126.0f), x);
    const Floats shifted = add(x, splat(kShift));
    const Floats r = sub(x, sub(shifted, splat(kShift)));
    Floats y = splat(9.618129108e-3f);
    if constexpr (!rough) {
        y = splat(1.540353039e-4f);
        y = fma(y, r, splat(1.333355815e-3f));
        y = fma(y, r, splat(9.618129108e-3f));
    }
    y = fma(y, r, splat(5.550410866e-2f));
    y = fma(y, r, splat(0.2402265070f));
    y = fma(y, r, splat(0.6931471806f));
    y = fma(y, r, splat(1.0f));
    return add_to_exponent(y, shifted);
}

// tanh x = 1 - 2 / (e^(2 x) + 1) within 2e-7; beyond 10 it is one.
PIO_INLINE Floats tangent(Floats x) {
    const Floats held = min(splat(10.0f), max(splat(-10.0f), x));
    const Floats power = power_of_two(mul(held, splat(2.885390082f)));
    return sub(splat(1.0f), div(splat(2.0f), add(power, splat(1.0f))));
}

}  // namespace pio::PIO_ISA::attention
