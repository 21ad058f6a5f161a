"""The devices of calls, with several CPU devices, in a process of its own: found, moved to, or refused."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memojax as mj
from memojax.errors import DeviceError, InputError
from memojax.plans.row_assembly import RowAssembly
from memojax.rows.device_choice import DeviceChoice, is_committed
from memojax.xla import views

from ..helpers import mostly_slow, scaling

ROOT = Path(__file__).resolve().parents[2]
SETUP = """
    import logging, pickle, sys
    import jax, jax.numpy as jnp, numpy as np
    import memojax as mj
    from memojax.errors import DeviceError
    logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
    first, second = jax.devices()
    typed = mj.TypedModel.from_function(
        lambda _, x: {"sum": x["a"] + x["b"], "h_out": x["h_in"] + x["a"]}, (),
        {"a": ((2,), np.float32), "b": ((2,), np.float32), "h_in": ((2,), np.float32)})
    on = lambda device, value: jax.device_put(jnp.full((4, 2), value, jnp.float32), device)
    def batch(*devices):
        rows = [on(device, value) if device else np.full((4, 2), value, np.float32)
                for device, value in zip(devices, (1, 2, 3))]
        return dict(zip(("a", "b", "h_in"), rows))
"""


def two_devices(script: str) -> str:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    code = textwrap.dedent(SETUP) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_inputs_on_several_devices_are_moved_with_one_warning() -> None:
    out = two_devices("""
        policy = mj.MemoizingDynamicInferer(typed)
        for _ in range(3):
            answers = policy.infer_arrays(batch(second, first, second))
            assert answers["sum"].devices() == {second}
            assert np.asarray(answers["sum"]).tolist() == [[3, 3]] * 4
        mj.MemoizingDynamicInferer(typed).infer_arrays(batch(first, second, second))
    """)
    lines = [line for line in out.splitlines() if line.startswith("WARNING inputs are on several devices")]
    assert len(lines) == 2, "one per inferer"
    assert "'b' on cpu:0; every call moves them to cpu:1" in lines[0]
    assert "'b' on cpu:1, 'h_in' on cpu:1; every call moves them to cpu:0" in lines[1]


def test_arrays_on_one_device_run_there_with_numpy_arrays() -> None:
    out = two_devices("""
        policy = mj.MemoizingDynamicInferer(typed, strict=True)
        for device in (first, second):
            for given in (batch(device, device, device), batch(None, device, None)):
                answers = policy.infer_arrays(given)
                assert answers["sum"].devices() == {device}
                assert np.asarray(answers["sum"]).tolist() == [[3, 3]] * 4
        free = jnp.full((4, 2), 1, jnp.float32)
        assert not free.committed
        assert policy.infer_arrays({**batch(second, second, second), "a": free})["sum"].devices() == {second}
        assert isinstance(policy.infer_arrays(batch(None, None, None))["sum"], np.ndarray)
    """)
    assert "WARNING" not in out


def test_strict_refuses_and_stays_strict_in_a_pickle() -> None:
    out = two_devices("""
        policy = mj.load("memojax/policies/acrobot_ppo.onnx", strict=True)
        assert pickle.loads(pickle.dumps(policy)).device_choice.strict
        policy = mj.MemoizingDynamicInferer(typed, strict=True)
        tracker = mj.RecurrentTracker.wrap(policy)
        rows = batch(first, second, first)
        for inferer, given in ((policy, rows), (tracker, {name: rows[name] for name in "ab"})):
            try:
                inferer.infer_arrays(given)
            except DeviceError as error:
                print(error)
        there = mj.MemoizingDynamicInferer(typed, strict=True, device=second)
        assert there.infer_arrays(batch(second, second, second))["sum"].devices() == {second}
        try:
            there.infer_arrays(batch(first, first, first))
        except DeviceError as error:
            print(error)
    """)
    together, tracked, elsewhere = out.splitlines()
    assert together == tracked
    assert together.startswith(
        "the inputs of a call must be on one device: this call runs on cpu:0, but 'b' on cpu:1"
    )
    assert "jax.device_put" in together
    assert elsewhere.startswith("input 'a' is on cpu:0, but this inferer was made for cpu:1")


def test_sharded_inputs_are_gathered_or_refused() -> None:
    out = two_devices("""
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("n",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("n"))
        split = jax.device_put(np.ones((4, 2), np.float32), sharding)
        answers = mj.MemoizingDynamicInferer(typed).infer_arrays({name: split for name in ("a", "b", "h_in")})
        assert answers["sum"].devices() == {first}
        assert np.asarray(answers["sum"]).tolist() == [[2, 2]] * 4
        try:
            inputs = {name: split for name in ("a", "b", "h_in")}
            mj.MemoizingDynamicInferer(typed, strict=True).infer_arrays(inputs)
        except DeviceError as error:
            print("refused:", error)
    """)
    assert "'a' on cpu:0, cpu:1" in out
    assert "refused: the inputs of a call must be on one device" in out


def test_hidden_state_follows_and_wrappers_warn_once() -> None:
    out = two_devices("""
        tracker = mj.RecurrentTracker.wrap(mj.MemoizingDynamicInferer(typed))
        for devices in ((first, first), (second, second), (second, first), (second, first)):
            rows = batch(*devices, None)
            answers = tracker.infer_arrays({name: rows[name] for name in "ab"})
            assert answers["sum"].devices() == {devices[0]}
        assert tracker.states(0)["h_in"].tolist() == [4, 4]
    """)
    assert out.count("WARNING") == 1


UNREADABLE = """
    import gc
    from memojax.errors import CompileForbiddenError, InputError
    from memojax.inferer import device_rows, compiled_rows
    from memojax.plans import row_assembly
    from memojax.xla import views

    # The second device stands for an accelerator, whose memory NumPy cannot read. Whoever moves its rows to
    # the host is caught, but for the views, which on a CPU are copies by NumPy.
    compiled_rows.share_host_memory = device_rows.share_host_memory = lambda device, other: False
    trips = []
    for kind in (row_assembly.RowAssembly, row_assembly.RowJoin):
        def by_host(self, *given, known=kind.by_host):
            trips.append(given)
            return known(self, *given)
        kind.by_host = by_host
    OBS = np.random.default_rng(0).standard_normal((700, 3)).astype(np.float32)
    fn = lambda w, x: {"out": w * x["obs"]}
    model = mj.TypedModel.from_function(fn, np.float32(2), {"obs": ((3,), np.float32)})
    def check(policy, n, dtype=np.float32):
        answer = policy.infer_arrays({"obs": jax.device_put(OBS[:n].astype(dtype), second)})["out"]
        assert answer.devices() == {second} and answer.shape == (n, 3)
        np.testing.assert_array_equal(answer, 2 * OBS[:n].astype(dtype).astype(np.float32))
    def executables():
        gc.collect()
        return len(second.client.live_executables())
