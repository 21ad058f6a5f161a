#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>

#include <atomic>
#include <cstdlib>
#include <new>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace memojax {
namespace {

constexpr int kMostThreads = 64;

// This file needs no C++ library at run time, because ziglang, the compiler for machines without one, would
// first have to build that library.
struct Lock {
  pthread_mutex_t* mutex;
  explicit Lock(pthread_mutex_t* given) : mutex(given) { pthread_mutex_lock(mutex); }
  ~Lock() { pthread_mutex_unlock(mutex); }
  Lock(const Lock&) = delete;
};

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// XLA flushes denormals in the calling thread, so workers copy that thread's mode.
inline uint64_t float_mode() {
#if defined(__x86_64__)
  return _mm_getcsr();
#elif defined(__aarch64__)
  uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
#else
  return 0;
#endif
}
inline void set_float_mode(uint64_t mode) {
#if defined(__x86_64__)
  _mm_setcsr(static_cast<unsigned>(mode) & ~0x3fu);
#elif defined(__aarch64__)
  asm volatile("msr fpcr, %0" : : "r"(mode));
#else
  (void)mode;
#endif
}

// A worker counts itself as active, and then checks whether a job is open. The caller closes the job, and
// then waits until no worker is active. So either the worker sees the closed job, or the caller sees the
// worker.
struct Pool {
  pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER;  // Held by the thread whose job runs.
  std::atomic<bool> open{false};
  std::atomic<int> active{0}, seats{0};
  std::atomic<int64_t> next{0}, tiles{0};
  Tile tile = nullptr;
  void* job = nullptr;
  uint64_t mode = 0;

  pthread_mutex_t door = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t bell = PTHREAD_COND_INITIALIZER;
  std::atomic<int> asleep{0};
  int workers = 0;  // Number of started workers; changed only under `busy`.
  pthread_t threads[kMostThreads];

  void keep_apart();

  void work() {
    constexpr auto relaxed = std::memory_order_relaxed;
    for (int64_t i; (i = next.fetch_add(1, relaxed)) < tiles.load(relaxed);) tile(job, i);
  }

  bool inviting() const {
    return open.load() && seats.load(std::memory_order_relaxed) > 0 &&
           next.load(std::memory_order_relaxed) < tiles.load(std::memory_order_relaxed);
  }

  void join() {
    active.fetch_add(1);
    if (open.load() && seats.fetch_sub(1) > 0) {
      set_float_mode(mode);
      work();
    }
    active.fetch_sub(1);
  }

  void serve();
  void start(int wanted);
  void run(Tile, void*, int64_t, int, bool);
};

std::atomic<Pool*> pool{nullptr};
std::atomic<int> thread_count{1}, spin_us{0};
thread_local int sharing = 1;

// The child of a fork has no workers, so it gets a new pool; the parent's pool stays allocated.
void forget_pool() { pool.store(nullptr); }

void watch_forks() { pthread_atfork(nullptr, nullptr, forget_pool); }

Pool* the_pool() {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch_forks);
  Pool* now = pool.load();
  if (now) return now;
  void* room = std::malloc(sizeof(Pool));
  if (!room) return nullptr;
  Pool* made = new (room) Pool;  // Never freed, because workers outlive the static destructors.
  if (pool.compare_exchange_strong(now, made)) return made;
  std::free(room);
  return now;
}

void Pool::serve() {
  int64_t until = microseconds() + spin_us.load();
  for (unsigned round = 1;; round++) {
    if (inviting()) {
      join();
      until = microseconds() + spin_us.load();
    } else if (round % 32 || microseconds() < until) {
      pause();
    } else {
      Lock lock(&door);
      asleep.fetch_add(1);
      if (!inviting()) pthread_cond_wait(&bell, &door);
      asleep.fetch_sub(1);
      // Waking takes longer than a short job. Whoever comes too late for it stays awake for the next one.
      until = microseconds() + spin_us.load();
    }
  }
}

void* worker(void* given) {
  static_cast<Pool*>(given)->serve();
  return nullptr;
}

void Pool::start(int wanted) {
  sigset_t every, before;
  sigfillset(&every);
  pthread_sigmask(SIG_SETMASK, &every, &before);  // Signals belong to the program's own threads.
  for (; workers < wanted; workers++) {
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    const int failed = pthread_create(&thread, &attributes, worker, this);
    pthread_attr_destroy(&attributes);
    if (failed) break;  // Then there are fewer threads.
#if defined(__linux__)
    pthread_setname_np(thread, "memojax kernels");  // for top, profilers and tests
#endif
    threads[workers] = thread;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// On a virtual machine Linux takes an idle core that its host has suspended for a busy one, and lets a thread
// that wakes wait for the core of the thread that woke it. So workers that sleep are kept off the core of the
// caller.
void Pool::keep_apart() {
#if defined(__linux__)
  cpu_set_t allowed;
  const int mine = sched_getcpu();
  if (mine < 0 || sched_getaffinity(0, sizeof allowed, &allowed) || CPU_COUNT(&allowed) < 2) return;
  CPU_CLR(mine, &allowed);
  for (int i = 0; i < workers; i++) pthread_setaffinity_np(threads[i], sizeof allowed, &allowed);
#endif
}

void Pool::run(Tile what, void* with, int64_t count, int most, bool wake) {
  if (workers < most - 1) start(most - 1);
  tile = what;
  job = with;
  mode = float_mode();
  tiles.store(count, std::memory_order_relaxed);
  next.store(0, std::memory_order_relaxed);
  seats.store(most - 1, std::memory_order_relaxed);
  open.store(true);
  if (wake && asleep.load() > 0) {
    keep_apart();
    { Lock lock(&door); }
    pthread_cond_broadcast(&bell);
  }
  work();
  open.store(false);
  for (unsigned round = 1; active.load() > 0; round++) {
    if (round % 4096)
      pause();
    else
      sched_yield();  // A worker may have lost its core.
  }
}

}  // namespace

int64_t microseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000000 + now.tv_nsec / 1000;
}

void run_tiles(Tile tile, void* job, int64_t tiles, int threads, bool wake) {
  if (threads > 1 && tiles > 1) {
    Pool* shared = the_pool();
    if (shared && !pthread_mutex_trylock(&shared->busy)) {
      shared->run(tile, job, tiles, threads, wake);
      pthread_mutex_unlock(&shared->busy);
      return;
    }
  }
  for (int64_t i = 0; i < tiles; i++) tile(job, i);
}

#if defined(__x86_64__)
constexpr uint64_t kFlush = 0x8040;
#elif defined(__aarch64__)
constexpr uint64_t kFlush = 1 << 24;
#else
constexpr uint64_t kFlush = 0;
#endif
FlushedDenormals::FlushedDenormals() : before_(float_mode()) { set_float_mode(before_ | kFlush); }
FlushedDenormals::~FlushedDenormals() { set_float_mode(before_); }

void set_threads(int threads, int spin_microseconds) {
  thread_count.store(threads < 1 ? 1 : threads > kMostThreads ? kMostThreads : threads);
  spin_us.store(spin_microseconds < 0 ? 0 : spin_microseconds);
}

void share_threads(int callers) { sharing = callers < 1 ? 1 : callers; }

int threads() {
  const int all = thread_count.load(std::memory_order_relaxed);
  return sharing < all ? all / sharing : 1;
}

bool awake() {
  Pool* now = pool.load(std::memory_order_relaxed);
  return now && now->workers > now->asleep.load(std::memory_order_relaxed);
}

}  // namespace memojax
