// The kernels for 64-bit Arm with dot products.
#include "kernels.h"
#include "limits.h"

#if defined(__ARM_FEATURE_DOTPROD)
#define PIO_ISA neon
#include "vector/limits.h"
#include "vector/table.h"
#endif

namespace pio {

const Kernels* neon_kernels() {
#if defined(__ARM_FEATURE_DOTPROD)
    return &neon::kTable;
#else
    return nullptr;
#endif
}

DotProbe neon_dot_probe() {
#if defined(__ARM_FEATURE_DOTPROD)
    return neon::probe_dots;
#else
    return nullptr;
#endif
}

}  // namespace pio
