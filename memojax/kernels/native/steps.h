// The steps of a program: each reads its words and hands the work on blocks of rows to the arithmetic loops.
// Only `program.cc` includes this file.
#pragma once
#include <cstring>

#include "pool.h"
#include "program.h"

namespace memojax {
namespace {

constexpr int kMostRuns = 4096;

// The threads of a call. The work is cut for `threads` of them even where the caller works `alone`: the cuts
// decide the order of sums, and equal calls must give equal bits whether workers sleep or not.
struct Crew {
  int threads = 1;
  bool alone = true, wake = false;

  void run(Tile tile, void* job, int64_t tiles) const { run_tiles(tile, job, tiles, alone ? 1 : threads, wake); }
};

// Blocks [block, block + count) of a run.
struct Chunk {
  const Run& run;
  float* arena;
  int64_t block, count;
  Crew crew;

  float* at(const Place& p) const {
    if (p.buffer == kAbsent) return nullptr;
    if (p.buffer == kArena) return arena + p.offset * count + p.stride;
    return (p.buffer == kShared ? run.shared : run.buffers[p.buffer]) + p.offset + block * p.stride;
  }
  bool shares(double work) const { return crew.threads > 1 && work > 3e5; }
};

template <class F>
void split(const Chunk& chunk, int64_t total, int64_t grain, double work, F&& function) {
  if (!chunk.shares(work) || total < 2 * grain) return function(int64_t{0}, total);
  const int64_t most = chunk.crew.threads * 2, pieces = most < total / grain ? most : total / grain;
  struct Job {
    F& function;
    int64_t total, pieces;
  } job{function, total, pieces};
  chunk.crew.run(
      [](void* given, int64_t i) {
        Job& job = *static_cast<Job*>(given);
        job.function(job.total * i / job.pieces, job.total * (i + 1) / job.pieces);
      },
      &job, pieces);
}

// The words of a product.
struct ProductStep {
  Product p{};
  Place x, w, bias, y;
  int64_t images, groups, x_group, w_group, b_group, y_group;
  bool pairs;
  int64_t offsets[kMostRuns];

  ProductStep(const Chunk& chunk, Reader r) : x(r.place()), w(r.place()), bias(r.place()), y(r.place()) {
    images = r.word() * chunk.count;
    p.height = r.word(), p.width = r.word(), p.columns = r.word(), p.length = r.word();
    groups = r.word();
    x_group = r.word(), w_group = r.word(), b_group = r.word(), y_group = r.word();
    p.x_image = r.word(), p.x_height = r.word(), p.x_width = r.word();
    p.y_image = r.word(), p.y_height = r.word(), p.y_width = r.word();
    p.activation = r.word(), p.grows = r.word();
    pairs = r.word();
    if (pairs) images /= chunk.count, groups *= chunk.count;  // groups of all blocks follow each other
    int64_t counts[3], steps[3];
    for (int i = 0; i < 3; i++) counts[i] = r.word(), steps[i] = r.word();
    for (int64_t a = 0; a < counts[0]; a++)
      for (int64_t b = 0; b < counts[1]; b++)
        for (int64_t c = 0; c < counts[2]; c++) offsets[p.runs++] = a * steps[0] + b * steps[1] + c * steps[2];
    p.run_offsets = offsets;
  }
  ProductStep(const ProductStep&) = delete;
  ProductStep& operator=(const ProductStep&) = delete;

