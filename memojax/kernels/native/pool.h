// Threads that share the tiles of one job at a time.
#pragma once
#include <cstdint>

namespace memojax {

using Tile = void (*)(void* job, int64_t tile);

// Runs `tile(job, i)` for i in [0, tiles) on this thread and up to `threads - 1` workers, and returns when all are done.
// Workers that sleep are woken only if `wake`. If another thread's job holds the pool, all tiles run on this one.
void run_tiles(Tile tile, void* job, int64_t tiles, int threads, bool wake);

// How many threads a job may use, this one included; and for how long workers look for the next job before they sleep.
void set_threads(int threads, int spin_microseconds);
int threads();

// While it lives, this thread takes denormals for zero, as in XLA.
class FlushedDenormals {
 public:
  FlushedDenormals();
  ~FlushedDenormals();
  FlushedDenormals(const FlushedDenormals&) = delete;

 private:
  uint64_t before_;
};

// Of a clock that only goes forward.
int64_t microseconds();

// Whether a worker is awake, so that it would join a job at once.
bool awake();

}  // namespace memojax
