// Products with packed matrices: scalar/linear.cpp, sixteen outputs and up to kMaxRows rows at a time.
//
// A strip's tiles are read one after the other. Each is unpacked into registers once (`unpack`) and multiplied with the
// same 32 inputs of M rows; every row keeps the sixteen sums of the strip's outputs in one accumulator. Over a batch,
// blocks of rows take their turns, so that a strip stays in the first-level cache while its block of rows goes by, and the
// block of rows in the second-level cache from one strip to the next.
//
// Where registers do not hold a tile (kGroupByGroup), a tile's groups of four inputs are unpacked one after the other, each
// multiplied with all M rows; many rows have a strip unpacked into memory once (`unpack_strip`), and a single row takes
// several strips at a time (`one_row`).
//
// Sums over the 32 (or 16) inputs of a block of quants are exact integers. Blocks add to a float32 accumulator in order
// of inputs, as the scalar version has it; they differ in fused products, and in the order of the 32 inputs of bfloat16
// tiles (see dot_bf16). With T terms in a sum, both are within T 2^-24 sum |terms| of the exact sum, to first order.
#pragma once

#include "tiles.h"

namespace pio::PIO_ISA {

// Rows of a block, and of one that takes no more than kManyRowsBytes.
constexpr int kRowBlock = 128;
constexpr int kManyRows = 256;
constexpr int64_t kManyRowsBytes = 400 * 1024;
static_assert(kRowBlock % kMaxRows == 0 && kManyRows % kMaxRows == 0, "blocks are of whole groups of rows");

// --- Sums of one strip -----------------------------------------------------------------------------------------------

// What the product of a row's block with a whole tile starts from: minus the zero point, for each input. From -128 times
// the sum to that of other zero points: broadcast as it lies in memory, the sum costs no instruction of its own.
template <uint32_t Format>
PIO_INLINE I32x16 start_of(const QuantBlock& x) {
    constexpr int kZero = TileTraits<Format>::kZero;
    constexpr int kShift = kZero == 8 ? 4 : kZero == 16 ? 3 : 0;
    return kZero == 0 ? broadcast(0) : shift_right<kShift>(broadcast(x.zero_sum));
}

// The same for inputs 0..15 or 16..31.
template <uint32_t Format>
PIO_INLINE I32x16 start_of_half(const QuantBlock& x, int half) {
    return broadcast(-TileTraits<Format>::kZero * x.sums[half]);
}

PIO_INLINE F32x16 add_product(I32x16 product, F32x16 scale, const QuantBlock& x, F32x16 acc) {
    return multiply_add(to_float(product), multiply(scale, broadcast(x.scale)), acc);
}

PIO_INLINE F32x16 add_halves(I32x16 low, F32x16 first, I32x16 high, F32x16 second, const QuantBlock& x, F32x16 acc) {
    const F32x16 both = multiply_add(to_float(low), first, multiply(to_float(high), second));
    return multiply_add(both, broadcast(x.scale), acc);
}

// acc + tile x over one block of a row, minima left out
template <uint32_t Format>
PIO_INLINE F32x16 add_block(const Tile& tile, const QuantBlock& x, F32x16 acc) {
    constexpr int kBits = TileTraits<Format>::kBits;
    if constexpr (TileTraits<Format>::kHalves) {
        const I32x16 low = dot<kBits, 4>(tile.quants, x.values, start_of_half<Format>(x, 0));
        const I32x16 high = dot<kBits, 4>(tile.quants + 4, x.values + 16, start_of_half<Format>(x, 1));
        return add_halves(low, tile.scale, high, tile.second, x, acc);
    } else {
        const I32x16 product = dot<kBits, 8>(tile.quants, x.values, start_of<Format>(x));
        return add_product(product, tile.scale, x, acc);
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

// Fetches weights ahead for M rows, if they are the first of a strip: others find it in the caches. One or two rows go
// through weights as fast as the processor can read them by itself: there, asking for more only holds up what it has asked
// for.
template <int M, int Bytes>
PIO_INLINE void prefetch_ahead(const uint8_t* weights, const RowNumbers& rows) {
    if constexpr (M > 2) {
        if (rows.first_of_strip) fetch_ahead<Bytes>(weights);
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

// acc[s M + m] + tile s of S x over block number `block` of row m of M, minima left out; one group of inputs after the other.
template <uint32_t Format, int S, int M, typename AnyTile>
PIO_INLINE void add_groups(AnyTile* tiles, const QuantBlock* const* inputs, int32_t block, F32x16* acc) {
    using Traits = TileTraits<Format>;
    const auto input = [&](int i) __attribute__((always_inline)) -> const QuantBlock& { return inputs[i % M][block]; };
    const auto values = [&](int m) __attribute__((always_inline)) { return inputs[m][block].values; };
    I32x16 products[S * M];
    if constexpr (Traits::kHalves) {
        I32x16 others[S * M];
PIO_UNROLL
        for (int i = 0; i < S * M; ++i) {
            products[i] = start_of_half<Format>(input(i), 0);
            others[i] = start_of_half<Format>(input(i), 1);
        }
        dots<Traits::kBits, 0, 4, S, M>(tiles, values, products);
        dots<Traits::kBits, 4, 4, S, M>(tiles, values, others);
PIO_UNROLL
        for (int i = 0; i < S * M; ++i) {
            const AnyTile& tile = tiles[i / M];
            acc[i] = add_halves(products[i], tile.scale(), others[i], tile.second_scale(), input(i), acc[i]);
        }
    } else {
PIO_UNROLL
        for (int i = 0; i < S * M; ++i) products[i] = start_of<Format>(input(i));
        dots<Traits::kBits, 0, 8, S, M>(tiles, values, products);
PIO_UNROLL
        for (int i = 0; i < S * M; ++i) acc[i] = add_product(products[i], tiles[i / M].scale(), input(i), acc[i]);
    }
}

// acc[m] + all tiles x for M rows, minima left out
template <uint32_t Format, int M>
PIO_INLINE void add_tiles(const Strip& strip, const RowNumbers& rows, const QuantBlock* const* inputs, int32_t blocks,
                          F32x16* acc) {
    constexpr int kBytes = TileTraits<Format>::kBytes;
    constexpr int kLowBytes = TileTraits<Format>::kLowBytes;
    const uint8_t* bytes = strip.tiles;
    const uint8_t* low = strip.low;
    for (int32_t block = 0; block < blocks; ++block, bytes += kBytes, low += kLowBytes) {
        prefetch_ahead<M, kBytes>(bytes, rows);
        if constexpr (kGroupByGroup) {
            PackedTile<Format> tile(bytes, low);
            add_groups<Format, 1, M>(&tile, inputs, block, acc);
        } else {
            const Tile tile = unpack<Format>(bytes, low);
PIO_UNROLL
            for (int m = 0; m < M; ++m) acc[m] = add_block<Format>(tile, inputs[m][block], acc[m]);
        }
    }
}

// The same for a strip that is unpacked. Meanwhile the next one's tiles come, which nothing else reads from memory then.
template <uint32_t Format, int M>
PIO_INLINE void add_unpacked(const Strip& strip, const RowNumbers& rows, const QuantBlock* const* inputs, int32_t blocks,
                             F32x16* acc) {
    constexpr int kBytes = TileTraits<Format>::kBytes;
    constexpr int kLowBytes = TileTraits<Format>::kLowBytes;
    const uint8_t* tiles = strip.unpacked;
    const uint8_t* next = strip.tiles + strip_stride(Format, blocks);
    const uint8_t* next_low = strip.low + static_cast<int64_t>(blocks) * kLowBytes;
    for (int32_t block = 0; block < blocks; ++block, tiles += kUnpackedBytes, next += kBytes, next_low += kLowBytes) {
        if (rows.first_of_strip) {
            fetch_far<kBytes>(next);
            fetch_far<kLowBytes>(next_low);
        }
        UnpackedTile tile(tiles);
        add_groups<Format, 1, M>(&tile, inputs, block, acc);
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
template <uint32_t Format, int M, bool Unpacked>
PIO_INLINE void add_outlier_columns(const Strip& strip, const Rows& x, int64_t row, F32x16* acc) {
    const OutlierColumn* column = x.outlier_columns + row * (x.stride / 32);
    const OutlierColumn* end = column + x.num_outlier_columns[row];
    for (; column != end; ++column) {
        const F32x16 weights = Unpacked ? weights_of_unpacked<Format>(strip, column->input)
                                        : weights_of_input<Format>(strip, column->input);
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
    const float* row_steps[M];
    find_rows<M>(x.sum_steps, 1, rows, row_steps);
    for (int m = 0; m < M; ++m) {
        const F32x16 step = broadcast(*row_steps[m] / kMinimumSteps);
        // Which factor comes first is a matter of rounding alone. But to "What is the capital of France?" the default model
        // answers well by 0.08 of a logit, and any rounding moves that by 0.1: with AVX2 it does in this order, with AVX-512
        // and BF16 in the other.
        if constexpr (kGroupByGroup) {
            sums[m] = multiply_add(multiply(to_float(acc[m]), step), largest, sums[m]);
        } else {
            sums[m] = multiply_add(to_float(acc[m]), multiply(largest, step), sums[m]);
        }
    }
}

template <uint32_t Format, int M, bool Unpacked>
PIO_INLINE void sum_quantised(const Strip& strip, const Rows& x, const RowNumbers& rows, F32x16* sums) {
    const int32_t blocks = x.stride / 32;
    const QuantBlock* inputs[M];
    find_rows<M>(x.blocks, blocks, rows, inputs);
    F32x16 acc[M];
    for (int m = 0; m < M; ++m) acc[m] = zeros();
    if constexpr (Unpacked) {
        add_unpacked<Format, M>(strip, rows, inputs, blocks, acc);
    } else {
        add_tiles<Format, M>(strip, rows, inputs, blocks, acc);
    }
    if constexpr (TileTraits<Format>::kMinima) add_minima<M>(strip, x, rows, inputs, acc);
    if (x.outlier_columns != nullptr) {
        add_outlier_columns<Format, M, Unpacked>(strip, x, rows[0], acc);
PIO_UNROLL
        for (int m = 0; m < M; ++m) sums[m] = acc[m];
    } else {
PIO_UNROLL
        for (int m = 0; m < M; ++m) sums[m] = add_outliers<Format>(strip, x, rows[m], acc[m]);
    }
}

// sums[s] = W x[row] for S strips, of which each quarter of a range has one: see `one_row`.
template <uint32_t Format, int S>
__attribute__((noinline)) void strips_product(const Strip* strips, const Rows& x, int64_t row, F32x16* sums) {
    const int32_t blocks = x.stride / 32;
    const QuantBlock* const inputs = x.blocks + row * blocks;
    F32x16 acc[S];
    for (int s = 0; s < S; ++s) acc[s] = zeros();
    for (int32_t block = 0; block < blocks; ++block) {
        const int64_t at = static_cast<int64_t>(block) * TileTraits<Format>::kBytes;
        const int64_t low = static_cast<int64_t>(block) * TileTraits<Format>::kLowBytes;
        PackedTile<Format> tiles[S];
PIO_UNROLL
        for (int s = 0; s < S; ++s) tiles[s] = PackedTile<Format>(strips[s].tiles + at, strips[s].low + low);
        add_groups<Format, S, 1>(tiles, &inputs, block, acc);
    }
PIO_UNROLL
    for (int s = 0; s < S; ++s) {
        if constexpr (TileTraits<Format>::kMinima) add_minima<1>(strips[s], x, {nullptr, row, false}, &inputs, acc + s);
        sums[s] = add_outliers<Format>(strips[s], x, row, acc[s]);
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
template <uint32_t Format, int M, bool Unpacked = false>
__attribute__((noinline)) void strip_product(const Strip& strip, const Rows& x, const RowNumbers& rows, F32x16* sums) {
    if constexpr (TileTraits<Format>::kQuantised) {
        sum_quantised<Format, M, Unpacked>(strip, x, rows, sums);
    } else if constexpr (Format == kTileBF16) {
        sum_bf16<M>(strip.tiles, x, rows, sums);
    } else {
        sum_float<Format, M>(strip.tiles, x, rows, sums);
    }
}

// Calls f with the format as a constant.
template <typename Function>
PIO_INLINE void for_format(uint32_t format, const Function& f) {
    switch (format) {
        case kTileQ4: return f(Constant<kTileQ4>{});
        case kTileQ4Min: return f(Constant<kTileQ4Min>{});
        case kTileQ5: return f(Constant<kTileQ5>{});
        case kTileQ5Min: return f(Constant<kTileQ5Min>{});
        case kTileQ6: return f(Constant<kTileQ6>{});
        case kTileQ8: return f(Constant<kTileQ8>{});
        case kTileQ8Split: return f(Constant<kTileQ8Split>{});
        case kTileBF16: return f(Constant<kTileBF16>{});
        case kTileF16: return f(Constant<kTileF16>{});
        default: return f(Constant<kTileF32>{});
    }
}

// The products with strips of one format: with 1, 2, 4 and 8 rows, as far as kMaxRows.
using StripProduct = void (*)(const Strip& strip, const Rows& x, const RowNumbers& rows, F32x16* sums);
constexpr int kRowCounts = 4;

template <uint32_t Format, bool Unpacked, int M>
constexpr StripProduct product_with() {
    if constexpr (M > kMaxRows) return nullptr;
    else return strip_product<Format, M, Unpacked && M == kMaxRows>;
}

// With `Unpacked`, the greatest number of rows reads what unpack_strip made.
template <uint32_t Format, bool Unpacked>
constexpr StripProduct kProducts[kRowCounts] = {
    product_with<Format, Unpacked, 1>(), product_with<Format, Unpacked, 2>(), product_with<Format, Unpacked, 4>(),
    product_with<Format, Unpacked, 8>()};

// One strip of a matrix, and how it is multiplied.
struct Factor {
    Strip strip;
    const StripProduct* products;

    template <int M>
    void sums(const Rows& x, const RowNumbers& rows, F32x16* sums) const {
        products[__builtin_ctz(M)](strip, x, rows, sums);
    }
};

// The factor for `rows` rows; it unpacks the strip into `memory`, if there is any, where that pays.
inline Factor factor_of(const Segment& weights, int32_t strip, int32_t tiles, int32_t rows, uint8_t* memory) {
    Factor factor;
    for_format(weights.format, [&](auto format) {
        constexpr uint32_t kFormat = decltype(format)::value;
        factor = {strip_at<kFormat>(weights, strip, tiles), kProducts<kFormat, false>};
        if constexpr (rows_to_unpack_for(kFormat) < INT32_MAX) {
            if (memory == nullptr || rows < rows_to_unpack_for(kFormat)) return;
            unpack_strip<kFormat>(factor.strip, tiles, memory);
            factor.strip.unpacked = memory;
            factor.products = kProducts<kFormat, true>;
        }
    });
    return factor;
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

// A strip's turn with a block of rows.
struct Turn {
    int32_t strip;
    bool is_first;  // whether no rows before had it
    Factor weights;
    Factor up;  // of kGated
};

// Number of outputs of a strip
PIO_INLINE int outputs_of(const Segment& weights, int32_t strip) {
    const int32_t left = weights.rows - kTileRows * strip;
    return left < kTileRows ? left : kTileRows;
}

// The epilogue of one strip for rows [row, row + M) of a task, from the products with its weights and the second factor's.
template <int M>
PIO_INLINE void finish_rows(const LinearTask& task, int32_t strip, int32_t row, F32x16* sums, const F32x16* up) {
    const RowNumbers out = {task.out_rows ? task.out_rows + row : nullptr, row, false};
    const int n = outputs_of(*task.weights, strip);
    if (task.weights->bias != nullptr) {
        const F32x16 bias = strip_bias(*task.weights, strip, n);
        for (int m = 0; m < M; ++m) sums[m] = add(sums[m], bias);
    }
    if (task.epilogue == kGated) {
        const F32x16 up_bias = strip_bias(*task.up, strip, n);
        for (int m = 0; m < M; ++m) sums[m] = multiply(activate(task.activation, sums[m]), add(up[m], up_bias));
    }
    write_outputs<M>(task, row, sums, task.y + task.weights->out_column + kTileRows * strip, out, n);
}

// Outputs of one strip for rows [row, row + M) of a task.
template <int M>
inline void strip_rows(const LinearTask& task, const Turn& turn, int32_t row) {
    const RowNumbers in = {task.in_rows ? task.in_rows + row : nullptr, row, turn.is_first};
    // What is added to has gone by since another strip's turn; the product gives it time to come.
    if (task.epilogue == kAdd) {
        const RowNumbers out = {task.out_rows ? task.out_rows + row : nullptr, row, false};
        const float* const y = task.y + task.weights->out_column + kTileRows * turn.strip;
        for (int m = 0; m < M; ++m) __builtin_prefetch(y + out[m] * task.y_stride, 1);
    }
    F32x16 sums[M], up[M];
    turn.weights.sums<M>(*task.x, in, sums);
    if (task.epilogue == kGated) turn.up.sums<M>(*task.x, in, up);
    finish_rows<M>(task, turn.strip, row, sums, up);
}

// Outputs of one strip for rows [row, end), as many at once as there are.
template <int M>
inline void strip_block(const LinearTask& task, Turn turn, int32_t row, int32_t end) {
    for (; row + M <= end; row += M, turn.is_first = false) strip_rows<M>(task, turn, row);
    if constexpr (M > 1) {
        if (row < end) strip_block<M / 2>(task, turn, row, end);
    }
}

// The turn of one strip with `rows` rows; `memory` is for unpacked tiles, or null.
inline Turn turn_of(const LinearTask& task, int32_t strip, int32_t rows, uint8_t* memory) {
    const int32_t tiles = task.x->stride / kTileInputs;
    Turn turn{strip, true, factor_of(*task.weights, strip, tiles, rows, memory), {}};
    if (memory != nullptr) memory += tiles * kUnpackedBytes;
    if (task.epilogue == kGated) turn.up = factor_of(*task.up, strip, tiles, rows, memory);
    return turn;
}

// Products of one row with a matrix, S strips at a time that lie as far from each other as the range allows: several
// streams come from memory faster than one, where the processor's own prefetching is what limits each.
template <int S>
inline void one_row(const LinearTask& task, int32_t first_strip, int32_t last_strip) {
    const int64_t row = task.in_rows ? task.in_rows[0] : 0;
    const int32_t tiles = task.x->stride / kTileInputs;
    const int32_t share = (last_strip - first_strip) / S;
    const auto product = [&](const Segment& weights, int32_t strip, F32x16* sums) {
        for_format(weights.format, [&](auto format) {
            constexpr uint32_t kFormat = decltype(format)::value;
            if constexpr (TileTraits<kFormat>::kQuantised) {
                Strip strips[S];
                for (int s = 0; s < S; ++s) strips[s] = strip_at<kFormat>(weights, strip + s * share, tiles);
                strips_product<kFormat, S>(strips, *task.x, row, sums);
            } else {
                for (int s = 0; s < S; ++s) {
                    const Strip part = strip_at<kFormat>(weights, strip + s * share, tiles);
                    strip_product<kFormat, 1>(part, *task.x, {nullptr, row, true}, sums + s);
                }
            }
        });
    };
    for (int32_t strip = first_strip; strip < first_strip + share; ++strip) {
        F32x16 sums[S], up[S];
        product(*task.weights, strip, sums);
        if (task.epilogue == kGated) product(*task.up, strip, up);
        for (int s = 0; s < S; ++s) finish_rows<1>(task, strip + s * share, 0, sums + s, up + s);
    }
    for (int32_t strip = first_strip + S * share; strip < last_strip; ++strip) {
        strip_rows<1>(task, turn_of(task, strip, 1, nullptr), 0);
    }
}

inline void linear(const LinearTask& task, int32_t first_strip, int32_t last_strip) {
    if constexpr (kGroupByGroup) {
        if (task.rows == 1) return one_row<4>(task, first_strip, last_strip);
    }
    const uint32_t format = task.weights->format;
    const int32_t tiles = task.x->stride / kTileInputs;
    const int64_t input_bytes = format < kTileBF16 ? sizeof(QuantBlock) : kTileInputs * (format == kTileBF16 ? 2 : 4);
    const bool many = kManyRows * tiles * input_bytes <= kManyRowsBytes;
    const int32_t size = many ? kManyRows : kRowBlock;
    alignas(64) uint8_t memory[kGroupByGroup ? kMostUnpacked * kUnpackedBytes : 1];
    const bool fits = kGroupByGroup && tiles * (task.up ? 2 : 1) <= kMostUnpacked;
    for (int32_t begin = 0; begin < task.rows; begin += size) {
        const int32_t end = task.rows - begin < size ? task.rows : begin + size;
        for (int32_t strip = first_strip; strip < last_strip; ++strip) {
            strip_block<kMaxRows>(task, turn_of(task, strip, end - begin, fits ? memory : nullptr), begin, end);
        }
    }
}

}  // namespace pio::PIO_ISA
