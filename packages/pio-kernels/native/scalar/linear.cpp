// Products with packed matrices, by their formula.
#include "scalar.h"
#include "tiles.h"

namespace pio::scalar {
namespace {

// One tile's share of W x for its row r: the sum over its 32 inputs, which begin at input 32 * block of row `row` of x.
//
// Quantised weights d (q - zero), or d q + m without its m, meet activations s v (see QuantBlock):
//   sum_k d (q_k - zero) s v_k = d s sum_k (q_k - zero) v_k        the last sum in integers, half block by half block
// Outliers are not in it.
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
    return y;
}

// The share of minima: their steps times those of the sums of inputs, block by block, in integers.
float minima_product(const Segment& weights, int32_t strip, int r, const Rows& x, int64_t row) {
    const int32_t blocks = x.stride / kTileInputs;
    const QuantBlock* inputs = x.blocks + row * blocks;
    int32_t sum = 0;
    for (int32_t block = 0; block < blocks; ++block) {
        sum += minimum_steps(tile_at(weights, strip, block), r) * inputs[block / 2 * 2].pair[block % 2];
    }
    return minimum_step(tile_at(weights, strip, 0), r) * x.sum_steps[row] * static_cast<float>(sum);
}

// The outliers' share
float outliers_product(const Segment& weights, int32_t strip, int r, const Rows& x, int64_t row) {
    const uint32_t format = weights.format;
    float y = 0.0f;
    for (int32_t i = 0; i < x.num_outliers[row]; ++i) {
        const Outlier& outlier = x.outliers[row * (x.stride / 32) + i];
        const TilePlace tile = tile_at(weights, strip, outlier.input / kTileInputs);
        y += weight(format, tile, r, outlier.input % kTileInputs) * outlier.value;
    }
    return y;
}

// W x + b for output 16 * strip + r
float product(const Segment& weights, int32_t strip, int r, const Rows& x, int64_t row) {
    float y = 0.0f;
    for (int32_t block = 0; block < x.stride / kTileInputs; ++block) {
        y += tile_product(weights.format, tile_at(weights, strip, block), r, x, row, block);
    }
    if (has_minima(weights.format)) y += minima_product(weights, strip, r, x, row);
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
