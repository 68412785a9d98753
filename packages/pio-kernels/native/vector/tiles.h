// Tiles in registers, and where a strip's parts lie: scalar/tiles.h, sixteen outputs at a time.
#pragma once

#include "../kernels.h"
#include "../strips.h"
#include "simd.h"

namespace pio::PIO_ISA {

// What program.h says of a format: bits of a quant, the quant of value zero, minima, scales per half block.
template <uint32_t Format>
struct TileTraits {
    static constexpr bool kQuantised = Format < kTileBF16;
    static constexpr bool kSplit = Format == kTileQ8Split;
    static constexpr bool kMinima = has_minima(Format);
    static constexpr bool kHalves = Format == kTileQ6;
    static constexpr int kBits = Format <= kTileQ4Min ? 4 : Format <= kTileQ5Min ? 5 : Format == kTileQ6 ? 6 : 8;
    static constexpr int kZero = kMinima ? 0 : kBits == 8 ? kEightBitZero : 1 << (kBits - 1);
    static constexpr float kStoredZero = kMinima ? 0.0f : 1 << (kBits - 1);
    static constexpr int kLowBytes = kSplit ? kSplitLowBytes : 0;
    static constexpr int kQuantBytes = 64 * kBits - kLowBytes;
    static constexpr int kBytes = tile_bytes(Format);
};

// One tile in registers: quants[g] holds inputs 4 g..4 g + 3 of each row.
struct Tile {
    Bytes64 quants[8];
    F32x16 scale;   // of all inputs, or of the first half
    F32x16 second;  // of the second half
};

// What a product reads of one strip.
struct Strip {
    const uint8_t* tiles;
    const uint8_t* minima;   // where there are any
    const uint8_t* largest;  // magnitudes among them
    const uint8_t* low;      // of kTileQ8Split
    const uint8_t* unpacked;  // what unpack_strip made of the tiles, or null
};

template <uint32_t Format>
PIO_INLINE Strip strip_at(const Segment& weights, int32_t strip, int32_t tiles) {
    using Traits = TileTraits<Format>;
    const int64_t stride = strip_stride(Format, tiles);
    const uint8_t* const begin = weights.strips + strip * stride;
    const uint8_t* const minima = begin + static_cast<int64_t>(tiles) * Traits::kBytes;
    const uint8_t* low = nullptr;
    if constexpr (Traits::kSplit) {
        const int64_t strips = (weights.rows + kTileRows - 1) / kTileRows;
        low = weights.strips + strips * stride + static_cast<int64_t>(strip) * tiles * Traits::kLowBytes;
    }
    return {begin, minima, minima + pairs_of(tiles) * kMinimaPairBytes, low, nullptr};
}

// Fetches weights that come later while those at hand are used: from memory into the second-level cache far ahead, since
// there are more ways to that one, and from there into the first.
constexpr int kFar = 8 * 1024, kNear = 1024;

template <int Bytes>
PIO_INLINE void fetch_far(const uint8_t* weights) {
PIO_UNROLL
    for (int i = 0; i < Bytes; i += 64) __builtin_prefetch(weights + i, 0, 2);
}

template <int Bytes>
PIO_INLINE void fetch_near(const uint8_t* weights) {
PIO_UNROLL
    for (int i = 0; i < Bytes; i += 64) __builtin_prefetch(weights + i, 0, 3);
}

template <int Bytes>
PIO_INLINE void fetch_ahead(const uint8_t* weights) {
    fetch_far<Bytes>(weights + kFar);
    fetch_near<Bytes>(weights + kNear);
}

// Minima of one tile for each row of a strip.
PIO_INLINE F32x16 minima_of_tile(const Strip& strip, int64_t number) {
    const uint8_t* const pair = strip.minima + number / 2 * kMinimaPairBytes;
    const F32x16 bits = to_float(bits_at(pair, 16 * static_cast<int>(number % 2), 0xffff));
    const F32x16 steps = select_less(bits, broadcast(32768.0f), bits, subtract(bits, broadcast(65536.0f)));
    return multiply(steps, multiply(load_f16(strip.largest), broadcast(1.0f / kMinimumSteps)));
}

// Bits 2 (g % 4) and the next of the bytes that groups of inputs share, at their place `at` in the quants of input k.
PIO_INLINE F32x16 pairs_of_input(const uint8_t* pairs, uint32_t k, float at) {
    const uint32_t group = k / 4;
    return multiply(to_float(bits_at(pairs + 64 * (group / 4), 8 * (k % 4) + 2 * (group % 4), 3)), broadcast(at));
}

// Weights of input number `input` for each row of a strip. Without a sign, since divisions are shifts then.
template <uint32_t Format>
PIO_INLINE F32x16 weights_of_input(const Strip& strip, uint32_t input) {
    using Traits = TileTraits<Format>;
    const int64_t number = input / kTileInputs;
    const uint8_t* tile = strip.tiles + number * Traits::kBytes;
    const uint32_t k = input % kTileInputs, group = k / 4, byte = 8 * (k % 4);
    F32x16 quants;
    if constexpr (Format == kTileQ8) {
        quants = to_float(bits_at(tile + 64 * group, byte, 255));
    } else {
        quants = to_float(bits_at(tile + 64 * (group % 4), byte + 4 * (group / 4), 15));
    }
    if constexpr (Traits::kBits == 5) {
        quants = multiply_add(to_float(bits_at(tile + 256, byte + group, 1)), broadcast(16.0f), quants);
    }
    if constexpr (Traits::kBits == 6) quants = add(quants, pairs_of_input(tile + 256, k, 16.0f));
    if constexpr (Traits::kSplit) {
        quants = multiply_add(quants, broadcast(16.0f), pairs_of_input(tile + 256, k, 4.0f));
        quants = add(quants, pairs_of_input(strip.low + number * Traits::kLowBytes, k, 1.0f));
    }
    const F32x16 scale = load_f16(tile + Traits::kQuantBytes + (Traits::kHalves && k >= 16 ? 32 : 0));
    if constexpr (Traits::kMinima) return multiply_add(scale, quants, minima_of_tile(strip, number));
    return multiply(scale, subtract(quants, broadcast(Traits::kStoredZero)));
}

// Quants of kTileQ8Split; without `low`, zeros stand for their lower two bits. Bits 2 and 3 of groups 1 and 3 of a half are
// where they belong, in the low or the high half of their bytes; those of groups 0 and 2 are two places below.
template <bool kLow>
PIO_INLINE void unpack_split(const uint8_t* tile, const uint8_t* low, Bytes64* quants) {
    const Bytes64 middle = broadcast_byte(0xcc), upper = broadcast_byte(0xf0);
PIO_UNROLL
    for (int half = 0; half < 2; ++half) {
        const Bytes64 pairs = load_bytes(tile + 256 + 64 * half);
        Bytes64 odd, even;
        if constexpr (kLow) {
            const Bytes64 lowest = load_bytes(low + 64 * half);
            odd = select_bits(middle, pairs, shift<-2>(lowest));
            even = select_bits(middle, shift<2>(pairs), lowest);
        } else {
            odd = bit_and(pairs, middle);
            even = bit_and(shift<2>(pairs), middle);
        }
        const Bytes64 lower[4] = {even, odd, shift<-4>(even), shift<-4>(odd)};
PIO_UNROLL
        for (int g = 0; g < 4; ++g) {
            const Bytes64 both = load_bytes(tile + 64 * g);
            const Bytes64 quant = select_bits(upper, half == 0 ? shift<4>(both) : both, lower[g]);
            quants[4 * half + g] = eight_bit_quants(quant);
        }
    }
}

// A tile as it is packed, of which group<g>() unpacks inputs 4 g..4 g + 3 of each row.
template <uint32_t Format>
class PackedTile {
   public:
    PackedTile() = default;
    PIO_INLINE_MEMBER PackedTile(const uint8_t* tile, const uint8_t* low) : tile_(tile) {
        if constexpr (Format == kTileQ8Split) unpack_split<true>(tile, low, split_);
    }

