// The probe of dot products, by its formula.
#include "../limits.h"

namespace pio {
namespace {

void probe_dots(const uint8_t* weights, const int8_t* inputs, int64_t rounds, int32_t* sums) {
    for (int64_t round = 0; round < rounds; ++round) {
        forget(inputs);
        for (int m = 0; m < kProbeRows; ++m) {
            for (int r = 0; r < kTileRows; ++r) {
                int32_t sum = 0;
                for (int k = 0; k < kTileInputs; ++k) sum += weights[4 * r + k % 4] * inputs[kTileInputs * m + k];
                int32_t& total = sums[kTileRows * m + r];
                total = static_cast<int32_t>(static_cast<uint32_t>(total) + static_cast<uint32_t>(sum));
            }
        }
    }
}

}  // namespace

DotProbe scalar_dot_probe() { return probe_dots; }

}  // namespace pio
