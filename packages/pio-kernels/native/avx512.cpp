// The kernels for x86-64-v4 with AVX-512 VNNI.
#include "kernels.h"
#include "limits.h"

#if defined(__AVX512VNNI__)
#define PIO_ISA avx512
#include "vector/limits.h"
#include "vector/table.h"
#endif

namespace pio {

const Kernels* avx512_kernels() {
#if defined(__AVX512VNNI__)
    return &avx512::kTable;
#else
    return nullptr;
#endif
}

DotProbe avx512_dot_probe() {
#if defined(__AVX512VNNI__)
    return avx512::probe_dots;
#else
    return nullptr;
#endif
}

}  // namespace pio
