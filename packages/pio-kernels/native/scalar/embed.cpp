#include "scalar.h"
#include "tiles.h"

namespace pio::scalar {

void embed(const Segment& table, int64_t row, float factor, float* y) {
    const int r = static_cast<int>(row % kTileRows);
    for (int32_t i = 0; i < table.columns; ++i) {
        const TilePlace tile = tile_at(table, row / kTileRows, i / kTileInputs);
        y[i] = factor * weight(table.format, tile, r, i % kTileInputs);
    }
}

}  // namespace pio::scalar
