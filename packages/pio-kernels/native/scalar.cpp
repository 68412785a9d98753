// The table of the scalar kernels, for any processor.
#include "outliers.h"
#include "scalar/scalar.h"

namespace pio {

const Kernels* scalar_kernels() {
    static const Kernels table = {
        "scalar",       scalar::norm,          scalar::prepare,  group_outliers<1>, scalar::embed,
        scalar::linear, scalar::screen,        scalar::finish_logits, scalar::write_kv, scalar::attend,
        scalar::merge,  scalar::sample,        1,
    };
    return &table;
}

}  // namespace pio
