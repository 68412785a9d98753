// What tests reach single kernels through.
#include "kernels.h"

const void* pio_kernels(int32_t isa) { return pio::kernels_of(isa); }
