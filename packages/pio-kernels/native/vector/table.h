// The table of the kernels of one instruction set: the functions of this folder in namespace pio::PIO_ISA.
#pragma once

#include "../kernels.h"
#if __has_include("attention.h")
#include "attention.h"
#else
#include "../scalar/scalar.h"
namespace pio::PIO_ISA {
using scalar::attend;
using scalar::merge;
using scalar::write_kv;
}  // namespace pio::PIO_ISA
#endif
#include "linear.h"
#include "rows.h"
#if __has_include("sample.h")
#include "sample.h"
#else
#include "../scalar/scalar.h"
namespace pio::PIO_ISA {
using scalar::sample;
}  // namespace pio::PIO_ISA
#endif

#define PIO_STRING(name) #name
#define PIO_NAME(name) PIO_STRING(name)

namespace pio::PIO_ISA {

static constexpr Kernels kTable = {
    PIO_NAME(PIO_ISA), norm, prepare, embed, linear, finish_logits, write_kv, attend, merge, sample,
};

}  // namespace pio::PIO_ISA
