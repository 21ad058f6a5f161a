// This file is compiled once for each instruction set, which MEMOJAX_ISA names. It must not use inline
// functions of the standard library: the linker keeps one copy of each, perhaps the one for the widest set.
#include "compute.h"

#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace memojax::MEMOJAX_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kPanel = 64;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kPanel = 16;
#else
constexpr int kLanes = 4;
constexpr int kPanel = 16;
#endif

typedef float V __attribute__((vector_size(kLanes * 4)));
typedef int I __attribute__((vector_size(kLanes * 4)));
typedef unsigned U __attribute__((vector_size(kLanes * 4)));  // Arithmetic on bits may wrap around.

// Rows of a block for `vectors` vectors of a panel: the registers hold all accumulators.
constexpr int rows_of(int vectors) {
#if defined(__AVX512F__)
  return vectors == 4 ? 6 : vectors == 3 ? 8 : 12;
#elif defined(__AVX2__)
  return vectors > 0 ? 6 : 0;
#elif defined(__aarch64__)
  return vectors > 0 ? 6 : 0;
#else
  return vectors > 0 ? 3 : 0;
#endif
}

inline V load(const float* from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}
inline void store(float* to, V v) { memcpy(to, &v, sizeof v); }
inline V all(float value) { return value - V{}; }
inline V pick(I mask, V yes, V no) { return mask ? yes : no; }
inline I bits(V v) { return reinterpret_cast<I>(v); }
inline U wraps(V v) { return reinterpret_cast<U>(v); }
inline V floats(I v) { return reinterpret_cast<V>(v); }
inline V floats(U v) { return reinterpret_cast<V>(v); }

inline void store_some(float* to, V v, int count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m512>(v));
#else
  float all_of_them[kLanes];
  store(all_of_them, v);
  for (int i = 0; i < count; i++) to[i] = all_of_them[i];
#endif
}

inline V load_some(const float* from, int64_t count) {
  if (count >= kLanes) return load(from);
  if (count <= 0) return V{};
#if defined(__AVX512F__)
  return reinterpret_cast<V>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from));
#else
  alignas(64) float all_of_them[kLanes] = {};
  for (int64_t i = 0; i < count; i++) all_of_them[i] = from[i];
  return load(all_of_them);
#endif
}

// Products ----------------------------------------------------------------------------------------

// Every loop over a block's accumulators must be unrolled, or they would be in memory instead of registers.
#if defined(__clang__)
#define MEMOJAX_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MEMOJAX_UNROLL _Pragma("GCC unroll 16")
#endif

// Writes sums to `room` columns or fewer.
inline void finish(const Product& p, V v, float* to, int64_t room) {
  if (p.grows) v += load_some(to, room);
  if (p.relu) v = pick(v < V{}, V{}, v);  // Keeps NaN.
  if (room >= kLanes)
    store(to, v);
  else if (room > 0)
    store_some(to, v, static_cast<int>(room));
}

