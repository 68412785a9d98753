// Which outputs of a product may be among the largest, from three quarters of its weights.
//
// A quant of kTileQ8Split is q = u + l with u its upper six bits and l in 0..3 the others. Of a block of 32 inputs,
// d sum_k (q_k - 128) x_k = d sum_k (u_k - 126.5) x_k + d sum_k (l_k - 1.5) x_k, whose last sum no one knows who has not
// read l, but it is at most 1.5 sum_k |x_k|. So an output is within `slack` of an estimate, and a strip whose estimates
// all lie more than that below what others reach in any case need not be computed. Those that remain are computed like
// any other product, so that what is chosen from them is what would have been chosen from all.
#pragma once

#include "kernels.h"
#include "sampling.h"

namespace pio {
namespace {

// Fills slack[b] of each block of a row: what the lower bits of the weights of one output, with a scale of 1, can come to.
//
// The estimate and the product itself are rounded: a float32 sum of T terms is within T 2^-24 sum |terms| of the exact one.
// With T < 2 blocks + 2 terms, each at most 128 / 1.5 of its share of the slack, both come to 2.1e-5 (blocks + 1) of it;
// thrice that is taken.
inline void screen_slack(const Rows& x, int32_t row, float* slack) {
    const int32_t blocks = x.stride / kTileInputs;
    const float rounding = 1.0f + 6e-5f * static_cast<float>(blocks + 1);
    for (int32_t b = 0; b < blocks; ++b) {
        const QuantBlock& block = x.blocks[static_cast<int64_t>(row) * blocks + b];
        int32_t magnitudes = 0;
        for (int8_t value : block.values) magnitudes += value < 0 ? -value : value;
        // Half a unit more: estimates are made of whole numbers.
        slack[b] = rounding * block.scale * (1.5f * static_cast<float>(magnitudes) + 0.5f);
    }
    const Outlier* outliers = x.outliers + static_cast<int64_t>(row) * blocks;
    for (int32_t i = 0; i < x.num_outliers[row]; ++i) {
        slack[outliers[i].input / kTileInputs] += rounding * 1.5f * __builtin_fabsf(outliers[i].value);
    }
}

// What the `wanted`-th largest of a row's products is at least, as that many strips have one that reaches it; and less by so
// much that a product below it is no equal of the wanted ones even when both were scaled and rounded.
inline float screen_threshold(const float* at_least, int32_t strips, int32_t wanted) {
    uint32_t most = ordered(-__builtin_inff());
    for (int32_t i = 0; i < strips; ++i) most = ordered(at_least[i]) > most ? ordered(at_least[i]) : most;
    const float least = wanted == 1 ? from_ordered(most) : kth_largest(at_least, strips, wanted);
    return least - 0x1p-22f * __builtin_fabsf(least);
}

}  // namespace
}  // namespace pio