    template <int Group>
    PIO_INLINE_MEMBER Bytes64 group() const {
        constexpr int kBits = TileTraits<Format>::kBits;
        if constexpr (Format == kTileQ8Split) {
            return split_[Group];
        } else if constexpr (kBits == 8) {
            return eight_bit_quants(load_bytes(tile_ + 64 * Group));
        } else {
            // The low four bits of groups g and g + 4 share bytes.
            const Bytes64 both = load_bytes(tile_ + 64 * (Group % 4));
            const Bytes64 lowest = bit_and(shift<Group < 4 ? 0 : -4>(both), broadcast_byte(15));
            if constexpr (kBits == 4) return lowest;
            if constexpr (kBits == 5) {
                // Bit g of each byte is bit 4 of the quant.
                return insert_bits(lowest, shift<4 - Group>(load_bytes(tile_ + 256)), broadcast_byte(16));
            } else {
                // Bits 2 (g % 4) and the next are bits 4 and 5, for the four groups of either half.
                const Bytes64 upper = load_bytes(tile_ + 256 + 64 * (Group / 4));
                return insert_bits(lowest, shift<4 - 2 * (Group % 4)>(upper), broadcast_byte(48));
            }
        }
    }

    PIO_INLINE_MEMBER F32x16 scale() const { return load_f16(tile_ + TileTraits<Format>::kQuantBytes); }
    // Of the second half, where there is one.
    PIO_INLINE_MEMBER F32x16 second_scale() const { return load_f16(tile_ + TileTraits<Format>::kQuantBytes + 32); }

