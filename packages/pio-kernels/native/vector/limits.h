// The probe of scalar/limits.cpp in the registers of this instruction set.
#pragma once

#include "../limits.h"
#include "simd.h"

namespace pio::PIO_ISA {

inline void probe_dots(const uint8_t* weights, const int8_t* inputs, int64_t rounds, int32_t* sums) {
    const Bytes64 once = load_bytes(weights);
    const Bytes64 quants[8] = {once, once, once, once, once, once, once, once};
    I32x16 rows[kProbeRows];
    for (I32x16& row : rows) row = broadcast(0);
    for (int64_t round = 0; round < rounds; ++round) {
        forget(inputs);
PIO_UNROLL
        for (int m = 0; m < kProbeRows; ++m) rows[m] = dot<4, 8>(quants, inputs + kTileInputs * m, rows[m]);
    }
    for (int m = 0; m < kProbeRows; ++m) {
        int32_t row[kTileRows];
        __builtin_memcpy(row, &rows[m], sizeof row);
        for (int r = 0; r < kTileRows; ++r) {
            sums[kTileRows * m + r] = static_cast<int32_t>(static_cast<uint32_t>(sums[kTileRows * m + r]) + row[r]);
        }
    }
}

}  // namespace pio::PIO_ISA
