// The table of the scalar kernels, for any processor.
#include "scalar/scalar.h"

namespace pio {

const Kernels* scalar_kernels() {
    static const Kernels table = {
        "scalar",         scalar::norm,   scalar::prepare, scalar::embed, scalar::linear, scalar::finish_logits,
        scalar::write_kv, scalar::attend, scalar::merge,   scalar::sample,
    };
    return &table;
}

}  // namespace pio
