// Convolutions in which each channel has a window of its own.
#pragma once
#include "compute.h"
#include "functions.h"
#include "vectors.h"

namespace memojax::MEMOJAX_ISA {
namespace {

inline V activated(int64_t activation, V v) {
  if (activation == kRelu) return at_least(V{}, v);  // Keeps NaN.
  if (activation == kTanhOf) return tanh_(v);
  return activation == kLogisticOf ? logistic_(v) : v;
}

void depthwise(const Depthwise& p, int64_t line0, int64_t line1) {
  for (int64_t line = line0; line < line1; line++) {
    const float* const x = p.x + line / p.height * p.x_image + line % p.height * p.x_height;
    float* y = p.y + line * p.width * p.channels;
    for (int64_t w = 0; w < p.width; w++, y += p.channels) {
      for (int64_t c = 0; c < p.channels; c += kLanes) {
        const int64_t left = p.channels - c;
        V sum = p.bias ? load_some(p.bias + c, left) : V{};
        const float* weights = p.weights + c;
        for (int64_t i = 0; i < p.window_height; i++) {
          const float* from = x + w * p.x_width + i * p.window_line + c;
          for (int64_t j = 0; j < p.window_width; j++, from += p.window_pixel, weights += p.channels)
            sum += load_some(from, left) * load_some(weights, left);
        }
        sum = activated(p.activation, sum);
        if (left >= kLanes)
          store(y + c, sum);
        else
          store_some(y + c, sum, static_cast<int>(left));
      }
    }
  }
}

}  // namespace
}  // namespace memojax::MEMOJAX_ISA