// One block: Rows rows times Vectors vectors of columns, of the Wide vectors of a panel. A few accumulators
// would wait for each other's sums, so small blocks have several for each result.
template <int Rows, int Vectors, int Wide = Vectors>
inline void block(const float* const* starts, float* const* ends, const Product& p, const float* w,
                  const float* bias, int64_t left) {
  constexpr int kSplit = Rows * Vectors >= 8 ? 1 : Rows * Vectors >= 4 ? 2 : Rows * Vectors >= 2 ? 4 : 8;
  // The pointers to rows do not fit the registers, so each is loaded once for several steps.
  constexpr int kStep = kSplit > 1 ? kSplit : Vectors == 1 ? 4 : 2;
  V sum[kSplit][Rows][Vectors];
  MEMOJAX_UNROLL
  for (int s = 0; s < kSplit; s++)
    MEMOJAX_UNROLL
    for (int i = 0; i < Rows; i++)
      MEMOJAX_UNROLL
      for (int j = 0; j < Vectors; j++) sum[s][i][j] = s == 0 && bias ? load(bias + j * kLanes) : V{};
  for (int64_t r = 0; r < p.runs; r++) {
    const float* x[Rows];
    MEMOJAX_UNROLL
    for (int i = 0; i < Rows; i++) x[i] = starts[i] + p.run_offsets[r];
    int64_t k = 0;
    for (; k + kStep <= p.length; k += kStep) {
      MEMOJAX_UNROLL
      for (int s = 0; s < kStep; s++) {
        V b[Vectors];
        MEMOJAX_UNROLL
        for (int j = 0; j < Vectors; j++) b[j] = load(w + j * kLanes);
        MEMOJAX_UNROLL
        for (int i = 0; i < Rows; i++) {
          V a = all(x[i][k + s]);
          MEMOJAX_UNROLL
          for (int j = 0; j < Vectors; j++) sum[s % kSplit][i][j] += a * b[j];
        }
        w += Wide * kLanes;
      }
    }
    if constexpr (kStep > 1) {
      for (; k < p.length; k++) {
        MEMOJAX_UNROLL
        for (int i = 0; i < Rows; i++) {
          V a = all(x[i][k]);
          MEMOJAX_UNROLL
          for (int j = 0; j < Vectors; j++) sum[0][i][j] += a * load(w + j * kLanes);
        }
        w += Wide * kLanes;
      }
    }
  }
  MEMOJAX_UNROLL
  for (int i = 0; i < Rows; i++) {
    MEMOJAX_UNROLL
    for (int j = 0; j < Vectors; j++) {
      V v = sum[0][i][j];
      MEMOJAX_UNROLL
      for (int s = 1; s < kSplit; s++) v += sum[s][i][j];
      finish(p, v, ends[i] + j * kLanes, left - j * kLanes);
    }
  }
}

template <int Vectors, int Wide, int Rows>
inline void short_block(int count, const float* const* starts, float* const* ends, const Product& p,
                        const float* w, const float* bias, int64_t left) {
  if constexpr (Rows > 0) {
    if (count == Rows)
      block<Rows, Vectors, Wide>(starts, ends, p, w, bias, left);
    else
      short_block<Vectors, Wide, Rows - 1>(count, starts, ends, p, w, bias, left);
  }
}

template <int Vectors, int Wide = Vectors>
void panel(const Product& p, int64_t row0, int64_t row1, const float* w, const float* bias, int64_t column) {
  constexpr int kRows = rows_of(Vectors);
  const int64_t per_image = p.height * p.width, left = p.columns - column;
  int64_t image = row0 / per_image, h = row0 % per_image / p.width, c = row0 % per_image % p.width;
  const float* starts[kRows];
  float* ends[kRows];
  // Blocks have nearly equal heights, because a last block of one row would cost as much as several rows.
  int64_t blocks = (row1 - row0 + kRows - 1) / kRows;
  for (int64_t row = row0; blocks > 0; blocks--) {
    const int count = static_cast<int>((row1 - row + blocks - 1) / blocks);
    for (int i = 0; i < count; i++) {
      starts[i] = p.x + image * p.x_image + h * p.x_height + c * p.x_width;
      ends[i] = p.y + image * p.y_image + h * p.y_height + c * p.y_width + column;
      if (++c == p.width) {
        c = 0;
        if (++h == p.height) {
          h = 0;
          image++;
        }
      }
    }
    short_block<Vectors, Wide, kRows>(count, starts, ends, p, w, bias, left);
    row += count;
  }
}

