// Bounds of products by their formula; see ../screen.h.
#include "scalar.h"
#include "tiles.h"

namespace pio::scalar {
namespace {

struct Bounds {
    float at_least;
    float at_most;
};

// The least that q - 128 of row r and input k may be, whose lower two bits are not known; in the middle it is 1.5 more.
int least_quant(const TilePlace& tile, int r, int k) { return quant(kTileQ8Split, tile, r, k) & ~3; }

Bounds bounds(const ScreenTask& task, int32_t strip, int r, int32_t row) {
    const Rows& x = *task.x;
    const int32_t tiles = x.stride / kTileInputs;
    float estimate = 0.0f, slack = 0.0f;
    for (int32_t block = 0; block < tiles; ++block) {
        const TilePlace tile = tile_at(*task.weights, strip, block);
        const QuantBlock& input = x.blocks[static_cast<int64_t>(row) * tiles + block];
        int32_t sum = 3 * (input.sums[0] + input.sums[1]) >> 1;  // the half that an odd sum loses is in the slack
        for (int k = 0; k < kTileInputs; ++k) sum += least_quant(tile, r, k) * input.values[k];
        const float d = scale(kTileQ8Split, tile, r, 0);
        estimate += d * input.scale * static_cast<float>(sum);
        slack += __builtin_fabsf(d) * task.slack[static_cast<int64_t>(row) * tiles + block];
    }
    for (int32_t i = 0; i < x.num_outliers[row]; ++i) {
        const Outlier& outlier = x.outliers[static_cast<int64_t>(row) * tiles + i];
        const TilePlace tile = tile_at(*task.weights, strip, outlier.input / kTileInputs);
        const float middle = static_cast<float>(least_quant(tile, r, outlier.input % kTileInputs)) + 1.5f;
        estimate += scale(kTileQ8Split, tile, r, 0) * middle * outlier.value;
    }
    return {estimate - slack, estimate + slack};
}

}  // namespace

void screen(const ScreenTask& task, int32_t first_strip, int32_t last_strip) {
    const float infinity = __builtin_inff();
    for (int32_t row = 0; row < task.rows; ++row) {
        for (int32_t strip = first_strip; strip < last_strip; ++strip) {
            float at_least = -infinity, at_most = -infinity;
            for (int r = 0; r < kTileRows && kTileRows * strip + r < task.weights->rows; ++r) {
                const Bounds output = bounds(task, strip, r, row);
                if (output.at_least > at_least && output.at_least < infinity) at_least = output.at_least;
                if (!(output.at_most <= at_most)) at_most = output.at_most < infinity ? output.at_most : infinity;
            }
            task.at_least[static_cast<int64_t>(row) * task.strips + strip] = at_least;
            task.at_most[static_cast<int64_t>(row) * task.strips + strip] = at_most;
        }
    }
}

}  // namespace pio::scalar
