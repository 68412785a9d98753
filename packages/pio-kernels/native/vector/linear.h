// Products with packed matrices: scalar/linear.cpp, sixteen outputs and up to kMaxRows rows at a time.
//
// A strip's tiles are read one after the other. Each is unpacked into registers once (`unpack`) and multiplied with the
// same 32 inputs of M rows; every row keeps the sixteen sums of the strip's outputs in one accumulator. Over a batch,
// blocks of rows take their turns, so that a strip stays in the first-level cache while its block of rows goes by, and the
// block of rows in the second-level cache from one strip to the next.
//
// Sums over the 32 (or 16) inputs of a block of quants are exact integers. Blocks add to a float32 accumulator in order
// of inputs, as the scalar version has it; they differ in fused products, and in the order of the 32 inputs of bfloat16
// tiles (see dot_bf16). With T terms in a sum, both are within T 2^-24 sum |terms| of the exact sum, to first order.
#pragma once

#include "../kernels.h"
#include "../strips.h"
#include "simd.h"

namespace pio::PIO_ISA {

// Rows of a block, and of one that takes no more than kManyRowsBytes.
constexpr int kRowBlock = 128;
constexpr int kManyRows = 256;
constexpr int64_t kManyRowsBytes = 400 * 1024;
static_assert(kRowBlock % kMaxRows == 0 && kManyRows % kMaxRows == 0, "blocks are of whole groups of rows");

// --- Tiles -----------------------------------------------------------------------------------------------------------

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

// A format as a type, for functions that are made for one.
template <uint32_t Value>
struct Constant {
    static constexpr uint32_t value = Value;
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
    return {begin, minima, minima + pairs_of(tiles) * kMinimaPairBytes, low};
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

// The low four bits of inputs 0..15 and of 16..31 share bytes.
PIO_INLINE void unpack_nibbles(const uint8_t* tile, Bytes64* quants) {
    const Bytes64 mask = broadcast_byte(15);
PIO_UNROLL
    for (int g = 0; g < 4; ++g) {
        const Bytes64 both = load_bytes(tile + 64 * g);
        quants[g] = bit_and(both, mask);
        quants[g + 4] = bit_and(shift<-4>(both), mask);
    }
}

// Bit `Group` of each byte becomes bit 4 of the quant.
template <int Group = 0>
PIO_INLINE void insert_fifth_bits(Bytes64 fifth, Bytes64* quants) {
    quants[Group] = insert_bits(quants[Group], shift<4 - Group>(fifth), broadcast_byte(16));
    if constexpr (Group < 7) insert_fifth_bits<Group + 1>(fifth, quants);
}

// Bits 2 Group and 2 Group + 1 of each byte become bits 4 and 5 of the quant, for the four groups of one half.
template <int Group = 0>
PIO_INLINE void insert_upper_pairs(Bytes64 upper, Bytes64* quants) {
    quants[Group] = insert_bits(quants[Group], shift<4 - 2 * Group>(upper), broadcast_byte(48));
    if constexpr (Group < 3) insert_upper_pairs<Group + 1>(upper, quants);
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

template <uint32_t Format>
PIO_INLINE Tile unpack(const uint8_t* bytes, const uint8_t* low) {
    using Traits = TileTraits<Format>;
    Tile tile;
    if constexpr (Traits::kSplit) {
        unpack_split<true>(bytes, low, tile.quants);
    } else if constexpr (Traits::kBits == 8) {
PIO_UNROLL
        for (int g = 0; g < 8; ++g) tile.quants[g] = eight_bit_quants(load_bytes(bytes + 64 * g));
    } else {
        unpack_nibbles(bytes, tile.quants);
    }
    if constexpr (Traits::kBits == 5) insert_fifth_bits(load_bytes(bytes + 256), tile.quants);
    if constexpr (Traits::kBits == 6) {
        insert_upper_pairs(load_bytes(bytes + 256), tile.quants);
        insert_upper_pairs(load_bytes(bytes + 320), tile.quants + 4);
    }
    tile.scale = load_f16(bytes + Traits::kQuantBytes);
    if constexpr (Traits::kHalves) tile.second = load_f16(bytes + Traits::kQuantBytes + 32);
    return tile;
}

// --- Sums of one strip -----------------------------------------------------------------------------------------------

// acc + tile x over one block of a row, minima left out
template <uint32_t Format>
PIO_INLINE F32x16 add_block(const Tile& tile, const QuantBlock& x, F32x16 acc) {
    using Traits = TileTraits<Format>;
    if constexpr (Traits::kHalves) {
        const I32x16 low = dot<Traits::kBits, 4>(tile.quants, x.values, broadcast(-Traits::kZero * x.sums[0]));
        const I32x16 high = dot<Traits::kBits, 4>(tile.quants + 4, x.values + 16, broadcast(-Traits::kZero * x.sums[1]));
        const F32x16 both = multiply_add(to_float(low), tile.scale, multiply(to_float(high), tile.second));
        return multiply_add(both, broadcast(x.scale), acc);
    } else {
        // From -128 to minus the zero point: broadcast as it lies in memory, the sum costs no instruction of its own.
        constexpr int kShift = Traits::kZero == 8 ? 4 : Traits::kZero == 16 ? 3 : 0;
        const I32x16 start = Traits::kZero == 0 ? broadcast(0) : shift_right<kShift>(broadcast(x.zero_sum));
        const I32x16 product = dot<Traits::kBits, 8>(tile.quants, x.values, start);
        return multiply_add(to_float(product), multiply(tile.scale, broadcast(x.scale)), acc);
    }
}

// Numbers of rows that a product takes together: `first` and those after it, or those of a list. What is done once for a
// strip and a few rows counts where a strip is short, a tenth of the time with 576 inputs.
struct RowNumbers {
    const int32_t* list;
    int64_t first;
    bool first_of_strip;  // whether no rows before them had this strip's turn
    int64_t operator[](int m) const { return list ? list[m] : first + m; }
};

// Fetches weights that come later while M rows are multiplied with those at hand: from memory into the second-level cache
// far ahead, since there are more ways to that one, and from there into the first. For the first rows of a strip: others
// find it in the caches. One or two rows go through weights as fast as the processor can read them by itself: there,
// asking for more only holds up what it has asked for.
template <int M, int Bytes>
PIO_INLINE void prefetch_ahead(const uint8_t* weights, const RowNumbers& rows) {
    constexpr int kFar = 8 * 1024, kNear = 1024;
    if constexpr (M > 2) {
        if (!rows.first_of_strip) return;
PIO_UNROLL
        for (int i = 0; i < Bytes; i += 64) {
            __builtin_prefetch(weights + kFar + i, 0, 2);
            __builtin_prefetch(weights + kNear + i, 0, 3);
        }
    }
}

// Where M rows begin in an array of `width` numbers per row.
template <int M, typename T>
PIO_INLINE void find_rows(const T* array, int64_t width, const RowNumbers& rows, const T** found) {
    if (rows.list == nullptr) {
        found[0] = array + rows.first * width;
        for (int m = 1; m < M; ++m) found[m] = found[m - 1] + width;
    } else {
        for (int m = 0; m < M; ++m) found[m] = array + rows.list[m] * width;
    }
}

// The sums below keep rows' addresses and accumulators in variables of their own: what a caller's array holds, the
// compiler would have to write back after each tile.

// acc + what the outliers of a row add
template <uint32_t Format>
PIO_INLINE F32x16 add_outliers(const Strip& strip, const Rows& x, int64_t row, F32x16 acc) {
    const Outlier* outlier = x.outliers + row * (x.stride / 32);
    const Outlier* end = outlier + x.num_outliers[row];
    for (; outlier != end; ++outlier) {
        acc = multiply_add(weights_of_input<Format>(strip, outlier->input), broadcast(outlier->value), acc);
    }
    return acc;
}

// The same for M rows from `row` on, a group of group_outliers.
template <uint32_t Format, int M>
PIO_INLINE void add_outlier_columns(const Strip& strip, const Rows& x, int64_t row, F32x16* acc) {
    const OutlierColumn* column = x.outlier_columns + row * (x.stride / 32);
    const OutlierColumn* end = column + x.num_outlier_columns[row];
    for (; column != end; ++column) {
        const F32x16 weights = weights_of_input<Format>(strip, column->input);
PIO_UNROLL
        for (int m = 0; m < M; ++m) acc[m] = multiply_add(weights, broadcast(column->values[m]), acc[m]);
    }
}

// Adds the minima's share to the sums of M rows, in integers: two blocks of inputs by one instruction, where a product for
// each block would be an eleventh of all. After the tiles, when the blocks are in the first-level cache.
template <int M>
PIO_INLINE void add_minima(const Strip& strip, const Rows& x, const RowNumbers& rows, const QuantBlock* const* inputs,
                           F32x16* sums) {
    I32x16 acc[M];
    for (int m = 0; m < M; ++m) acc[m] = broadcast(0);
    const uint8_t* bytes = strip.minima;
    for (int32_t block = 0; block < x.stride / 32; block += 2, bytes += kMinimaPairBytes) {
        prefetch_ahead<M, kMinimaPairBytes>(bytes, rows);
        const Bytes64 steps = load_bytes(bytes);
PIO_UNROLL
        for (int m = 0; m < M; ++m) acc[m] = dot_pairs(acc[m], steps, inputs[m][block].pair);
    }
    prefetch_ahead<M, kLargestMinimaBytes>(strip.largest, rows);
    const F32x16 largest = load_f16(strip.largest);
    for (int m = 0; m < M; ++m) {
        const F32x16 step = multiply(largest, broadcast(x.sum_steps[rows[m]] / kMinimumSteps));
        sums[m] = multiply_add(to_float(acc[m]), step, sums[m]);
    }
}

template <uint32_t Format, int M>
PIO_INLINE void sum_quantised(const Strip& strip, const Rows& x, const RowNumbers& rows, F32x16* sums) {
    constexpr int kBytes = TileTraits<Format>::kBytes;
    constexpr int kLowBytes = TileTraits<Format>::kLowBytes;
    const int32_t blocks = x.stride / 32;
    const QuantBlock* inputs[M];
    find_rows<M>(x.blocks, blocks, rows, inputs);
    F32x16 acc[M];
    for (int m = 0; m < M; ++m) acc[m] = zeros();
    const uint8_t* bytes = strip.tiles;
    const uint8_t* low = strip.low;
    for (int32_t block = 0; block < blocks; ++block, bytes += kBytes, low += kLowBytes) {
        prefetch_ahead<M, kBytes>(bytes, rows);
        const Tile tile = unpack<Format>(bytes, low);
PIO_UNROLL
        for (int m = 0; m < M; ++m) acc[m] = add_block<Format>(tile, inputs[m][block], acc[m]);
    }
    if constexpr (TileTraits<Format>::kMinima) add_minima<M>(strip, x, rows, inputs, acc);
    if (x.outlier_columns != nullptr) {
        add_outlier_columns<Format, M>(strip, x, rows[0], acc);
PIO_UNROLL
        for (int m = 0; m < M; ++m) sums[m] = acc[m];
    } else {
PIO_UNROLL
        for (int m = 0; m < M; ++m) sums[m] = add_outliers<Format>(strip, x, rows[m], acc[m]);
    }
}

template <int M>
PIO_INLINE void sum_bf16(const uint8_t* strip, const Rows& x, const RowNumbers& rows, F32x16* sums) {
    const uint16_t* inputs[M];
    find_rows<M>(x.bf16, x.stride, rows, inputs);
    F32x16 acc[M];
    for (int m = 0; m < M; ++m) acc[m] = zeros();
    for (int32_t i = 0; i < x.stride; i += 2, strip += 64) {
        prefetch_ahead<M, 64>(strip, rows);
        const Bytes64 w = load_bytes(strip);
PIO_UNROLL
        for (int m = 0; m < M; ++m) acc[m] = dot_bf16(acc[m], w, inputs[m] + i);
    }
    for (int m = 0; m < M; ++m) sums[m] = acc[m];
}

template <uint32_t Format>
PIO_INLINE F32x16 load_weights(const uint8_t* weights) {
    if constexpr (Format == kTileF16) return load_f16(weights);
    return load(reinterpret_cast<const float*>(weights));
}

template <uint32_t Format, int M>
PIO_INLINE void sum_float(const uint8_t* strip, const Rows& x, const RowNumbers& rows, F32x16* sums) {
    constexpr int kBytes = TileTraits<Format>::kBytes / kTileInputs;
    const float* inputs[M];
    find_rows<M>(x.f32, x.stride, rows, inputs);
    F32x16 acc[M];
    for (int m = 0; m < M; ++m) acc[m] = zeros();
    for (int32_t i = 0; i < x.stride; ++i, strip += kBytes) {
        prefetch_ahead<M, kBytes>(strip, rows);
        const F32x16 w = load_weights<Format>(strip);
PIO_UNROLL
        for (int m = 0; m < M; ++m) acc[m] = multiply_add(w, broadcast(inputs[m][i]), acc[m]);
    }
    for (int m = 0; m < M; ++m) sums[m] = acc[m];
}

// sums[m] = W x[rows[m]] for the sixteen outputs of a strip
template <uint32_t Format, int M>
__attribute__((noinline)) void strip_product(const Strip& strip, const Rows& x, const RowNumbers& rows, F32x16* sums) {
    if constexpr (TileTraits<Format>::kQuantised) {
        sum_quantised<Format, M>(strip, x, rows, sums);
    } else if constexpr (Format == kTileBF16) {
        sum_bf16<M>(strip.tiles, x, rows, sums);
    } else {
        sum_float<Format, M>(strip.tiles, x, rows, sums);
    }
}

template <int M>
void strip_product(const Segment& weights, int32_t strip, const Rows& x, const RowNumbers& rows, F32x16* sums) {
    const auto product = [&](auto format) {
        constexpr uint32_t kFormat = decltype(format)::value;
        strip_product<kFormat, M>(strip_at<kFormat>(weights, strip, x.stride / kTileInputs), x, rows, sums);
    };
    switch (weights.format) {
        case kTileQ4: return product(Constant<kTileQ4>{});
        case kTileQ4Min: return product(Constant<kTileQ4Min>{});
        case kTileQ5: return product(Constant<kTileQ5>{});
        case kTileQ5Min: return product(Constant<kTileQ5Min>{});
        case kTileQ6: return product(Constant<kTileQ6>{});
        case kTileQ8: return product(Constant<kTileQ8>{});
        case kTileQ8Split: return product(Constant<kTileQ8Split>{});
        case kTileBF16: return product(Constant<kTileBF16>{});
        case kTileF16: return product(Constant<kTileF16>{});
        default: return product(Constant<kTileF32>{});
    }
}

// --- Epilogues -------------------------------------------------------------------------------------------------------

// Bias of the outputs of a strip, `n` of which there are.
PIO_INLINE F32x16 strip_bias(const Segment& weights, int32_t strip, int n) {
    return weights.bias ? load(weights.bias + kTileRows * strip, n) : zeros();
}

// Writes the sixteen outputs of a strip, or the `n` first that there are, of rows [row, row + M) of a task, which are those
// of `out` in `y`.
template <int M>
PIO_INLINE void write_outputs(const LinearTask& task, int32_t row, const F32x16* sums, float* y, const RowNumbers& out, int n) {
    const auto scaled = [&](int m) {
        const float scale = task.row_scales ? task.scale * task.row_scales[row + m] : task.scale;
        return multiply(sums[m], broadcast(scale));
    };
    const auto place = [&](int m) { return y + out[m] * task.y_stride; };
    if (task.epilogue == kGated) {
        for (int m = 0; m < M; ++m) store(place(m), sums[m], n);
    } else if (task.epilogue == kAdd) {
        for (int m = 0; m < M; ++m) store(place(m), add(scaled(m), load(place(m), n)), n);
    } else if (task.activation == kNoActivation) {
        for (int m = 0; m < M; ++m) store(place(m), scaled(m), n);
    } else {
        for (int m = 0; m < M; ++m) store(place(m), activate(task.activation, scaled(m)), n);
    }
}

// Outputs of one strip for rows [row, row + M) of a task.
template <int M>
inline void strip_rows(const LinearTask& task, int32_t strip, int32_t row, bool first_of_strip) {
    const RowNumbers in = {task.in_rows ? task.in_rows + row : nullptr, row, first_of_strip};
    const RowNumbers out = {task.out_rows ? task.out_rows + row : nullptr, row, first_of_strip};
    float* const y = task.y + task.weights->out_column + kTileRows * strip;
    // What is added to has gone by since another strip's turn; the product gives it time to come.
    if (task.epilogue == kAdd) {
        for (int m = 0; m < M; ++m) __builtin_prefetch(y + out[m] * task.y_stride, 1);
    }
    F32x16 sums[M];
    strip_product<M>(*task.weights, strip, *task.x, in, sums);
    const int32_t left = task.weights->rows - kTileRows * strip;
    const int n = left < kTileRows ? left : kTileRows;
    if (task.weights->bias != nullptr) {
        const F32x16 bias = strip_bias(*task.weights, strip, n);
        for (int m = 0; m < M; ++m) sums[m] = add(sums[m], bias);
    }
    if (task.epilogue == kGated) {
        F32x16 up[M];
        strip_product<M>(*task.up, strip, *task.x, in, up);
        const F32x16 up_bias = strip_bias(*task.up, strip, n);
        for (int m = 0; m < M; ++m) sums[m] = multiply(activate(task.activation, sums[m]), add(up[m], up_bias));
    }
    write_outputs<M>(task, row, sums, y, out, n);
}

// Outputs of one strip for rows [row, end), as many at once as there are.
template <int M>
inline void strip_block(const LinearTask& task, int32_t strip, int32_t row, int32_t end, bool first_of_strip) {
    for (; row + M <= end; row += M, first_of_strip = false) strip_rows<M>(task, strip, row, first_of_strip);
    if constexpr (M > 1) {
        if (row < end) strip_block<M / 2>(task, strip, row, end, first_of_strip);
    }
}

inline void linear(const LinearTask& task, int32_t first_strip, int32_t last_strip) {
    const uint32_t format = task.weights->format;
    const int64_t input_bytes = format < kTileBF16 ? sizeof(QuantBlock) : kTileInputs * (format == kTileBF16 ? 2 : 4);
    const bool many = kManyRows * (task.x->stride / kTileInputs) * input_bytes <= kManyRowsBytes;
    const int32_t size = many ? kManyRows : kRowBlock;
    for (int32_t begin = 0; begin < task.rows; begin += size) {
        const int32_t end = task.rows - begin < size ? task.rows : begin + size;
        for (int32_t strip = first_strip; strip < last_strip; ++strip) {
            strip_block<kMaxRows>(task, strip, begin, end, true);
        }
    }
}

}  // namespace pio::PIO_ISA
