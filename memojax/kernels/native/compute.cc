// The arithmetic loops of one instruction set; see vectors.h.
#include "compute.h"
#include "depthwise.h"
#include "functions.h"
#include "products.h"
#include "vectors.h"

namespace memojax::MEMOJAX_ISA {
namespace {

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

// A register's numbers lie in its own row of `data`, or where the operand is that it reads or writes.
struct Registers {
  float* at[kRegisters];
  alignas(64) float data[kRegisters][kPiece];
};
constexpr int kImmediate = 255;

template <class F>
inline void each(Registers& r, const Code& code, int64_t vectors, F function) {
  float* to = r.at[code.to];
  const V filled = all(code.immediate);
  if (code.b == kImmediate) {
    const float* a = r.at[code.a];
    for (int64_t i = 0; i < vectors; i++) store(to + i * kLanes, function(load(a + i * kLanes), filled));
  } else if (code.a == kImmediate) {
    const float* b = r.at[code.b];
    for (int64_t i = 0; i < vectors; i++) store(to + i * kLanes, function(filled, load(b + i * kLanes)));
  } else {
    const float *a = r.at[code.a], *b = r.at[code.b];
    for (int64_t i = 0; i < vectors; i++)
      store(to + i * kLanes, function(load(a + i * kLanes), load(b + i * kLanes)));
  }
}

template <class F>
inline void each1(Registers& r, const Code& code, int64_t vectors, F function) {
  float* to = r.at[code.to];
  const float* a = r.at[code.a];
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
      float* to = r.at[code.to];
      alignas(64) float filled[kLanes];
      store(filled, all(code.immediate));
      const float* b = code.b == kImmediate ? filled : r.at[code.b];
      const float* c = code.c == kImmediate ? filled : r.at[code.c];
      const int64_t db = code.b == kImmediate ? 0 : kLanes, dc = code.c == kImmediate ? 0 : kLanes;
      const float* a = r.at[code.a];
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

// Operands of a piece of `rows` rows of `count` columns, which lie in memory as in a register.
inline bool in_place(const Operand& operand, int64_t rows, int64_t count) {
  return operand.step && count % kLanes == 0 && (rows == 1 || operand.row_stride == count);
}

// A register holds a piece of a long row, or several short rows, each of which begins at a whole vector.
void elementwise(const Elementwise& e, int64_t row0, int64_t row1) {
  constexpr int kMostCode = 64;
  Code code[kMostCode];
  const int64_t n_code = e.n_code < kMostCode ? e.n_code : kMostCode;
  uint32_t written = 0;
  for (int64_t i = 0; i < n_code; i++) {
    code[i] = decode(e.code + 2 * i);
    written |= 1u << code[i].to;
  }
  const int64_t pitch = (e.columns + kLanes - 1) / kLanes * kLanes;
  const int64_t many = pitch < kPiece ? kPiece / (pitch ? pitch : 1) : 1;
  Registers registers;
  for (int i = 0; i < kRegisters; i++) registers.at[i] = registers.data[i];
  if (e.columns % kLanes)  // The padding after a row is computed, too.
    for (int64_t i = 0; i < e.n_inputs; i++)
      for (int j = 0; j < kPiece; j += kLanes) store(registers.data[e.inputs[i].number] + j, V{});
  for (int64_t row = row0; row < row1; row += many) {
    const int64_t rows = row1 - row < many ? row1 - row : many;
    for (int64_t column = 0; column < e.columns; column += kPiece) {
      const int64_t count = e.columns - column < kPiece ? e.columns - column : kPiece;
      const int64_t vectors = (count + kLanes - 1) / kLanes;
      uint32_t placed = ~written;  // registers whose place must stay
      for (int64_t i = 0; i < e.n_inputs; i++) {
        const Operand& in = e.inputs[i];
        float* from = in.data + row * in.row_stride + column * in.step;
        float* to = registers.data[in.number];
        registers.at[in.number] = to;
        if (!(written >> in.number & 1) && in_place(in, rows, count)) {
          registers.at[in.number] = from;
          continue;
        }
        placed |= 1u << in.number;
        for (int64_t k = 0; k < rows; k++, from += in.row_stride, to += pitch) {
          if (in.step)
            move(to, from, count);
          else
            for (int64_t j = 0; j < vectors; j++) store(to + j * kLanes, all(*from));
        }
      }
      for (int64_t i = 0; i < e.n_outputs; i++) {
        const Operand& out = e.outputs[i];
        if (placed >> out.number & 1) continue;
        placed |= 1u << out.number;
        float* const to = out.data + row * out.row_stride + column;
        registers.at[out.number] = in_place(out, rows, count) ? to : registers.data[out.number];
      }
      for (int64_t i = 0; i < n_code; i++) step(registers, code[i], rows * vectors);
      for (int64_t i = 0; i < e.n_outputs; i++) {
        const Operand& out = e.outputs[i];
        float* to = out.data + row * out.row_stride + column;
        const float* from = registers.at[out.number];
        if (from == to) continue;
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
  // A compiler that knew the numbers would leave out sums that never change, such as 2 = 2 * 0.5 + 1.
  volatile float unknown[] = {0.5f, 1.0f};
  const V factor = all(unknown[0]), addend = all(unknown[1]);
  V sum[kChains];
  for (int i = 0; i < kChains; i++) sum[i] = addend + static_cast<float>(i);
  for (int64_t round = 0; round < rounds; round++) {
    MEMOJAX_UNROLL
    for (int i = 0; i < kChains; i++) sum[i] = sum[i] * factor + addend;
  }
  V total{};
  for (int i = 0; i < kChains; i++) total += sum[i];
  volatile V kept = total;
  (void)kept;
  return rounds * kChains * kLanes;
}

#define MEMOJAX_TEXT_(x) #x
#define MEMOJAX_TEXT(x) MEMOJAX_TEXT_(x)
}  // namespace

extern const Compute compute;
const Compute compute = {
    MEMOJAX_TEXT(MEMOJAX_ISA), kPanel, rows_of(kPanel / kLanes), product, elementwise, reduce, draw,
    multiply_adds,             pool2d,  depthwise,
};

}  // namespace memojax::MEMOJAX_ISA
