"""TypedModel: functions of the user's own, the probe for rows that mix, and weights that fit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memojax import MemoizingDynamicInferer, TensorSpec, TypedModel
from memojax.errors import DimensionError, IncompatibleModelError, InputError
from memojax.lowering.typed_model import check_same_params

from ..helpers import mixing, policy, scaling

SPEC = {"obs": ((3,), np.float32)}


def run(typed: TypedModel, **inputs: Any) -> dict[str, Any]:
    return MemoizingDynamicInferer(typed).infer_arrays(inputs)


@pytest.mark.parametrize(
    "given",
    [
        ((3,), np.float32),
        ([3], "float32"),
        TensorSpec("other", (3,), np.dtype("f4")),
        jax.ShapeDtypeStruct((3,), np.float32),
        np.zeros(3, "f4"),
    ],
    ids=lambda given: type(given).__name__,
)
def test_inputs_are_declared_in_any_of_these_ways(given: Any) -> None:
    typed = TypedModel.from_function(lambda _, x: x["obs"] * 2, (), {"obs": given})
    assert typed.api.inputs == (TensorSpec("obs", (3,), np.dtype("float32")),)
    assert typed.api.outputs == (TensorSpec("output", (3,), np.dtype("float32")),)
    assert run(typed, obs=np.ones((2, 3), np.float32))["output"].tolist() == [[2, 2, 2]] * 2


@pytest.mark.parametrize("given", [3, "float32", (3,), ((3,), "no dtype"), None], ids=repr)
def test_other_declarations_are_refused(given: Any) -> None:
    with pytest.raises(InputError, match="'obs'"):
        TypedModel.from_function(lambda _, x: x["obs"], (), {"obs": given})


def test_outputs_keep_the_functions_order() -> None:
    typed = TypedModel.from_function(
        lambda _, x: {"z": x["obs"], "a": x["obs"].sum(1), "m": x["obs"] > 0}, (), SPEC
    )
    assert [(spec.name, spec.shape, str(spec.dtype)) for spec in typed.api.outputs] == [
        ("z", (3,), "float32"),
        ("a", (), "float32"),
        ("m", (3,), "bool"),
    ]
    assert list(run(typed, obs=np.ones((1, 3), np.float32))) == ["z", "a", "m"]


@pytest.mark.parametrize(
    "fn",
    [
        lambda _, x: x["obs"].sum(),
        lambda _, x: x["obs"].mean(0),
        lambda _, x: x["obs"].T,
        lambda _, x: {"fine": x["obs"], "off": jnp.zeros(4)},
    ],
)
def test_the_batch_comes_first_in_every_output(fn: Any) -> None:
    with pytest.raises(DimensionError, match=r"put the batch first"):
        TypedModel.from_function(fn, (), SPEC)


def test_a_function_is_traced_as_its_own_jit_would_be() -> None:
    weights = np.ones((3, 2))
    typed = TypedModel.from_function(
        lambda w, x: {"y": x["obs"] @ w + jnp.ones(2), "best": jnp.argmax(x["obs"], 1)}, weights, SPEC
    )
    outputs = run(typed, obs=np.ones((2, 3), np.float32))
    assert {name: str(array.dtype) for name, array in outputs.items()} == {"y": "float32", "best": "int32"}
    wide = TypedModel.from_function(
        lambda w, x: {"y": x["obs"] @ w, "n": x["n"] + 1},
        weights,
        {"obs": ((3,), np.float64), "n": ((), np.int64)},
    )
    outputs = run(wide, obs=np.full((1, 3), 1 / 3), n=np.array([2**40]))
    assert outputs["y"].dtype == np.float64
    assert outputs["n"].tolist() == [2**40 + 1]
    with jax.enable_x64(True):
        ambient = TypedModel.from_function(lambda _, x: {"best": jnp.argmax(x["obs"], 1)}, (), SPEC)
    assert ambient.api.outputs[0].dtype == np.int64


def test_any_pytree_of_weights() -> None:
    weights = {"layers": [(np.ones((3, 4), np.float32), jnp.zeros(4))], "scale": 2.0}

    def fn(w: Any, x: Any) -> Any:
        (kernel, bias) = w["layers"][0]
        return w["scale"] * (x["obs"] @ kernel + bias)

    assert run(TypedModel.from_function(fn, weights, SPEC), obs=np.ones((1, 3), np.float32))[
        "output"
    ].tolist() == [[6] * 4]


def test_the_probe_names_the_outputs_that_mix_rows() -> None:
    assert mixing().mixing_outputs() == ("centred",)
    assert policy().mixing_outputs() == ()
    both = TypedModel.from_function(
        lambda _, x: {"a": x["obs"] / x["obs"].sum(), "b": jnp.sort(x["obs"], 0)}, (), SPEC
    )
    assert both.mixing_outputs() == ("a", "b")


def test_random_outputs_do_not_count_as_mixing() -> None:
    def fn(_: Any, x: Any, key: Any) -> Any:
        return {
            "noisy": x["obs"] + jax.random.normal(key, x["obs"].shape),
            "centred": x["obs"] - x["obs"].mean(0),
        }

    assert TypedModel.from_function(fn, (), SPEC, random=True).mixing_outputs() == ("centred",)


def test_integer_and_boolean_inputs_are_probed_too() -> None:
    inputs = {"mask": ((3,), np.bool_), "count": ((), np.int32)}
    typed = TypedModel.from_function(
        lambda _, x: {"out": jnp.where(x["mask"], x["count"][:, None], 0)}, (), inputs
    )
    assert typed.mixing_outputs() == ()


NET = {"w": np.zeros((3, 2), np.float32), "b": [np.zeros(2, np.float32)]}


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"w": NET["w"]}, r"\['b'\]\[0\].*missing"),
        ({**NET, "c": np.zeros(1)}, r"\['c'\], which the model does not have"),
        ({**NET, "w": np.zeros((2, 3), np.float32)}, r"\['w'\].*\[2, 3\].*\[3, 2\]"),
        ({**NET, "w": np.zeros((3, 2))}, r"\['w'\].*float64.*float32"),
    ],
)
def test_weights_of_another_shape_are_named(new: Any, message: str) -> None:
    with pytest.raises(IncompatibleModelError, match=message):
        check_same_params(NET, new)
    check_same_params(NET, {"b": [jnp.ones(2)], "w": np.ones((3, 2), np.float32)})


def test_with_params() -> None:
    old = scaling(2.0)
    new = old.with_params(np.float32(5))
    obs = np.ones((1, 3), np.float32)
    assert run(old, obs=obs)["out"][0, 0] == 2
    assert run(new, obs=obs)["out"][0, 0] == 5
    with pytest.raises(IncompatibleModelError):
        old.with_params(np.zeros(2, np.float32))
