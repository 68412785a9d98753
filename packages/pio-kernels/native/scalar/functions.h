// exp, tanh and erf without <math.h>, with an error of at most 4e-7 of the larger of 1 and the result (exp: relative).
#pragma once

#include "../coefficients.h"
#include "../numbers.h"

namespace pio::scalar {

// sum_i coefficients[i] x^i
template <int N>
static inline float polynomial(const float (&coefficients)[N], float x) {
    float y = coefficients[N - 1];
    for (int i = N - 2; i >= 0; --i) y = y * x + coefficients[i];
    return y;
}

static inline float absolute(float x) { return x < 0.0f ? -x : x; }

// Rounds to nearest, ties to even, |x| < 2^22: past 1.5 * 2^23 float32 has no fractions.
static inline float round_to_even(float x) {
    const volatile float whole = x + 12582912.0f;
    return whole - 12582912.0f;
}

static inline float exp(float x) {
    if (x != x) return x;
    const float bounded = x < kExpMin ? kExpMin : x > kExpMax ? kExpMax : x;
    const float n = round_to_even(bounded * kLog2E);
    const float f = (bounded - n * kLn2High) - n * kLn2Low;
    const float power = float_of(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
    return power * polynomial(kExpCoefficients, f);
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

static inline float tanh(float x) {
    const float magnitude = absolute(x);
    if (magnitude < kTanhNearZero) return x + x * (x * x) * polynomial(kTanhCoefficients, x * x);
    const float far = 1.0f - 2.0f / (1.0f + exp(2.0f * magnitude));
    return x < 0.0f ? -far : far;
}

static inline float erf(float x) {
    const float magnitude = absolute(x);
    const float t = 1.0f / (1.0f + kErfSlope * magnitude);
    const float value = 1.0f - t * polynomial(kErfCoefficients, t) * exp(-magnitude * magnitude);
    return x < 0.0f ? -value : value;
}

// 1 / sqrt(x), x > 0: Newton's steps on y -> y (3 - x y^2) / 2 in double, from a guess that halves the exponent. The guess
// is within 4% and each step squares the error, so that four leave that of the rounding to float32.
static inline float inverse_root(float x) {
    double y = float_of(0x5f3759dfu - (bits_of(x) >> 1));
    for (int step = 0; step < 4; ++step) y *= 1.5 - 0.5 * x * y * y;
    return static_cast<float>(y);
}

}  // namespace pio::scalar
