#include "functions.h"
#include "scalar.h"

namespace pio::scalar {
namespace {

// x = scale * values, with the largest magnitude at 127. A block with an infinity or a NaN gets the scale NaN, so that
// what is wrong reaches the logits; one too small to be divided by is zero.
void prepare_int8(const float* x, int32_t row, int32_t block, Rows& out) {
    float magnitude = 0.0f;
    bool finite = true;
    for (int i = 0; i < 32; ++i) {
        finite = finite && absolute(x[i]) <= 3.40282347e38f;
        if (absolute(x[i]) > magnitude) magnitude = absolute(x[i]);
    }
    const bool quantised = finite && magnitude >= kSmallestBlock;
    const float inverse = quantised ? 127.0f / magnitude : 0.0f;
    QuantBlock& to = out.blocks[static_cast<int64_t>(row) * (out.stride / 32) + block];
    to.sums[0] = to.sums[1] = 0;
    for (int i = 0; i < 32; ++i) {
        to.values[i] = quantised ? static_cast<int8_t>(round_to_even(x[i] * inverse)) : int8_t{0};
        to.sums[i / 16] += to.values[i];
    }
    to.scale = quantised ? magnitude / 127.0f : finite ? 0.0f : __builtin_nanf("");
    to.offset = to.scale * static_cast<float>(to.sums[0] + to.sums[1]);
}

}  // namespace

void prepare(const float* x, uint32_t kinds, int32_t row, Rows& out) {
    for (int32_t block = 0; block < out.stride / 32; ++block) {
        float padded[32] = {};
        for (int i = 0; i < 32 && 32 * block + i < out.columns; ++i) padded[i] = x[32 * block + i];
        const int64_t at = static_cast<int64_t>(row) * out.stride + 32 * block;
        if (kinds & kRowsI8) prepare_int8(padded, row, block, out);
        for (int i = 0; i < 32; ++i) {
            if (kinds & kRowsBF16) out.bf16[at + i] = bf16_of_float(padded[i]);
            if (kinds & kRowsF32) out.f32[at + i] = padded[i];
        }
    }
}

}  // namespace pio::scalar