    // Makes the compiler read what follows anew.
    PIO_INLINE_MEMBER void forget() { asm volatile("" : "+r"(tile_)); }

   private:
    const uint8_t* tile_;
    Bytes64 split_[Format == kTileQ8Split ? 8 : 1];  // all groups share what is computed on the way
};

template <uint32_t Format>
PIO_INLINE Tile unpack(const uint8_t* bytes, const uint8_t* low) {
    const PackedTile<Format> packed(bytes, low);
    Tile tile;
    each_constant<0, 8>([&](auto group) __attribute__((always_inline)) {
        constexpr int kGroup = decltype(group)::value;
        tile.quants[kGroup] = packed.template group<kGroup>();
    });
    tile.scale = packed.scale();
    if constexpr (TileTraits<Format>::kHalves) tile.second = packed.second_scale();
    return tile;
}

// --- Strips unpacked for many rows -----------------------------------------------------------------------------------

// Where a tile does not stay in registers while rows go by (kGroupByGroup), many rows have their weights unpacked once for
// all: groups of quants one after the other as `dots` takes them, and as float32 scales and minima, or the scales of the
// second half.
constexpr int kUnpackedBytes = (8 + 2) * 64;
// Tiles that there is memory for
constexpr int kMostUnpacked = 128;

// Rows for which unpacking costs no more than it saves.
constexpr int rows_to_unpack_for(uint32_t format) {
    if (!kGroupByGroup || format >= kTileBF16) return INT32_MAX;
    return format == kTileQ8Split ? 8 : 16;
}

class UnpackedTile {
   public:
    PIO_INLINE_MEMBER explicit UnpackedTile(const uint8_t* tile) : tile_(tile) {}

    template <int Group>
    PIO_INLINE_MEMBER Bytes64 group() const {
        return load_bytes(tile_ + 64 * Group);
    }
    PIO_INLINE_MEMBER F32x16 scale() const { return load(reinterpret_cast<const float*>(tile_ + 8 * 64)); }
    PIO_INLINE_MEMBER F32x16 second_scale() const { return load(reinterpret_cast<const float*>(tile_ + 9 * 64)); }
    PIO_INLINE_MEMBER void forget() { asm volatile("" : "+r"(tile_)); }

   private:
    const uint8_t* tile_;
};

template <uint32_t Format>
inline void unpack_strip(const Strip& strip, int32_t tiles, uint8_t* to) {
    constexpr int kBytes = TileTraits<Format>::kBytes;
    const uint8_t* bytes = strip.tiles;
    const uint8_t* low = strip.low;
    for (int32_t i = 0; i < tiles; ++i, bytes += kBytes, low += TileTraits<Format>::kLowBytes, to += kUnpackedBytes) {
        fetch_near<kBytes>(bytes + kNear);  // farther, products with the strip before it did
        const PackedTile<Format> tile(bytes, low);
        each_constant<0, 8>([&](auto group) __attribute__((always_inline)) {
            constexpr int kGroup = decltype(group)::value;
            store_bytes(to + 64 * kGroup, tile.template group<kGroup>());
        });
        store(reinterpret_cast<float*>(to + 8 * 64), tile.scale());
        if constexpr (TileTraits<Format>::kHalves) store(reinterpret_cast<float*>(to + 9 * 64), tile.second_scale());
        if constexpr (TileTraits<Format>::kMinima) store(reinterpret_cast<float*>(to + 9 * 64), minima_of_tile(strip, i));
    }
}

// weights_of_input from an unpacked strip
template <uint32_t Format>
PIO_INLINE F32x16 weights_of_unpacked(const Strip& strip, uint32_t input) {
    using Traits = TileTraits<Format>;
    const uint8_t* const tile = strip.unpacked + input / kTileInputs * kUnpackedBytes;
    const uint32_t k = input % kTileInputs;
    const auto* const factors = reinterpret_cast<const float*>(tile + 8 * 64);
    const I32x16 quants = bits_at(tile + 64 * (k / 4), 8 * (k % 4), 255);
    const F32x16 scale = load(factors + (Traits::kHalves && k >= 16 ? kTileRows : 0));
    if constexpr (Traits::kMinima) return multiply_add(scale, to_float(quants), load(factors + kTileRows));
    if constexpr (Traits::kBits == 8 && kEightBitZero == 0) {
        return multiply(scale, to_float(shift_right<24>(shift_left<24>(quants))));  // they have a sign
    }
    return multiply(scale, subtract(to_float(quants), broadcast(Traits::kStoredZero)));
}

}  // namespace pio::PIO_ISA
