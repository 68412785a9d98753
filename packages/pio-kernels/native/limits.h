// What each instruction set can do at most: the yardstick for the kernels.
#pragma once

#include "program.h"

namespace pio {

// Rows of activations of a probe, which share no sum: enough that no instruction waits for the one before it.
constexpr int kProbeRows = 8;

// pio_probe_dots of one instruction set, by the dot products of its kernels, with nothing but them to do.
using DotProbe = void (*)(const uint8_t* weights, const int8_t* inputs, int64_t rounds, int32_t* sums);

// The probe of instruction set `isa`, an index of pio_isa_name; null unless pio_isa_usable.
DotProbe dot_probe_of(int32_t isa);

// Before each round: for all the compiler knows, the inputs have changed, so that it cannot take an earlier result.
static inline void forget(const int8_t* inputs) { __asm__ volatile("" : : "r"(inputs) : "memory"); }

// As in kernels.h: null where this build has none.
DotProbe scalar_dot_probe();
DotProbe neon_dot_probe();
DotProbe avx2_dot_probe();
DotProbe avx2_vnni_dot_probe();
DotProbe avx512_dot_probe();
DotProbe avx512_bf16_dot_probe();

}  // namespace pio