#if defined(__AVX512F__)
// One vector of columns of `Rows` neighbours in a line, whose windows overlap: each float of the line is
// loaded once for all windows that hold it. Otherwise, a load for each multiply-add would limit the speed.
template <int Rows, int Length, int Step>
inline void windows(const Product& p, const float* x, float* y, const float* w, const float* bias,
                    int64_t left) {
  constexpr int kOverlap = (Length + Step - 1) / Step;
  V sum[Rows];
  MEMOJAX_UNROLL
  for (int i = 0; i < Rows; i++) sum[i] = bias ? load(bias) : V{};
  for (int64_t r = 0; r < p.runs; r++, w += Length * kLanes) {
    const float* line = x + p.run_offsets[r];
    V tap[Length];
    MEMOJAX_UNROLL
    for (int i = 0; i < Length; i++) tap[i] = load(w + i * kLanes);
    MEMOJAX_UNROLL
    for (int first = 0; first < Step; first++) {
      MEMOJAX_UNROLL
      for (int q = 0; q < Rows + kOverlap - 1; q++) {
        if (q * Step + first >= (Rows - 1) * Step + Length) continue;
        V a = all(line[q * Step + first]);
        MEMOJAX_UNROLL
        for (int m = 0; m < kOverlap; m++)
          if (q >= m && q - m < Rows && m * Step + first < Length) sum[q - m] += a * tap[m * Step + first];
      }
    }
  }
  MEMOJAX_UNROLL
  for (int i = 0; i < Rows; i++) finish(p, sum[i], y + i * p.y_width, left);
}

// Eight columns behind two vectors of them: one vector holds those of two neighbours.
template <int Rows, int Step>
inline void wide_windows(const Product& p, const float* x, float* y, const float* w, const float* bias,
                         int64_t left) {
  const auto twice = [](const float* from) {
    return reinterpret_cast<V>(_mm512_broadcast_f32x8(_mm256_loadu_ps(from)));
  };
  const I second = {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1};
  V sum[Rows][2], both[(Rows + 1) / 2];
  MEMOJAX_UNROLL
  for (int i = 0; i < Rows; i++) {
    sum[i][0] = bias ? load(bias) : V{}, sum[i][1] = bias ? load(bias + kLanes) : V{};
    both[i / 2] = bias ? twice(bias + 2 * kLanes) : V{};
  }
  for (int64_t r = 0; r < p.runs; r++) {
    const float* line = x + p.run_offsets[r];
    for (int64_t k = 0; k < p.length; k++, line++, w += 3 * kLanes) {
      asm("" : "+r"(line));  // GCC would keep the numbers for the next step, on the stack.
      const V b = load(w), c = load(w + kLanes), d = twice(w + 2 * kLanes);
      MEMOJAX_UNROLL
      for (int i = 0; i < Rows; i += 2) {
        const int j = i + 1 < Rows ? i + 1 : i;
        const V one = all(line[i * Step]), other = all(line[j * Step]);
        sum[i][0] += one * b, sum[i][1] += one * c;
        if (j > i) sum[j][0] += other * b, sum[j][1] += other * c;
        both[i / 2] += pick(second, other, one) * d;
      }
    }
  }
  MEMOJAX_UNROLL
  for (int i = 0; i < Rows; i++, y += p.y_width) {
    finish(p, sum[i][0], y, kLanes), finish(p, sum[i][1], y + kLanes, kLanes);
    const __m512 pair = reinterpret_cast<__m512>(both[i / 2]);
    const __m512 mine = i % 2 ? _mm512_shuffle_f32x4(pair, pair, 0x4e) : pair;
    finish(p, reinterpret_cast<V>(mine), y + 2 * kLanes, left - 2 * kLanes);
  }
}

template <int Vectors, int Rows, int Length, int Step>
inline void some_windows(int count, const Product& p, const float* x, float* y, const float* w,
                         const float* bias, int64_t left) {
  if constexpr (Rows > 0) {
    if (count < Rows)
      some_windows<Vectors, Rows - 1, Length, Step>(count, p, x, y, w, bias, left);
    else if constexpr (Vectors == 1)
      windows<Rows, Length, Step>(p, x, y, w, bias, left);
    else
      wide_windows<Rows, Step>(p, x, y, w, bias, left);
  }
}

