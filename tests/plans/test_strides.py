"""Convolutions without strides: the same numbers, for every padding, window and number of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from memojax import TypedModel
from memojax.plans import compiler as compilers
from memojax.plans.candidates import DEFAULT
from memojax.plans.compiler import PlanCompiler
from memojax.plans.hoist import flattened
from memojax.plans.strides import with_more_channels
from memojax.xla.cpu_client import cpu_device

from ..helpers import mostly_slow

RNG = np.random.default_rng(0)


def network(
    image: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    padding: Any,
    out: str = "NCHW",
    **options: Any,
) -> tuple[Any, Any]:
    """A convolution as a function, and a closed jaxpr of it."""

    def fn(w: Any, x: Any) -> Any:
        y = lax.conv_general_dilated(
            x, w, strides, padding, dimension_numbers=("NCHW", "OIHW", out), **options
        )
        return jax.nn.relu(y)

    shapes = (jax.ShapeDtypeStruct(shape, np.float32) for shape in (window, image))
    return fn, jax.make_jaxpr(fn)(*shapes)


def assert_same_numbers(changed: Any, fn: Any, w: np.ndarray, x: np.ndarray) -> None:
    """A jaxpr gives the numbers of `fn`; each is one compile, where step by step it would be ten."""
    found = jax.jit(lambda *given: jax.core.eval_jaxpr(changed.jaxpr, changed.consts, *given))(w, x)[0]
    wanted = jax.jit(fn)
    # Sums in another order differ by some units in the last place of the sum of their absolute terms.
    terms = wanted(np.abs(w), np.abs(x))
    assert np.all(np.abs(found - wanted(w, x)) <= 4 * np.finfo(np.float32).eps * terms)


def strides_of(closed: Any) -> list[tuple[int, ...]]:
    _, steps, _ = flattened(closed)
    return [step.params["window_strides"] for step in steps if step.primitive.name == "conv_general_dilated"]


@pytest.mark.parametrize("channels", mostly_slow([3], [1, 2, 8]))
@pytest.mark.parametrize(
    ("size", "window", "strides"),
    [
        ((20, 28), (8, 8), (4, 4)),
        ((21, 27), (4, 4), (2, 2)),
        ((17, 23), (6, 4), (3, 2)),
        ((9, 9), (2, 2), (2, 2)),
    ],
)
@pytest.mark.parametrize("padding", mostly_slow(["SAME", ((1, 2), (3, 0))], ["VALID", ((0, 5), (7, 1))]))
def test_the_numbers_equal_the_files(
    channels: int, size: tuple[int, int], window: tuple[int, int], strides: tuple[int, int], padding: Any
) -> None:
    image, weights = (3, channels, *size), (5, channels, *window)
    fn, closed = network(image, weights, strides, padding)
    changed = with_more_channels(closed)
    assert strides_of(closed) == [strides]
    assert strides_of(changed) == [(1, 1)]
    x, w = (RNG.standard_normal(shape).astype(np.float32) for shape in (image, weights))
    assert_same_numbers(changed, fn, w, x)


@pytest.mark.parametrize(("count", "inner"), [(1, (1, 3, 5)), (40, (3, 5, 1))])
def test_many_images_are_copied_pixel_by_pixel(count: int, inner: tuple[int, ...]) -> None:
    image, weights = (count, 3, 36, 36), (4, 3, 8, 4)
    fn, closed = network(image, weights, (4, 2), ((1, 2), (3, 0)))
    changed = with_more_channels(closed)
    _, steps, _ = flattened(changed)
    orders = [step.params["permutation"] for step in steps if step.primitive.name == "transpose"]
    assert orders == [(0, 2, 4, *inner), (2, 4, *inner, 0)]
    x, w = (RNG.standard_normal(shape).astype(np.float32) for shape in (image, weights))
    assert_same_numbers(changed, fn, w, x)


@pytest.mark.parametrize("out", ["NHWC", "CNHW"])
def test_the_result_keeps_its_order_of_axes(out: str) -> None:
    fn, closed = network((2, 3, 16, 16), (4, 3, 4, 4), (2, 2), "SAME", out)
    changed = with_more_channels(closed)
    x, w = RNG.standard_normal((2, 3, 16, 16)), RNG.standard_normal((4, 3, 4, 4))
    x, w = x.astype(np.float32), w.astype(np.float32)
    assert strides_of(changed) == [(1, 1)]
    assert_same_numbers(changed, fn, w, x)


def test_a_window_that_the_stride_does_not_divide_grows_where_that_pays() -> None:
    for side, expected in ((64, (1, 1)), (16, (2, 2))):
        fn, closed = network((2, 3, side, side), (4, 3, 5, 3), (2, 2), "SAME")
        changed = with_more_channels(closed)
        assert strides_of(changed) == [expected]
        x = RNG.standard_normal((2, 3, side, side)).astype(np.float32)
        w = RNG.standard_normal((4, 3, 5, 3)).astype(np.float32)
        assert_same_numbers(changed, fn, w, x)


@pytest.mark.parametrize(
    ("image", "window", "strides", "options"),
    [
        ((2, 4, 16, 16), (4, 4, 4, 4), (2, 2), {}),
        ((2, 16, 16, 16), (4, 16, 4, 4), (2, 2), {}),
        ((2, 8, 16, 16), (32, 8, 4, 4), (1, 1), {}),
        ((2, 3, 16, 16), (4, 3, 7, 7), (1, 1), {}),
        ((2, 3, 9, 9), (4, 3, 3, 3), (1, 1), {}),
        ((2, 3, 16, 16), (4, 3, 4, 4), (2, 1), {}),
        ((2, 3, 16, 16), (4, 3, 2, 2), (3, 3), {}),
        ((2, 2, 16, 16), (4, 1, 4, 4), (2, 2), {"feature_group_count": 2}),
        ((2, 3, 16, 16), (4, 3, 4, 4), (2, 2), {"rhs_dilation": (2, 2)}),
        ((2, 3, 16), (4, 3, 4), (2,), {}),
    ],
)
def test_others_stay_as_they_are(image: Any, window: Any, strides: Any, options: Any) -> None:
    names = ("NCHW", "OIHW", "NCHW") if len(image) == 4 else ("NCH", "OIH", "NCH")

    def fn(w: Any, x: Any) -> Any:
        return lax.conv_general_dilated(x, w, strides, "VALID", dimension_numbers=names, **options)

    shapes = (jax.ShapeDtypeStruct(shape, np.float32) for shape in (window, image))
    closed = jax.make_jaxpr(fn)(*shapes)
    assert strides_of(with_more_channels(closed)) == [strides]


@pytest.mark.parametrize("channels", mostly_slow([4], [1, 8]))
@pytest.mark.parametrize("window", [(3, 3), (4, 3), (5, 5)])
@pytest.mark.parametrize("size", [(12, 13), (15, 20)])
@pytest.mark.parametrize("padding", mostly_slow([((0, 3), (2, 0))], ["VALID", "SAME"]))
def test_four_pixels_at_once_give_the_files_numbers(
    channels: int, window: tuple[int, int], size: tuple[int, int], padding: Any
) -> None:
    image, weights = (2, channels, *size), (6, channels, *window)
    fn, closed = network(image, weights, (1, 1), padding)
    changed = with_more_channels(closed)
    _, steps, _ = flattened(changed)
    (step,) = (step for step in steps if step.primitive.name == "conv_general_dilated")
    assert step.avals[0].shape[-1] == 24
    x, w = (RNG.standard_normal(shape).astype(np.float32) for shape in (image, weights))
    assert_same_numbers(changed, fn, w, x)


@pytest.mark.parametrize("stride", [1, 2])
def test_plans_without_kernels_use_them(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = RNG.standard_normal((4, 3, 4, 4)).astype(np.float32)

    def fn(params: Any, x: Mapping[str, Any]) -> dict[str, Any]:
        y = lax.conv_general_dilated(
            x["x"], params, (stride, stride), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
        )
        return {"y": jnp.tanh(y)}

    typed = TypedModel.from_function(fn, weights, {"x": ((3, 16, 16), np.float32)})
    x = RNG.standard_normal((2, 3, 16, 16)).astype(np.float32)
    monkeypatch.setattr(compilers, "opened", lambda: None)
    for kind in ("constant", "argument"):
        compiler = PlanCompiler(typed, cpu_device(), kind)  # pyright: ignore[reportArgumentType]
        residual = compiler.trace(2)
        (step,) = (step for step in residual.steps if step.primitive.name == "conv_general_dilated")
        assert step.params["window_strides"] == (1, 1)
        assert step.params["dimension_numbers"].lhs_spec == (0, 3, 1, 2)
        # The weights were arranged once, not for each call.
        assert step.inputs[1] in residual.leading
        found = compiler.lower(2, DEFAULT).compile().executable.run([x])[0]
        np.testing.assert_allclose(found, fn(weights, {"x": x})["y"], rtol=1e-5, atol=1e-5)
