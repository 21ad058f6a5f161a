// The end of a product: activations of its sums, and their way to memory.
#pragma once
#include "compute.h"
#include "functions.h"
#include "vectors.h"

namespace memojax::MEMOJAX_ISA {
namespace {

// The number below which relu, if a product has it, lets none of its results.
inline V floor_of(const Product& p) { return all(p.activation == kRelu ? 0.0f : -__builtin_inff()); }

// Writes sums to `room` columns or fewer.
inline void finish(const Product& p, V v, float* to, int64_t room) {
  if (p.grows) v += load_some(to, room);
  v = at_least(floor_of(p), v);  // Keeps NaN.
  if (room >= kLanes)
    store(to, v);
  else if (room > 0)
    store_some(to, v, static_cast<int>(room));
}

template <class F>
inline void each_row(float* const* rows, int count, int64_t columns, F function) {
  for (int i = 0; i < count; i++) {
    int64_t j = 0;
    for (; j + kLanes <= columns; j += kLanes) store(rows[i] + j, function(load(rows[i] + j)));
    if (j < columns)
      store_some(rows[i] + j, function(load_some(rows[i] + j, columns - j)), static_cast<int>(columns - j));
  }
}

// Passes finished rows of a block through the activation, while the innermost cache holds them. Relu is done
// before.
inline void activate(const Product& p, float* const* rows, int count, int64_t columns) {
  if (p.activation == kTanhOf)
    each_row(rows, count, columns, [](V v) { return tanh_(v); });
  else if (p.activation == kLogisticOf)
    each_row(rows, count, columns, [](V v) { return logistic_(v); });
}

}  // namespace
}  // namespace memojax::MEMOJAX_ISA