template <int Vectors, int Length, int Step>
void lines(const Product& p, int64_t row0, int64_t row1, const float* w, const float* bias, int64_t column) {
  constexpr int kRows = Vectors == 1 ? 12 : 10;
  const int64_t per_image = p.height * p.width;
  for (int64_t row = row0; row < row1;) {
    const int64_t image = row / per_image, h = row % per_image / p.width, c = row % p.width;
    const int64_t rest = p.width - c < row1 - row ? p.width - c : row1 - row;
    int count = static_cast<int>(rest / ((rest + kRows - 1) / kRows));
    if (Vectors > 1 && count % 2 && count < rest) count++;  // Two rows share a vector.
    const float* x = p.x + image * p.x_image + h * p.x_height + c * p.x_width;
    float* y = p.y + image * p.y_image + h * p.y_height + c * p.y_width + column;
    some_windows<Vectors, kRows, Length, Step>(count, p, x, y, w, bias, p.columns - column);
    row += count;
  }
}

// Whether the rows are windows along a line, of sizes that policies have; then the product is done.
template <int Vectors>
bool windows_of(const Product& p, int64_t row0, int64_t row1, const float* w, const float* bias,
                int64_t column) {
  if (p.width < 6 || row1 - row0 < 6) return false;
  const auto is = [&](int length, int step) {
    return p.x_width == step && (Vectors > 1 || p.length == length);
  };
  if (is(8, 4)) lines<Vectors, 8, 4>(p, row0, row1, w, bias, column);
  else if (is(4, 2)) lines<Vectors, 4, 2>(p, row0, row1, w, bias, column);
  else if (is(3, 1)) lines<Vectors, 3, 1>(p, row0, row1, w, bias, column);
  else if (Vectors == 1 && is(3, 2)) lines<1, 3, 2>(p, row0, row1, w, bias, column);
  else if (Vectors == 1 && is(5, 1)) lines<1, 5, 1>(p, row0, row1, w, bias, column);
  else return false;
  return true;
}
#endif

void panel_of(const Product& p, int64_t row0, int64_t row1, const float* w, const float* bias,
              int64_t column) {
#if defined(__AVX512F__)
  const int64_t left = p.columns - column, rows = row1 - row0;
  if (left > 48 && (rows == 7 || rows == 8) && p.runs * p.length >= 256) {
    // Two blocks of four rows would read the panel twice. Half of its columns fit the registers of one block.
    panel<2, 4>(p, row0, row1, w, bias, column);
    panel<2, 4>(p, row0, row1, w + 2 * kLanes, bias ? bias + 2 * kLanes : nullptr, column + 2 * kLanes);
  } else if (left > 48) panel<4>(p, row0, row1, w, bias, column);
  else if (left > 32 && left <= 40 && windows_of<3>(p, row0, row1, w, bias, column)) return;
  else if (left > 32) panel<3>(p, row0, row1, w, bias, column);
  else if (left > 16) panel<2>(p, row0, row1, w, bias, column);
  else if (!windows_of<1>(p, row0, row1, w, bias, column)) panel<1>(p, row0, row1, w, bias, column);
#else
  panel<16 / kLanes>(p, row0, row1, w, bias, column);
#endif
}

// Floats of a piece of a panel. The piece stays in the L2 cache while the loop goes over all rows.
constexpr int64_t kCached = 32768;

void product(const Product& p, int64_t row0, int64_t row1, int64_t panel0, int64_t panel1) {
  const int64_t depth = p.runs * p.length;
  for (int64_t n = panel0; n < panel1; n++) {
    const int64_t column = n * kPanel;
    const float* w = p.weights + column * depth;
    const float* bias = p.bias ? p.bias + column : nullptr;
    const int64_t left = p.columns - column, wide = left < kPanel ? (left + 15) / 16 * 16 : kPanel;
    const int64_t most = kCached / wide;
    if (row1 - row0 < 4 * rows_of(kPanel / kLanes) || depth <= most + most / 2) {
      panel_of(p, row0, row1, w, bias, column);
      continue;
    }
    // The sum is computed in several parts. Each is added to the result of the parts before it.
    const bool one = p.runs == 1;
    const int64_t total = one ? p.length : p.runs, unit = one ? 1 : p.length;
    const int64_t pieces = (depth + most - 1) / most < total ? (depth + most - 1) / most : total;
    for (int64_t i = 0; i < pieces; i++) {
      const int64_t begin = total * i / pieces, end = total * (i + 1) / pieces;
      Product part = p;
      if (one) {
        part.x += begin;
        part.length = end - begin;
      } else {
        part.run_offsets += begin;
        part.runs = end - begin;
      }
      part.grows = p.grows || i;
      part.relu = p.relu && i == pieces - 1;
      panel_of(part, row0, row1, w + begin * unit * wide, i ? nullptr : bias, column);
    }
  }
}

