"""Gathers, scatters and constants inside of programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import memojax
from memojax.kernels.direct import Direct
from memojax.kernels.picks import copies
from memojax.kernels.values import Refused
from memojax.plans.candidates import KERNELS
from memojax.plans.compiler import PlanCompiler
from memojax.xla.cpu_client import cpu_device

from ..helpers import mostly_slow
from .test_rewrite import agree, file, weight

rng = np.random.default_rng(1)


pytestmark = pytest.mark.usefixtures("with_kernels")


def one_program(content: bytes, sizes: Sequence[int] = (1, 2, 7)) -> None:
    """The numbers are XLA's, and nothing is left to XLA."""
    agree(content, sizes)
    compiler = PlanCompiler(memojax.load(content).typed, cpu_device(), "constant")
    for size in sizes:
        assert isinstance(compiler.lower(size, KERNELS).compile().executable.made.program, Direct), size


def network(nodes: Sequence[Any], weights: dict[str, np.ndarray], shape: Sequence[int] = (4, 6)) -> bytes:
    """`h`, made by a product, goes through `nodes` to `y`."""
    first = helper.make_node("MatMul", ["x", "w0"], ["h"])
    w0 = np.random.default_rng(5).standard_normal((shape[-1],) * 2).astype(np.float32) / shape[-1] ** 0.5
    return file([first, *nodes], {"w0": w0, **weights}, {"x": [*shape]}, ["y"])


INDICES: dict[str, Any] = {
    "even": [0, 2, 4],
    "repeated": [3, 3, 3],
    "reversed": [5, 4, 3, 2, 1, 0],
    "windows": [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]],
    "mixed": [1, 0, 4, 5, 5, 2, 3],
    "negative": [-1, 0, -2],
    "single": [4],
    "square": [[2, 0], [1, 5]],
}


@pytest.mark.parametrize("axis", mostly_slow([2], [1]))
@pytest.mark.parametrize("kind", list(INDICES))
def test_gathers_of_known_indices(kind: str, axis: int) -> None:
    weights = {"indices": np.array(INDICES[kind], np.int64), "w1": weight(6 if axis == 1 else 4, 3)}
    nodes = [
        helper.make_node("Gather", ["h", "indices"], ["g"], axis=axis),
        helper.make_node("Tanh", ["g"], ["y"]),
    ]
    one_program(network(nodes, weights, (6, 6)))


def test_a_gather_in_no_order_of_a_scattered_array() -> None:
    weights = {"indices": rng.permutation(24)[:20].astype(np.int64), "shape": np.array([0, 24])}
    nodes = [
        helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["t", "shape"], ["f"]),
        helper.make_node("Gather", ["f", "indices"], ["y"], axis=1),
    ]
    one_program(network(nodes, weights))


def fixed(nodes: Sequence[Any], weights: dict[str, np.ndarray], shape: Sequence[int] = (4, 6)) -> bytes:
    """The same for a batch fixed to 1, so the file is vectorized."""
    model = onnx.ModelProto.FromString(network(nodes, weights, shape))
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return model.SerializeToString()


PLACES = np.array([[[0, 1, 2], [0, 0, 5], [0, 3, -1]], [[0, 2, 0], [0, 2, 1], [0, -2, 2]]])
SCATTER = [
    helper.make_node("Slice", ["h", "starts", "ends", "axes"], ["s"]),
    helper.make_node("Reshape", ["s", "shape"], ["u"]),
    helper.make_node("ScatterND", ["h", "places", "u"], ["t"]),
    helper.make_node("MatMul", ["t", "w1"], ["y"]),
]
SCATTERED = {
    "starts": np.array([1, 2]),
    "ends": np.array([3, 5]),
    "axes": np.array([1, 2]),
    "shape": np.array([2, 3]),
    "w1": weight(6, 3),
}


def test_a_scatter_to_places_of_the_file() -> None:
    one_program(fixed(SCATTER, {"places": PLACES, **SCATTERED}))


def test_a_scatter_to_known_places() -> None:
    """The places come from a node of the graph, so they are no weights."""
    known = helper.make_node("Constant", [], ["places"], value=numpy_helper.from_array(PLACES))
    one_program(fixed([known, *SCATTER], SCATTERED))


