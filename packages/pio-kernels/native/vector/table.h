// The table of the kernels of one instruction set: the functions of this folder in namespace pio::PIO_ISA.
#pragma once

#include "../kernels.h"
#include "../outliers.h"
#include "attention.h"
#include "linear.h"
#include "rows.h"
#include "sample.h"
#include "screen.h"

#define PIO_STRING(name) #name
#define PIO_NAME(name) PIO_STRING(name)

namespace pio::PIO_ISA {

static constexpr Kernels kTable = {
    PIO_NAME(PIO_ISA), norm, prepare, group_outliers<kMaxRows>, embed, linear, screen, finish_logits, write_kv, attend, merge, sample, kMaxRows,
};

}  // namespace pio::PIO_ISA
