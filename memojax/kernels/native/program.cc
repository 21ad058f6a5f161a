// Runs a program: the steps of a part of a network, one after the other, over blocks of rows.
//
// All values are float32. Intermediate values lie in an arena of the thread that makes them. A program runs a
// few blocks per pass, so intermediate values stay in the core's cache, and different threads take different
// blocks.
#include "program.h"

#include <pthread.h>

#include <atomic>
#include <cstdlib>

#include "pool.h"
#include "steps.h"

namespace memojax {

const Compute* chosen = nullptr;

namespace {

// Memory of a thread, kept for its next call and freed when the thread ends.
struct Arena {
  float* data;
  int64_t size;
};

void free_arena(void* given) {
  std::free(static_cast<Arena*>(given)->data);
  std::free(given);
}

pthread_key_t arena_key;
bool has_arena_key = false;
void make_arena_key() { has_arena_key = !pthread_key_create(&arena_key, free_arena); }

// At least this many floats, aligned to a cache line; null if memory is short.
float* arena_of(int64_t floats) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  static thread_local Arena* mine = nullptr;
  if (!mine) {
    pthread_once(&once, make_arena_key);
    Arena* made = has_arena_key ? static_cast<Arena*>(std::calloc(1, sizeof(Arena))) : nullptr;
    if (!made) return nullptr;
    pthread_setspecific(arena_key, made);
    mine = made;
  }
  if (floats > mine->size) {
    std::free(mine->data);
    mine->data = nullptr;
    mine->size = 0;
    void* room = nullptr;
    if (posix_memalign(&room, 64, static_cast<size_t>(floats) * 4)) return nullptr;
    mine->data = static_cast<float*>(room);
    mine->size = floats;
  }
  return mine->data;
}

// The threads for a call of `work` operations; a core does about 200,000 per microsecond. Workers that are awake
// pay from a few microseconds of work on. Waking them takes 50 microseconds or more, so it pays only for long
// calls, and for frequent callers, which find them awake the next time.
Crew crew_for(double work, int64_t most) {
  constexpr double kWorthwhile = 8e5, kLong = 1e7, kSeat = 3e5;
  const int all = memojax::threads(), threads = most && most < all ? static_cast<int>(most) : all;
  if (threads < 2 || work < kWorthwhile) return {};
  static std::atomic<int64_t> last{0};
  const int64_t now = microseconds();
  const bool soon = now - last.exchange(now, std::memory_order_relaxed) < 1000;
  const bool wake = soon || work > kLong;
  return {threads < work / kSeat ? threads : static_cast<int>(work / kSeat), !wake && !awake(), wake};
}

constexpr const char* kNoMemory = "memojax: out of memory";

const char* run_section(const Run& run, const Section& section, const Crew& crew) {
  const Header& header = run.header();
  const int threads = crew.threads;
  const int64_t blocks = header.blocks;
  int64_t size = section.chunk;
  if (threads > 1 && size * threads > blocks && section.least * threads <= blocks)
    size = (blocks + threads - 1) / threads;
  if (threads < 2 || blocks < threads || size * threads > blocks + threads - 1) {
    // One chunk after the other. With few rows and several threads, the threads share the work of each step.
    const int64_t chunk = threads > 1 || size > blocks ? blocks : size;
    float* mine = arena_of(header.arena_row * chunk + 16);
    if (!mine) return kNoMemory;
    for (int64_t block = 0; block < blocks; block += chunk)
      run_chunk({run, mine, block, blocks - block < chunk ? blocks - block : chunk, crew}, section);
    return nullptr;
  }
  // Threads take different chunks.
  struct Job {
    const Run& run;
    const Section& section;
    int64_t chunks;
    std::atomic<bool> failed;
  };
  int64_t chunks = (blocks + size - 1) / size;
  chunks = (chunks + threads - 1) / threads * threads;
  if (chunks > blocks) chunks = blocks;
  Job job{run, section, chunks, {false}};
  crew.run(
      [](void* given, int64_t i) {
        Job& job = *static_cast<Job*>(given);
        const Header& header = job.run.header();
        const int64_t begin = header.blocks * i / job.chunks, end = header.blocks * (i + 1) / job.chunks;
        float* mine = arena_of(header.arena_row * (end - begin) + 16);
        if (!mine) return job.failed.store(true, std::memory_order_relaxed);
        run_chunk({job.run, mine, begin, end - begin, {}}, job.section);
      },
      &job, chunks);
  return job.failed.load() ? kNoMemory : nullptr;
}

}  // namespace

const char* execute(Run run) {
  const Header& header = run.header();
  if (!header.blocks) return nullptr;
  const Crew crew = crew_for(static_cast<double>(header.flops) * static_cast<double>(header.blocks), header.threads);
  const int64_t* const end = run.program + header.words;
  if (header.shared) {
    // Values for later sections lie in the same arena, after the most that this thread's chunks need.
    int64_t most = 1;
    for (const int64_t* at = run.program + kHeaderWords; at < end; at += at[1])
      if (at[0] == kSection && at[2] > most) most = at[2];
    most = most * crew.threads < header.blocks ? most * crew.threads : header.blocks;
    const int64_t own = (header.arena_row * most + 31) / 16 * 16;
    float* mine = arena_of(own + header.shared);
    if (!mine) return kNoMemory;
    run.shared = mine + own;
  }
  for (const int64_t* at = run.program + kHeaderWords; at < end;) {
    Section section{at + at[1], 0, at[2], at[3]};
    for (at += at[1]; at < end && at[0] != kSection; at += at[1]) section.operations++;
    if (const char* failure = run_section(run, section, crew)) return failure;
  }
  return nullptr;
}

}  // namespace memojax