// Elementary functions ----------------------------------------------------------------------------

inline V max_(V a, V b) { return pick((a > b) | (a != a), a, b); }  // A NaN on either side is the result.
inline V min_(V a, V b) { return pick((a < b) | (a != a), a, b); }
inline V abs_(V x) { return floats(bits(x) & 0x7fffffff); }

inline V clamp(V x, float low, float high) {  // Keeps NaN.
  x = pick(x < all(low), all(low), x);
  return pick(x > all(high), all(high), x);
}

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

// Elementwise code --------------------------------------------------------------------------------

struct Code {
  uint8_t op, to, a, b, c;
  float immediate;
};

inline Code decode(const int64_t* words) {
  const uint64_t w = static_cast<uint64_t>(words[0]);
  const uint32_t low = static_cast<uint32_t>(words[1]);
  Code code{static_cast<uint8_t>(w), static_cast<uint8_t>(w >> 8), static_cast<uint8_t>(w >> 16),
            static_cast<uint8_t>(w >> 24), static_cast<uint8_t>(w >> 32), 0.0f};
  memcpy(&code.immediate, &low, 4);
  return code;
}

struct Registers {
  alignas(64) float data[kRegisters][kPiece];
};
constexpr int kImmediate = 255;

template <class F>
inline void each(Registers& r, const Code& code, int64_t vectors, F function) {
  float* to = r.data[code.to];
  const V filled = all(code.immediate);
  if (code.b == kImmediate) {
    const float* a = r.data[code.a];
    for (int64_t i = 0; i < vectors; i++) store(to + i * kLanes, function(load(a + i * kLanes), filled));
  } else if (code.a == kImmediate) {
    const float* b = r.data[code.b];
    for (int64_t i = 0; i < vectors; i++) store(to + i * kLanes, function(filled, load(b + i * kLanes)));
  } else {
    const float *a = r.data[code.a], *b = r.data[code.b];
    for (int64_t i = 0; i < vectors; i++)
      store(to + i * kLanes, function(load(a + i * kLanes), load(b + i * kLanes)));
  }
}

template <class F>
inline void each1(Registers& r, const Code& code, int64_t vectors, F function) {
  float* to = r.data[code.to];
  const float* a = r.data[code.a];
  for (int64_t i = 0; i < vectors; i++) store(to + i * kLanes, function(load(a + i * kLanes)));
}

inline V mask(I yes) { return pick(yes, all(1.0f), V{}); }

