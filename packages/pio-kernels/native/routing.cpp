#include "routing.h"

#include <math.h>

namespace pio {

namespace {

// What a score counts for as a weight, before normalisation over those chosen.
float weight_of(const RouteOp& op, float score, float largest, float sum) {
    switch (op.scoring) {
        case kSigmoid:
            return 1.0f / (1.0f + expf(-score));
        default:  // exp(s - max) / sum
            return expf(score - largest) / sum;
    }
}

}  // namespace

void route_row(const RouteOp& op, const float* scores, float* weights, float* experts) {
    float largest = scores[0], sum = 0.0f;
    for (int32_t e = 1; e < op.num_experts; ++e) largest = scores[e] > largest ? scores[e] : largest;
    for (int32_t e = 0; e < op.num_experts; ++e) sum += expf(scores[e] - largest);
    // Softmax keeps the order of scores, and so does the sigmoid; with a bias the order is that of weight + bias.
    auto rank = [&](int32_t e) {
        return op.bias == nullptr ? scores[e] : weight_of(op, scores[e], largest, sum) + op.bias[e];
    };
    for (int32_t j = 0; j < op.chosen; ++j) {
        int32_t best = -1;
        for (int32_t e = 0; e < op.num_experts; ++e) {
            bool taken = false;
            for (int32_t i = 0; i < j; ++i) taken |= static_cast<int32_t>(experts[i]) == e;
            if (!taken && (best < 0 || rank(e) > rank(best))) best = e;
        }
        experts[j] = static_cast<float>(best);
        weights[j] = weight_of(op, scores[best], largest, sum);
    }
    // The softmax over those chosen is the softmax over all, divided by its sum over those chosen.
    float total = 1.0f;
    if (op.normalise || op.scoring == kSoftmaxOfChosen) {
        total = 0.0f;
        for (int32_t j = 0; j < op.chosen; ++j) total += weights[j];
    }
    for (int32_t j = 0; j < op.chosen; ++j) weights[j] = op.scale * weights[j] / total;
}

void group_by_expert(const ExpertsOp& op, int32_t tokens, const float* weights, const float* experts, ExpertRows& rows) {
    const int32_t pairs = tokens * op.chosen;
    for (int32_t e = 0; e <= op.num_experts; ++e) rows.starts[e] = 0;
    for (int32_t pair = 0; pair < pairs; ++pair) ++rows.starts[static_cast<int32_t>(experts[pair]) + 1];
    for (int32_t e = 0; e < op.num_experts; ++e) rows.starts[e + 1] += rows.starts[e];
    for (int32_t pair = 0; pair < pairs; ++pair) {
        const int32_t place = rows.starts[static_cast<int32_t>(experts[pair])]++;
        rows.tokens[place] = pair / op.chosen;
        rows.pairs[place] = pair;
        rows.weights[place] = weights[pair];
    }
    // Each start has moved to the end of its expert, which is the start of the next one.
    for (int32_t e = op.num_experts; e > 0; --e) rows.starts[e] = rows.starts[e - 1];
    rows.starts[0] = 0;
}

}  // namespace pio
