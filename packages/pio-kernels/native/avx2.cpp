// The kernels for x86-64-v3: AVX2, FMA and F16C.
#include "kernels.h"
#include "limits.h"

#if defined(__AVX2__)
#define PIO_ISA avx2
#include "vector/limits.h"
#include "vector/table.h"
#endif

namespace pio {

const Kernels* avx2_kernels() {
#if defined(__AVX2__)
    return &avx2::kTable;
#else
    return nullptr;
#endif
}

DotProbe avx2_dot_probe() {
#if defined(__AVX2__)
    return avx2::probe_dots;
#else
    return nullptr;
#endif
}

}  // namespace pio