void step(Registers& r, const Code& code, int64_t n) {
  switch (code.op) {
    case kAdd: return each(r, code, n, [](V a, V b) { return a + b; });
    case kSub: return each(r, code, n, [](V a, V b) { return a - b; });
    case kMul: return each(r, code, n, [](V a, V b) { return a * b; });
    case kDiv: return each(r, code, n, [](V a, V b) { return a / b; });
    case kMax: return each(r, code, n, [](V a, V b) { return max_(a, b); });
    case kMin: return each(r, code, n, [](V a, V b) { return min_(a, b); });
    case kNeg: return each1(r, code, n, [](V a) { return -a; });
    case kAbs: return each1(r, code, n, [](V a) { return abs_(a); });
    case kExp: return each1(r, code, n, [](V a) { return exp_(a); });
    case kLog: return each1(r, code, n, [](V a) { return log_(a); });
    case kLog1p: return each1(r, code, n, [](V a) { return log1p_(a); });
    case kExpm1: return each1(r, code, n, [](V a) { return expm1_(a); });
    case kTanh: return each1(r, code, n, [](V a) { return tanh_(a); });
    case kLogistic: return each1(r, code, n, [](V a) { return logistic_(a); });
    case kErf: return each1(r, code, n, [](V a) { return erf_(a); });
    case kSqrt: return each1(r, code, n, [](V a) { return sqrt_(a); });
    case kRsqrt: return each1(r, code, n, [](V a) { return 1.0f / sqrt_(a); });
    case kFloor: return each1(r, code, n, [](V a) { return floor_(a); });
    case kCeil: return each1(r, code, n, [](V a) { return -floor_(-a); });
    case kSign:
      return each1(r, code, n, [](V a) { return pick(a > V{}, all(1.0f), pick(a < V{}, all(-1.0f), a)); });
    case kLt: return each(r, code, n, [](V a, V b) { return mask(a < b); });
    case kLe: return each(r, code, n, [](V a, V b) { return mask(a <= b); });
    case kGt: return each(r, code, n, [](V a, V b) { return mask(a > b); });
    case kGe: return each(r, code, n, [](V a, V b) { return mask(a >= b); });
    case kEq: return each(r, code, n, [](V a, V b) { return mask(a == b); });
    case kNe: return each(r, code, n, [](V a, V b) { return mask(a != b); });
    case kNot: return each1(r, code, n, [](V a) { return mask(a == V{}); });
    case kAnd: return each(r, code, n, [](V a, V b) { return mask((a != V{}) & (b != V{})); });
    case kOr: return each(r, code, n, [](V a, V b) { return mask((a != V{}) | (b != V{})); });
    case kFinite: return each1(r, code, n, [](V a) { return mask(abs_(a) < all(__builtin_inff())); });
    case kErfInv: return each1(r, code, n, [](V a) { return erf_inv_(a); });
    case kMove: return each1(r, code, n, [](V a) { return a; });
    case kSelect: {  // c if a is true, else b.
      float* to = r.data[code.to];
      alignas(64) float filled[kLanes];
      store(filled, all(code.immediate));
      const float* b = code.b == kImmediate ? filled : r.data[code.b];
      const float* c = code.c == kImmediate ? filled : r.data[code.c];
      const int64_t db = code.b == kImmediate ? 0 : kLanes, dc = code.c == kImmediate ? 0 : kLanes;
      const float* a = r.data[code.a];
      for (int64_t i = 0; i < n; i++)
        store(to + i * kLanes, pick(load(a + i * kLanes) != V{}, load(c + i * dc), load(b + i * db)));
      return;
    }
    default: return;
  }
}

inline void move(float* to, const float* from, int64_t count) {
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) store(to + j, load(from + j));
  for (; j < count; j++) to[j] = from[j];
}

// A register holds a piece of a long row, or several short rows, each of which begins at a whole vector.
void elementwise(const Elementwise& e, int64_t row0, int64_t row1) {
  constexpr int kMostCode = 64;
  Code code[kMostCode];
  const int64_t n_code = e.n_code < kMostCode ? e.n_code : kMostCode;
  for (int64_t i = 0; i < n_code; i++) code[i] = decode(e.code + 2 * i);
  const int64_t pitch = (e.columns + kLanes - 1) / kLanes * kLanes;
  const int64_t many = pitch < kPiece ? kPiece / (pitch ? pitch : 1) : 1;
  Registers registers;
  if (e.columns % kLanes)  // The padding after a row is computed, too.
    for (int i = 0; i < kRegisters; i++)
      for (int j = 0; j < kPiece; j += kLanes) store(registers.data[i] + j, V{});
  for (int64_t row = row0; row < row1; row += many) {
    const int64_t rows = row1 - row < many ? row1 - row : many;
    for (int64_t column = 0; column < e.columns; column += kPiece) {
      const int64_t count = e.columns - column < kPiece ? e.columns - column : kPiece;
      const int64_t vectors = (count + kLanes - 1) / kLanes;
      for (int64_t i = 0; i < e.n_inputs; i++) {
        const Operand& in = e.inputs[i];
        const float* from = in.data + row * in.row_stride + column * in.step;
        float* to = registers.data[in.number];
        for (int64_t k = 0; k < rows; k++, from += in.row_stride, to += pitch) {
          if (in.step)
            move(to, from, count);
          else
            for (int64_t j = 0; j < vectors; j++) store(to + j * kLanes, all(*from));
        }
      }
      for (int64_t i = 0; i < n_code; i++) step(registers, code[i], rows * vectors);
      for (int64_t i = 0; i < e.n_outputs; i++) {
        const Operand& out = e.outputs[i];
        float* to = out.data + row * out.row_stride + column;
        const float* from = registers.data[out.number];
        for (int64_t k = 0; k < rows; k++, from += pitch, to += out.row_stride) move(to, from, count);
      }
    }
  }
}

