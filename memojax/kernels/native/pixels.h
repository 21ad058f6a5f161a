// A few columns of a convolution whose neighbouring windows lie next to each other: the lanes of a vector are
// results in a line of an image. Lanes for columns would be empty for all but these few.
#pragma once
#include "activations.h"
#include "compute.h"
#include "vectors.h"

namespace memojax::MEMOJAX_ISA {
namespace {

constexpr int kFew = kLanes > 8 ? 8 : kLanes - 1;  // Most columns.

// Vectors of a block: the registers hold the sums of all its columns.
constexpr int pixel_vectors(int columns) {
#if defined(__AVX512F__) || defined(__aarch64__)
  return columns > 6 ? 3 : 4;
#else
  return columns > 6 ? 1 : columns > 4 ? 2 : columns > 2 ? 3 : 4;
#endif
}

// Neighbours in a line, one for each lane. Lanes `first` to `last` are results; the others belong to
// neighbouring vectors.
struct Pixels {
  const float* x;
  float* y;
  int64_t first, last;
};

// The sums of a vector, one line of `tile` for each column, on their way to memory.
template <int Columns>
void finish_pixels(const Product& p, const Pixels& at, float (*tile)[kLanes]) {
  float *const y = at.y, *const sums = tile[0];
  if (p.grows)
    for (int64_t i = at.first; i < at.last; i++)
      for (int c = 0; c < Columns; c++) tile[c][i] += y[i * p.y_width + c];
  const V low = floor_of(p);
  for (int c = 0; c < Columns; c++) store(tile[c], at_least(low, load(tile[c])));
  activate(p, &sums, 1, Columns * kLanes);
  float* to = y + at.first * p.y_width;
  for (int64_t i = at.first; i < at.last; i++, to += p.y_width) {
    MEMOJAX_UNROLL
    for (int c = 0; c < Columns; c++) to[c] = tile[c][i];
  }
}

template <int Columns, int Vectors>
inline void pixel_block(const Product& p, const Pixels* at, const float* w, int64_t pitch, const float* bias) {
  V sum[Vectors][Columns];
  MEMOJAX_UNROLL
  for (int v = 0; v < Vectors; v++)
    MEMOJAX_UNROLL
    for (int c = 0; c < Columns; c++) sum[v][c] = bias ? all(bias[c]) : V{};
  for (int64_t r = 0; r < p.runs; r++) {
    const float* x[Vectors];
    MEMOJAX_UNROLL
    for (int v = 0; v < Vectors; v++) x[v] = at[v].x + p.run_offsets[r];
    for (int64_t k = 0; k < p.length; k++, w += pitch) {
      V a[Vectors];
      MEMOJAX_UNROLL
      for (int v = 0; v < Vectors; v++) {
        a[v] = load(x[v] + k);
#if defined(__AVX2__)
        asm("" : "+v"(a[v]));  // GCC would load it anew for each column, mostly from two lines of the cache.
#endif
      }
      MEMOJAX_UNROLL
      for (int c = 0; c < Columns; c++) {
        const V b = all(w[c]);
        MEMOJAX_UNROLL
        for (int v = 0; v < Vectors; v++) sum[v][c] += a[v] * b;
      }
    }
  }
  alignas(64) float tile[Vectors][Columns][kLanes];
  MEMOJAX_UNROLL
  for (int v = 0; v < Vectors; v++)
    MEMOJAX_UNROLL
    for (int c = 0; c < Columns; c++) store(tile[v][c], sum[v][c]);
  for (int v = 0; v < Vectors; v++) finish_pixels<Columns>(p, at[v], tile[v]);
}

template <int Columns, int Vectors>
inline void some_pixels(int count, const Product& p, const Pixels* at, const float* w, int64_t pitch,
                        const float* bias) {
  if constexpr (Vectors > 0) {
    if (count == Vectors)
      pixel_block<Columns, Vectors>(p, at, w, pitch, bias);
    else
      some_pixels<Columns, Vectors - 1>(count, p, at, w, pitch, bias);
  }
}

template <int Columns>
void pixels(const Product& p, int64_t row0, int64_t row1, const float* w, int64_t pitch, const float* bias,
            int64_t column) {
  constexpr int kVectors = pixel_vectors(Columns);
  const int64_t per_image = p.height * p.width;
  Pixels at[kVectors];
  int count = 0;
  for (int64_t row = row0; row < row1;) {
    const int64_t image = row / per_image, h = row % per_image / p.width, c = row % p.width;
    const float* x = p.x + image * p.x_image + h * p.x_height;
    float* y = p.y + image * p.y_image + h * p.y_height + column;
    const int64_t end = p.width - c < row1 - row ? p.width : c + row1 - row;
    row += end - c;
    for (int64_t i = c; i < end; i += kLanes) {
      // A vector that would reach beyond the line begins earlier.
      const int64_t start = i < p.width - kLanes ? i : p.width - kLanes;
      const int64_t last = end - start < kLanes ? end - start : kLanes;
      at[count++] = {x + start, y + start * p.y_width, i - start, last};
      if (count < kVectors) continue;
      some_pixels<Columns, kVectors>(count, p, at, w, pitch, bias);
      count = 0;
    }
  }
  some_pixels<Columns, kVectors>(count, p, at, w, pitch, bias);
}

// Whether lanes for pixels pay for the `columns` columns behind the last whole vector of them. `others` is what
// they would take of a vector of columns: 2 for all of it, 1 for a half.
inline bool pixels_pay(const Product& p, int64_t rows, int64_t columns, int64_t others) {
  if (p.x_width != 1 || p.width < kLanes || rows < kLanes || columns < 1 || columns > kFew) return false;
  // Half cycles for a line. The results of a vector reach memory one after the other.
  const int64_t depth = p.runs * p.length, vectors = (p.width + kLanes - 1) / kLanes;
  return columns * vectors * (depth + 2 * kLanes) < p.width * (depth * others / 2 + 4);
}

template <int Columns = kFew>
void few_pixels(const Product& p, int64_t row0, int64_t row1, const float* w, int64_t pitch, const float* bias,
                int64_t column) {
  if constexpr (Columns > 0) {
    if (p.columns - column == Columns)
      pixels<Columns>(p, row0, row1, w, pitch, bias, column);
    else
      few_pixels<Columns - 1>(p, row0, row1, w, pitch, bias, column);
  }
}

}  // namespace
}  // namespace memojax::MEMOJAX_ISA
