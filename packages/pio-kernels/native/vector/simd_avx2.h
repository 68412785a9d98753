// simd.h for AVX2 with FMA and F16C, and AVX-VNNI where the compiler is told that there is: sixteen lanes are two
// registers, rows 0..7 and rows 8..15 of a tile.
#pragma once

#include <immintrin.h>

#include "../numbers.h"

namespace pio::PIO_ISA {

// Rows of activations that one pass over a strip serves
constexpr int kMaxRows = 4;
// Sixteen registers do not hold a tile and the sums of several rows: see `dots`.
constexpr bool kGroupByGroup = true;

// AVX-VNNI takes weights without a sign. Without it, sums of two products must fit 16 bits, so that 8-bit quants are
// taken with theirs, which `dot` moves over to the activations.
#if defined(__AVXVNNI__)
constexpr int kEightBitZero = 128;
#else
constexpr int kEightBitZero = 0;
#endif

struct F32x16 {
    __m256 low, high;
};
struct I32x16 {
    __m256i low, high;
};
using Bytes64 = I32x16;

PIO_INLINE __m256i first_of_eight(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

PIO_INLINE F32x16 zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
PIO_INLINE F32x16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
PIO_INLINE F32x16 load(const float* x) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
PIO_INLINE F32x16 load(const float* x, int n) {
    return {_mm256_maskload_ps(x, first_of_eight(n)), _mm256_maskload_ps(x + 8, first_of_eight(n - 8))};
}
PIO_INLINE void store(float* y, F32x16 x) {
    _mm256_storeu_ps(y, x.low);
    _mm256_storeu_ps(y + 8, x.high);
}
// Masked stores are tens of micro-operations on some processors (Zen 3: 42 for one of 256 bits), so whole vectors take none.
PIO_INLINE void store(float* y, F32x16 x, int n) {
    if (n >= 16) return store(y, x);
    _mm256_maskstore_ps(y, first_of_eight(n), x.low);
    _mm256_maskstore_ps(y + 8, first_of_eight(n - 8), x.high);
}

PIO_INLINE F32x16 load_f16(const uint8_t* x) {
    const auto* halves = reinterpret_cast<const __m128i*>(x);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}

PIO_INLINE F32x16 add(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
PIO_INLINE F32x16 subtract(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
PIO_INLINE F32x16 multiply(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
PIO_INLINE F32x16 divide(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
PIO_INLINE F32x16 square_root(F32x16 a) { return {_mm256_sqrt_ps(a.low), _mm256_sqrt_ps(a.high)}; }
// a * b + c, rounded once
PIO_INLINE F32x16 multiply_add(F32x16 a, F32x16 b, F32x16 c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
// minimum and maximum give b where either is NaN
PIO_INLINE F32x16 minimum(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
PIO_INLINE F32x16 maximum(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
PIO_INLINE F32x16 absolute(F32x16 a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
// The magnitude of one with the sign of another
PIO_INLINE F32x16 copy_sign(F32x16 magnitude, F32x16 sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    const F32x16 a = absolute(magnitude);
    return {_mm256_or_ps(a.low, _mm256_and_ps(bit, sign.low)), _mm256_or_ps(a.high, _mm256_and_ps(bit, sign.high))};
}
PIO_INLINE F32x16 round_to_even(F32x16 a) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, kNearest), _mm256_round_ps(a.high, kNearest)};
}
PIO_INLINE __m256 power_of_two(__m256 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
// x * 2^n for whole n in -126..127
PIO_INLINE F32x16 scale_by_power(F32x16 x, F32x16 n) {
    return {_mm256_mul_ps(x.low, power_of_two(n.low)), _mm256_mul_ps(x.high, power_of_two(n.high))};
}
// x where a < b, else y
PIO_INLINE F32x16 select_less(F32x16 a, F32x16 b, F32x16 x, F32x16 y) {
    return {_mm256_blendv_ps(y.low, x.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
            _mm256_blendv_ps(y.high, x.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
}
// bit i: whether a[i] >= b[i]
PIO_INLINE uint32_t at_least(F32x16 a, F32x16 b) {
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_GE_OQ));
    const int high = _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_GE_OQ));
    return static_cast<uint32_t>(low | high << 8);
}
PIO_INLINE float sum(F32x16 a) {
    const __m256 eight = _mm256_add_ps(a.low, a.high);
    const __m128 quad = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 pair = _mm_add_ps(quad, _mm_movehl_ps(quad, quad));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}

PIO_INLINE I32x16 broadcast(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
PIO_INLINE I32x16 bits_of(F32x16 a) { return {_mm256_castps_si256(a.low), _mm256_castps_si256(a.high)}; }
PIO_INLINE I32x16 maximum(I32x16 a, I32x16 b) {
    return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)};
}
PIO_INLINE int32_t largest(I32x16 a) {
    const __m256i eight = _mm256_max_epi32(a.low, a.high);
    const __m128i quad = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i pair = _mm_max_epi32(quad, _mm_shuffle_epi32(quad, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(pair, _mm_shuffle_epi32(pair, 0xb1)));
}
// sums[0] = sum a, sums[1] = sum b
PIO_INLINE void store_sums(int32_t* sums, I32x16 a, I32x16 b) {
    const __m256i of_a = _mm256_add_epi32(a.low, a.high), of_b = _mm256_add_epi32(b.low, b.high);
    const __m256i pairs = _mm256_add_epi32(_mm256_unpacklo_epi32(of_a, of_b), _mm256_unpackhi_epi32(of_a, of_b));
    const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(sums), _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e)));
}
template <int Bits>
PIO_INLINE I32x16 shift_right(I32x16 a) { return {_mm256_srai_epi32(a.low, Bits), _mm256_srai_epi32(a.high, Bits)}; }
template <int Bits>
PIO_INLINE I32x16 shift_left(I32x16 a) { return {_mm256_slli_epi32(a.low, Bits), _mm256_slli_epi32(a.high, Bits)}; }
PIO_INLINE I32x16 add(I32x16 a, I32x16 b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
PIO_INLINE F32x16 to_float(I32x16 a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
// To the nearest, ties to even; |a| < 2^31
PIO_INLINE I32x16 to_int(F32x16 a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }
// Sixteen numbers of -128..127
PIO_INLINE void store_int8(int8_t* y, I32x16 a) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.low, a.high), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), bytes);
}
// Sixteen numbers of -32768..32767
PIO_INLINE void store_int16(int16_t* y, I32x16 a) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.low, a.high), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), words);
}
// Eight bfloat16 in the low halves of lanes
PIO_INLINE __m256i bf16_bits(__m256 a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
}
// Rounds to bfloat16: to the nearest, ties to even; a NaN stays one.
PIO_INLINE void store_bf16(uint16_t* y, F32x16 a) {
    const __m256i packed = _mm256_packus_epi32(bf16_bits(a.low), bf16_bits(a.high));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm256_permute4x64_epi64(packed, 0xd8));
}

