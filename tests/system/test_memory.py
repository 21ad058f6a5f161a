"""Memory: too large sizes are refused before XLA allocates, and dropped plans leave nothing behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import memojax
from memojax.errors import BatchMemoryError
from memojax.kernels.library import opened
from memojax.lowering.typed_model import TypedModel
from memojax.plans import batch_memory
from memojax.xla.memory import available_bytes, readable


def wide(width: int = 1 << 16) -> Any:
    """A model with temporaries of 256 KiB for each row, between two small vectors."""

    def fn(params: Any, inputs: Any) -> Any:
        grown = jnp.sort(jnp.sin(inputs["x"] * params), axis=1)
        return {"y": jnp.cumsum(grown, axis=1)[:, :2]}

    return memojax.MemoizingDynamicInferer(
        TypedModel.from_function(fn, np.arange(width, dtype=np.float32), {"x": ((1,), np.float32)})
    )


@pytest.fixture
def one_gigabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_memory, "available_bytes", lambda device: 1 << 30)


@pytest.mark.usefixtures("one_gigabyte")
def test_too_large_inputs_and_outputs_are_refused_without_a_compile() -> None:
    policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
    with pytest.raises(
        BatchMemoryError, match=r"batch size 1000000000 .*33.5 GiB.*1 GiB left.*max_batch_size"
    ):
        policy.preload([10**9])
    assert policy.cache_info().compile_seconds == 0
    assert policy.infer_arrays({"obs": np.zeros((2, 6), np.float32)})["logits"].shape == (2, 3)


@pytest.mark.slow
@pytest.mark.usefixtures("one_gigabyte")
def test_temporaries_are_known_from_a_smaller_size() -> None:
    policy = wide()
    policy.preload([4])
    with pytest.raises(BatchMemoryError, match="estimated from its plan for 4"):
        policy.preload([2_000_000])
    assert [plan.size for plan in policy.plans()] == [4]


@pytest.mark.usefixtures("one_gigabyte")
def test_without_a_smaller_size_one_is_compiled_first() -> None:
    with pytest.raises(BatchMemoryError, match="estimated from its plan for 8"):
        wide().preload([2_000_000])


def test_available_memory_is_plausible() -> None:
    policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
    room = available_bytes(policy.device)
    if sys.platform == "linux":  # Other systems do not tell.
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert room is not None
        assert 1 << 20 < room <= machine
    assert readable(1536) == "1.5 KiB"


_CHURN = """
import ctypes, gc, sys
import numpy as np, memojax
from memojax.xla.cpu_client import cpu_device
def rss():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / (1 << 20)
policy = memojax.load(memojax.policies.bundled("acrobot_ppo"), maxsize=4)
count = int(sys.argv[1])
seen = []
for size in range(1, count + 1):
    policy.infer_arrays({"obs": np.zeros((size, 6), np.float32)})
    if size % (count // 4) == 0:
        seen.append(rss())
        alive = len(cpu_device().client.live_executables())
        assert alive <= 4 + 1, alive
# The first half fills memory that later sizes use again.
print((seen[3] - seen[1]) / (count // 2), policy.cache_info().evictions)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_flat_while_sizes_come_and_go() -> None:
    """`benchmarks/engine.py churn` runs 2,000 sizes; 320 are enough to show a leak of executables."""
    output = subprocess.run(
        [sys.executable, "-c", _CHURN, "320"], capture_output=True, text=True, timeout=300
    )
    assert output.returncode == 0, output.stderr
    each, evictions = map(float, output.stdout.split())
    assert evictions == 316
    assert each < 0.03  # MB; 0.012 over 2,000 sizes


@pytest.mark.skipif(opened() is None, reason="needs the kernels")
def test_jax_keeps_no_programs_of_dropped_plans() -> None:
    """JAX's caches hold the parameters of calls; tracemalloc counts NumPy's data in a domain of its own."""
    policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))

    def churn(sizes: Iterable[int]) -> int:
        for size in sizes:
            policy.preload([size])
            policy.cache_clear()
        gc.collect()
        traces = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)]
        )
        return sum(trace.size for trace in traces.traces)

    tracemalloc.start()
    try:
        before = churn(range(1, 4))
        assert churn(range(4, 24)) - before < 20 * 500  # a program has 1,792 bytes
    finally:
        tracemalloc.stop()


def test_dropped_plans_are_freed_on_every_way_out() -> None:
    from memojax.xla.cpu_client import cpu_device

    gc.collect()
    before = len(cpu_device().client.live_executables())
    policy = memojax.load(memojax.policies.bundled("acrobot_ppo"), preload=[1, 2, 3])
    policy.update_params(policy.params)
    policy.cache_clear(2)
    policy.preload([5])
    policy.cache_clear()
    gc.collect()
    assert len(cpu_device().client.live_executables()) <= before
