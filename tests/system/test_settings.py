"""The user's JAX settings change neither loading nor answers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import onnx.parser
import pytest

import memojax
from memojax.lowering.typed_model import TypedModel
from memojax.xla.settings import own_settings

from ..helpers import mostly_slow

MODEL = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
g (float[batch,4] x, int64[batch,1] i)
  => (float[batch,3] y, float[batch,4] z, int64[batch] a, float[batch,1] e, float[batch,4] s)
<float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3] b = {0.1,0.2,0.3}, float[5] t = {1,2,3,4,5},
 float zero = {0}, int64 three = {3}, bool yes = {1}> {
    p = MatMul (x, w)
    y = Add (p, b)
    z = Div (x, zero)
    a = ArgMax <axis = 1, keepdims = 0> (y)
    e = Gather (t, i)
    s = Loop (three, yes, x) <body = l (int64 n, bool go, float[batch,4] old)
      => (bool on, float[batch,4] new) {
        on = Identity (go)
        new = Add (old, old)
    }>
}""")
"""It has broadcasts, infinities, NaN (0 / 0), a loop, 64-bit integers and 64-bit indices."""
ROWS = {"x": np.arange(12, dtype=np.float32).reshape(3, 4) - 5, "i": np.array([[0], [3], [4]])}

Settings = Callable[[], Any]
SETTINGS: dict[str, Settings] = {
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "debug nans": lambda: jax.debug_nans(True),
    "disable jit": lambda: jax.disable_jit(True),
    "x64": lambda: jax.enable_x64(True),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "debug infs": lambda: jax.debug_infs(True),
    "no x64": lambda: jax.enable_x64(False),
    "precision": lambda: jax.default_matmul_precision("bfloat16"),
    "device": lambda: jax.default_device(jax.devices()[-1]),
    "transfer guard": lambda: jax.transfer_guard("disallow"),
    "leaks": lambda: jax.checking_leaks(),
    "keys": lambda: jax.legacy_prng_key("error"),
    "threefry": lambda: jax.threefry_partitionable(False),
}
each_setting = pytest.mark.parametrize(
    "setting",
    mostly_slow(list(SETTINGS.values())[:4], list(SETTINGS.values())[4:]),
    ids=list(SETTINGS),
)


def assert_same(answer: Any, expected: Any, widths: bool = True) -> None:
    assert answer.keys() == expected.keys()
    for name, value in expected.items():
        assert not widths or answer[name].dtype == value.dtype, name
        np.testing.assert_array_equal(np.asarray(answer[name]), value, err_msg=name)


@pytest.fixture(scope="module")
def policy() -> Any:
    """A policy that was loaded and called once before any setting."""
    loaded = memojax.load(MODEL)
    loaded.infer_arrays(ROWS)
    return loaded


@pytest.fixture(scope="module")
def expected(policy: Any) -> dict[str, np.ndarray]:
    return policy.infer_arrays(ROWS)


@each_setting
def test_loading_a_miss_and_a_hit(setting: Settings, policy: Any, expected: Any) -> None:
    with setting():
        for _ in range(2):
            assert_same(policy.infer_arrays(ROWS), expected)
        fresh = memojax.load(MODEL, preload=[1])
        for _ in range(2):
            assert_same(fresh.infer_arrays(ROWS), expected)
        one = fresh.infer_single({name: rows[0] for name, rows in ROWS.items()})
        assert_same(one, {name: rows[0] for name, rows in expected.items()})
        assert TypedModel.from_model(MODEL).mixing_outputs() == ()
    for _ in range(2):
        assert_same(fresh.infer_arrays(ROWS), expected)


@each_setting
def test_arrays_on_a_device_and_large_ones(setting: Settings, policy: Any, expected: Any) -> None:
    on_device = {name: jax.device_put(rows) for name, rows in ROWS.items()}
    many = {name: np.concatenate([rows] * 1024) for name, rows in ROWS.items()}
    with setting():
        answer = policy.infer_arrays(on_device)
        assert_same(
            {name: np.asarray(value) for name, value in jax.device_get(answer).items()},
            expected,
            widths=False,
        )
        assert_same({name: value[-3:] for name, value in policy.infer_arrays(many).items()}, expected)


@each_setting
def test_run(setting: Settings, expected: Any) -> None:
    with setting():
        model = memojax.OneShot(MODEL)
        for _ in range(2):
            assert_same(model(ROWS), expected)


@each_setting
def test_to_jax(setting: Settings, expected: Any) -> None:
    """Dtypes follow the caller's x64 setting; the caller's checks see results of the caller's `jit`."""
    with setting() as _:
        fn, params = memojax.to_jax(MODEL)
        wide = jax.config.jax_enable_x64
        answer = jax.device_get(fn(params, ROWS))
        assert answer["a"].dtype == (np.int64 if wide else np.int32)
        assert_same(answer, expected, widths=False)
        checked = jax.config.jax_debug_nans or jax.config.jax_debug_infs
        guarded = jax.config.jax_transfer_guard == "disallow"
        if not checked and not guarded:
            assert_same(jax.device_get(jax.jit(fn)(params, ROWS)), expected, widths=False)


def test_a_function_made_under_one_width_runs_under_the_other(expected: Any) -> None:
    with jax.enable_x64(True):
        fn, params = memojax.to_jax(MODEL)
        compiled = jax.jit(fn)
        wide = jax.device_get(compiled(params, ROWS))
    with jax.enable_x64(False):
        narrow = jax.device_get(compiled(params, ROWS))
    assert (wide["a"].dtype, narrow["a"].dtype) == (np.int64, np.int32)
    assert_same(wide, expected)
    assert_same(narrow, expected, widths=False)


def test_random_numbers_stay_the_same() -> None:
    noisy = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[batch,4] x) => (float[batch,4] y) { r = RandomNormalLike (x)
 y = Add (x, r) }""")
    drawn = memojax.load(noisy, seed=3).infer_arrays({"x": ROWS["x"]})
    with jax.threefry_partitionable(False), jax.default_prng_impl("rbg"):
        assert_same(memojax.load(noisy, seed=3).infer_arrays({"x": ROWS["x"]}), drawn)


def test_settings_are_left_as_they_were() -> None:
    with jax.debug_nans(True), jax.numpy_rank_promotion("raise"), jax.enable_x64(False):
        with contextlib.suppress(RuntimeError), own_settings("highest"):
            assert jax.config.jax_enable_x64
            assert jax.config.jax_default_matmul_precision == "highest"
            raise RuntimeError
        assert jax.config.jax_debug_nans
        assert jax.config.jax_numpy_rank_promotion == "raise"
        assert not jax.config.jax_enable_x64
        assert jax.config.jax_default_matmul_precision is None


@pytest.mark.slow
def test_all_of_them_set_for_the_process() -> None:
    program = (
        "import numpy as np, memojax; p = memojax.load(memojax.policies.bundled('acrobot_ppo'));"
        "x = {'obs': np.ones((2, 6), np.float32)}; a = p.infer_arrays(x)['logits']; b = "
        "p.infer_arrays(x)['logits'];"
        "fn, w = memojax.to_jax(p); c = fn(w, x)['logits']; assert (a == b).all() and np.allclose(a, c); "
        "print(a.tolist())"
    )
    settings = {
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_DEBUG_NANS": "1",
        "JAX_DEBUG_INFS": "1",
        "JAX_DISABLE_JIT": "1",
        "JAX_ENABLE_X64": "1",
        "JAX_TRANSFER_GUARD": "disallow",
        "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
    }
    answers = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **extra},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for extra in ({}, settings)
    ]
    assert answers[0] == answers[1]
