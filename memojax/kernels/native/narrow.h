// Products with one to eight columns, such as the actions of a policy.
#pragma once
#include "activations.h"
#include "compute.h"
#include "vectors.h"

namespace memojax::MEMOJAX_ISA {
namespace {

#if defined(__AVX2__)
constexpr int kNarrow = 8;            // Most columns.
constexpr int kNarrowFloats = 8192;  // Most floats of the sorted weights.

// `Group` floats, again and again.
template <int Group>
inline V repeated(const float* from) {
#if defined(__AVX512F__)
  if constexpr (Group == 8) return reinterpret_cast<V>(_mm512_broadcast_f32x8(_mm256_loadu_ps(from)));
  if constexpr (Group == 4) return reinterpret_cast<V>(_mm512_broadcast_f32x4(_mm_loadu_ps(from)));
  if constexpr (Group == 2) {
    double both;
    memcpy(&both, from, sizeof both);
    return reinterpret_cast<V>(_mm512_set1_pd(both));
  }
#else
  if constexpr (Group == 4) return reinterpret_cast<V>(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(from)));
  if constexpr (Group == 2) {
    double both;
    memcpy(&both, from, sizeof both);
    return reinterpret_cast<V>(_mm256_set1_pd(both));
  }
  if constexpr (Group == 1) return all(*from);
#endif
  if constexpr (Group == kLanes) return load(from);
}

// The sum of each `Group` lanes, in all of them.
template <int Group>
inline V summed(V v) {
#if defined(__AVX512F__)
  __m512 x = reinterpret_cast<__m512>(v);
  if constexpr (Group >= 2) x = _mm512_add_ps(x, _mm512_permute_ps(x, 0xb1));
  if constexpr (Group >= 4) x = _mm512_add_ps(x, _mm512_permute_ps(x, 0x4e));
  if constexpr (Group >= 8) x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
  if constexpr (Group >= 16) x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0x4e));
#else
  __m256 x = reinterpret_cast<__m256>(v);
  if constexpr (Group >= 2) x = _mm256_add_ps(x, _mm256_permute_ps(x, 0xb1));
  if constexpr (Group >= 4) x = _mm256_add_ps(x, _mm256_permute_ps(x, 0x4e));
  if constexpr (Group >= 8) x = _mm256_add_ps(x, _mm256_permute2f128_ps(x, x, 1));
#endif
  return reinterpret_cast<V>(x);
}

// The sums of four vectors over each of their groups: lane `c * Group + i` is that of group c of vector i.
template <int Group>
inline V four_summed(const V* sums) {
  static_assert(Group >= 4);
#if defined(__AVX512F__)
  const auto add = [](__m512 a, __m512 b) {
    return _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
  };
  const auto of = [&](int i) { return reinterpret_cast<__m512>(sums[i]); };
  const __m512d a = add(of(0), of(1)), b = add(of(2), of(3));
  __m512 x = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  if constexpr (Group >= 8) x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
  if constexpr (Group >= 16) x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0x4e));
#else
  const auto add = [](__m256 a, __m256 b) {
    return _mm256_castps_pd(_mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)));
  };
  const auto of = [&](int i) { return reinterpret_cast<__m256>(sums[i]); };
  const __m256d a = add(of(0), of(1)), b = add(of(2), of(3));
  __m256 x = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
  if constexpr (Group >= 8) x = _mm256_add_ps(x, _mm256_permute2f128_ps(x, x, 1));
#endif
  return reinterpret_cast<V>(x);
}

inline V moved_lanes(V v, I from) {
#if defined(__AVX512F__)
  return reinterpret_cast<V>(_mm512_permutexvar_ps(reinterpret_cast<__m512i>(from), reinterpret_cast<__m512>(v)));
#else
  return reinterpret_cast<V>(
      _mm256_permutevar8x32_ps(reinterpret_cast<__m256>(v), reinterpret_cast<__m256i>(from)));
#endif
}

// Sorts the weights: a vector holds `Group` elements of a column for each of up to kLanes / Group columns.
template <int Group>
inline void sort_weights(const Product& p, float* to) {
  constexpr int64_t kWide = 16;  // columns of the packed matrix
  const int64_t whole = p.length / Group * Group, steps = (p.length + Group - 1) / Group;
  if (p.columns * Group < kLanes || whole < p.length)
    for (int64_t i = 0; i < steps * kLanes; i++) to[i] = 0.0f;
  for (int64_t c = 0; c < p.columns; c++) {
    const float* from = p.weights + c;
    float* at = to + c * Group;
    for (int64_t k = 0; k < whole; k += Group, at += kLanes)
      MEMOJAX_UNROLL
      for (int i = 0; i < Group; i++, from += kWide) at[i] = *from;
    for (int64_t k = whole; k < p.length; k++, from += kWide) at[k - whole] = *from;
  }
}

