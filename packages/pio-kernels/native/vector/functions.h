// exp, tanh and erf over sixteen numbers; scalar/functions.h is the same one at a time, and says where they come from.
#pragma once

#include "../coefficients.h"
#include "simd.h"

namespace pio::PIO_ISA {

// sum_i coefficients[i] x^i
template <int N>
PIO_INLINE F32x16 polynomial(const float (&coefficients)[N], F32x16 x) {
    F32x16 y = broadcast(coefficients[N - 1]);
PIO_UNROLL
    for (int i = N - 2; i >= 0; --i) y = multiply_add(y, x, broadcast(coefficients[i]));
    return y;
}

PIO_INLINE F32x16 exp(F32x16 x) {
    const F32x16 bounded = minimum(broadcast(kExpMax), maximum(broadcast(kExpMin), x));
    const F32x16 n = round_to_even(multiply(bounded, broadcast(kLog2E)));
    F32x16 f = multiply_add(n, broadcast(-kLn2High), bounded);
    f = multiply_add(n, broadcast(-kLn2Low), f);
    return scale_by_power(polynomial(kExpCoefficients, f), n);
}

PIO_INLINE F32x16 sigmoid(F32x16 x) {
    const F32x16 one = broadcast(1.0f);
    return divide(one, add(one, exp(subtract(zeros(), x))));
}

PIO_INLINE F32x16 tanh(F32x16 x) {
    const F32x16 magnitude = absolute(x);
    const F32x16 square = multiply(x, x);
    const F32x16 near_zero = multiply_add(multiply(x, square), polynomial(kTanhCoefficients, square), x);
    const F32x16 one = broadcast(1.0f);
    const F32x16 two = broadcast(2.0f);
    const F32x16 far = subtract(one, divide(two, add(one, exp(multiply(two, magnitude)))));
    return select_less(magnitude, broadcast(kTanhNearZero), near_zero, copy_sign(far, x));
}

PIO_INLINE F32x16 erf(F32x16 x) {
    const F32x16 magnitude = absolute(x);
    const F32x16 one = broadcast(1.0f);
    const F32x16 t = divide(one, multiply_add(broadcast(kErfSlope), magnitude, one));
    const F32x16 tail = multiply(multiply(t, polynomial(kErfCoefficients, t)),
                                 exp(subtract(zeros(), multiply(magnitude, magnitude))));
    return copy_sign(subtract(one, tail), x);
}

PIO_INLINE F32x16 silu(F32x16 x) { return multiply(x, sigmoid(x)); }

// x (1 + tanh(u)) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
PIO_INLINE F32x16 gelu_tanh(F32x16 x) {
    const F32x16 cubic = multiply_add(broadcast(kGeluCubic), multiply(x, x), broadcast(1.0f));
    return multiply(x, sigmoid(multiply(broadcast(2.0f * kRootTwoOverPi), multiply(x, cubic))));
}

PIO_INLINE F32x16 gelu_erf(F32x16 x) {
    const F32x16 half = multiply(broadcast(0.5f), x);
    return multiply_add(half, erf(multiply(broadcast(kRootHalf), x)), half);
}

PIO_INLINE F32x16 activate(uint32_t activation, F32x16 x) {
    if (activation == kSilu) return silu(x);
    if (activation == kGeluTanh) return gelu_tanh(x);
    if (activation == kGeluErf) return gelu_erf(x);
    return x;
}

}  // namespace pio::PIO_ISA
