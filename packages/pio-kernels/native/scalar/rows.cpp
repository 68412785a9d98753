#include "functions.h"
#include "scalar.h"

namespace pio::scalar {
namespace {

// The block's outlier, or -1: the first input that is larger than kOutlierRatio times every other.
int outlier_of(const float* x) {
    int first = 0;
    for (int i = 1; i < 32; ++i) first = absolute(x[i]) > absolute(x[first]) ? i : first;
    float second = 0.0f;
    for (int i = 0; i < 32; ++i) {
        if (i != first && absolute(x[i]) > second) second = absolute(x[i]);
    }
    return second >= kSmallestBlock && absolute(x[first]) > kOutlierRatio * second ? first : -1;
}

// x = scale * values, with the largest magnitude at 127, but for the outlier. A block with an infinity or a NaN gets the
// scale NaN, so that what is wrong reaches the logits; one too small to be divided by is zero.
void prepare_int8(const float* inputs, bool outliers, int32_t row, int32_t block, Rows& out) {
    float x[32];
    bool finite = true;
    for (int i = 0; i < 32; ++i) {
        x[i] = inputs[i];
        finite = finite && absolute(x[i]) <= kLargestFloat;
    }
    const int64_t at = static_cast<int64_t>(row) * (out.stride / 32) + block;
    const int apart = outliers && finite ? outlier_of(x) : -1;
    const float exact = apart < 0 ? 0.0f : x[apart];
    if (apart >= 0) {
        out.outliers[at - block + out.num_outliers[row]++] = {32 * block + apart, exact};
        x[apart] = 0.0f;
    }
    float magnitude = 0.0f;
    for (int i = 0; i < 32; ++i) magnitude = absolute(x[i]) > magnitude ? absolute(x[i]) : magnitude;
    const bool quantised = finite && magnitude >= kSmallestBlock;
    const float inverse = quantised ? 127.0f / magnitude : 0.0f;
    QuantBlock& to = out.blocks[at];
    to.sums[0] = to.sums[1] = 0;
    for (int i = 0; i < 32; ++i) {
        to.values[i] = quantised ? static_cast<int8_t>(round_to_even(x[i] * inverse)) : int8_t{0};
        to.sums[i / 16] += to.values[i];
    }
    to.scale = quantised ? magnitude / 127.0f : finite ? 0.0f : __builtin_nanf("");
    to.offset = to.scale * static_cast<float>(to.sums[0] + to.sums[1]) + exact;
}

}  // namespace

void prepare(const float* x, uint32_t kinds, int32_t row, Rows& out) {
    if (kinds & kRowsI8) out.num_outliers[row] = 0;
    for (int32_t block = 0; block < out.stride / 32; ++block) {
        float padded[32] = {};
        for (int i = 0; i < 32 && 32 * block + i < out.columns; ++i) padded[i] = x[32 * block + i];
        const int64_t at = static_cast<int64_t>(row) * out.stride + 32 * block;
        if (kinds & kRowsI8) prepare_int8(padded, kinds & kRowsOutliers, row, block, out);
        for (int i = 0; i < 32; ++i) {
            if (kinds & kRowsBF16) out.bf16[at + i] = bf16_of_float(padded[i]);
            if (kinds & kRowsF32) out.f32[at + i] = padded[i];
        }
    }
}

}  // namespace pio::scalar