PIO_INLINE Bytes64 load_bytes(const uint8_t* x) {
    const auto* halves = reinterpret_cast<const __m256i*>(x);
    return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
PIO_INLINE void store_bytes(uint8_t* y, Bytes64 a) {
    auto* halves = reinterpret_cast<__m256i*>(y);
    _mm256_storeu_si256(halves, a.low);
    _mm256_storeu_si256(halves + 1, a.high);
}
PIO_INLINE Bytes64 broadcast_byte(int x) {
    const __m256i byte = _mm256_set1_epi8(static_cast<char>(x));
    return {byte, byte};
}
PIO_INLINE Bytes64 bit_and(Bytes64 a, Bytes64 b) {
    return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
}
// a | (b & mask)
PIO_INLINE Bytes64 insert_bits(Bytes64 a, Bytes64 b, Bytes64 mask) {
    const Bytes64 bits = bit_and(b, mask);
    return {_mm256_or_si256(a.low, bits.low), _mm256_or_si256(a.high, bits.high)};
}
// Bits of a where the mask is set, of b elsewhere
PIO_INLINE Bytes64 select_bits(Bytes64 mask, Bytes64 a, Bytes64 b) {
    return {_mm256_or_si256(_mm256_and_si256(mask.low, a.low), _mm256_andnot_si256(mask.low, b.low)),
            _mm256_or_si256(_mm256_and_si256(mask.high, a.high), _mm256_andnot_si256(mask.high, b.high))};
}
// Bytes shifted to the left by `Bits`, or to the right by -Bits; bits of neighbours come in, to be masked off.
template <int Bits>
PIO_INLINE Bytes64 shift(Bytes64 a) {
    if constexpr (Bits > 0) return {_mm256_slli_epi16(a.low, Bits), _mm256_slli_epi16(a.high, Bits)};
    if constexpr (Bits < 0) return {_mm256_srli_epi16(a.low, -Bits), _mm256_srli_epi16(a.high, -Bits)};
    return a;
}
// (x[r] >> shift) & mask for 16 words
PIO_INLINE I32x16 bits_at(const uint8_t* x, int shift, int32_t mask) {
    const Bytes64 words = load_bytes(x);
    const __m128i count = _mm_cvtsi32_si128(shift);
    const __m256i bits = _mm256_set1_epi32(mask);
    return {_mm256_and_si256(_mm256_srl_epi32(words.low, count), bits),
            _mm256_and_si256(_mm256_srl_epi32(words.high, count), bits)};
}
// 8-bit quants as `dot` takes them
PIO_INLINE Bytes64 eight_bit_quants(Bytes64 a) {
    if constexpr (kEightBitZero != 0) return a;
    const __m256i sign = _mm256_set1_epi8(-128);
    return {_mm256_xor_si256(a.low, sign), _mm256_xor_si256(a.high, sign)};
}

// Four inputs, the same for all rows
PIO_INLINE __m256i four_inputs(const int8_t* x) {
    int32_t four;
    __builtin_memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
}

// The groups of a tile's inputs are multiplied one after the other, each with the inputs of all rows: what registers hold
// then are the sums of all rows and one group's quants. The compiler would rather unpack the whole tile first, for which
// there are no registers, and write it to memory and read it again for each row, which takes a quarter more time. So it is
// told that the sums of one group are changed by what it cannot see, and so are the addresses of the next.
template <int Sums>
PIO_INLINE void keep_in_order(__m256i& low, __m256i& high) {
    if constexpr (Sums > 1) asm volatile("" : "+x"(low), "+x"(high));
}

#if defined(__AVXVNNI__)

// See simd.h.
template <int Bits, int First, int Groups, int S, int M, typename Tile, typename Inputs>
PIO_INLINE void dots(Tile* tiles, const Inputs& x, I32x16* sums) {
    each_constant<First, Groups>([&](auto group) __attribute__((always_inline)) {
        constexpr int kGroup = decltype(group)::value;
PIO_UNROLL
        for (int s = 0; s < S; ++s) {
            if constexpr (S * M > 1) tiles[s].forget();
            const Bytes64 w = tiles[s].template group<kGroup>();
PIO_UNROLL
            for (int m = 0; m < M; ++m) {
                const __m256i inputs = four_inputs(x(m) + 4 * kGroup);
                I32x16& sum = sums[s * M + m];
                sum.low = _mm256_dpbusd_avx_epi32(sum.low, w.low, inputs);
                sum.high = _mm256_dpbusd_avx_epi32(sum.high, w.high, inputs);
                keep_in_order<S * M>(sum.low, sum.high);
            }
        }
    });
}

#else

// w[0] x[0] + w[1] x[1] of each pair of neighbouring bytes, as 16 bits. Quants of 8 bits have a sign; it goes over to the
// inputs, since one of the factors may have none: |w| x sign(w).
template <int Bits>
PIO_INLINE __m256i pair_products(__m256i w, __m256i x) {
    if constexpr (Bits == 8) return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_maddubs_epi16(w, x);
}

// See simd.h. Sums of 16 bits hold as many groups as cannot overflow them: 2 * 127 * 15 * 8 = 30480 for 4 bits, 2 * 127 * 31 * 4 =
// 31496 for 5, 2 * 127 * 63 * 2 = 32004 for 6 and 2 * 127 * 128 = 32512 for 8.
template <int Bits, int First, int Groups, int S, int M, typename Tile, typename Inputs>
PIO_INLINE void dots(Tile* tiles, const Inputs& x, I32x16* sums) {
    constexpr int kFitting = Bits == 4 ? 8 : Bits == 5 ? 4 : Bits == 6 ? 2 : 1;
    const __m256i ones = _mm256_set1_epi16(1);
    I32x16 fitting[S * M];
    each_constant<0, Groups>([&](auto number) __attribute__((always_inline)) {
        constexpr int kNumber = decltype(number)::value;
        // Groups g and g + 4 of a whole tile share bytes.
        constexpr int kGroup = Groups == 8 ? kNumber / 2 + 4 * (kNumber % 2) : First + kNumber;
        constexpr bool kFirst = kNumber % kFitting == 0, kLast = (kNumber + 1) % kFitting == 0 || kNumber + 1 == Groups;
PIO_UNROLL
        for (int s = 0; s < S; ++s) {
            if constexpr (S * M > 1) tiles[s].forget();
            const Bytes64 w = tiles[s].template group<kGroup>();
PIO_UNROLL
            for (int m = 0; m < M; ++m) {
                const __m256i inputs = four_inputs(x(m) + 4 * kGroup);
                const __m256i of_low = pair_products<Bits>(w.low, inputs);
                const __m256i of_high = pair_products<Bits>(w.high, inputs);
                I32x16& sum = sums[s * M + m];
                __m256i& low = fitting[s * M + m].low;
                __m256i& high = fitting[s * M + m].high;
                low = kFirst ? of_low : _mm256_add_epi16(low, of_low);
                high = kFirst ? of_high : _mm256_add_epi16(high, of_high);
                if constexpr (kLast) {
                    sum.low = _mm256_add_epi32(sum.low, _mm256_madd_epi16(low, ones));
                    sum.high = _mm256_add_epi32(sum.high, _mm256_madd_epi16(high, ones));
                    keep_in_order<S * M>(sum.low, sum.high);
                } else {
                    keep_in_order<S * M>(low, high);
                }
            }
        }
    });
}

#endif

// Groups that are unpacked already
struct Unpacked {
    const Bytes64* groups;

    PIO_INLINE_MEMBER void forget() {}
    template <int Group>
    PIO_INLINE_MEMBER Bytes64 group() const {
        return groups[Group];
    }
};

// start[r] + sum_{g < Groups, c < 4} w[g][4 r + c] * x[4 g + c]; w of `Bits` bits.
template <int Bits, int Groups>
PIO_INLINE I32x16 dot(const Bytes64* w, const int8_t* x, I32x16 start) {
    Unpacked tile{w};
    dots<Bits, 0, Groups, 1, 1>(&tile, [&](int) __attribute__((always_inline)) { return x; }, &start);
    return start;
}

// acc[r] + w[2 r] * x[0] + w[2 r + 1] * x[1], w and x of 16 bits
PIO_INLINE I32x16 dot_pairs(I32x16 acc, Bytes64 w, const int16_t* x) {
    int32_t pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    const __m256i inputs = _mm256_set1_epi32(pair);
    return {_mm256_add_epi32(acc.low, _mm256_madd_epi16(w.low, inputs)),
            _mm256_add_epi32(acc.high, _mm256_madd_epi16(w.high, inputs))};
}

// acc[r] + w[2 r] * x[0] + w[2 r + 1] * x[1], all bfloat16 but the float32 accumulators.
PIO_INLINE F32x16 dot_bf16(F32x16 acc, Bytes64 w, const uint16_t* x) {
    const __m256 even = _mm256_set1_ps(float_of_bf16(x[0]));
    const __m256 odd = _mm256_set1_ps(float_of_bf16(x[1]));
    const __m256i upper = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u));
    acc.low = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(w.low, 16)), even, acc.low);
    acc.high = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(w.high, 16)), even, acc.high);
    acc.low = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(w.low, upper)), odd, acc.low);
    acc.high = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(w.high, upper)), odd, acc.high);
    return acc;
}

}  // namespace pio::PIO_ISA
