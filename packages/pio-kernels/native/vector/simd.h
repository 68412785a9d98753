// Sixteen numbers at a time, one per row of a tile, in the registers of the instruction set at hand.
//
// The kernels of this folder are written once, over these types, in namespace pio::PIO_ISA:
//   F32x16   16 float32
//   I32x16   16 int32
//   Bytes64  64 bytes: four of each lane, byte 4 r + c of lane r
// A function that takes `n` reads or writes the first n <= 16 numbers alone; lanes that were not read are zero.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if !defined(PIO_ISA)
#error "define PIO_ISA as the namespace of this instruction set before including vector/*.h"
#endif

#define PIO_INLINE static inline __attribute__((always_inline))
#define PIO_INLINE_MEMBER __attribute__((always_inline))

// Before a loop whose counts are known: its arrays can be registers only where no loop is left.
#if defined(__clang__)
#define PIO_UNROLL _Pragma("unroll")
#else
#define PIO_UNROLL _Pragma("GCC unroll 64")
#endif

namespace pio::PIO_ISA {

// A number as a type, for functions that are made for one.
template <uint32_t Value>
struct Constant {
    static constexpr uint32_t value = Value;
};

// Calls f(Constant<First>), ..., f(Constant<First + Count - 1>).
template <int First, int Count, typename Function>
PIO_INLINE void each_constant(const Function& f) {
    if constexpr (Count > 0) {
        f(Constant<First>{});
        each_constant<First + 1, Count - 1>(f);
    }
}

}  // namespace pio::PIO_ISA

#if defined(__AVX512F__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#elif defined(__ARM_NEON)
#include "simd_neon.h"
#else
#error "no vector instruction set: use the scalar kernels"
#endif

namespace pio::PIO_ISA {

// sums[s M + m][r] += sum_{g < Groups, c < 4} w[4 r + c] * x(m)[4 g + c] for w = tiles[s].group<g>(), g from `First` on, of
// `Bits` bits, for S tiles and M rows; x(m) are the 32 inputs of row m, |x| <= 127. Defined where kGroupByGroup is set.
template <int Bits, int First, int Groups, int S, int M, typename Tile, typename Inputs>
PIO_INLINE void dots(Tile* tiles, const Inputs& x, I32x16* sums);

}  // namespace pio::PIO_ISA

#include "functions.h"