  int64_t rows() const { return images * p.height * p.width; }
  int64_t panels() const { return (p.columns + chosen->panel - 1) / chosen->panel; }
  double work() const { return 2.0 * static_cast<double>(rows() * p.columns * p.runs * p.length); }
};

void product(const Chunk& chunk, Reader r) {
  ProductStep step(chunk, r);
  Product& p = step.p;
  const Place x = step.x, w = step.w, bias = step.bias, y = step.y;
  const int64_t groups = step.groups, rows = step.rows(), panels = step.panels();
  const int64_t x_group = step.x_group, w_group = step.w_group, b_group = step.b_group, y_group = step.y_group;
  const double work = step.work();
  if (step.pairs) {
    const float *const xs = chunk.at(x), *const ws = chunk.at(w);
    float* const ys = chunk.at(y);
    split(chunk, groups, 1, work * static_cast<double>(groups), [&](int64_t begin, int64_t end) {
      Product one = p;
      for (int64_t g = begin; g < end; g++) {
        one.x = xs + g * x_group, one.weights = ws + g * w_group, one.y = ys + g * y_group;
        chosen->product(one, 0, rows, 0, panels);
      }
    });
    return;
  }
  for (int64_t g = 0; g < groups; g++) {
    p.x = chunk.at(x) + g * x_group;
    p.weights = chunk.at(w) + g * w_group;
    p.bias = bias.buffer == kAbsent ? nullptr : chunk.at(bias) + g * b_group;
    p.y = chunk.at(y) + g * y_group;
    if (!chunk.shares(work)) {
      chosen->product(p, 0, rows, 0, panels);
      continue;
    }
    // Tiles are panels by blocks of rows, about four per thread.
    struct Job {
      const Product& p;
      int64_t rows, panels, row_pieces, panel_pieces;
    } job{p, rows, panels, 1, panels};
    const int64_t wanted = int64_t{4} * chunk.crew.threads, most = (rows + chosen->block - 1) / chosen->block;
    if (panels > wanted) job.panel_pieces = wanted;
    if (job.panel_pieces < wanted) job.row_pieces = (wanted + job.panel_pieces - 1) / job.panel_pieces;
    if (job.row_pieces > most) job.row_pieces = most;
    chunk.crew.run(
        [](void* given, int64_t i) {
          const Job& j = *static_cast<const Job*>(given);
          const int64_t row = i / j.panel_pieces, panel = i % j.panel_pieces;
          chosen->product(j.p, j.rows * row / j.row_pieces, j.rows * (row + 1) / j.row_pieces,
                          j.panels * panel / j.panel_pieces, j.panels * (panel + 1) / j.panel_pieces);
        },
        &job, job.row_pieces * job.panel_pieces);
  }
}

void elementwise(const Chunk& chunk, Reader r) {
  constexpr int kMost = 24;
  Operand operands[2][kMost];
  Elementwise e{};
  e.rows = r.word() * chunk.count, e.columns = r.word();
  e.n_inputs = r.word(), e.n_outputs = r.word(), e.n_code = r.word();
  bool flat = true;
  for (int side = 0; side < 2; side++) {
    for (int64_t i = 0; i < (side ? e.n_outputs : e.n_inputs); i++) {
      Operand& operand = operands[side][i];
      operand.data = chunk.at(r.place());
      operand.row_stride = r.word(), operand.step = r.word(), operand.number = r.word();
      const bool one_number = side == 0 && operand.row_stride == 0 && operand.step == 0;
      flat = flat && (one_number || (operand.row_stride == e.columns && operand.step == 1));
    }
  }
  e.inputs = operands[0], e.outputs = operands[1], e.code = r.at;
  // About eight floats per nanosecond and instruction.
  const double work = static_cast<double>(e.rows * e.columns * (e.n_code + 2)) * 6;
  if (flat) {  // Rows without gaps are one long row, whose pieces are rows for the threads.
    const int64_t total = e.rows * e.columns;
    split(chunk, total, kPiece, work, [&](int64_t begin, int64_t end) {
      Operand moved[2][kMost];
      for (int64_t i = 0; i < e.n_inputs; i++) (moved[0][i] = operands[0][i]).data += begin * operands[0][i].step;
      for (int64_t i = 0; i < e.n_outputs; i++) (moved[1][i] = operands[1][i]).data += begin;
      Elementwise piece = e;
      piece.rows = 1, piece.columns = end - begin, piece.inputs = moved[0], piece.outputs = moved[1];
      chosen->elementwise(piece, 0, 1);
    });
    return;
  }
  split(chunk, e.rows, 1, work, [&](int64_t begin, int64_t end) { chosen->elementwise(e, begin, end); });
}

void reduce(const Chunk& chunk, Reader r) {
  Reduce d{};
  d.x = chunk.at(r.place()), d.y = chunk.at(r.place());
  d.outer = r.word() * chunk.count, d.reduced = r.word(), d.inner = r.word(), d.kind = r.word();
  chosen->reduce(d, 0, d.outer);
}

void copy(const Chunk& chunk, Reader r) {
  constexpr int kMost = 8;
  const Place from = r.place(), to = r.place();
  const int64_t x_block = r.word(), y_block = r.word(), rank = r.word();
  int64_t dims[kMost], x_steps[kMost], y_steps[kMost];
  for (int64_t i = 0; i < rank; i++) dims[i] = r.word(), x_steps[i] = r.word(), y_steps[i] = r.word();
  const float* x0 = chunk.at(from);
  float* y0 = chunk.at(to);
  int64_t total = chunk.count;
  for (int64_t i = 0; i < rank; i++) total *= dims[i];
  if (!total) return;
  const int64_t inner = rank ? dims[rank - 1] : 1, outer = total / (inner * chunk.count);
  const bool whole = !rank || (x_steps[rank - 1] == 1 && y_steps[rank - 1] == 1);
  // Pieces are blocks, or with few blocks their lines, which are all but the last dimension.
  split(chunk, chunk.count * outer, 1, static_cast<double>(total) * 4, [&](int64_t begin, int64_t end) {
    int64_t index[kMost] = {};
    const float* x = x0 + begin / outer * x_block;
    float* y = y0 + begin / outer * y_block;
    for (int64_t d = rank - 2, rest = begin % outer; d >= 0; rest /= dims[d--]) {
      index[d] = rest % dims[d];
      x += index[d] * x_steps[d], y += index[d] * y_steps[d];
    }
    for (int64_t line = begin; line < end; line++) {
      if (whole) {
        std::memcpy(y, x, static_cast<size_t>(inner) * 4);
      } else {
        const int64_t a = x_steps[rank - 1], b = y_steps[rank - 1];
        for (int64_t j = 0; j < inner; j++) y[j * b] = x[j * a];
      }
      int64_t d = rank - 2;
      for (; d >= 0; d--) {
        x += x_steps[d], y += y_steps[d];
        if (++index[d] < dims[d]) break;
        x -= dims[d] * x_steps[d], y -= dims[d] * y_steps[d], index[d] = 0;
      }
      if (d < 0) x += x_block, y += y_block;
    }
  });
}

void fill(const Chunk& chunk, Reader r) {
  float* y = chunk.at(r.place());
  const int64_t total = r.word() * chunk.count;
  const uint32_t low = static_cast<uint32_t>(r.word());
  float value;
  std::memcpy(&value, &low, 4);
  split(chunk, total, 4096, static_cast<double>(total) * 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) y[i] = value;
  });
}

