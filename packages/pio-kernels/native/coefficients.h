// Numbers behind exp, tanh and erf: the same for every instruction set.
#pragma once

namespace pio {

// exp(x) = 2^n exp(f), n = round(x log2(e)), f = x - n ln 2 in two steps, |f| <= ln(2) / 2. The polynomial in f
// interpolates exp at the Chebyshev points, with a relative error of 3e-9. Beyond the bounds 2^n leaves float32.
constexpr float kExpMin = -87.33f;
constexpr float kExpMax = 88.37f;
constexpr float kLog2E = 1.44269504f;
constexpr float kLn2High = 0.693359375f;
constexpr float kLn2Low = -2.12194440e-4f;
constexpr float kExpCoefficients[] = {1.0f,          1.00000004f,   0.500000005f, 0.166664154f,
                                      0.0416663528f, 0.00837513278f, 0.00139411164f};

// tanh(x) = x + x^3 P(x^2) below 0.625, with a relative error of 2e-8 (interpolated as above); beyond it
// sign(x) (1 - 2 / (1 + exp(2 |x|))).
constexpr float kTanhNearZero = 0.625f;
constexpr float kTanhCoefficients[] = {-0.333333289f, 0.133327697f, -0.0538509096f, 0.020997179f, -0.00609671416f};

// erf(x) = sign(x) (1 - t P(t) exp(-x^2)), t = 1 / (1 + slope |x|), with an error of 1.5e-7: Abramowitz and Stegun,
// Handbook of Mathematical Functions, 7.1.26.
constexpr float kErfSlope = 0.3275911f;
constexpr float kErfCoefficients[] = {0.254829592f, -0.284496736f, 1.421413741f, -1.453152027f, 1.061405429f};

constexpr float kRootHalf = 0.707106781f;
constexpr float kRootTwoOverPi = 0.797884561f;
constexpr float kGeluCubic = 0.044715f;

// Blocks of activations whose largest magnitude is below the first are zero, and beyond the second as good as infinite:
// between them, sums of blocks and what they are divided by stay within float32.
constexpr float kSmallestBlock = 1e-27f;
constexpr float kLargestBlock = 1e35f;

constexpr float kLargestFloat = 3.40282347e38f;

}  // namespace pio
