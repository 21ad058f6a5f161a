// Rows times packed matrices; see `Product` in compute.h.
#pragma once
#include "activations.h"
#include "compute.h"
#include "narrow.h"
#include "pixels.h"
#include "vectors.h"

namespace memojax::MEMOJAX_ISA {
namespace {

// Rows of a block for `vectors` vectors of a panel: the registers hold all accumulators.
constexpr int rows_of(int vectors) {
#if defined(__AVX512F__)
  return vectors == 4 ? 6 : vectors == 3 ? 8 : 12;
#elif defined(__AVX2__)
  return vectors == 1 ? 12 : 6;
#elif defined(__aarch64__)
  return vectors > 0 ? 6 : 0;
#else
  return vectors > 0 ? 3 : 0;
#endif
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
  for (int s = 1; s < kSplit; s++)
    MEMOJAX_UNROLL
    for (int i = 0; i < Rows; i++)
      MEMOJAX_UNROLL
      for (int j = 0; j < Vectors; j++) sum[0][i][j] += sum[s][i][j];
  if (left >= Vectors * kLanes && !p.grows) {
    const V low = floor_of(p);
    MEMOJAX_UNROLL
    for (int i = 0; i < Rows; i++)
      MEMOJAX_UNROLL
      for (int j = 0; j < Vectors; j++) store(ends[i] + j * kLanes, at_least(low, sum[0][i][j]));
    return;
  }
  MEMOJAX_UNROLL
  for (int i = 0; i < Rows; i++)
    MEMOJAX_UNROLL
    for (int j = 0; j < Vectors; j++) finish(p, sum[0][i][j], ends[i] + j * kLanes, left - j * kLanes);
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
  const bool dense = per_image == 1;
  for (int64_t row = row0; blocks > 0; blocks--) {
    int count = static_cast<int>((row1 - row + blocks - 1) / blocks);
    // Twice four rows of two vectors would have eight sums, which just fill the multipliers: a delay costs time.
    if (kLanes == 8 && Vectors == 2 && blocks == 2 && row1 - row == 8) count = 5;
    for (int i = 0; i < count; i++) {
      if (dense) {
        starts[i] = p.x + (row + i) * p.x_image, ends[i] = p.y + (row + i) * p.y_image + column;
        continue;
      }
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
    activate(p, ends, count, left < Vectors * kLanes ? left : Vectors * kLanes);
    row += count;
  }
}

#if defined(__AVX512F__)
// One vector of columns of `Rows` neighbours in a line, whose windows overlap: each float of the line is
// loaded once for all windows that hold it. Otherwise, a load for each multiply-add would limit the speed.
template <int Rows, int Length, int Step>
inline void windows(const Product& p, const float* x, float* y, const float* w, int64_t pitch, const float* bias,
                    int64_t left) {
  constexpr int kOverlap = (Length + Step - 1) / Step;
  V sum[Rows];
  MEMOJAX_UNROLL
  for (int i = 0; i < Rows; i++) sum[i] = bias ? load(bias) : V{};
  for (int64_t r = 0; r < p.runs; r++, w += Length * pitch) {
    const float* line = x + p.run_offsets[r];
    V tap[Length];
    MEMOJAX_UNROLL
    for (int i = 0; i < Length; i++) tap[i] = load(w + i * pitch);
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
inline void some_windows(int count, const Product& p, const float* x, float* y, const float* w, int64_t pitch,
                         const float* bias, int64_t left) {
  if constexpr (Rows > 0) {
    if (count < Rows)
      some_windows<Vectors, Rows - 1, Length, Step>(count, p, x, y, w, pitch, bias, left);
    else if constexpr (Vectors == 1)
      windows<Rows, Length, Step>(p, x, y, w, pitch, bias, left);
    else
      wide_windows<Rows, Step>(p, x, y, w, bias, left);
  }
}

template <int Vectors, int Length, int Step>
void lines(const Product& p, int64_t row0, int64_t row1, const float* w, int64_t pitch, const float* bias,
           int64_t column) {
  constexpr int kRows = Vectors == 1 ? 12 : 10;
  const int64_t per_image = p.height * p.width;
  for (int64_t row = row0; row < row1;) {
    const int64_t image = row / per_image, h = row % per_image / p.width, c = row % p.width;
    const int64_t rest = p.width - c < row1 - row ? p.width - c : row1 - row;
    int count = static_cast<int>(rest / ((rest + kRows - 1) / kRows));
    if (Vectors > 1 && count % 2 && count < rest) count++;  // Two rows share a vector.
    const float* x = p.x + image * p.x_image + h * p.x_height + c * p.x_width;
    float* y = p.y + image * p.y_image + h * p.y_height + c * p.y_width + column;
    const int64_t left = p.columns - column;
    some_windows<Vectors, kRows, Length, Step>(count, p, x, y, w, pitch, bias, left);
    for (int i = 0; p.activation > kRelu && i < count; i++, y += p.y_width)
      activate(p, &y, 1, left < Vectors * kLanes ? left : Vectors * kLanes);
    row += count;
  }
}

// Whether the rows are windows along a line, of sizes that policies have; then the product is done.
template <int Vectors>
bool windows_of(const Product& p, int64_t row0, int64_t row1, const float* w, int64_t pitch, const float* bias,
                int64_t column) {
  if (p.width < 6 || row1 - row0 < 6) return false;
  const auto is = [&](int length, int step) {
    return p.x_width == step && (Vectors > 1 || p.length == length);
  };
  if (is(8, 4)) lines<Vectors, 8, 4>(p, row0, row1, w, pitch, bias, column);
  else if (is(4, 2)) lines<Vectors, 4, 2>(p, row0, row1, w, pitch, bias, column);
  else if (is(3, 1)) lines<Vectors, 3, 1>(p, row0, row1, w, pitch, bias, column);
  else if (Vectors == 1 && is(3, 2)) lines<1, 3, 2>(p, row0, row1, w, pitch, bias, column);
  else if (Vectors == 1 && is(5, 1)) lines<1, 5, 1>(p, row0, row1, w, pitch, bias, column);
  else return false;
  return true;
}
#endif

// A panel of a layer with few inputs: registers hold its weights for all rows.
template <int Depth>
void shallow(const Product& p, int64_t row0, int64_t row1, const float* weights, const float* bias,
             int64_t column) {
  constexpr int kVectors = kPanel / kLanes;
  V w[Depth][kVectors], b[kVectors];
  MEMOJAX_UNROLL
  for (int j = 0; j < kVectors; j++) {
    b[j] = bias ? load(bias + j * kLanes) : V{};
    MEMOJAX_UNROLL
    for (int k = 0; k < Depth; k++) w[k][j] = load(weights + k * kPanel + j * kLanes);
  }
  const V low = floor_of(p);
  const float* x = p.x + row0 * p.x_image;
  float* y = p.y + row0 * p.y_image + column;
  for (int64_t row = row0; row < row1; row++, x += p.x_image, y += p.y_image) {
    V sum[kVectors];
    MEMOJAX_UNROLL
    for (int j = 0; j < kVectors; j++) sum[j] = all(x[0]) * w[0][j] + b[j];
    MEMOJAX_UNROLL
    for (int k = 1; k < Depth; k++)
      MEMOJAX_UNROLL
      for (int j = 0; j < kVectors; j++) sum[j] += all(x[k]) * w[k][j];
    MEMOJAX_UNROLL
    for (int j = 0; j < kVectors; j++) store(y + j * kLanes, at_least(low, sum[j]));
    activate(p, &y, 1, kPanel);
  }
}

// Whether a panel of a layer has so few inputs; then it is done.
bool shallow_panel(const Product& p, int64_t row0, int64_t row1, const float* w, const float* bias,
                   int64_t column) {
  const bool fits = p.runs == 1 && p.height * p.width == 1 && !p.grows && p.columns - column >= kPanel;
  if (kLanes == 4 || !fits || row1 - row0 < 4) return false;
  switch (p.length) {
    case 1: return shallow<1>(p, row0, row1, w, bias, column), true;
    case 2: return shallow<2>(p, row0, row1, w, bias, column), true;
    case 3: return shallow<3>(p, row0, row1, w, bias, column), true;
    case 4: return shallow<4>(p, row0, row1, w, bias, column), true;
    case 5: return shallow<5>(p, row0, row1, w, bias, column), true;
    default: return false;
  }
}

// One vector of columns, of the Wide vectors of a panel.
template <int Wide>
void one_vector(const Product& p, int64_t row0, int64_t row1, const float* w, const float* bias, int64_t column) {
#if defined(__AVX512F__)
  if (windows_of<1>(p, row0, row1, w, Wide * kLanes, bias, column)) return;
#endif
  panel<1, Wide>(p, row0, row1, w, bias, column);
}

// The last panel of a convolution whose columns fill `Whole` vectors and a small part of the next one.
template <int Whole, int Wide>
bool with_pixels(const Product& p, int64_t row0, int64_t row1, const float* w, const float* bias,
                 int64_t column, int64_t others = 2) {
  constexpr int kWhole = Whole * kLanes;
  if (!pixels_pay(p, row1 - row0, p.columns - column - kWhole, others)) return false;
  if constexpr (Whole == 1) one_vector<Wide>(p, row0, row1, w, bias, column);
  if constexpr (Whole > 1) panel<Whole, Wide>(p, row0, row1, w, bias, column);
  few_pixels(p, row0, row1, w + kWhole, Wide * kLanes, bias ? bias + kWhole : nullptr, column + kWhole);
  return true;
}

void panel_of(const Product& p, int64_t row0, int64_t row1, const float* w, const float* bias,
              int64_t column) {
  if (shallow_panel(p, row0, row1, w, bias, column)) return;
  const int64_t left = p.columns - column;
#if defined(__AVX512F__)
  const int64_t rows = row1 - row0;
  if (left > 48 && (rows == 7 || rows == 8) && p.runs * p.length >= 256) {
    // Two blocks of four rows would read the panel twice. Half of its columns fit the registers of one block.
    panel<2, 4>(p, row0, row1, w, bias, column);
    panel<2, 4>(p, row0, row1, w + 2 * kLanes, bias ? bias + 2 * kLanes : nullptr, column + 2 * kLanes);
  } else if (left > 48) {
    if (!with_pixels<3, 4>(p, row0, row1, w, bias, column)) panel<4>(p, row0, row1, w, bias, column);
  } else if (left > 32) {
    if (with_pixels<2, 3>(p, row0, row1, w, bias, column, left <= 40 ? 1 : 2)) return;
    if (left <= 40 && windows_of<3>(p, row0, row1, w, 3 * kLanes, bias, column)) return;
    panel<3>(p, row0, row1, w, bias, column);
  } else if (left > 16) {
    if (!with_pixels<1, 2>(p, row0, row1, w, bias, column)) panel<2>(p, row0, row1, w, bias, column);
  } else if (!with_pixels<0, 1>(p, row0, row1, w, bias, column)) {
    one_vector<1>(p, row0, row1, w, bias, column);
  }
#else
  constexpr int kWide = 16 / kLanes;
  const int64_t whole = left / kLanes;
  if (whole == 0 && with_pixels<0, kWide>(p, row0, row1, w, bias, column)) return;
  if (whole == 1 && with_pixels<1, kWide>(p, row0, row1, w, bias, column)) return;
  if (left <= kLanes) panel<1, kWide>(p, row0, row1, w, bias, column);
  else panel<kWide>(p, row0, row1, w, bias, column);
#endif
}

// Floats of a piece of a panel. The piece stays in the L2 cache while the loop goes over all rows.
constexpr int64_t kCached = 32768;

void product(const Product& p, int64_t row0, int64_t row1, int64_t panel0, int64_t panel1) {
  if (narrow_product(p, row0, row1)) return;
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
      part.activation = i == pieces - 1 ? p.activation : kNoActivation;
      panel_of(part, row0, row1, w + begin * unit * wide, i ? nullptr : bias, column);
    }
  }
}

}  // namespace
}  // namespace memojax::MEMOJAX_ISA
