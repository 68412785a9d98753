#include "scalar.h"
#include "tiles.h"

namespace pio::scalar {

void embed(const Segment& table, int64_t row, float factor, float* y) {
    const int64_t tiles = (table.columns + kTileInputs - 1) / kTileInputs;
    const uint8_t* strip = table.strips + row / kTileRows * tiles * tile_bytes(table.format);
    const int r = static_cast<int>(row % kTileRows);
    for (int32_t i = 0; i < table.columns; ++i) {
        const uint8_t* tile = strip + i / kTileInputs * tile_bytes(table.format);
        y[i] = factor * weight(table.format, tile, r, i % kTileInputs);
    }
}

}  // namespace pio::scalar