def test_many_places_are_weights_and_follow_their_updates() -> None:
    """Large arrays of the file may be updated, also whole numbers: a program does not contain them."""
    order = rng.permutation(40 * 60)[:1500]
    places = np.stack([np.zeros(1500, np.int64), order // 60, order % 60], 1).reshape(30, 50, 3)
    places[3, 7, 2] -= 60  # counted from the end
    nodes = [
        helper.make_node("Slice", ["h", "zero", "thirty", "one"], ["s"]),
        helper.make_node("Slice", ["s", "zero", "fifty", "two"], ["s2"]),
        helper.make_node("Reshape", ["s2", "shape"], ["u"]),
        helper.make_node("ScatterND", ["h", "places", "u"], ["y"]),
    ]
    weights = {
        "zero": np.array([0]),
        "one": np.array([1]),
        "two": np.array([2]),
        "thirty": np.array([30]),
        "fifty": np.array([50]),
        "shape": np.array([30, 50]),
        "places": places,
    }
    content = fixed(nodes, weights, (40, 60))
    one_program(content, (1, 3))
    inferer = memojax.load(content, weights="argument")
    rows = {"x": rng.standard_normal((3, 40, 60)).astype(np.float32)}
    (before,) = inferer.infer_arrays(rows).values()
    other = places[::-1].copy()
    inferer.update_params({"places": other})
    (given,) = inferer.infer_arrays(rows).values()
    weights["places"] = other
    (expected,) = memojax.load(fixed(nodes, weights, (40, 60))).infer_arrays(rows).values()
    np.testing.assert_allclose(given, expected, rtol=1e-6, atol=1e-6)
    assert not np.allclose(before, expected)


def test_a_scatter_twice_to_one_place_stays_with_xla() -> None:
    twice = PLACES.copy()
    twice[0, 1] = twice[0, 0]
    known = helper.make_node("Constant", [], ["places"], value=numpy_helper.from_array(twice))
    agree(fixed([known, *SCATTER], SCATTERED), [1, 3])


MASK = rng.standard_normal((4, 6)) > 0


@pytest.mark.parametrize("mask", [MASK, MASK[:1], MASK[:, :1], np.array([True]), np.array([[False]])])
def test_choices_by_known_truth_values(mask: np.ndarray) -> None:
    nodes = [
        helper.make_node("Neg", ["h"], ["n"]),
        helper.make_node("Where", ["mask", "h", "n"], ["y"]),
    ]
    one_program(network(nodes, {"mask": mask}))


def test_constants_are_joined_and_multiplied() -> None:
    weights = {"c": weight(1, 4, 2), "w1": weight(8, 3), "zero": np.array([0]), "inner": np.array([4, 2])}
    nodes = [
        helper.make_node("Shape", ["h"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "inner"], ["whole"], axis=0),
        helper.make_node("Expand", ["c", "whole"], ["wide"]),
        helper.make_node("Concat", ["h", "wide"], ["j"], axis=2),
        helper.make_node("MatMul", ["j", "w1"], ["y"]),
    ]
    one_program(network(nodes, weights))


def test_a_reshape_around_blocks_in_the_middle() -> None:
    """The times come first, so the blocks are no leading part."""
    weights = {"shape": np.array([2, 2, -1, 3, 2], np.int64), "w1": weight(2, 5)}
    nodes = [
        helper.make_node("Transpose", ["h"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["t", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["m"]),
        helper.make_node("Transpose", ["m"], ["y"], perm=[2, 0, 1, 3, 4]),
    ]
    agree(network(nodes, weights), [1, 2, 7], expects=None)


@pytest.mark.parametrize("seed", range(4))
def test_moves_as_copies_reach_each_place_once(seed: int) -> None:
    draw = np.random.default_rng(seed)
    source = np.concatenate([np.arange(5), np.arange(3) * 7 + 1, draw.permutation(9), [4], np.zeros(3, int)])
    source = np.concatenate([source + 100 * i for i in range(3)])
    target = np.arange(source.size) * 2 + 3
    found: dict[int, int] = {}
    parts = copies(source, target)
    for part in parts:
        offsets = [(0, 0)]
        for size, a, b in part.dims:
            offsets = [(x + i * a, y + i * b) for x, y in offsets for i in range(size)]
        for x, y in offsets:
            assert part.target + y not in found
            found[part.target + y] = part.source + x
    assert found == dict(zip(target.tolist(), source.tolist(), strict=True))
    assert len(parts) < source.size // 2


def test_images_of_windows_are_few_copies() -> None:
    source = (np.arange(3)[:, None, None] * 100 + np.arange(4)[:, None] * 10 + np.arange(5)).reshape(-1)
    assert len(copies(source, np.arange(source.size))) == 1
    with pytest.raises(Refused, match="no order"):
        copies(rng.permutation(20_000), np.arange(20_000))
