"""Interrupts of calls that change plans and weights."""

from __future__ import annotations

import functools
import tempfile
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np

import memojax as mj
from memojax.plans.cache import PlanCache
from memojax.plans.disk_cache import DiskCache

from .interrupt_case import COMPILING, PLANNING, World, case

# --- Plans
# -------------------------------------------------------------------------------------------------------


def _plan(size: int) -> Any:
    return SimpleNamespace(size=size, calls=0, compile_ms=1.0)


def cache_world(
    call: Callable[[PlanCache], Any], sizes: Sequence[Sequence[int]], failing: bool = False
) -> World:
    """A cache of at most two plans, with plans for 1 (preloaded), 2 and 3; it may hold `sizes` afterwards."""
    broken = [False]

    def lower(size: int) -> Any:
        def compile_now() -> Any:
            if broken[0]:
                raise mj.errors.CompileError("told to fail")
            return _plan(size)

        return SimpleNamespace(compile=compile_now)

    cache = PlanCache(lower, maxsize=2)
    cache.pin([1])
    for size in (1, 2, 3):
        plan: Any = cache.get(size)
        plan.calls += size
    broken[0] = failing

    def check(interrupted: bool) -> None:
        broken[0] = False
        info = cache.info()
        now = cache.sizes()
        assert now in [list(one) for one in (*sizes, *([[1, 2, 3], [1, 2, 3, 4]] if interrupted else []))], (
            now
        )
        total = cache.calls()
        assert all(total[size] in ((size, 0) if call is _clear else (size,)) for size in (1, 2, 3)), total
        assert info.hits >= 0
        assert info.currsize == len(now)
        for size in (4, 5, 1):
            plan: Any = _in_time(lambda size=size: cache.get(size))
            assert plan.size == size
        assert len([size for size in cache.sizes() if size != 1]) <= 2 + (1 not in cache._pinned)
        assert not cache._pending

    def guarded() -> None:
        try:
            call(cache)
        except mj.errors.CompileError:
            assert failing

    return guarded, check


def _in_time(call: Callable[[], Any]) -> Any:
    """The result of `call` in another thread, which must end."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(10)
    assert found, "a thread waits for ever"
    return found[0]


def _clear(cache: PlanCache) -> None:
    cache.clear()


case(lambda cache: cache.get(2), [[1, 2, 3]], name="find a plan")(cache_world)
case(lambda cache: cache.get(4), [[1, 3, 4]], name="make a plan, evict one")(cache_world)
case(lambda cache: cache.get(4), [[1, 2, 3]], True, name="fail to make a plan")(cache_world)
case(lambda cache: cache.clear(2), [[1, 3]], name="drop a plan")(cache_world)
case(_clear, [[]], name="drop all plans")(cache_world)
case(lambda cache: cache.replace({1: _plan(1), 3: _plan(3)}), [[1, 3]], name="replace all plans")(cache_world)


@case("argument", False, skip=COMPILING)
@case("argument", True, skip=COMPILING, name="update weights on a device too")
@case("constant", False, skip=(*COMPILING, *PLANNING), most=20, name="update weights that are constants")
def update_weights(kind: str, device: bool) -> World:
    sizes = (1, 2) if kind == "argument" else (1,)
    inferer = _updated() if kind == "argument" else mj.load(scaling(), preload=sizes, weights="constant")
    rows = {size: np.ones((size, 3), np.float32) for size in sizes}

    def factors() -> set[float]:
        found = {float(inferer.infer_arrays({"obs": given})["out"][0, 0]) for given in rows.values()}
        if device:
            found.add(float(inferer.infer_arrays({"obs": jnp.asarray(rows[1])})["out"][0, 0]))
        return found | {float(np.asarray(inferer.params))}

    if kind == "argument":
        inferer.update_params(np.float32(2))
        assert factors() == {2.0}

    def check(interrupted: bool) -> None:
        now = factors()
        assert now == {3.0} or (interrupted and now == {2.0}), f"weights {now}"
        inferer.update_params(np.float32(5))
        assert factors() == {5.0}

    return lambda: inferer.update_params(np.float32(3)), check


@functools.cache
def _updated() -> mj.MemoizingDynamicInferer:
    return mj.load(scaling(), preload=[1, 2], weights="argument")


@functools.cache
def scaling() -> mj.TypedModel:
    return mj.TypedModel.from_function(
        lambda w, x: {"out": w * x["obs"]}, np.float32(2), {"obs": ((3,), np.float32)}
    )


@case("swap", skip=COMPILING, most=80)
@case("add", skip=COMPILING, most=80, name="add a weight set to a pool")
@case("drop", skip=COMPILING, name="drop a weight set of a pool")
def swap_a_weight_set_of_a_pool(how: str) -> World:
    pool = _pool()
    for name in list(pool.names):
        if name not in ("main", "other"):
            pool.drop(name)
    if "other" not in pool:
        pool.add("other")
    pool.swap("main", np.float32(2))
    pool.swap("other", np.float32(3))
    before = {"main": 2.0, "other": 3.0}

    def call() -> None:
        if how == "swap":
            pool.swap("main", np.float32(7))
        elif how == "add":
            pool.add("third", np.float32(7))
        else:
            pool.drop("other")

    after = {"swap": {**before, "main": 7.0}, "add": {**before, "third": 7.0}, "drop": {"main": 2.0}}[how]

    def factors() -> dict[Any, float]:
        names = list(pool.names)
        found = pool.infer_arrays({"obs": np.ones((len(names), 3), np.float32)}, names)["out"][:, 0]
        assert found.tolist() == [float(pool.params(name)) for name in names]
        return dict(zip(names, found.tolist(), strict=True))

    def check(interrupted: bool) -> None:
        now = factors()
        assert now == after or (interrupted and now == before), f"weights {now}"
        pool.add("fourth", np.float32(5))
        assert factors() == {**now, "fourth": 5.0}

    return call, check


@functools.cache
def _pool() -> mj.PolicyPool:
    pool = mj.PolicyPool(scaling(), capacity=4)
    pool.add("main")
    pool.add("other")
    return pool


@case("get")
@case("put", name="store a plan on disk")
@case("clear", name="clear the cache on disk")
def load_a_plan_from_disk(how: str) -> World:
    folder = tempfile.TemporaryDirectory(prefix="memojax-")
    key, other = {"size": 1}, {"size": 2}
    cache = DiskCache(folder.name)
    cache.put(key, b"one")

    def call() -> Any:
        if how == "get":
            return cache.get(key)
        return cache.put(other, b"two") if how == "put" else cache.clear()

    def check(interrupted: bool) -> None:
        fresh = DiskCache(folder.name)
        assert fresh.get(key) in ((b"one", None) if how == "clear" else (b"one",))
        assert fresh.get(other) in ((b"two", None) if how == "put" else (None,))
        cache.put(other, b"three")
        assert DiskCache(folder.name).get(other) == b"three"
        folder.cleanup()

    return call, check
