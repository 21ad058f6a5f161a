"""Everything at once, for a while: NumPy checks every row, and memory must not grow.

    python -m tests.system.soak [--seconds 600] [--sizes 2000] [--loads 200]

Threads call one inferer with NumPy arrays and `jax.Array`s of any number of rows. Others swap its weights,
evict and clear its plans, and run a runtime whose models are swapped. `--sizes` and `--loads` measure the
memory that one size, and one load, leave behind.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import memojax as mj

WIDTH, ACTIONS, MOST = 6, 3, 60
OBS = np.random.default_rng(0).standard_normal((MOST, WIDTH)).astype(np.float32)
WEIGHTS = [
    np.random.default_rng(seed).standard_normal((WIDTH, ACTIONS)).astype(np.float32) for seed in (1, 2)
]
RIGHT = [np.tanh(OBS @ weights) for weights in WEIGHTS]


def resident() -> float:
    """Memory of this process in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def policy() -> mj.TypedModel:
    import jax.numpy as jnp

    return mj.TypedModel.from_function(
        lambda w, x: {"act": jnp.tanh(x["obs"] @ w)}, WEIGHTS[0], {"obs": ((WIDTH,), np.float32)}
    )


def settled() -> None:
    """Free all memory that can be freed."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)


class Soak:
    """Threads that work on one inferer and one runtime.

    Attributes:
        rows: the number of checked rows.
        wrong: the faults that were found.
        calls: the number of calls by kind.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.wrong: list[str] = []
        self.calls: Counter[str] = Counter()
        self.memory: list[tuple[float, float]] = []
        self._end = 0.0
        self._inferer = mj.load(
            policy(), preload=[8, 16], maxsize=4, bucketing="pow2", max_batch_size=32, weights="argument"
        )
        self._runtime = mj.Runtime(threads=2)
        self._brains = [self._runtime.add_inferer(mj.load(policy(), bucketing=[8])) for _ in range(2)]

    def run(self, seconds: float, warm: float) -> None:
        """Work for `seconds`; memory counts after `warm` seconds."""
        started = time.monotonic()
        self._end = started + seconds
        tasks = [self._arrays, self._on_device, self._agents, self._in_runtime, self._swap, self._clear]
        threads = [threading.Thread(target=self._work, args=(task, seed)) for seed, task in enumerate(tasks)]
        for thread in threads:
            thread.start()
        step = max(0.5, seconds / 40)
        while time.monotonic() < self._end:
            time.sleep(step)
            if time.monotonic() - started >= warm:
                settled()
                self.memory.append((time.monotonic() - started, resident()))
        for thread in threads:
            thread.join(120)
            if thread.is_alive():
                self.wrong.append(f"{thread} hangs")

    @property
    def growth(self) -> float:
        """Growth of memory: the median of the last quarter of samples minus that of the first."""
        sizes = [size for _, size in self.memory]
        quarter = max(1, len(sizes) // 4)
        first, last = np.median(sizes[:quarter]), np.median(sizes[-quarter:])
        return float(last / first - 1)

    def _work(self, task: Callable[[np.random.Generator], None], seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            while time.monotonic() < self._end and not self.wrong:
                task(rng)
                self.calls[task.__name__.strip("_")] += 1
        except Exception as failure:
            self.wrong.append(f"{task.__name__}: {type(failure).__name__}: {failure}")

    def _check(self, which: Any, found: Any, sets: tuple[int, ...] = (0, 1)) -> None:
        """Whether `found` are the answers for the rows `which`, all by one set of weights."""
        found = np.asarray(found)
        self.rows += len(found)
        if not any(np.allclose(found, RIGHT[one][which], atol=1e-5) for one in sets):
            mixed = all(
                any(np.allclose(row, RIGHT[one][which][at], atol=1e-5) for one in sets)
                for at, row in enumerate(found)
            )
            self.wrong.append(f"{len(found)} rows: {'mixed weights' if mixed else 'wrong numbers'}")

    def _arrays(self, rng: np.random.Generator) -> None:
        which = slice(0, int(rng.integers(1, MOST + 1)))
        self._check(which, self._inferer.infer_arrays({"obs": OBS[which]})["act"])

    def _on_device(self, rng: np.random.Generator) -> None:
        which = slice(0, int(rng.integers(1, MOST + 1)))
        rows = jax.device_put(OBS[which], jax.devices("cpu")[0])
        self._check(which, self._inferer.infer_arrays({"obs": rows})["act"])

    def _agents(self, rng: np.random.Generator) -> None:
        agents = rng.permutation(MOST)[: int(rng.integers(1, 20))].tolist()
        found = self._inferer.infer_batch({agent: {"obs": OBS[agent]} for agent in agents})
        self._check(agents, [found[agent]["act"] for agent in agents])

    def _in_runtime(self, rng: np.random.Generator) -> None:
        waiting = {}
        for brain in self._brains:
            waiting[brain] = agents = rng.permutation(MOST)[: int(rng.integers(1, 8))].tolist()
            for agent in agents:
                self._runtime.push(brain, agent, {"obs": OBS[agent]})
        for brain, found in self._runtime.run().items():
            if set(found) != set(waiting[brain]):
                self.wrong.append(f"{brain} answered {sorted(found)}, {sorted(waiting[brain])} waited")
            self._check(list(found), [response["act"] for response in found.values()], (0,))
        if rng.random() < 0.02:
            self._runtime.replace_inferer(self._brains[0], mj.load(policy(), bucketing=[8])).result(60)

    def _swap(self, rng: np.random.Generator) -> None:
        self._inferer.update_params(WEIGHTS[int(rng.integers(0, 2))])
        time.sleep(0.002)

    def _clear(self, rng: np.random.Generator) -> None:
        time.sleep(0.3)
        self._inferer.cache_clear(None if rng.random() < 0.3 else int(2 ** rng.integers(0, 6)))
        self._inferer.batch_sizes()
        self._inferer.cache_info()


def left_by_sizes(count: int) -> float:
    """MB that each of `count` sizes leaves behind with `maxsize=4`."""
    inferer = mj.load(policy(), maxsize=4)
    rows = np.zeros((count + 50, WIDTH), np.float32)

    def sizes(start: int, stop: int) -> None:
        for n in range(start, stop):
            inferer.infer_arrays({"obs": rows[:n]})

    sizes(1, 50)
    settled()
    before = resident()
    sizes(50, 50 + count)
    settled()
    return (resident() - before) / count


def left_by_loads(count: int) -> float:
    """MB that each of `count` inferers leaves behind after it was loaded, called and deleted."""

    def load() -> None:
        mj.load(mj.policies.bundled("acrobot_ppo")).infer_arrays({"obs": np.zeros((3, 6), np.float32)})

    for _ in range(max(3, count // 4)):
        load()
    settled()
    before = resident()
    for _ in range(count):
        load()
    settled()
    return (resident() - before) / count


def report(given: argparse.Namespace) -> Iterator[tuple[str, bool]]:
    """Lines of the report, and whether all is right."""
    if given.sizes:
        left = left_by_sizes(given.sizes)
        yield f"{given.sizes} sizes with maxsize=4 leave {left:.4f} MB each (at most 0.03)", left <= 0.03
    if given.loads:
        left = left_by_loads(given.loads)
        yield f"{given.loads} loads leave {left:.4f} MB each (at most 0.03)", left <= 0.03
    if given.seconds:
        soak = Soak()
        soak.run(given.seconds, min(60.0, given.seconds / 2))
        yield f"{soak.rows:,} rows, calls {dict(soak.calls)}", soak.rows > 0
        yield f"wrong: {soak.wrong or 'nothing'}", not soak.wrong
        shown = ", ".join(
            f"{at:.0f} s {size:.0f} MB" for at, size in soak.memory[:: max(1, len(soak.memory) // 8)]
        )
        yield f"memory grew by {100 * soak.growth:.1f} % ({shown})", soak.growth < 0.05


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--sizes", type=int, default=0)
    parser.add_argument("--loads", type=int, default=0)
    good = True
    for line, right in report(parser.parse_args()):
        print(line if right else f"WRONG: {line}", flush=True)
        good = good and right
    sys.exit(not good)


if __name__ == "__main__":
    main()