// Reductions and windows --------------------------------------------------------------------------

inline V combine(int64_t kind, V a, V b) {
  return kind == kReduceSum ? a + b : kind == kReduceMax ? max_(a, b) : min_(a, b);
}
inline float combine1(int64_t kind, float a, float b) {
  if (kind == kReduceSum) return a + b;
  if (a != a) return a;
  if (b != b) return b;
  return kind == kReduceMax ? (a > b ? a : b) : (a < b ? a : b);
}
inline float first(int64_t kind) {
  return kind == kReduceSum ? 0.0f : kind == kReduceMax ? -__builtin_inff() : __builtin_inff();
}

template <int64_t kKind>
void reduce_kind(const Reduce& r, int64_t outer0, int64_t outer1) {
  for (int64_t o = outer0; o < outer1; o++) {
    const float* x = r.x + o * r.reduced * r.inner;
    float* y = r.y + o * r.inner;
    if (r.inner == 1) {
      V sum = all(first(kKind));
      int64_t i = 0;
      for (; i + kLanes <= r.reduced; i += kLanes) sum = combine(kKind, sum, load(x + i));
      float total = first(kKind);
      if (i)
        for (int j = 0; j < kLanes; j++) total = combine1(kKind, total, sum[j]);
      for (; i < r.reduced; i++) total = combine1(kKind, total, x[i]);
      *y = total;
      continue;
    }
    int64_t c = 0;
    for (; c + kLanes <= r.inner; c += kLanes) {
      V sum = all(first(kKind));
      for (int64_t i = 0; i < r.reduced; i++) sum = combine(kKind, sum, load(x + i * r.inner + c));
      store(y + c, sum);
    }
    for (; c < r.inner; c++) {
      float total = first(kKind);
      for (int64_t i = 0; i < r.reduced; i++) total = combine1(kKind, total, x[i * r.inner + c]);
      y[c] = total;
    }
  }
}

void place_of(const Reduce& r, int64_t outer0, int64_t outer1) {
  for (int64_t o = outer0; o < outer1; o++) {
    for (int64_t c = 0; c < r.inner; c++) {
      const float* x = r.x + o * r.reduced * r.inner + c;
      int64_t best = 0;
      for (int64_t i = 1; i < r.reduced && x[best * r.inner] == x[best * r.inner]; i++) {
        const float now = x[i * r.inner], most = x[best * r.inner];
        if (now != now || (r.kind == kArgMax ? now > most : now < most)) best = i;
      }
      r.y[o * r.inner + c] = static_cast<float>(best);
    }
  }
}

void reduce(const Reduce& r, int64_t outer0, int64_t outer1) {
  if (r.kind == kReduceSum) return reduce_kind<kReduceSum>(r, outer0, outer1);
  if (r.kind == kReduceMax) return reduce_kind<kReduceMax>(r, outer0, outer1);
  if (r.kind >= kArgMax) return place_of(r, outer0, outer1);
  reduce_kind<kReduceMin>(r, outer0, outer1);
}

