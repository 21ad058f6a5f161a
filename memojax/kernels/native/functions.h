// Elementary functions of vectors.
#pragma once
#include "vectors.h"

namespace memojax::MEMOJAX_ISA {
namespace {

inline V max_(V a, V b) { return pick((a > b) | (a != a), a, b); }  // A NaN on either side is the result.
inline V min_(V a, V b) { return pick((a < b) | (a != a), a, b); }
inline V abs_(V x) { return floats(bits(x) & 0x7fffffff); }

inline V clamp(V x, float low, float high) { return at_most(all(high), at_least(all(low), x)); }  // Keeps NaN.

struct Exponential {
  V rest;        // e^r - 1 for |r| <= ln(2)/2
  V one, other;  // 2^n as a product: it may exceed a float even if 2^n e^r does not.
};

// e^x = 2^n e^r for x in [-104, 89]; seven terms of the series are exact to 2e-8.
inline Exponential exponential(V x) {
  // Adding 1.5 * 2^23 rounds to a whole number, which is then in the low bits.
  const V rounded = x * 1.44269504f + 12582912.0f;
  const V n = rounded - 12582912.0f;
  V r = x - n * 0.693145752f;  // ln 2 in two parts: n times the first one is exact.
  r = r - n * 1.42860677e-6f;
  V p = all(1.0f / 5040.0f);
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  const U whole = wraps(rounded) - 0x4b400000u, half = reinterpret_cast<U>(reinterpret_cast<I>(whole) >> 1);
  return {p * r * r + r, floats((half + 127u) << 23), floats((whole - half + 127u) << 23)};
}

inline V exp_(V x) {
  const Exponential e = exponential(clamp(x, -104.0f, 89.0f));
  return (e.rest * e.one + e.one) * e.other;
}

inline V expm1_(V x) {
  const Exponential e = exponential(clamp(x, -30.0f, 89.0f));
  const V small = e.rest * e.one * e.other + (e.one * e.other - 1.0f);
  const V result = pick(x > all(17.0f), (e.rest * e.one + e.one) * e.other, small);
  return pick(x == V{}, x, result);
}

// x P(x^2) / Q(x^2), fitted to tanh on [-8, 8]: relative error 6e-9 before rounding.
inline V tanh_(V x) {
  x = clamp(x, -8.0f, 8.0f);
  const V q = x * x;
  V above = q * 1.52304676e-08f + 2.18946971e-05f;
  above = above * q + 0.00357160014f;
  above = above * q + 0.134444998f;
  above = above * q + 0.999999994f;
  V below = q * 8.52246675e-07f + 0.000341129549f;
  below = below * q + 0.026164451f;
  below = below * q + 0.467778271f;
  below = below * q + 1.0f;
  return above * x / below;
}

inline V logistic_(V x) {
  const Exponential e = exponential(clamp(-x, -88.0f, 88.0f));
  return 1.0f / (1.0f + (e.rest * e.one + e.one) * e.other);
}

inline V log_(V x) {
  I tiny = x < all(1.17549435e-38f);
  V scaled = pick(tiny, x * 8388608.0f, x);
  const U i = wraps(scaled);
  const I exponent = reinterpret_cast<I>(i - 0x3f3504f3u) >> 23;  // Now sqrt(1/2) <= mantissa < sqrt(2).
  V m = floats(i - (reinterpret_cast<U>(exponent) << 23));
  V e = __builtin_convertvector(exponent, V) - pick(tiny, all(23.0f), V{});
  V f = m - 1.0f;
  V s = f / (m + 1.0f), q = s * s;
  V p = all(2.0f / 11.0f);
  p = p * q + 2.0f / 9.0f;
  p = p * q + 2.0f / 7.0f;
  p = p * q + 2.0f / 5.0f;
  p = p * q + 2.0f / 3.0f;
  // log(1 + f) = f - s * (f - q * p): the leading part is f itself, without the error of a division.
  V result = f - s * (f - q * p) + e * 1.42860677e-6f + e * 0.693145752f;
  result = pick(x == V{}, all(-__builtin_inff()), result);
  result = pick(x == all(__builtin_inff()), x, result);
  return pick((x < V{}) | (x != x), all(__builtin_nanf("")), result);
}

inline V log1p_(V x) {
  V u = x + 1.0f;
  V result = log_(u) * (x / (u - 1.0f));  // Corrects the rounding of u.
  result = pick(u == all(1.0f), x, result);
  result = pick(x == all(__builtin_inff()), x, result);
  return pick(x == all(-1.0f), all(-__builtin_inff()), result);
}

// Up to 1 by the series; beyond it, 1 - t e^(-x^2) poly(t) (Abramowitz and Stegun 7.1.26, error at most
// 1.5e-7).
inline V erf_(V x) {
  V size = abs_(x), q = x * x;
  // x times the sum of (-x^2)^n / (n! (2n+1)), n = 0 .. 10
  V n = all(1.0f / 76204800.0f);
  n = n * q - 1.0f / 6894720.0f;
  n = n * q + 1.0f / 685440.0f;
  n = n * q - 1.0f / 75600.0f;
  n = n * q + 1.0f / 9360.0f;
  n = n * q - 1.0f / 1320.0f;
  n = n * q + 1.0f / 216.0f;
  n = n * q - 1.0f / 42.0f;
  n = n * q + 1.0f / 10.0f;
  n = n * q - 1.0f / 3.0f;
  V near = (n * q * x + x) * 1.12837917f;
  V t = 1.0f / (1.0f + 0.3275911f * size);
  V far = all(1.061405429f);
  far = far * t - 1.453152027f;
  far = far * t + 1.421413741f;
  far = far * t - 0.284496736f;
  far = far * t + 0.254829592f;
  far = 1.0f - far * t * exp_(-q);
  far = floats(bits(far) | (bits(x) & static_cast<int>(0x80000000u)));
  V result = pick(size < all(1.0f), near, far);
  return pick(x != x, x, result);
}

inline V sqrt_(V x) {
  for (int i = 0; i < kLanes; i++) x[i] = __builtin_sqrtf(x[i]);
  return x;
}

// Two polynomials in -log(1 - x^2), from Giles, "Approximating the erfinv function".
inline V erf_inv_(V x) {
  const V w = -log1p_(-(x * x));
  const I near = w < all(5.0f);
  const V t = pick(near, w - 2.5f, sqrt_(w) - 3.0f);
  const float terms[9][2] = {{2.81022636e-08f, -0.000200214257f}, {3.43273939e-07f, 0.000100950558f},
                             {-3.5233877e-06f, 0.00134934322f},   {-4.39150654e-06f, -0.00367342844f},
                             {0.00021858087f, 0.00573950773f},    {-0.00125372503f, -0.0076224613f},
                             {-0.00417768164f, 0.00943887047f},   {0.246640727f, 1.00167406f},
                             {1.50140941f, 2.83297682f}};
  V p = pick(near, all(terms[0][0]), all(terms[0][1]));
  for (int i = 1; i < 9; i++) p = p * t + pick(near, all(terms[i][0]), all(terms[i][1]));
  return pick(abs_(x) == all(1.0f), x * all(__builtin_inff()), p * x);
}

inline V floor_(V x) {
  const V held = clamp(pick(x != x, V{}, x), -8388608.0f, 8388608.0f);
  V n = __builtin_convertvector(__builtin_convertvector(held, I), V);
  n = n - pick(n > x, all(1.0f), V{});
  I whole = (abs_(x) >= all(8388608.0f)) | (x != x);
  return pick(whole | (n == x), x, n);
}

}  // namespace
}  // namespace memojax::MEMOJAX_ISA
