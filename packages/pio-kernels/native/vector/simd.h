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

// Before a loop whose counts are known: its arrays can be registers only where no loop is left.
#if defined(__clang__)
#define PIO_UNROLL _Pragma("unroll")
#else
#define PIO_UNROLL _Pragma("GCC unroll 64")
#endif

#if defined(__AVX512F__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#elif defined(__ARM_NEON)
#include "simd_neon.h"
#else
#error "no vector instruction set: use the scalar kernels"
#endif

#include "functions.h"
