// Where the parts of a packed matrix lie; program.h says what they are.
#pragma once

#include "program.h"

namespace pio {
namespace {

constexpr bool has_minima(uint32_t format) { return format == kTileQ4Min || format == kTileQ5Min; }

// Bytes of a tile, without what lies elsewhere.
constexpr int tile_bytes(uint32_t format) {
    constexpr int kBytes[kTileFormats] = {288, 288, 352, 352, 448, 544, 544 - kSplitLowBytes, 1024, 1024, 2048};
    return kBytes[format];
}

// Blocks, or tiles, in pairs: what minima and the sums that they are multiplied with come in.
constexpr int64_t pairs_of(int64_t tiles) { return (tiles + 1) / 2; }

constexpr int kLargestMinimaBytes = 2 * kTileRows;
constexpr int kMinimaPairBytes = 4 * kTileRows;

// Bytes of the minima behind a strip's tiles.
constexpr int64_t minima_bytes(uint32_t format, int64_t tiles) {
    return has_minima(format) ? kLargestMinimaBytes + pairs_of(tiles) * kMinimaPairBytes : 0;
}

// Bytes from a strip to the next.
constexpr int64_t strip_stride(uint32_t format, int64_t tiles) {
    return minima_bytes(format, tiles) + tiles * tile_bytes(format);
}

}  // namespace
}  // namespace pio
