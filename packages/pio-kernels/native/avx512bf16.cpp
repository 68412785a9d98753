// The kernels for x86-64-v4 with AVX-512 VNNI and BF16.
#include "kernels.h"
#include "limits.h"

#if defined(__AVX512BF16__)
#define PIO_ISA avx512bf16
#include "vector/limits.h"
#include "vector/table.h"
#endif

namespace pio {

const Kernels* avx512_bf16_kernels() {
#if defined(__AVX512BF16__)
    return &avx512bf16::kTable;
#else
    return nullptr;
#endif
}

DotProbe avx512_bf16_dot_probe() {
#if defined(__AVX512BF16__)
    return avx512bf16::probe_dots;
#else
    return nullptr;
#endif
}

}  // namespace pio
