// Products with packed matrices, by their formula.
#include "scalar.h"
#include "tiles.h"

namespace pio::scalar {
namespace {

// One tile's share of W x for its row r: the sum over its 32 inputs, which begin at input 32 * block of row `row` of x.
//
// Quantised weights d (q - zero) or d q + m meet activations s v (see Rows):
//   sum_k d (q_k - zero) s v_k = d s sum_k (q_k - zero) v_k        the last sum in integers, half block by half block
//   sum_k m s v_k              = m (s sum_k v_k)                   the offset of the block
// Outliers are not in it, but for the offset.
float tile_product(uint32_t format, const TilePlace& tile, int r, const Rows& x, int64_t row, int32_t block) {
    const int64_t first = row * x.stride + kTileInputs * block;
    float y = 0.0f;
    if (format >= kTileBF16) {
        for (int k = 0; k < kTileInputs; ++k) {
            const float input = format == kTileBF16 ? float_of_bf16(x.bf16[first + k]) : x.f32[first + k];
            y += float_weight(format, tile, r, k) * input;
        }
        return y;
    }
    const QuantBlock& input = x.blocks[row * (x.stride / 32) + block];
    for (int half = 0; half < 2; ++half) {
        int32_t sum = 0;
        for (int k = 16 * half; k < 16 * half + 16; ++k) sum += quant(format, tile, r, k) * input.values[k];
        y += scale(format, tile, r, 16 * half) * input.scale * static_cast<float>(sum);
    }
    return has_minima(format) ? y + number(format, tile, r, 1) * input.offset : y;
}

// The outliers' share, d (q - zero) x each. What a minimum takes of them is in the offsets.
float outliers_product(const Segment& weights, int32_t strip, int r, const Rows& x, int64_t row) {
    const uint32_t format = weights.format;
    float y = 0.0f;
    for (int32_t i = 0; i < x.num_outliers[row]; ++i) {
        const Outlier& outlier = x.outliers[row * (x.stride / 32) + i];
        const TilePlace tile = tile_at(weights, strip, outlier.input / kTileInputs);
        const int k = outlier.input % kTileInputs;
        y += scale(format, tile, r, k) * static_cast<float>(quant(format, tile, r, k)) * outlier.value;
    }
    return y;
}

// W x + b for output 16 * strip + r
float product(const Segment& weights, int32_t strip, int r, const Rows& x, int64_t row) {
    float y = 0.0f;
    for (int32_t block = 0; block < x.stride / kTileInputs; ++block) {
        y += tile_product(weights.format, tile_at(weights, strip, block), r, x, row, block);
    }
    if (weights.format < kTileBF16) y += outliers_product(weights, strip, r, x, row);
    return weights.bias ? y + weights.bias[kTileRows * strip + r] : y;
}

// y = epilogue(W x + b) as program.h has it; a product's factor is `scale`, times that of its row. kGated has none.
void write_output(const LinearTask& task, int32_t strip, int r, int32_t row) {
    const int64_t in_row = task.in_rows ? task.in_rows[row] : row;
    const int64_t out_row = task.out_rows ? task.out_rows[row] : row;
    float& y = task.y[out_row * task.y_stride + task.weights->out_column + kTileRows * strip + r];
    const float wx = product(*task.weights, strip, r, *task.x, in_row);
    if (task.epilogue == kGated) {
        y = activate(task.activation, wx) * product(*task.up, strip, r, *task.x, in_row);
        return;
    }
    const float scaled = task.scale * (task.row_scales ? task.row_scales[row] : 1.0f) * wx;
    y = task.epilogue == kAdd ? y + scaled : activate(task.activation, scaled);
}

}  // namespace

void linear(const LinearTask& task, int32_t first_strip, int32_t last_strip) {
    for (int32_t row = 0; row < task.rows; ++row) {
        for (int32_t strip = first_strip; strip < last_strip; ++strip) {
            for (int r = 0; r < kTileRows && kTileRows * strip + r < task.weights->rows; ++r) {
                write_output(task, strip, r, row);
            }
        }
    }
}

}  // namespace pio::scalar