// Folds a number into a key, as JAX's `fold_in` does: the new key is the hash of the number.
void fold(uint32_t* key, uint32_t number) {
  static constexpr int kRotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {key[0], key[1], key[0] ^ key[1] ^ 0x1bd11bdau};
  uint32_t a = keys[0], b = number + keys[1];
  for (uint32_t i = 0; i < 5; i++) {
    for (int rotation : kRotations[i % 2]) {
      a += b;
      b = (b << rotation | b >> (32 - rotation)) ^ a;
    }
    a += keys[(i + 1) % 3], b += keys[(i + 2) % 3] + i + 1;
  }
  key[0] = a, key[1] = b;
}

void draw(const Chunk& chunk, Reader r) {
  const Place given = r.place(), to = r.place();
  const int64_t count = r.word();
  uint32_t key[2];
  std::memcpy(key, chunk.at(given), sizeof key);
  const int64_t folds = r.word();
  bool by_block = false;
  for (int64_t i = 0; i < folds; i++) by_block |= r.at[i] < 0;
  float* y = chunk.at(to);
  const int64_t total = count * chunk.count, start = count * chunk.block;
  if (by_block) {  // A fold below zero stands for the block's number, and each block counts from 0.
    split(chunk, chunk.count, 1, static_cast<double>(total) * 60, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; block++) {
        uint32_t own[2] = {key[0], key[1]};
        for (int64_t i = 0; i < folds; i++)
          fold(own, static_cast<uint32_t>(r.at[i] < 0 ? chunk.block + block : r.at[i]));
        chosen->draw(own, 0, y + block * count, count);
      }
    });
    return;
  }
  for (int64_t i = 0; i < folds; i++) fold(key, static_cast<uint32_t>(r.word()));
  split(chunk, total, 256, static_cast<double>(total) * 60, [&](int64_t begin, int64_t end) {
    chosen->draw(key, static_cast<uint64_t>(start + begin), y + begin, end - begin);
  });
}

void whole(const Chunk& chunk, Reader r) {
  const float* x = chunk.at(r.place());
  void* y = chunk.at(r.place());
  const int64_t total = r.word() * chunk.count, bits = r.word();
  if (bits == 64)
    for (int64_t i = 0; i < total; i++) static_cast<int64_t*>(y)[i] = static_cast<int64_t>(x[i]);
  else
    for (int64_t i = 0; i < total; i++) static_cast<int32_t*>(y)[i] = static_cast<int32_t>(x[i]);
}

// The words of a reduction over windows. If `lines` is not 0, the product before it runs with it, so many
// lines of results at a time.
struct PoolStep {
  Pool2d p{};
  int64_t lines;

  PoolStep(const Chunk& chunk, Reader r) {
    p.x = chunk.at(r.place()), p.y = chunk.at(r.place());
    p.images = r.word() * chunk.count;
    int64_t* const fields[] = {&p.channels, &p.kind, &p.in_height, &p.in_width, &p.out_height, &p.out_width,
                                &p.window_height, &p.window_width, &p.stride_height, &p.stride_width,
                                &p.dilation_height, &p.dilation_width, &p.pad_height, &p.pad_width};
    for (int64_t* field : fields) *field = r.word();
    lines = r.word();
  }
  double work() const {
    return static_cast<double>(p.images * p.out_height * p.out_width * p.channels) *
           static_cast<double>(p.window_height * p.window_width);
  }
};

