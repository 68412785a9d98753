// Tiles as program.h draws them, one number at a time.
#pragma once

#include "../numbers.h"
#include "../program.h"

namespace pio::scalar {

// Bytes of a tile with all that belongs to it.
static inline int64_t tile_bytes(uint32_t format) {
    constexpr int64_t kBytes[kTileFormats] = {288, 320, 352, 384, 448, 544, 544, 1024, 1024, 2048};
    return kBytes[format];
}

struct TilePlace {
    const uint8_t* bytes;
    const uint8_t* low;  // of kTileQ8Split: bits 0 and 1 of its quants
};

// Tile number `number` of a strip.
static inline TilePlace tile_at(const Segment& matrix, int64_t strip, int64_t number) {
    const int64_t strips = (matrix.rows + kTileRows - 1) / kTileRows;
    const int64_t tiles = (matrix.columns + kTileInputs - 1) / kTileInputs;
    const int64_t stride = tile_bytes(matrix.format) - (matrix.format == kTileQ8Split ? kSplitLowBytes : 0);
    const int64_t place = strip * tiles + number;
    return {matrix.strips + place * stride, matrix.strips + strips * tiles * stride + place * kSplitLowBytes};
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

// The numbers behind the quants of row r: number 0 is its scale, number 1 its minimum or the scale of inputs 16..31.
static inline float number(uint32_t format, const TilePlace& tile, int r, int which) {
    constexpr int kQuantBytes[] = {256, 256, 320, 320, 384, 512, 384};
    return float_of_f16(u16_at(tile.bytes + kQuantBytes[format] + 32 * which, r));
}

static inline bool has_minima(uint32_t format) { return format == kTileQ4Min || format == kTileQ5Min; }

// Scale of input k of row r
static inline float scale(uint32_t format, const TilePlace& tile, int r, int k) {
    return number(format, tile, r, format == kTileQ6 ? k / 16 : 0);
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
    return has_minima(format) ? product + number(format, tile, r, 1) : product;
}

}  // namespace pio::scalar
