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

// See QuantBlock. A block too small to be divided by is zero.
void prepare_int8(const float* inputs, bool outliers, int32_t row, int32_t block, Rows& out) {
    float x[32];
    bool finite = true;
    for (int i = 0; i < 32; ++i) {
        x[i] = inputs[i];
        finite = finite && absolute(x[i]) <= kLargestBlock;
    }
    const int64_t at = static_cast<int64_t>(row) * (out.stride / 32) + block;
    Outlier& outlier = out.outliers[at - block + out.num_outliers[row]];
    const int apart = outliers && finite ? outlier_of(x) : -1;
    if (apart >= 0) {
        outlier = {32 * block + apart, x[apart]};
        x[apart] = 0.0f;
    }
    if (!finite) outlier = {32 * block, __builtin_nanf("")};
    out.num_outliers[row] += apart >= 0 || !finite;
    float magnitude = 0.0f;
    for (int i = 0; i < 32; ++i) magnitude = absolute(x[i]) > magnitude ? absolute(x[i]) : magnitude;
    const bool quantised = finite && magnitude >= kSmallestBlock;
    QuantBlock& to = out.blocks[at];
    const float inverse = quantised ? 127.0f / magnitude : 0.0f;
    to.scale = quantised ? magnitude / 127.0f : 0.0f;
    to.sums[0] = to.sums[1] = 0;
    for (int i = 0; i < 32; ++i) {
        to.values[i] = quantised ? static_cast<int8_t>(round_to_even(x[i] * inverse)) : int8_t{0};
        to.sums[i / 16] = static_cast<int16_t>(to.sums[i / 16] + to.values[i]);
    }
    to.zero_sum = -128 * (to.sums[0] + to.sums[1]);
    out.block_sums[at] = to.scale * static_cast<float>(to.sums[0] + to.sums[1]);
}

// Rounds the sums of a row's blocks to steps of the largest.
void round_sums(int32_t row, Rows& out) {
    const int32_t blocks = out.stride / 32;
    const float* sums = out.block_sums + static_cast<int64_t>(row) * blocks;
    const float most = static_cast<float>(most_rounded_sum(blocks));
    float largest = 0.0f;
    for (int32_t i = 0; i < blocks; ++i) largest = absolute(sums[i]) > largest ? absolute(sums[i]) : largest;
    const float inverse = largest > 0.0f ? most / largest : 0.0f;
    QuantBlock* to = out.blocks + static_cast<int64_t>(row) * blocks;
    for (int32_t i = 0; i < blocks; ++i) {
        to[i].pair[0] = to[i].pair[1] = 0;
        to[i / 2 * 2].pair[i % 2] = static_cast<int16_t>(round_to_even(sums[i] * inverse));
    }
    out.sum_steps[row] = largest / most;
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
    if (kinds & kRowsI8) round_sums(row, out);
}

}  // namespace pio::scalar