"""


@pytest.mark.slow
def test_inferers_work_on_a_device_that_numpy_cannot_read() -> None:
    """The second device is JAX's own, not memojax's client."""
    out = two_devices(
        textwrap.dedent(UNREADABLE)
        + textwrap.dedent("""
        policy = mj.load(model, bucketing="pow2", max_batch_size=64)
        for n in (32, 64):
            check(policy, n)
        before = executables()
        with mj.forbid_compile():
            for n in [*range(17, 33), *range(33, 65)]:
                check(policy, n)
            assert trips == []
            # Other sizes go through the host here, because a call must not compile.
            for n in [*range(81, 97), *range(161, 193)]:
                check(policy, n)
            for n in range(17, 33):
                check(policy, n, np.float16)
        assert executables() == before, (before, executables())
        assert len(trips) == 16 + 32 + 16, len(trips)
        sizes = policy.batch_sizes()
        assert (sizes[17], sizes[32], sizes[81]) == (2, 3, 1), sizes
        cache, = policy._engine.elsewhere().values()
        assert cache.sizes() == [32, 64] and policy._cache.sizes() == []
        assert [(plan.size, plan.arrays) for plan in policy.plans()] == [(32, "cpu:1"), (64, "cpu:1")]
        info = policy.cache_info()
        assert (info.misses, info.currsize) == (2, 2) and info.padded_rows > 100, info
        policy.cache_clear(32)
        assert cache.sizes() == [64]
        policy.cache_clear()
        assert cache.sizes() == []

        policy = mj.load(model, maxsize=2)
        for n in (1, 2, 3):
            check(policy, n)
        policy.infer_arrays({"obs": OBS[:4]})
        cache, = policy._engine.elsewhere().values()
        assert (cache.sizes(), policy._cache.sizes()) == ([3], [4]), "maxsize counts the plans of all devices"
        with mj.forbid_compile():
            check(policy, 3)
            try:
                check(policy, 5)
            except CompileForbiddenError:
                print("refused")
        policy = mj.load(model, on_miss="error")
        try:
            check(policy, 5)
        except CompileForbiddenError:
            print("refused")
        assert policy.batch_sizes() == {5: 1}
        policy.preload([5, 6], device=second)
        with mj.forbid_compile():
            check(policy, 5)
        policy.preload([7])
        assert [plan.size for plan in policy.plans()] == [7, 5, 6]
    """)
    )
    assert out.split() == ["refused", "refused"]


@pytest.mark.parametrize("most", mostly_slow([50], [200]))
def test_no_executable_and_no_memory_for_each_number_of_rows(most: int) -> None:
    """Any number of rows, padded, split and cast: the executables are those of the plans, whatever comes."""
    two_devices(
        f"most = {most}\n"
        + textwrap.dedent(UNREADABLE)
        + textwrap.dedent("""
        compiles = []
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, *_, **__: compiles.append(event) if "backend_compile" in event else None)
        from memojax.xla.options import compiled
        compiled(jax.jit(lambda x: x * 3).lower(jax.ShapeDtypeStruct((3,), np.float32)), first)
        each = len(compiles)  # two where the first try has an option that this jaxlib does not know
        policies = [
            mj.load(model, bucketing="pow2", max_batch_size=64),
            mj.load(model, bucketing=[48, 200]),
            mj.load(model, on_miss="pad", preload=[16]),
            mj.DynamicInferer(model, 32),
            mj.FixedBatchInferer(model, [3, 40]),
        ]
        def sweep(sizes):
            for policy in policies:
                for n in sizes:
                    for dtype in (np.float32, np.float16):
                        check(policy, n, dtype)
        policies.pop(2)  # its plans for other sizes are compiled behind the calls
        if most < 200:
            del policies[:2]
        sweep(range(1, most + 1))
        first, before = len(compiles), executables()
        sweep(range(most + 1, 2 * most + 1))
        later = (len(compiles) - first) // each
        # Those with room for the results of up to 2 * most rows: two for each plan and policy.
        assert later <= 24, later
        assert executables() <= before + 24, (before, executables())
        sweep([2 * most + 1])
        known = len(compiles)
        sweep(range(2 * most + 2, 2 * most + most // 5))
        assert len(compiles) == known, "the same plans and the same room"
        assert first // each < 200, first
        assert trips == [], len(trips)
    """)
    )


@pytest.mark.parametrize(
    ("unreadable", "most"),
    [(True, 12), *(pytest.param(unreadable, 200, marks=pytest.mark.slow) for unreadable in (True, False))],
)
def test_hidden_state_compiles_nothing_for_a_number_of_agents(unreadable: bool, most: int) -> None:
    """Agents come and go, some begin anew: states are those of NumPy rows, and no number of them compiles."""
    two_devices(
        f"most = {most}\n"
        + (
            textwrap.dedent(UNREADABLE)
            if unreadable
            else "import gc\nexecutables = lambda: (gc.collect(), len(second.client.live_executables()))[1]\n"
        )
        + textwrap.dedent("""
        if "device_rows" in globals():
            from memojax.wrapper import agent_states
            agent_states.on_host = lambda device: False
        from memojax.plans.row_assembly import RowAssembly
        model = mj.TypedModel.from_function(
            lambda _, x: {"sum": x["a"] + x["h_in"], "h_out": x["h_in"] + x["a"]}, (),
            {"a": ((3,), np.float32), "h_in": ((3,), np.float32)})
        there, here = (mj.RecurrentTracker.wrap(mj.load(model, bucketing="pow2")) for _ in range(2))
        rng = np.random.default_rng(0)
        def step(n, dones):
            rows = rng.standard_normal((n, 3)).astype(np.float32)
            given = None if dones is None else rng.random(n) < 0.3
            wanted = here.infer_arrays({"a": rows}, dones=given)["sum"]
            if dones == "device":
                given = jax.device_put(given, second)
            found = there.infer_arrays({"a": jax.device_put(rows, second)}, dones=given)["sum"]
            assert found.devices() == {second}
            np.testing.assert_array_equal(found, wanted)
        for n in (most, *(1 << power for power in range(9) if 1 << power < 2 * most), 3, 5, 7):
            for dones in (None, "host", "device"):
                step(n, dones)
        before = executables()
        for n in range(1, most + 1):
            step(n, (None, "host", "device")[n % 3])
        assert executables() == before, (before, executables())
        for agent in (0, 3, most - 1):
            assert np.array_equal(there.states(agent)["h_in"], here.states(agent)["h_in"])
        """)
    )


def test_views_through_dlpack_are_rows_that_lie_where_they_are() -> None:
    """Accelerators view rows by address. A CPU does so, too, but copies rows that are not aligned."""
    for dtype in (np.float32, np.float16, np.int8, np.bool_, jnp.bfloat16):
        rows = np.arange(90 * 5).reshape(90, 5).astype(dtype)
        whole = jax.device_put(rows, jax.devices()[0])
        unit = views.granule(5 * np.dtype(dtype).itemsize)
        for start, stop in ((0, 7), (4 * unit, 5 * unit), (unit, 90), (0, 90)):
            part = views.lent(whole, start, stop)
            np.testing.assert_array_equal(np.asarray(part), rows[start:stop])
        assert views.lent(whole, 0, 7).unsafe_buffer_pointer() == whole.unsafe_buffer_pointer()
    part = views.lent(jax.device_put(np.arange(64, dtype=np.float32), jax.devices()[0]), 16, 32)
    assert np.asarray(part).tolist() == list(range(16, 32)), "a view keeps its array alive"
    assert [views.granule(size) for size in (16, 24, 12, 4, 2, 1, 3)] == [1, 2, 4, 4, 8, 16, 16]


@pytest.mark.parametrize("shape", mostly_slow([(3,)], [(), (2, 3)]), ids=str)
@pytest.mark.parametrize(
    "dtype", mostly_slow([np.float32, np.int8], [np.bool_, np.float64]), ids=lambda one: one.__name__
)
def test_rows_are_put_together_from_any_range(shape: tuple[int, ...], dtype: type) -> None:
    device, rng = jax.devices()[0], np.random.default_rng(0)
    specs = [mj.TensorSpec("a", shape, dtype), mj.TensorSpec("b", (2,), np.float32)]
    for size in (1, 6, 33):
        assembly = RowAssembly(specs, size, device)
        for n in (1, 2, 5, 17, 40):
            rows = [(100 * rng.standard_normal((n, *spec.shape))).astype(spec.dtype) for spec in specs]
            with jax.enable_x64(True):
                given = [jax.device_put(row, device) for row in rows]
            for start in range(0, n, 3):
                count = min(size, n - start)
                found = assembly(given, start, count)
                odd = (math.prod(shape) * np.dtype(dtype).itemsize) % 2
                assert (found is None) == bool(odd), "rows of an odd number of bytes go through the host"
                found = assembly.by_host(given, start, count) if found is None else found
                for array, row in zip(found, rows, strict=True):
                    assert array.dtype == row.dtype
                    np.testing.assert_array_equal(np.asarray(array)[:count], row[start : start + count])
                    assert not np.asarray(array)[count:].any()


def test_rows_without_agents_are_refused_alike() -> None:
    shared = mj.TypedModel.from_function(lambda _, x: {"out": 2 * x["a"]}, (), {"a": ((3,), np.float32)})
    policy = mj.load(shared)
    for wrong in (np.ones(3), np.ones((2, 4)), np.ones((2, 3, 1)), np.float32(1), np.ones((2, 3), complex)):
        errors = []
        for given in (np.asarray(wrong), jnp.asarray(wrong)):
            with pytest.raises(InputError) as caught:
                policy.infer_arrays({"a": given})
            errors.append((type(caught.value), str(caught.value).replace("complex64", "complex128")))
        assert errors[0] == errors[1]


def test_one_device_is_never_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    policy = mj.MemoizingDynamicInferer(scaling(), strict=True)
    answers = policy.infer_arrays({"obs": jnp.ones((2, 3))})
    assert isinstance(answers["out"], jax.Array)
    assert caplog.records == []


def test_every_inferer_has_a_device_choice() -> None:
    inferer = mj.MemoizingDynamicInferer(scaling())
    stateful = inferer.into_stateful(mj.BaseWrapper())
    assert stateful.device_choice is inferer.device_choice
    stateful.replace_inferer(other := mj.MemoizingDynamicInferer(scaling()))
    assert stateful.device_choice is other.device_choice
    array = jax.device_put(np.ones(3), jax.devices()[0])
    assert is_committed(array)
    specs = inferer.api.inputs
    assert DeviceChoice().choose(specs, [array]) == jax.devices()[0]
    with pytest.raises(DeviceError, match="this inferer was made for"):
        DeviceChoice(True, inferer.device).choose(specs, [array])


@pytest.mark.parametrize("device", [3, "cpu:-1", "cpu:x", "gpu:7", "CPUs"])
def test_an_unknown_device_is_refused(device: object) -> None:
    with pytest.raises(DeviceError, match="device"):
        mj.load(scaling(2.0), device=device)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad])
def test_a_traced_call_is_refused_with_the_way_out(transform: object) -> None:
    policy = mj.load(mj.policies.bundled("acrobot_ppo"))
    call = transform(lambda x: policy.infer_arrays({"obs": x})["logits"].sum())  # pyright: ignore[reportCallIssue]
    with pytest.raises(InputError, match=r"being traced.*to_jax\(policy\)"):
        call(jnp.ones((2, 1, 6)) if transform is jax.vmap else jnp.ones((2, 6)))
