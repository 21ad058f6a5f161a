// The functions that XLA and Python call: the choice of an instruction set, and calls of programs.
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "compute.h"
#include "pool.h"
#include "program.h"
#include "xla_ffi.h"

using namespace memojax;

#define MEMOJAX_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

int xla_major = 0, xla_minor = 0;

ffi::Error* fail(const ffi::CallFrame* frame, const char* message) {
  ffi::ErrorArgs args{sizeof(ffi::ErrorArgs), nullptr, message, ffi::kInvalidArgument};
  return frame->api->create_error(&args);
}

}  // namespace

// The version of XLA's interface in the installed jaxlib, for an XLA that does not say it.
MEMOJAX_EXPORT void memojax_use_api(int major, int minor) {
  xla_major = major;
  xla_minor = minor;
}

// The handler that XLA calls.
MEMOJAX_EXPORT ffi::Error* memojax_program(ffi::CallFrame* frame) {
  for (ffi::Extension* extension = frame->extensions; extension; extension = extension->next) {
    if (extension->type != ffi::kMetadataExtension) continue;
    // The handler reads nothing that differs between versions, so it claims the version of the asker.
    // XLA of JAX 0.8 asks without its api; then the version is the one that Python has read.
    ffi::Metadata* metadata = reinterpret_cast<ffi::MetadataExtension*>(extension)->metadata;
    metadata->version.major = frame->api ? frame->api->version.major : xla_major;
    metadata->version.minor = frame->api ? frame->api->version.minor : xla_minor;
    metadata->traits = 0;
    metadata->state_type = 0;  // unknown: the handler keeps no state
    return nullptr;
  }
  if (frame->stage != ffi::kExecute) return nullptr;
  if (!chosen) return fail(frame, "memojax: kernels were not set up");
  const ffi::Attributes& attributes = frame->attributes;
  if (attributes.size != 1 || attributes.types[0] != ffi::kArrayAttribute)
    return fail(frame, "memojax: a program is an array of int64");
  const ffi::Array* words = static_cast<const ffi::Array*>(attributes.items[0]);
  const Run run{static_cast<const int64_t*>(words->data), nullptr, nullptr};
  if (words->dtype != ffi::kInt64 || static_cast<int64_t>(words->size) < kHeaderWords ||
      run.header().magic != kMagic || run.header().words != static_cast<int64_t>(words->size))
    return fail(frame, "memojax: this program was written for other kernels");
  constexpr int64_t kMostBuffers = 512;
  const int64_t given = frame->arguments.size, made = frame->results.size;
  if (given + made != run.header().buffers || given + made > kMostBuffers)
    return fail(frame, "memojax: a program with other arguments");
  float* buffers[kMostBuffers];
  for (int64_t i = 0; i < given; i++)
    buffers[i] = static_cast<float*>(static_cast<ffi::Buffer*>(frame->arguments.items[i])->data);
  for (int64_t i = 0; i < made; i++)
    buffers[given + i] = static_cast<float*>(static_cast<ffi::Buffer*>(frame->results.items[i])->data);
  const char* failure = execute({run.program, buffers, nullptr});
  return failure ? fail(frame, failure) : nullptr;
}

// For callers without XLA: the tests, also under the sanitizers.
MEMOJAX_EXPORT const char* memojax_run(const int64_t* program, int64_t words, float* const* buffers) {
  const bool whole = words >= kHeaderWords && program[0] == kMagic && program[1] == words;
  if (!chosen || !whole) return "memojax: no such program";
  return execute({program, buffers, nullptr});
}

// The arguments of a call without XLA, for a plan that is one program. `memojax/kernels/direct.py` fills
// them in. The call returns 0 after success.
struct Prepared {
  const int64_t* program;
  int64_t words;
  float* const* buffers;
};
MEMOJAX_EXPORT int memojax_call(const Prepared* call) {
  const FlushedDenormals as_xla_does;
  return memojax_run(call->program, call->words, call->buffers) != nullptr;
}

MEMOJAX_EXPORT void memojax_set_threads(int threads, int spin_microseconds) {
  set_threads(threads, spin_microseconds);
}

MEMOJAX_EXPORT void memojax_share_threads(int callers) { share_threads(callers); }

#if defined(__x86_64__)
// The vectors that the processor has and the system saves, by CPUID: 2 AVX-512, 1 AVX2 with FMA, 0 neither.
static int vector_level() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_AVX) || !(c & bit_FMA)) return 0;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & 0x6) != 0x6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2)) return 0;
  constexpr unsigned kAvx512 = bit_AVX512F | bit_AVX512VL | bit_AVX512BW | bit_AVX512DQ;
  return (low & 0xe6) == 0xe6 && (b & kAvx512) == kAvx512 ? 2 : 1;
}
#endif

// Chooses the widest instruction set of this CPU up to `widest` (null: any), and returns its name.
MEMOJAX_EXPORT const char* memojax_choose(const char* widest) {
  chosen = &portable::compute;
#if defined(__x86_64__)
  const bool any = !widest || !*widest;
  const int level = vector_level();
  const bool wide = any || !std::strcmp(widest, "avx512");
  if (level >= 1 && (wide || !std::strcmp(widest, "avx2"))) chosen = &avx2::compute;
  if (level >= 2 && (any || !std::strcmp(widest, "avx512"))) chosen = &avx512::compute;
#else
  (void)widest;
#endif
  return chosen->name;
}

MEMOJAX_EXPORT int64_t memojax_panel() { return chosen ? chosen->panel : 0; }

// For benchmarks: runs `rounds` rounds of multiply-adds, and returns their number.
MEMOJAX_EXPORT int64_t memojax_multiply_adds(int64_t rounds) {
  return chosen ? chosen->multiply_adds(rounds) : 0;
}

// The digest of the sources of this library.
MEMOJAX_EXPORT const char* memojax_sources() { return MEMOJAX_SOURCES; }
