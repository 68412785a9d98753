// Repacks stored matrices into tiles. The block formats are those of GGUF files: ggml's block structures, whose bytes are
// given at each. A float16 scale that came from a product of two is rounded to float16, which has an error of 2^-12 of it.
#include <stddef.h>

#include "functions.h"
#include "tiles.h"

namespace pio::scalar {
namespace {

// Numbers of ggml's types.
enum Encoding : int32_t {
    kF32 = 0,
    kF16 = 1,
    kQ4_0 = 2,
    kQ4_1 = 3,
    kQ5_0 = 6,
    kQ5_1 = 7,
    kQ8_0 = 8,
    kQ4_K = 12,
    kQ5_K = 13,
    kQ6_K = 14,
    kBF16 = 30,
};

uint32_t four(const uint8_t* bytes) {
    uint32_t x;
    __builtin_memcpy(&x, bytes, sizeof x);
    return x;
}

void put_four(uint8_t* bytes, uint32_t x) { __builtin_memcpy(bytes, &x, sizeof x); }

void put_u16(uint8_t* bytes, int i, uint16_t x) { __builtin_memcpy(bytes + 2 * i, &x, sizeof x); }

// A product of a block's scale and that of its part may leave float16, or a scale be no number at all; then the matrix
// cannot be packed.
struct Packing {
    bool overflow = false;

    uint16_t scale(float x) {
        const uint16_t half = f16_of_float(x);
        check(half);
        return half;
    }
    void check(uint16_t half) { overflow |= (half & 0x7c00) == 0x7c00; }
};

// --- Parts of tiles --------------------------------------------------------------------------------------------------
// Row r of a group of four inputs is the four bytes at g * 64 + r * 4: four quants move at once.

// Inputs 4 g..4 g + 3 in the low, 16 + 4 g..16 + 4 g + 3 in the high four bits.
void put_nibbles(uint8_t* tile, int r, int g, uint32_t low_and_high) { put_four(tile + 64 * g + 4 * r, low_and_high); }

// Every fourth bit of `bits`, from the lowest on, side by side.
uint32_t every_fourth_bit(uint32_t bits) {
    bits &= 0x11111111u;
    bits = (bits | bits >> 3) & 0x03030303u;
    bits = (bits | bits >> 6) & 0x000f000fu;
    return (bits | bits >> 12) & 0xffu;
}

// Bit k of `bits` is the fifth bit of input k.
void put_fifth_bits(uint8_t* tile, int r, uint32_t bits) {
    for (int c = 0; c < 4; ++c) tile[256 + 4 * r + c] = static_cast<uint8_t>(every_fourth_bit(bits >> c));
}

// --- Formats of blocks -----------------------------------------------------------------------------------------------
// Each has the tile's format, elements and bytes of a block, and `put`, which writes row r of a tile from 32 inputs of a
// block: those from 32 * part on. Minima stand behind the scales here, as float16.

// d, then 16 bytes: element k < 16 in the low, element k + 16 in the high four bits of byte k. Value d (q - 8).
struct Q4_0 {
    static constexpr uint32_t kTile = kTileQ4;
    static constexpr int kElements = 32;
    static constexpr int kBytes = 18;
    static void put(const uint8_t* block, int, uint8_t* tile, int r, Packing&) {
        for (int g = 0; g < 4; ++g) put_nibbles(tile, r, g, four(block + 2 + 4 * g));
        put_u16(tile + 256, r, u16_at(block, 0));
    }
};

// d, m, then as Q4_0. Value d q + m.
struct Q4_1 {
    static constexpr uint32_t kTile = kTileQ4Min;
    static constexpr int kElements = 32;
    static constexpr int kBytes = 20;
    static void put(const uint8_t* block, int, uint8_t* tile, int r, Packing&) {
        for (int g = 0; g < 4; ++g) put_nibbles(tile, r, g, four(block + 4 + 4 * g));
        put_u16(tile + 256, r, u16_at(block, 0));
        put_u16(tile + 288, r, u16_at(block, 1));
    }
};

// d, 32 fifth bits, then as Q4_0. Value d (q - 16).
struct Q5_0 {
    static constexpr uint32_t kTile = kTileQ5;
    static constexpr int kElements = 32;
    static constexpr int kBytes = 22;
    static void put(const uint8_t* block, int, uint8_t* tile, int r, Packing&) {
        for (int g = 0; g < 4; ++g) put_nibbles(tile, r, g, four(block + 6 + 4 * g));
        put_fifth_bits(tile, r, four(block + 2));
        put_u16(tile + 320, r, u16_at(block, 0));
    }
};

// d, m, 32 fifth bits, then as Q4_0. Value d q + m.
struct Q5_1 {
    static constexpr uint32_t kTile = kTileQ5Min;
    static constexpr int kElements = 32;
    static constexpr int kBytes = 24;
    static void put(const uint8_t* block, int, uint8_t* tile, int r, Packing&) {
        for (int g = 0; g < 4; ++g) put_nibbles(tile, r, g, four(block + 8 + 4 * g));
        put_fifth_bits(tile, r, four(block + 4));
        put_u16(tile + 320, r, u16_at(block, 0));
        put_u16(tile + 352, r, u16_at(block, 1));
    }
};

// d, then 32 signed bytes. Value d q.
struct Q8_0 {
    static constexpr uint32_t kTile = kTileQ8;
    static constexpr int kElements = 32;
    static constexpr int kBytes = 34;
    static void put(const uint8_t* block, int, uint8_t* tile, int r, Packing&) {
        for (int g = 0; g < 8; ++g) put_four(tile + 64 * g + 4 * r, four(block + 2 + 4 * g) ^ 0x80808080u);
        put_u16(tile + 512, r, u16_at(block, 0));
    }
};

// The six-bit scale and minimum of part j of a super-block of Q4_K or Q5_K, from twelve bytes: those of the first four
// parts in the low six bits of bytes 0..3 (scales) and 4..7 (minima); of the rest the low four bits in bytes 8..11
// (scale low, minimum high), the upper two in the upper bits of bytes 0..3 and 4..7.
struct ScaleAndMinimum {
    int scale;
    int minimum;

