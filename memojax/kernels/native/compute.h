// The arithmetic loops of one instruction set. `compute.cc` is compiled once for each set.
#pragma once
#include <cstdint>

namespace memojax {

enum Activation : int64_t { kNoActivation, kRelu, kTanhOf, kLogisticOf };

// Rows times a packed matrix, plus bias, through an activation. Row (image, oh, ow) of the left side starts
// at `x + image * x_image + oh * x_height + ow * x_width`. Its K = runs * length elements are in `runs` runs
// of `length` adjacent floats, run r at `run_offsets[r]`. A dense layer has one run, and images of one row. A
// convolution reads its windows in place. Columns of a result row are adjacent.
struct Product {
  const float* x;
  const float* weights;  // Panels of `panel` columns (the last may have fewer, in 16s), each [K, width].
  const float* bias;     // One float per packed column, or null.
  float* y;
  const int64_t* run_offsets;
  int64_t runs, length, columns;
  int64_t height, width;  // Rows of an image.
  int64_t x_image, x_height, x_width, y_image, y_height, y_width;
  int64_t activation;
  int64_t grows;  // Whether the product is added to the content of y.
};

enum Instruction : uint8_t {
  kAdd, kSub, kMul, kDiv, kMax, kMin, kNeg, kAbs, kExp, kLog, kLog1p, kExpm1, kTanh, kLogistic, kErf, kSqrt,
  kRsqrt, kFloor, kCeil, kSign, kLt, kLe, kGt, kGe, kEq, kNe, kSelect, kNot, kAnd, kOr, kFinite, kMove,
  kErfInv, kInstructions
};

struct Operand {
  float* data;
  int64_t row_stride, step;  // For an input, a step of 0 means that one number fills the row.
  int64_t number;            // The register's number.
};

// Elementwise code over `rows` x `columns`. A register holds a piece of a row. Each instruction is two words:
// opcode | destination << 8 | a << 16 | b << 24 | c << 32, and the bits of the float that operand 255 stands
// for.
struct Elementwise {
  int64_t rows, columns;
  const Operand* inputs;
  int64_t n_inputs;
  const Operand* outputs;
  int64_t n_outputs;
  const int64_t* code;
  int64_t n_code;
};
constexpr int kRegisters = 24;
constexpr int kPiece = 256;

enum Reduction : int64_t { kReduceSum, kReduceMax, kReduceMin, kArgMax, kArgMin };

// A reduction of [outer, reduced, inner] to [outer, inner]. ArgMax and ArgMin give the index of the
// first extreme, or of the first NaN.
struct Reduce {
  const float* x;
  float* y;
  int64_t outer, reduced, inner, kind;
};

// Windows over [height, width, channels] images, whose channels are adjacent.
struct Pool2d {
  const float* x;
  float* y;
  int64_t images, channels, kind;
  int64_t in_height, in_width, out_height, out_width;
  int64_t window_height, window_width, stride_height, stride_width;
  int64_t dilation_height, dilation_width, pad_height, pad_width;
};

// A convolution of [lines, pixels, channels] images, whose channels are adjacent, with a window for each
// channel. The window of result (image, h, w) starts at `x + image * x_image + h * x_height + w * x_width`;
// its lines are `window_line` floats apart, and its pixels `window_pixel`. `weights` are
// [window_height, window_width, channels]. Results lie without gaps.
struct Depthwise {
  const float* x;
  const float* weights;
  const float* bias;  // One float per channel, or null.
  float* y;
  int64_t images, height, width, channels;
  int64_t window_height, window_width, window_line, window_pixel;
  int64_t x_image, x_height, x_width;
  int64_t activation;
};

struct Compute {
  const char* name;
  int64_t panel;  // Columns of a panel.
  int64_t block;  // Rows of a block, for a full panel.
  void (*product)(const Product&, int64_t row0, int64_t row1, int64_t panel0, int64_t panel1);
  void (*elementwise)(const Elementwise&, int64_t row0, int64_t row1);
  void (*reduce)(const Reduce&, int64_t outer0, int64_t outer1);
  // Draws numbers in [1, 2) as JAX's threefry does: each from the hash of the key and of its index, which
  // runs from `start` to `start + count`.
  void (*draw)(const uint32_t* key, uint64_t start, float* y, int64_t count);
  // Runs `rounds` rounds of multiply-adds in registers, the most that a core can do. Returns the number of
  // multiply-adds.
  int64_t (*multiply_adds)(int64_t rounds);
  void (*pool2d)(const Pool2d&, int64_t line0, int64_t line1);  // Lines of the results, of all images.
  void (*depthwise)(const Depthwise&, int64_t line0, int64_t line1);
};

#if defined(__x86_64__)
namespace avx512 { extern const Compute compute; }
namespace avx2 { extern const Compute compute; }
#endif
namespace portable { extern const Compute compute; }

}  // namespace memojax
