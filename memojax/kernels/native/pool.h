// A pool of threads that share the tiles of one job at a time.
#pragma once
#include <cstdint>

namespace memojax {

using Tile = void (*)(void* job, int64_t tile);

// Runs `tile(job, i)` for i in [0, tiles) on this thread and up to `threads - 1` workers, and returns when
// all are done. `wake` wakes sleeping workers. If another thread's job holds the pool, all tiles run on this
// thread.
void run_tiles(Tile tile, void* job, int64_t tiles, int threads, bool wake);

// Sets the number of threads of a job, including the caller's, and the time that workers look for the next
// job before they sleep.
void set_threads(int threads, int spin_microseconds);

// Sets the number of threads that run jobs at the same time as this one, this one included. Each uses its
// share of the threads, since all together would wait for each other's cores.
void share_threads(int callers);

// The number of threads for a job of this thread.
int threads();

// During its lifetime, this thread flushes denormals to zero, as XLA does.
class FlushedDenormals {
 public:
  FlushedDenormals();
  ~FlushedDenormals();
  FlushedDenormals(const FlushedDenormals&) = delete;

 private:
  uint64_t before_;
};

// Time of a clock that only goes forward.
int64_t microseconds();

// Whether a worker is awake and would join a job at once.
bool awake();

}  // namespace memojax
