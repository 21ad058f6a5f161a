"""Interrupts of calls that compile: misses, preloads, plans on disk, updates in the background."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax.numpy as jnp
import numpy as np

import memojax as mj
from memojax.plans.disk_cache import DiskCache
from memojax.plans.tuning_log import Choices

from .interrupt_case import COMPILING, PLANNING, World, case
from .interrupt_plans import scaling

SKIP = (*COMPILING, *PLANNING, "kernels/")
MOST = 8
"""Each point compiles."""


def ones(n: int, on_device: bool = False) -> dict[str, Any]:
    rows = np.arange(3 * n, dtype=np.float32).reshape(n, 3)
    return {"obs": jnp.asarray(rows) if on_device else rows}


def right(inferer: Any, n: int, on_device: bool = False, factor: float = 2.0) -> None:
    """Whether the inferer answers `n` rows rightly."""
    found = np.asarray(inferer.infer_arrays(ones(n, on_device))["out"])
    np.testing.assert_array_equal(found, factor * ones(n)["obs"])


def soon(done: Callable[[], Any], what: str) -> None:
    """Wait for the background worker."""
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.001)


def loaded(*preload: int, **options: Any) -> Any:
    return mj.load(scaling(), preload=preload, compile_in="process", **options)


# --- Calls
# -------------------------------------------------------------------------------------------------------


@case("compile", False, skip=SKIP, most=MOST)
@case("compile", True, name="miss a plan for arrays of JAX", skip=SKIP, most=MOST)
@case("pad", False, name="miss a plan and pad", skip=SKIP, most=MOST)
def miss_a_plan(on_miss: Any, on_device: bool) -> World:
    inferer = loaded(1, 8, on_miss=on_miss, maxsize=2)
    right(inferer, 8, on_device)

    def check(interrupted: bool) -> None:
        right(inferer, 3, on_device)
        right(inferer, 3)
        right(inferer, 2)
        soon(lambda: {3, 2} <= {plan.size for plan in inferer.plans()}, "the background skips this size")
        assert not inferer.cache_info().failed

    return lambda: right(inferer, 3, on_device), check


@case(1, False, skip=SKIP, most=MOST)
@case(2, False, name="preload on two threads", skip=SKIP, most=MOST)
@case(1, True, name="preload in the background", skip=SKIP, most=MOST)
def preload(workers: int, background: bool) -> World:
    inferer = loaded(maxsize=1)

    def call() -> Any:
        return inferer.preload([2, 3], workers=workers, background=background)

    def check(interrupted: bool) -> None:
        call().wait(20)
        assert {2, 3} <= {plan.size for plan in inferer.plans()}
        for n in (4, 5, 2, 3):
            right(inferer, n)
        sizes = {plan.size for plan in inferer.plans()}
        assert sizes == {2, 3, 5}, f"plans {sizes}"

    return call, check


@case(skip=SKIP, most=MOST)
def split_and_pad_arrays_of_jax() -> World:
    inferer = loaded(2, bucketing=[2, 4], max_batch_size=4)
    right(inferer, 4, True)

    def check(interrupted: bool) -> None:
        for n in (7, 9, 3):
            right(inferer, n, True)
            right(inferer, n)

    return lambda: right(inferer, 7, True), check


@case(False, skip=SKIP, most=MOST)
@case(True, name="update weights in the background, again", skip=SKIP, most=MOST)
def update_weights_in_the_background(again: bool) -> World:
    inferer = loaded(1, 2, weights="argument")
    inferer.update_params(np.float32(3))

    def call() -> Any:
        return inferer.update_params(np.float32(5), background=True)

    def check(interrupted: bool) -> None:
        if again:
            done = call()
            assert isinstance(done, Future)
            done.result(20)
            right(inferer, 1, factor=5)
        else:
            inferer.update_params(np.float32(7), background=True).result(20)
            right(inferer, 2, factor=7)
        inferer.update_params(np.float32(9))
        right(inferer, 2, factor=9)

    return call, check


@case(skip=SKIP, most=MOST)
def add_a_weight_set_to_a_full_pool() -> World:
    pool = mj.PolicyPool(scaling(), capacity=1)
    pool.add("main", np.float32(3))
    rows = ones(1)

    def check(interrupted: bool) -> None:
        assert pool.names in ((["main"], ["main", "more"]) if interrupted else (["main", "more"],))
        if "more" not in pool:
            pool.add("more", np.float32(5))
        for name, factor in (("main", 3), ("more", 5)):
            np.testing.assert_array_equal(pool.infer_arrays(rows, [name])["out"], factor * rows["obs"])

    return lambda: pool.add("more", np.float32(5)), check


# --- Disk
# -------------------------------------------------------------------------------------------------------


@case("store", skip=SKIP, most=MOST)
@case("load", name="load a plan of an inferer from disk", skip=SKIP, most=MOST)
def store_a_plan_of_an_inferer(how: str) -> World:
    folder = tempfile.TemporaryDirectory(prefix="memojax-")
    model = mj.TypedModel.from_model(mj.policies.bundled("acrobot_ppo"))
    obs = np.ones((2, 6), np.float32)

    def fresh() -> Any:
        return mj.load(model, cache_dir=folder.name, compile_in="process")

    if how == "load":
        fresh().preload([2])
    inferer = fresh()
    wanted = mj.load(model, compile_in="process").infer_arrays({"obs": obs})["logits"]

    def check(interrupted: bool) -> None:
        for one in (inferer, fresh(), fresh()):
            np.testing.assert_allclose(one.infer_arrays({"obs": obs})["logits"], wanted, rtol=1e-6)
        last = fresh()
        last.preload([2])
        assert last.cache_info().disk_hits == 1, "the entry was not stored again"
        folder.cleanup()

    return lambda: inferer.infer_arrays({"obs": obs}), check


@case(skip=SKIP)
def make_room_on_disk() -> World:
    folder = tempfile.TemporaryDirectory(prefix="memojax-")
    cache = DiskCache(folder.name, max_bytes=1000)
    for size in (1, 2):
        cache.put({"size": size}, bytes([size]) * 300)

    def check(interrupted: bool) -> None:
        fresh = DiskCache(folder.name, max_bytes=1000)
        for size in (1, 2, 3):
            assert fresh.get({"size": size}) in (None, bytes([size]) * 300)
        cache.put({"size": 4}, b"4" * 300)
        assert DiskCache(folder.name).get({"size": 4}) == b"4" * 300
        assert sum(entry.bytes for entry in fresh.entries()) <= 1000
        folder.cleanup()

    return lambda: cache.put({"size": 3}, b"\3" * 300), check


@case(skip=SKIP)
def store_a_choice_on_disk() -> World:
    folder = tempfile.TemporaryDirectory(prefix="memojax-")
    choices = Choices(folder.name)
    choices.put({"size": 1}, "default", 1.5)

    def check(interrupted: bool) -> None:
        fresh = Choices(folder.name)
        assert fresh.get({"size": 1}) == ("default", 1.5)
        assert fresh.get({"size": 2}) in ((("wide", 2.0), None) if interrupted else (("wide", 2.0),))
        choices.put({"size": 3}, "default", 3.0)
        assert Choices(folder.name).get({"size": 3}) == ("default", 3.0)
        folder.cleanup()

    return lambda: choices.put({"size": 2}, "wide", 2.0), check
