// The words of a program, as `memojax/kernels/program.py` writes them.
#pragma once
#include <cstdint>

#include "compute.h"

namespace memojax {

// The arithmetic loops of the chosen instruction set; null before the choice.
extern const Compute* chosen;

constexpr int64_t kMagic = 0x6d656d6f6a617807;
constexpr int64_t kArena = -1, kAbsent = -2, kShared = -3;

enum Op : int64_t { kProduct = 1, kElementwise, kReduceOp, kCopy, kFill, kPool2d, kSection, kDraw, kWhole, kDepthwise, kPick };

struct Header {
  int64_t magic, words, blocks, arena_row, shared, flops, operations, buffers;
  int64_t threads;  // The most for a call; 0 without a limit.
};
constexpr int64_t kHeaderWords = sizeof(Header) / 8;

// The place of a value, in floats. In a buffer, it begins at `offset`, plus `stride` per block. In the arena,
// it begins at `offset` times the blocks of the chunk, plus `stride`.
struct Place {
  int64_t buffer, offset, stride;
};

// Reads the words of one step.
struct Reader {
  const int64_t* at;
  int64_t word() { return *at++; }
  Place place() {
    Place p{at[0], at[1], at[2]};
    at += 3;
    return p;
  }
};

struct Run {
  const int64_t* program;
  float* const* buffers;
  float* shared;
  const Header& header() const { return *reinterpret_cast<const Header*>(program); }
};

// Runs all steps of a program; gives a message if memory is short, else null.
const char* execute(Run run);

}  // namespace memojax