// Products of four rows with the sorted weights.
template <int Group>
inline void four_rows(V* sum, const float* const* x, const float* w, int64_t whole, int64_t rest) {
  MEMOJAX_UNROLL
  for (int i = 0; i < 4; i++) sum[i] = V{};
  for (int64_t k = 0; k < whole; k += Group, w += kLanes) {
    const V b = load(w);
    MEMOJAX_UNROLL
    for (int i = 0; i < 4; i++) sum[i] += repeated<Group>(x[i] + k) * b;
  }
  if (!rest) return;
  const V b = load(w);
  MEMOJAX_UNROLL
  for (int i = 0; i < 4; i++) {
    float last[Group] = {};
    for (int64_t k = 0; k < rest; k++) last[k] = x[i][whole + k];
    sum[i] += repeated<Group>(last) * b;
  }
}

template <int Group>
void narrow(const Product& p, int64_t row0, int64_t row1) {
  constexpr int kRows = 4;
  const int64_t whole = p.length / Group * Group, rest = p.length - whole;
  alignas(64) float packed[kNarrowFloats];
  sort_weights<Group>(p, packed);
  // Lanes of the results of one row, and of four rows that lie next to each other.
  alignas(64) int lanes[2][kLanes] = {};
  alignas(64) float biases[2][kLanes] = {};
  const int columns = static_cast<int>(p.columns);
  for (int row = 0, lane = 0; row < kRows; row++) {
    for (int c = 0; c < columns && lane < kLanes; c++, lane++) {
      lanes[1][lane] = (c * Group + row) % kLanes;
      if (row == 0) lanes[0][lane] = c * Group;
      if (p.bias) biases[row == 0][lane] = biases[0][lane] = p.bias[c];
    }
  }
  I one, four;
  memcpy(&one, lanes[0], sizeof one), memcpy(&four, lanes[1], sizeof four);
  const V bias = load(biases[1]), four_biases = load(biases[0]);
  const int64_t per_image = p.height * p.width;
  const bool dense = per_image == 1;
  int64_t row = row0, image = row0 / per_image, h = row0 % per_image / p.width, c = row0 % per_image % p.width;
  if constexpr (Group >= 4) {
    if (dense && p.y_image == p.columns) {  // Results of four rows lie next to each other.
      const float* x = p.x + row * p.x_image;
      float* y = p.y + row * p.y_image;
      for (; row1 - row >= kRows; row += kRows, x += kRows * p.x_image, y += kRows * p.columns) {
        const float* const each[kRows] = {x, x + p.x_image, x + 2 * p.x_image, x + 3 * p.x_image};
        V sum[kRows];
        four_rows<Group>(sum, each, packed, whole, rest);
        finish(p, moved_lanes(four_summed<Group>(sum), four) + four_biases, y, kRows * p.columns);
        activate(p, &y, 1, kRows * p.columns);
      }
    }
  }
  for (; row < row1; row += kRows) {
    const int count = static_cast<int>(row1 - row < kRows ? row1 - row : kRows);
    const float* x[kRows];
    float* y[kRows];
    for (int i = 0; i < kRows; i++) {
      if (i >= count) {
        x[i] = x[0];
        continue;
      }
      if (dense) {
        x[i] = p.x + (row + i) * p.x_image, y[i] = p.y + (row + i) * p.y_image;
        continue;
      }
      x[i] = p.x + image * p.x_image + h * p.x_height + c * p.x_width;
      y[i] = p.y + image * p.y_image + h * p.y_height + c * p.y_width;
      if (++c == p.width) {
        c = 0;
        if (++h == p.height) h = 0, image++;
      }
    }
    V sum[kRows];
    four_rows<Group>(sum, x, packed, whole, rest);
    for (int i = 0; i < count; i++) finish(p, moved_lanes(summed<Group>(sum[i]), one) + bias, y[i], p.columns);
    activate(p, y, count, p.columns);
  }
}
#endif

// Whether the product is narrow and has enough rows to sort its weights anew; then it is done.
inline bool narrow_product(const Product& p, int64_t row0, int64_t row1) {
#if defined(__AVX2__)
  constexpr int64_t kFewRows = 8;
  const int64_t columns = p.columns, wide = columns == 1 ? 1 : columns == 2 ? 2 : columns <= 4 ? 4 : 8;
  if (columns > kNarrow || wide > kLanes || p.runs != 1 || row1 - row0 < kFewRows || p.length < kLanes ||
      (p.length + kLanes) * wide > kNarrowFloats)
    return false;
  if (wide == 1) narrow<kLanes>(p, row0, row1);
  else if (wide == 2) narrow<kLanes / 2>(p, row0, row1);
  else if (wide == 4) narrow<kLanes / 4>(p, row0, row1);
  else narrow<kLanes / 8>(p, row0, row1);
  return true;
#else
  (void)p, (void)row0, (void)row1;
  return false;
#endif
}

}  // namespace
}  // namespace memojax::MEMOJAX_ISA
