// The kernels for x86-64-v3 with AVX-VNNI.
#include "kernels.h"
#include "limits.h"

#if defined(__AVXVNNI__)
#define PIO_ISA avx2vnni
#include "vector/limits.h"
#include "vector/table.h"
#endif

namespace pio {

const Kernels* avx2_vnni_kernels() {
#if defined(__AVXVNNI__)
    return &avx2vnni::kTable;
#else
    return nullptr;
#endif
}

DotProbe avx2_vnni_dot_probe() {
#if defined(__AVXVNNI__)
    return avx2vnni::probe_dots;
#else
    return nullptr;
#endif
}

}  // namespace pio
