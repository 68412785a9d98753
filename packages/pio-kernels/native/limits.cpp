// What Python measures the limits of the machine with.
#include "limits.h"

// Eight sums at a time, so that the compiler takes the widest registers that there are on every processor.
uint64_t pio_probe_read(const uint8_t* data, int64_t bytes) {
    constexpr int kLanes = 8;
    uint64_t sums[kLanes] = {};
    for (int64_t at = 0; at < bytes; at += sizeof sums) {
        uint64_t words[kLanes];
        __builtin_memcpy(words, data + at, sizeof words);
        for (int lane = 0; lane < kLanes; ++lane) sums[lane] += words[lane];
    }
    uint64_t sum = 0;
    for (const uint64_t each : sums) sum += each;
    return sum;
}

int32_t pio_probe_dots(int32_t isa, const uint8_t* weights, const int8_t* inputs, int64_t rounds, int32_t* sums) {
    const pio::DotProbe probe = pio::dot_probe_of(isa);
    if (probe == nullptr) return -1;
    probe(weights, inputs, rounds, sums);
    return 0;
}
