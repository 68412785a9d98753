// What Python measures the limits of the machine with.
#include "limits.h"

int32_t pio_probe_dots(int32_t isa, const uint8_t* weights, const int8_t* inputs, int64_t rounds, int32_t* sums) {
    const pio::DotProbe probe = pio::dot_probe_of(isa);
    if (probe == nullptr) return -1;
    probe(weights, inputs, rounds, sums);
    return 0;
}
