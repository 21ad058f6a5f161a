"""Convolutions of other kinds inside of programs: a window for each channel, transposed, cropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

import memojax
from memojax.kernels.library import Library
from memojax.kernels.packing import pack_vector
from memojax.kernels.program import ABSENT, Place, Program
from memojax.plans.candidates import KERNELS
from memojax.plans.compiler import PlanCompiler
from memojax.xla.cpu_client import cpu_device

from .test_native import numbers, unaligned
from .test_picks import one_program
from .test_rewrite import agree, file, weight

pytestmark = pytest.mark.usefixtures("with_kernels")


def convolved(operator: str, shape: list[int], kernel: list[int], attributes: dict[str, Any]) -> bytes:
    channels = kernel[0] if operator == "Conv" else kernel[1] * attributes.get("group", 1)
    weights = {
        "k": weight(*kernel),
        "b": weight(channels),
        "k2": weight(5, channels, *[1 for _ in kernel[2:]]),
    }
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"]),
        helper.make_node(operator, ["t", "k", "b"], ["c"], **attributes),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Conv", ["s", "k2"], ["y"]),
    ]
    return file(nodes, weights, {"x": shape}, ["y"])


APART: list[tuple[list[int], list[int], dict[str, Any]]] = [
    ([16, 9, 7], [16, 1, 3, 3], {"pads": [1, 1, 1, 1]}),
    ([5, 9, 7], [5, 1, 3, 2], {"strides": [2, 1]}),
    ([33, 11, 9], [33, 1, 3, 3], {"dilations": [5, 2], "pads": [0, 2, 0, 1]}),
    ([1, 6, 6], [1, 1, 3, 3], {}),
    ([17, 12], [17, 1, 5], {"strides": [2], "pads": [2, 1]}),
    ([3, 12], [3, 1, 1], {}),
]


@pytest.mark.parametrize(("shape", "kernel", "attributes"), APART)
def test_a_window_for_each_channel(shape: list[int], kernel: list[int], attributes: dict[str, Any]) -> None:
    one_program(convolved("Conv", shape, kernel, {"group": kernel[0], **attributes}))


TRANSPOSED: list[tuple[list[int], list[int], dict[str, Any]]] = [
    ([4, 5, 6], [4, 8, 3, 3], {"strides": [2, 2]}),
    ([4, 1, 9], [4, 3, 1, 5], {"strides": [1, 2], "pads": [0, 2, 0, 2]}),
    ([16, 1, 9], [16, 8, 1, 5], {"strides": [1, 2], "pads": [0, 2, 0, 2], "group": 2}),
    ([4, 5, 6], [4, 8, 3, 2], {"strides": [3, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 1]}),
    ([4, 7], [4, 8, 3], {"pads": [2, 2]}),
    ([4, 7], [4, 9, 2], {"strides": [3], "pads": [1, 1], "dilations": [2]}),
    ([4, 5, 5], [4, 8, 2, 2], {"pads": [2, 1, 1, 2]}),  # cut off more than the window adds
]


@pytest.mark.parametrize(("shape", "kernel", "attributes"), TRANSPOSED)
def test_transposed(shape: list[int], kernel: list[int], attributes: dict[str, Any]) -> None:
    one_program(convolved("ConvTranspose", shape, kernel, attributes))


@pytest.mark.parametrize(
    "pads", [[0, 1, -1, 0, 0, -2], [0, -1, -2, 0, 2, 3], [0, 0, -3, 0, 0, 0], [0, 2, 0, 0, 0, 1]]
)
def test_pads_that_cut_off(pads: list[int]) -> None:
    weights = {"pads": np.array(pads), "number": np.float32(0.5), "w": weight(6, 6), "w1": weight(6, 2)}
    width = 6 + pads[2] + pads[5]
    weights["w1"] = weight(width, 2)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Pad", ["h", "pads", "number"], ["p"]),
        helper.make_node("MatMul", ["p", "w1"], ["y"]),
    ]
    one_program(file(nodes, weights, {"x": [4, 6]}, ["y"]))


def test_few_channels_for_each_group_stay_with_xla() -> None:
    agree(convolved("Conv", [4, 6, 6], [8, 2, 3, 3], {"group": 2}), [1, 3])


@pytest.mark.parametrize("channels", [1, 3, 15, 16, 17, 40])
@pytest.mark.parametrize("activation", ["", "relu", "tanh", "logistic"])
def test_the_kernel_at_every_edge(native: Library, channels: int, activation: str) -> None:
    for height, width, rows, columns, biased in ((1, 1, 1, 1, True), (3, 5, 2, 3, False), (2, 9, 3, 1, True)):
        blocks, high, wide = 3, 2 * height + rows, width + 2 * columns
        x, w, b = numbers(blocks, high, wide, channels), numbers(rows, columns, channels), numbers(channels)
        x[0, 0, 0, 0], x[1, -1, -1, -1] = np.nan, np.inf
        program = Program(blocks, 4)
        line = wide * channels
        sizes = [height, width, channels, rows, columns, line, 2 * channels, x[0].size, 2 * line, channels]
        places = Place(0, 0, x[0].size), Place(1), Place(2) if biased else ABSENT
        program.depthwise(*places, Place(3, 0, height * width * channels), 1, sizes, activation)
        y = unaligned(np.full((blocks, height, width, channels), np.nan, np.float32))
        native.run(program.array(), [unaligned(x), unaligned(w), pack_vector(b), y])
        with np.errstate(all="ignore"):
            expected = np.zeros_like(y) + (b if biased else 0)
            for i in range(rows):
                for j in range(columns):
                    seen = x[:, i : i + 2 * height : 2, 2 * j : 2 * j + width]
                    expected = expected + seen * w[i, j]
            if activation == "relu":
                expected = np.where(expected < 0, 0, expected)
            elif activation:
                expected = np.tanh(expected) if activation == "tanh" else 1 / (1 + np.exp(-expected))
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blocks", [1, 2, 9])
def test_many_lines_on_two_threads(native: Library, blocks: int) -> None:
    x, w = numbers(blocks, 66, 66, 32), numbers(3, 3, 32)
    program = Program(blocks, 3)
    line = 66 * 32
    sizes = [64, 64, 32, 3, 3, line, 32, x[0].size, line, 32]
    program.depthwise(Place(0, 0, x[0].size), Place(1), ABSENT, Place(2, 0, 64 * 64 * 32), 1, sizes, "")
    y = np.zeros((blocks, 64, 64, 32), np.float32)
    native.run(program.array(), [x, w, y])
    expected = sum(x[:, i : i + 64, j : j + 64] * w[i, j] for i in range(3) for j in range(3))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


POOLS: list[tuple[str, list[int], list[int]]] = [
    ("MaxPool", [2, 2], [2, 2]),
    ("MaxPool", [3, 2], [3, 1]),
    ("AveragePool", [4, 3], [4, 3]),
    ("MaxPool", [1, 3], [1, 2]),  # a line is an image
    ("MaxPool", [3, 3], [2, 2]),  # windows that share lines, so the convolution is whole first
]


@pytest.mark.parametrize(("kind", "kernel", "strides"), POOLS)
def test_windows_are_reduced_while_the_convolution_goes_on(
    kind: str, kernel: list[int], strides: list[int]
) -> None:
    """The images are larger than the cache's part for them, and end within a band."""
    weights = {"k0": weight(6, 2, 1, 1), "k": weight(20, 6, 3, 3), "b": weight(20), "k2": weight(6, 20, 3, 3)}
    nodes = [
        helper.make_node("Conv", ["x", "k0"], ["c0"]),
        helper.make_node("Conv", ["c0", "k", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node(kind, ["r"], ["p"], kernel_shape=kernel, strides=strides),
        helper.make_node("Conv", ["p", "k2"], ["d"]),
        helper.make_node("GlobalMaxPool", ["d"], ["g"]),
        helper.make_node("Flatten", ["g"], ["y"]),
    ]
    content = file(nodes, weights, {"x": [2, 71, 50]}, ["y", "d"])
    one_program(content, (1, 2, 5))
    compiler = PlanCompiler(memojax.load(content).typed, cpu_device())
    program = compiler.lower(2, KERNELS).compile().executable.made.program.program
    assert any(lines_of_pools(program)) == (1 < kernel[0] == strides[0])


def lines_of_pools(program: np.ndarray) -> list[int]:
    """The last word of each reduction over windows."""
    found, at = [], 9
    while at < program.size:
        if program[at] == 6:
            found.append(int(program[at + program[at + 1] - 1]))
        at += program[at + 1]
    return found


def test_a_convolution_with_another_reader_is_whole_before_its_windows_are_reduced() -> None:
    weights = {"k": weight(20, 2, 3, 3), "k2": weight(3, 20, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "k2"], ["y"]),
        helper.make_node("Conv", ["c", "k2"], ["z"]),
    ]
    one_program(file(nodes, weights, {"x": [2, 72, 52]}, ["y", "z"]), (1, 3))


@pytest.mark.parametrize("scatters", [False, True])
def test_moves_to_and_from_listed_places(native: Library, scatters: bool) -> None:
    x, y = numbers(3, 7), np.full((3, 7), -1, np.float32)
    places = np.array([5, -1, 0, 6, 5], np.int32)
    program = Program(3, 3)
    program.pick(Place(0, 0, 7), Place(1), Place(2, 0, 7), 5, (7, 7), scatters)
    native.run(program.array(), [unaligned(x), places.view(np.float32), y])
    expected = np.full((3, 7), -1, np.float32)
    for i, place in enumerate(places):
        if place >= 0 and scatters:
            expected[:, place] = x[:, i]
        elif place >= 0:
            expected[:, i] = x[:, place]
    np.testing.assert_array_equal(y, expected)