    ScaleAndMinimum(const uint8_t* bytes, int j) {
        if (j < 4) {
            scale = bytes[j] & 63;
            minimum = bytes[j + 4] & 63;
        } else {
            scale = (bytes[j + 4] & 15) | (bytes[j - 4] >> 6) << 4;
            minimum = bytes[j + 4] >> 4 | (bytes[j] >> 6) << 4;
        }
    }
};

// Writes the low four bits of part `part` of a super-block in which parts 2 j and 2 j + 1 share 32 bytes, the even one in
// their low four bits.
void put_shared_nibbles(const uint8_t* quants, int part, uint8_t* tile, int r) {
    const uint8_t* shared = quants + part / 2 * 32;
    const int shift = part % 2 * 4;
    for (int g = 0; g < 4; ++g) {
        const uint32_t low = four(shared + 4 * g) >> shift & 0x0f0f0f0fu;
        const uint32_t high = four(shared + 16 + 4 * g) >> shift & 0x0f0f0f0fu;
        put_nibbles(tile, r, g, low | high << 4);
    }
}

// Scale d sc and minimum -d_min m of a part of Q4_K or Q5_K, behind the quants.
void put_products(const uint8_t* block, int part, uint8_t* numbers, int r, Packing& packing) {
    const ScaleAndMinimum factors(block + 4, part);
    const float d = float_of_f16(u16_at(block, 0));
    const float d_min = float_of_f16(u16_at(block, 1));
    put_u16(numbers, r, packing.scale(d * static_cast<float>(factors.scale)));
    put_u16(numbers + 32, r, packing.scale(-d_min * static_cast<float>(factors.minimum)));
}

// d, d_min, 12 bytes of scales and minima, 128 bytes of quants. Value d sc q - d_min m.
struct Q4_K {
    static constexpr uint32_t kTile = kTileQ4Min;
    static constexpr int kElements = 256;
    static constexpr int kBytes = 144;
    static void put(const uint8_t* block, int part, uint8_t* tile, int r, Packing& packing) {
        put_shared_nibbles(block + 16, part, tile, r);
        put_products(block, part, tile + 256, r, packing);
    }
};

// d, d_min, 12 bytes of scales and minima, 32 bytes whose bit `part` is the fifth of that part's inputs, 128 of quants.
struct Q5_K {
    static constexpr uint32_t kTile = kTileQ5Min;
    static constexpr int kElements = 256;
    static constexpr int kBytes = 176;
    static void put(const uint8_t* block, int part, uint8_t* tile, int r, Packing& packing) {
        put_shared_nibbles(block + 48, part, tile, r);
        uint32_t bits = 0;
        for (int g = 0; g < 8; ++g) bits |= (four(block + 16 + 4 * g) >> part & 0x01010101u) << g;
        put_four(tile + 256 + 4 * r, bits);
        put_products(block, part, tile + 320, r, packing);
    }
};

// 128 bytes of low four bits, 64 of upper pairs, 16 signed scales of 16 inputs each, d. In each half of 128 inputs, parts
// k = 0..3 have their low bits in 32 bytes that parts k and k + 2 share, from 32 (k % 2) on, and pair k of 32 bytes.
// Value d sc (q - 32).
struct Q6_K {
    static constexpr uint32_t kTile = kTileQ6;
    static constexpr int kElements = 256;
    static constexpr int kBytes = 210;
    static void put(const uint8_t* block, int part, uint8_t* tile, int r, Packing& packing) {
        const int k = part % 4;
        const uint8_t* low = block + part / 4 * 64 + k % 2 * 32;
        const uint8_t* upper = block + 128 + part / 4 * 32;
        const int shift = k / 2 * 4;
        for (int g = 0; g < 4; ++g) {
            const uint32_t first = four(low + 4 * g) >> shift & 0x0f0f0f0fu;
            const uint32_t second = four(low + 16 + 4 * g) >> shift & 0x0f0f0f0fu;
            put_nibbles(tile, r, g, first | second << 4);
        }
        for (int half = 0; half < 2; ++half) {
            uint32_t pairs = 0;
            for (int g = 0; g < 4; ++g) pairs |= (four(upper + 16 * half + 4 * g) >> 2 * k & 0x03030303u) << 2 * g;
            put_four(tile + 256 + 64 * half + 4 * r, pairs);
        }
        const float d = float_of_f16(u16_at(block, 104));
        for (int half = 0; half < 2; ++half) {
            const int factor = static_cast<int8_t>(block[192 + 2 * part + half]);
            put_u16(tile + 384 + 32 * half, r, packing.scale(d * static_cast<float>(factor)));
        }
    }
};

// --- Plain numbers ---------------------------------------------------------------------------------------------------

template <int32_t Stored>
float stored_number(const uint8_t* stored, int64_t i) {
    if constexpr (Stored == kF16) return float_of_f16(u16_at(stored + 2 * i, 0));
    if constexpr (Stored == kBF16) return float_of_bf16(u16_at(stored + 2 * i, 0));
    return float_of(four(stored + 4 * i));
}

// x = d (q - 128) with d = max |x| / 127 as the least float16 that is no smaller, so that no quant is cut off.
void put_eight_bit(const float* x, uint8_t* tile, int r, Packing& packing) {
    // Bits of magnitudes order as the magnitudes do; those of what is no number come last.
    uint32_t largest = 0;
    for (int k = 0; k < kTileInputs; ++k) {
        const uint32_t bits = bits_of(x[k]) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    const float magnitude = float_of(largest);
    uint16_t d = packing.scale(magnitude / 127.0f);
    if (packing.overflow) return;
    if (float_of_f16(d) * 127.0f < magnitude) d = packing.scale(float_of_f16(++d));
    const float inverse = magnitude > 0.0f ? 1.0f / float_of_f16(d) : 0.0f;
    uint8_t quants[kTileInputs];
    for (int k = 0; k < kTileInputs; ++k) {
        const float q = x[k] * inverse + 128.5f;  // positive: cutting off its fraction rounds
        quants[k] = static_cast<uint8_t>(static_cast<int32_t>(q));
    }
    for (int g = 0; g < 8; ++g) put_four(tile + 64 * g + 4 * r, four(quants + 4 * g));
    put_u16(tile + 512, r, d);
}

// Row r of a tile from the bits of 32 numbers that are of its format.
template <uint32_t Format, typename Bits>
void put_bits(const Bits* x, uint8_t* tile, int r) {
    for (int k = 0; k < kTileInputs; ++k) {
        const int at = Format == kTileBF16 ? k / 2 * 32 + r * 2 + k % 2 : k * 16 + r;
        __builtin_memcpy(tile + sizeof(Bits) * at, x + k, sizeof(Bits));
    }
}

// Row r of a tile from 32 numbers.
template <uint32_t Format>
void put_numbers(const float* x, uint8_t* tile, int r, Packing& packing) {
    if constexpr (Format == kTileQ8) {
        put_eight_bit(x, tile, r, packing);
    } else if constexpr (Format == kTileF32) {
        put_bits<Format>(x, tile, r);
    } else {
        uint16_t halves[kTileInputs];
        for (int k = 0; k < kTileInputs; ++k) {
            halves[k] = Format == kTileBF16 ? bf16_of_float(x[k]) : f16_of_float(x[k]);
        }
        put_bits<Format>(halves, tile, r);
    }
}

// --- Matrices --------------------------------------------------------------------------------------------------------

struct Matrix {
    const uint8_t* stored;
    int32_t rows;
    int32_t columns;
    const int32_t* row_order;

    int64_t stored_row(int32_t row) const { return row_order ? row_order[row] : row; }
    int32_t tiles() const { return (columns + kTileInputs - 1) / kTileInputs; }
    // Rows that a strip has
    int32_t strip_rows(int32_t strip) const {
        const int32_t left = rows - kTileRows * strip;
        return left < kTileRows ? left : kTileRows;
    }
};

using PackTile = void (*)(const Matrix& matrix, int32_t strip, int32_t tile_number, uint8_t* tile, Packing& packing);

template <typename Block>
void pack_blocks(const Matrix& matrix, int32_t strip, int32_t tile_number, uint8_t* tile, Packing& packing) {
    constexpr int kParts = Block::kElements / kTileInputs;
    const int64_t blocks = matrix.columns / Block::kElements;
    for (int r = 0; r < matrix.strip_rows(strip); ++r) {
        const int64_t row = matrix.stored_row(kTileRows * strip + r);
        const uint8_t* block = matrix.stored + (row * blocks + tile_number / kParts) * Block::kBytes;
        Block::put(block, tile_number % kParts, tile, r, packing);
    }
}

template <int32_t Stored, uint32_t Format>
void pack_numbers(const Matrix& matrix, int32_t strip, int32_t tile_number, uint8_t* tile, Packing& packing) {
    constexpr bool kSame = (Stored == kF16 && Format == kTileF16) || (Stored == kBF16 && Format == kTileBF16);
    const int32_t first = tile_number * kTileInputs;
    const int n = matrix.columns - first < kTileInputs ? matrix.columns - first : kTileInputs;
    for (int r = 0; r < matrix.strip_rows(strip); ++r) {
        const int64_t start = matrix.stored_row(kTileRows * strip + r) * matrix.columns + first;
        if constexpr (kSame) {
            uint16_t x[kTileInputs] = {};
            __builtin_memcpy(x, matrix.stored + 2 * start, static_cast<size_t>(2 * n));
            put_bits<Format>(x, tile, r);
        } else {
            float x[kTileInputs] = {};
            for (int k = 0; k < n; ++k) x[k] = stored_number<Stored>(matrix.stored, start + k);
            put_numbers<Format>(x, tile, r, packing);
        }
    }
}

// Scales of a tile, behind its quants, must be numbers: a product would hide that they are none.
void check_scales(uint32_t format, const uint8_t* tile, Packing& packing) {
    const int count = format == kTileQ6 ? 2 * kTileRows : kTileRows;
    const uint8_t* const scales = tile + tile_bytes(format) - 2 * count;
    for (int i = 0; i < count; ++i) packing.check(u16_at(scales, i));
}

// Minima of a strip, 16 float16 of one tile after the other, become steps of the largest of each row.
void settle_minima(uint8_t* minima, int32_t tiles, Packing& packing) {
    uint16_t largest[kTileRows] = {};
    for (int32_t tile = 0; tile < tiles; ++tile) {
        for (int r = 0; r < kTileRows; ++r) {
            const uint16_t minimum = u16_at(minima + kLargestMinimaBytes * tile, r);
            packing.check(minimum);
            const uint16_t magnitude = minimum & 0x7fff;
            largest[r] = magnitude > largest[r] ? magnitude : largest[r];
        }
    }
    if (tiles % 2 != 0) __builtin_memset(minima + kLargestMinimaBytes * tiles, 0, kLargestMinimaBytes);
    __builtin_memcpy(minima + kMinimaPairBytes * pairs_of(tiles), largest, sizeof largest);
    for (int64_t pair = 0; pair < pairs_of(tiles); ++pair) {
        uint8_t* const place = minima + kMinimaPairBytes * pair;
        uint16_t both[2][kTileRows];
        __builtin_memcpy(both, place, sizeof both);
        for (int r = 0; r < kTileRows; ++r) {
            const float most = float_of_f16(largest[r]);
            for (int t = 0; t < 2; ++t) {
                const float share = most > 0.0f ? float_of_f16(both[t][r]) / most : 0.0f;
                const auto steps = static_cast<int16_t>(round_to_even(share * kMinimumSteps));
                put_u16(place, 2 * r + t, static_cast<uint16_t>(steps));
            }
        }
    }
}

// Takes a tile of kTileQ8 apart into one of kTileQ8Split.
void put_split(const uint8_t* eight_bits, uint8_t* tile, uint8_t* low) {
    for (int lane = 0; lane < 64; ++lane) {
        const uint8_t* quants = eight_bits + lane;  // 64 bytes from one group to the next
        for (int g = 0; g < 4; ++g) {
            tile[64 * g + lane] = static_cast<uint8_t>(quants[64 * g] >> 4 | (quants[64 * (g + 4)] & 0xf0));
        }
        for (int half = 0; half < 2; ++half) {
            int middle = 0, lowest = 0;
            for (int g = 0; g < 4; ++g) {
                const int quant = quants[64 * (4 * half + g)];
                middle |= (quant >> 2 & 3) << 2 * g;
                lowest |= (quant & 3) << 2 * g;
            }
            tile[256 + 64 * half + lane] = static_cast<uint8_t>(middle);
            low[64 * half + lane] = static_cast<uint8_t>(lowest);
        }
    }
    __builtin_memcpy(tile + 384, eight_bits + 512, 32);
}

template <typename Block>
PackTile from_blocks(uint32_t format, int32_t columns) {
    return format == Block::kTile && columns % Block::kElements == 0 ? pack_blocks<Block> : nullptr;
}

template <int32_t Stored>
PackTile from_numbers(uint32_t format) {
    switch (format) {
        case kTileQ8: return pack_numbers<Stored, kTileQ8>;
        case kTileBF16: return pack_numbers<Stored, kTileBF16>;
        case kTileF16: return pack_numbers<Stored, kTileF16>;
        case kTileF32: return pack_numbers<Stored, kTileF32>;
        default: return nullptr;
    }
}

PackTile packer(uint32_t format, int32_t encoding, int32_t columns) {
    switch (encoding) {
        case kF32: return from_numbers<kF32>(format);
        case kF16: return from_numbers<kF16>(format);
        case kBF16: return from_numbers<kBF16>(format);
        case kQ4_0: return from_blocks<Q4_0>(format, columns);
        case kQ4_1: return from_blocks<Q4_1>(format, columns);
        case kQ5_0: return from_blocks<Q5_0>(format, columns);
        case kQ5_1: return from_blocks<Q5_1>(format, columns);
        case kQ8_0: return from_blocks<Q8_0>(format, columns);
        case kQ4_K: return from_blocks<Q4_K>(format, columns);
        case kQ5_K: return from_blocks<Q5_K>(format, columns);
        case kQ6_K: return from_blocks<Q6_K>(format, columns);
        default: return nullptr;
    }
}

}  // namespace
}  // namespace pio::scalar

int64_t pio_strip_bytes(uint32_t tile_format, int32_t columns) {
    if (tile_format >= kTileFormats || columns < 0) return -1;
    const int64_t tiles = (static_cast<int64_t>(columns) + kTileInputs - 1) / kTileInputs;
    return pio::strip_stride(tile_format, tiles) + (tile_format == kTileQ8Split ? tiles * kSplitLowBytes : 0);
}

int32_t pio_pack(uint32_t tile_format, int32_t encoding, const uint8_t* stored, int32_t rows, int32_t columns,
                 const int32_t* row_order, uint8_t* strips, int32_t first_strip, int32_t last_strip) {
    using namespace pio;
    using namespace pio::scalar;
    const bool split = tile_format == kTileQ8Split;
    const uint32_t whole_format = split ? kTileQ8 : tile_format;
    const PackTile pack_tile = packer(whole_format, encoding, columns);
    if (!pack_tile) return -1;
    const Matrix matrix = {stored, rows, columns, row_order};
    const int64_t tiles = matrix.tiles();
    const int64_t stride = strip_stride(tile_format, tiles);
    uint8_t* const low = strips + static_cast<int64_t>((rows + kTileRows - 1) / kTileRows) * stride;
    Packing packing;
    for (int32_t strip = first_strip; strip < last_strip; ++strip) {
        uint8_t* const begin = strips + strip * stride;
        uint8_t* const minima = begin + tiles * tile_bytes(tile_format);
        for (int32_t number = 0; number < matrix.tiles(); ++number) {
            uint8_t* const tile = begin + number * tile_bytes(tile_format);
            uint8_t elsewhere[tile_bytes(kTileQ8)];
            uint8_t* const whole = split || has_minima(tile_format) ? elsewhere : tile;
            if (matrix.strip_rows(strip) < kTileRows) {
                __builtin_memset(whole, 0, whole == tile ? static_cast<size_t>(tile_bytes(tile_format)) : sizeof elsewhere);
            }
            pack_tile(matrix, strip, number, whole, packing);
            if (whole_format < kTileBF16) check_scales(whole_format, whole, packing);
            if (split) {
                put_split(whole, tile, low + (strip * tiles + number) * kSplitLowBytes);
            } else if (has_minima(tile_format)) {
                const int bytes = tile_bytes(tile_format);
                __builtin_memcpy(tile, whole, static_cast<size_t>(bytes));
                __builtin_memcpy(minima + kLargestMinimaBytes * number, whole + bytes, kLargestMinimaBytes);
            }
        }
        if (has_minima(tile_format)) settle_minima(minima, matrix.tiles(), packing);
    }
    return packing.overflow ? -2 : 0;
}