void pool2d(const Pool2d& p, int64_t line0, int64_t line1) {
  for (int64_t line = line0; line < line1; line++) {
    const int64_t h = line % p.out_height;
    const float* x = p.x + line / p.out_height * p.in_height * p.in_width * p.channels;
    float* y = p.y + line * p.out_width * p.channels;
    for (int64_t w = 0; w < p.out_width; w++, y += p.channels) {
      for (int64_t c = 0; c < p.channels; c += kLanes) {
        const int64_t left = p.channels - c;
        V sum = all(first(p.kind));
        for (int64_t i = 0; i < p.window_height; i++) {
          const int64_t row = h * p.stride_height + i * p.dilation_height - p.pad_height;
          if (row < 0 || row >= p.in_height) continue;
          for (int64_t j = 0; j < p.window_width; j++) {
            const int64_t column = w * p.stride_width + j * p.dilation_width - p.pad_width;
            if (column < 0 || column >= p.in_width) continue;
            sum = combine(p.kind, sum, load_some(x + (row * p.in_width + column) * p.channels + c, left));
          }
        }
        if (left >= kLanes)
          store(y + c, sum);
        else
          store_some(y + c, sum, static_cast<int>(left));
      }
    }
  }
}

// Random numbers ----------------------------------------------------------------------------------

template <int kRotation>
inline void mix(U& a, U& b) {
  a += b;
  b = (b << kRotation | b >> (32 - kRotation)) ^ a;
}

// Threefry-2x32 with 20 rounds, from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3".
void draw(const uint32_t* key, uint64_t start, float* y, int64_t count) {
  const uint32_t keys[3] = {key[0], key[1], key[0] ^ key[1] ^ 0x1bd11bdau};
  U lane;
  for (int i = 0; i < kLanes; i++) lane[i] = static_cast<unsigned>(i);
  for (int64_t at = 0; at < count; at += kLanes) {
    const uint64_t first = start + static_cast<uint64_t>(at);
    U b = lane + static_cast<uint32_t>(first);
    U a = U{} + static_cast<uint32_t>(first >> 32);
    a -= reinterpret_cast<U>(b < lane);  // a carry out of the lower word
    a += keys[0], b += keys[1];
    for (unsigned i = 0; i < 5; i++) {
      if (i % 2 == 0)
        mix<13>(a, b), mix<15>(a, b), mix<26>(a, b), mix<6>(a, b);
      else
        mix<17>(a, b), mix<29>(a, b), mix<16>(a, b), mix<24>(a, b);
      a += keys[(i + 1) % 3], b += keys[(i + 2) % 3] + i + 1;
    }
    const V made = floats((a ^ b) >> 9 | 0x3f800000u);
    if (count - at >= kLanes)
      store(y + at, made);
    else
      store_some(y + at, made, static_cast<int>(count - at));
  }
}

int64_t multiply_adds(int64_t rounds) {
  constexpr int kChains = 12;
  V sum[kChains];
  for (int i = 0; i < kChains; i++) sum[i] = all(static_cast<float>(i));
  V factor = all(0.5f), addend = all(1.0f);
  for (int64_t round = 0; round < rounds; round++) {
    MEMOJAX_UNROLL
    for (int i = 0; i < kChains; i++) sum[i] = sum[i] * factor + addend;
  }
  V total{};
  for (int i = 0; i < kChains; i++) total += sum[i];
  volatile float kept = total[0];
  (void)kept;
  return rounds * kChains * kLanes;
}

#define MEMOJAX_TEXT_(x) #x
#define MEMOJAX_TEXT(x) MEMOJAX_TEXT_(x)
}  // namespace

extern const Compute compute;
const Compute compute = {
    MEMOJAX_TEXT(MEMOJAX_ISA), kPanel, rows_of(kPanel / kLanes), product, elementwise, reduce, draw,
    multiply_adds,             pool2d,
};

}  // namespace memojax::MEMOJAX_ISA
