// Tiles as program.h draws them, one number at a time.
#pragma once

#include "../numbers.h"
#include "../strips.h"

namespace pio::scalar {

struct TilePlace {
    const uint8_t* bytes;
    const uint8_t* low;      // of kTileQ8Split: bits 0 and 1 of its quants
    const uint8_t* minima;   // of its strip
    const uint8_t* largest;  // magnitudes among them
    int64_t number;          // of the tile within its strip
};

// Tile number `number` of a strip.
static inline TilePlace tile_at(const Segment& matrix, int64_t strip, int64_t number) {
    const int64_t strips = (matrix.rows + kTileRows - 1) / kTileRows;
    const int64_t tiles = (matrix.columns + kTileInputs - 1) / kTileInputs;
    const int64_t stride = strip_stride(matrix.format, tiles);
    const uint8_t* begin = matrix.strips + strip * stride;
    const uint8_t* minima = begin + tiles * tile_bytes(matrix.format);
    const uint8_t* low = matrix.strips + strips * stride + (strip * tiles + number) * kSplitLowBytes;
    const uint8_t* largest = minima + pairs_of(tiles) * kMinimaPairBytes;
    return {begin + number * tile_bytes(matrix.format), low, minima, largest, number};
}

static inline uint16_t u16_at(const uint8_t* bytes, int i) {
    uint16_t x;
    __builtin_memcpy(&x, bytes + 2 * i, sizeof x);
    return x;
}

// Bits 2 (group % 4) and the next of the byte that four groups of inputs share
static inline int pair_at(const uint8_t* bytes, int group, int lane) {
    return bytes[group / 4 * 64 + lane] >> 2 * (group % 4) & 3;
}

// q of input k of row r, less the quant of value zero in formats without minima
static inline int quant(uint32_t format, const TilePlace& tile, int r, int k) {
    const int lane = 4 * r + k % 4;
    const int group = k / 4;
    if (format == kTileQ8) return tile.bytes[group * 64 + lane] - 128;
    const int nibble = tile.bytes[group % 4 * 64 + lane] >> (k < 16 ? 0 : 4) & 15;
    if (format == kTileQ4) return nibble - 8;
    if (format == kTileQ4Min) return nibble;
    if (format == kTileQ6) return (nibble | pair_at(tile.bytes + 256, group, lane) << 4) - 32;
    if (format == kTileQ8Split) {
        return (nibble << 4 | pair_at(tile.bytes + 256, group, lane) << 2 | pair_at(tile.low, group, lane)) - 128;
    }
    const int fifth = tile.bytes[256 + lane] >> group & 1;
    return (nibble | fifth << 4) - (format == kTileQ5 ? 16 : 0);
}

// Scale of input k of row r
static inline float scale(uint32_t format, const TilePlace& tile, int r, int k) {
    constexpr int kQuantBytes[] = {256, 256, 320, 320, 384, 512, 384};
    const int half = format == kTileQ6 ? k / 16 : 0;
    return float_of_f16(u16_at(tile.bytes + kQuantBytes[format] + 32 * half, r));
}

// Minimum of row r of a tile in steps, and the step.
static inline int32_t minimum_steps(const TilePlace& tile, int r) {
    const uint8_t* pair = tile.minima + tile.number / 2 * kMinimaPairBytes;
    return static_cast<int16_t>(u16_at(pair, 2 * r + static_cast<int>(tile.number % 2)));
}
static inline float minimum_step(const TilePlace& tile, int r) {
    return float_of_f16(u16_at(tile.largest, r)) / kMinimumSteps;
}

static inline float float_weight(uint32_t format, const TilePlace& tile, int r, int k) {
    if (format == kTileBF16) return float_of_bf16(u16_at(tile.bytes, k / 2 * 32 + r * 2 + k % 2));
    if (format == kTileF16) return float_of_f16(u16_at(tile.bytes, k * 16 + r));
    float x;
    __builtin_memcpy(&x, tile.bytes + 4 * (k * 16 + r), sizeof x);
    return x;
}

// The weight of row r and input k
static inline float weight(uint32_t format, const TilePlace& tile, int r, int k) {
    if (format >= kTileBF16) return float_weight(format, tile, r, k);
    const float product = scale(format, tile, r, k) * static_cast<float>(quant(format, tile, r, k));
    return has_minima(format) ? product + minimum_step(tile, r) * static_cast<float>(minimum_steps(tile, r)) : product;
}

}  // namespace pio::scalar
