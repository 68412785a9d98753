#include "functions.h"
#include "scalar.h"

namespace pio::scalar {

void norm(const float* x, const Norm& norm, int32_t columns, float* y) {
    float squares = 0.0f;
    for (int32_t i = 0; i < columns; ++i) squares += x[i] * x[i];
    const float factor = inverse_root(squares / static_cast<float>(columns) + norm.eps);
    for (int32_t i = 0; i < columns; ++i) y[i] = x[i] * factor * (norm.weight[i] + norm.offset);
}

void finish_logits(float* y, int64_t n, float scale, float softcap) {
    for (int64_t i = 0; i < n; ++i) {
        y[i] *= scale;
        if (softcap > 0.0f) y[i] = softcap * tanh(y[i] / softcap);
    }
}

float activate(uint32_t activation, float x) {
    switch (activation) {
        case kSilu: return x * sigmoid(x);
        case kGeluTanh: return x * sigmoid(2.0f * kRootTwoOverPi * x * (1.0f + kGeluCubic * x * x));
        case kGeluErf: return 0.5f * x * (1.0f + erf(kRootHalf * x));
        default: return x;
    }
}

}  // namespace pio::scalar
