// Vectors of one instruction set, by the compiler's vector extensions.
//
// This file and those that include it are compiled once for each instruction set, which MEMOJAX_ISA names. They
// must not use inline functions of the standard library: the linker keeps one copy of each, perhaps the one for
// the widest set.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
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

// `low` where x is below it, else x, also where x is NaN. Compilers make two instructions of such a choice, so
// the one that does the same is named.
inline V at_least(V low, V x) {
#if defined(__AVX512F__)
  return reinterpret_cast<V>(_mm512_max_ps(reinterpret_cast<__m512>(low), reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__)
  return reinterpret_cast<V>(_mm256_max_ps(reinterpret_cast<__m256>(low), reinterpret_cast<__m256>(x)));
#else
  return pick(x < low, low, x);
#endif
}

// `high` where x is above it, else x, also where x is NaN.
inline V at_most(V high, V x) {
#if defined(__AVX512F__)
  return reinterpret_cast<V>(_mm512_min_ps(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__)
  return reinterpret_cast<V>(_mm256_min_ps(reinterpret_cast<__m256>(high), reinterpret_cast<__m256>(x)));
#else
  return pick(x > high, high, x);
#endif
}

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

// Every loop over accumulators must be unrolled, or they would be in memory instead of registers.
#if defined(__clang__)
#define MEMOJAX_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MEMOJAX_UNROLL _Pragma("GCC unroll 16")
#endif

}  // namespace
}  // namespace memojax::MEMOJAX_ISA