void pool2d(const Chunk& chunk, Reader r) {
  const PoolStep step(chunk, r);
  split(chunk, step.p.images * step.p.out_height, 1, step.work(),
        [&](int64_t begin, int64_t end) { chosen->pool2d(step.p, begin, end); });
}

// A product and the reduction over windows behind it, a few lines at a time: large results of the product never
// leave the cache. All bands of a piece use the memory of its own first lines, so pieces do not meet.
void banded(const Chunk& chunk, Reader first, Reader second) {
  ProductStep before(chunk, first);
  const PoolStep after(chunk, second);
  Product& p = before.p;
  const Pool2d& pool = after.p;
  p.x = chunk.at(before.x), p.weights = chunk.at(before.w), p.bias = chunk.at(before.bias), p.y = chunk.at(before.y);
  const int64_t panels = before.panels(), high = pool.stride_height, line = p.y_height;
  split(chunk, pool.images * pool.out_height, after.lines, before.work() + after.work(),
        [&](int64_t begin, int64_t end) {
          float* const room = p.y + (begin / pool.out_height * p.height + begin % pool.out_height * high) * line;
          for (int64_t at = begin, count; at < end; at += count) {
            const int64_t left = pool.out_height - at % pool.out_height;
            count = end - at < after.lines ? end - at : after.lines;
            if (left < count) count = left;
            const int64_t top = at / pool.out_height * p.height + at % pool.out_height * high;
            Product part = p;
            Pool2d reduced = pool;
            part.y = room - top * line, reduced.x = room - top * line;
            chosen->product(part, top * p.width, (top + count * high) * p.width, 0, panels);
            chosen->pool2d(reduced, at, at + count);
          }
        });
}

void depthwise(const Chunk& chunk, Reader r) {
  Depthwise p{};
  const Place x = r.place(), weights = r.place(), bias = r.place(), y = r.place();
  p.x = chunk.at(x), p.weights = chunk.at(weights), p.bias = chunk.at(bias), p.y = chunk.at(y);
  p.images = r.word() * chunk.count;
  int64_t* const fields[] = {&p.height,      &p.width,        &p.channels, &p.window_height, &p.window_width,
                             &p.window_line, &p.window_pixel, &p.x_image,  &p.x_height,      &p.x_width,
                             &p.activation};
  for (int64_t* field : fields) *field = r.word();
  const int64_t lines = p.images * p.height, taps = p.window_height * p.window_width;
  const double work = 2.0 * static_cast<double>(lines * p.width * p.channels * taps);
  split(chunk, lines, 1, work, [&](int64_t begin, int64_t end) { chosen->depthwise(p, begin, end); });
}

// Moves single elements to or from the places that an argument lists; a place below zero is left out.
void pick(const Chunk& chunk, Reader r) {
  const Place from = r.place(), list = r.place(), to = r.place();
  const int64_t count = r.word(), x_block = r.word(), y_block = r.word(), scatters = r.word();
  const int32_t* const places = reinterpret_cast<const int32_t*>(chunk.at(list));
  for (int64_t block = 0; block < chunk.count; block++) {
    const float* const x = chunk.at(from) + block * x_block;
    float* const y = chunk.at(to) + block * y_block;
    if (scatters) {
      for (int64_t i = 0; i < count; i++)
        if (places[i] >= 0) y[places[i]] = x[i];
    } else {
      for (int64_t i = 0; i < count; i++)
        if (places[i] >= 0) y[i] = x[places[i]];
    }
  }
}

// Steps that run together, `chunk` blocks per pass. With few blocks, a thread takes fewer, but at least
// `least`.
struct Section {
  const int64_t* begin;
  int64_t operations, chunk, least;
};

void run_chunk(const Chunk& chunk, const Section& section) {
  const int64_t* at = section.begin;
  for (int64_t i = 0; i < section.operations; i++) {
    const Reader r{at + 2};
    const int64_t* const next = at + at[1];
    if (i + 1 < section.operations && at[0] == kProduct && next[0] == kPool2d && next[next[1] - 1]) {
      banded(chunk, r, Reader{next + 2});
      at = next + next[1], i++;
      continue;
    }
    switch (at[0]) {
      case kProduct: product(chunk, r); break;
      case kElementwise: elementwise(chunk, r); break;
      case kReduceOp: reduce(chunk, r); break;
      case kCopy: copy(chunk, r); break;
      case kFill: fill(chunk, r); break;
      case kPool2d: pool2d(chunk, r); break;
      case kDraw: draw(chunk, r); break;
      case kWhole: whole(chunk, r); break;
      case kDepthwise: depthwise(chunk, r); break;
      case kPick: pick(chunk, r); break;
      default: break;
    }
    at += at[1];
  }
}

}  // namespace
}  // namespace memojax
