"""Code of the kernels for each number, without XLA: functions, reductions, whole numbers and draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pytest

from memojax.kernels.library import Library
from memojax.kernels.program import Instruction, Operand, Place, Program

from .test_native import dense, numbers, unaligned

rng = np.random.default_rng(1)


def elementwise(
    native: Library, rows: int, columns: int, inputs: Sequence[np.ndarray], code: Sequence[Instruction]
) -> np.ndarray:
    """The result in the last instruction's register; each input is [rows, columns]."""
    program = Program(rows, len(inputs) + 1)
    operands = [Operand(Place(i, 0, columns), columns, 1, i) for i in range(len(inputs))]
    output = Operand(Place(len(inputs), 0, columns), columns, 1, code[-1].to)
    program.elementwise(1, columns, operands, [output], code)
    y = unaligned(np.zeros((rows, columns), np.float32))
    native.run(program.array(), [*map(unaligned, inputs), y])
    return y


@pytest.mark.parametrize("activation", ["tanh", "logistic"])
@pytest.mark.parametrize("columns", [1, 3, 16, 21, 64, 130])
def test_activations_of_products_have_the_bits_of_elementwise_code(
    native: Library, activation: str, columns: int
) -> None:
    for rows in (1, 7, 13, 30):
        x, w, b = numbers(rows, 40), numbers(40, columns), numbers(columns)
        x[0, 0], x[rows // 2, 1], x[-1, 2] = np.nan, np.inf, 1e-42
        sums = dense(native, x, w, b)
        alone = elementwise(native, *sums.shape, [sums], [Instruction(activation, 1, 0)])
        np.testing.assert_array_equal(dense(native, x, w, b, activation=activation), alone)


def _erf(x: np.ndarray) -> np.ndarray:
    from math import erf

    return np.array([erf(value) for value in x.reshape(-1)]).reshape(x.shape)


FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "tanh": np.tanh,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "erf": _erf,
    "neg": np.negative,
    "abs": np.abs,
    "floor": np.floor,
    "ceil": np.ceil,
    "sign": np.sign,
}
POSITIVE: dict[str, Callable[..., np.ndarray]] = {
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}


@pytest.mark.parametrize("name", [*FUNCTIONS, *POSITIVE])
def test_elementary_functions(native: Library, name: str) -> None:
    x = np.concatenate([np.linspace(-20, 20, 3001), np.linspace(-1, 1, 2001), np.geomspace(1e-30, 1e-2, 200)])
    x = np.abs(x) + 1e-30 if name in POSITIVE else x
    x = x.astype(np.float32).reshape(1, -1)
    expected = {**FUNCTIONS, **POSITIVE}[name](x.astype(np.float64))
    given = elementwise(native, 1, x.size, [x], [Instruction(name, 1, 0)])
    np.testing.assert_allclose(given, expected, rtol=2e-6, atol=3e-7 if name == "erf" else 1e-37)


@pytest.mark.parametrize("name", [*FUNCTIONS, *POSITIVE])
def test_elementary_functions_of_extremes(native: Library, name: str) -> None:
    x = np.array(
        [[np.nan, np.inf, -np.inf, 0, -0.0, 100, -100, 88.5, -87, 1e30, -1e30, -1, 3e38]], np.float32
    )
    with np.errstate(all="ignore"):
        expected = {**FUNCTIONS, **POSITIVE}[name](x.astype(np.float64)).astype(np.float32)
    given = elementwise(native, 1, x.size, [x], [Instruction(name, 1, 0)])
    np.testing.assert_allclose(given, expected, rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize("columns", [1, 3, 15, 16, 17, 64, 255, 256, 257, 700])
@pytest.mark.parametrize("rows", [1, 2, 5, 33])
def test_elementwise_code_at_every_edge(native: Library, rows: int, columns: int) -> None:
    a, b = numbers(rows, columns), numbers(rows, columns)
    code = [
        Instruction("mul", 2, 0, 1),
        Instruction("add", 3, 2, None, immediate=0.5),
        Instruction("sub", 4, None, 3, immediate=1.0),
        Instruction("gt", 5, 0, 1),
        Instruction("select", 6, 5, 4, 3),
    ]
    expected = np.where(a > b, a * b + np.float32(0.5), 1 - (a * b + np.float32(0.5)))
    np.testing.assert_allclose(
        elementwise(native, rows, columns, [a, b], code), expected, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("columns", [1, 3, 16, 300])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 2000])
def test_numbers_beside_arrays_in_elementwise_code(native: Library, rows: int, columns: int) -> None:
    """Long arrays are shared among threads; the single number must not move with their pieces."""
    x, number = numbers(rows, columns), numbers(1)
    program = Program(rows, 3)
    operands = [Operand(Place(0, 0, columns), columns, 1, 0), Operand(Place(1), 0, 0, 1)]
    code = [Instruction("tanh", 2, 0), Instruction("mul", 3, 2, 1), Instruction("tanh", 4, 3)] * 8
    program.elementwise(1, columns, operands, [Operand(Place(2, 0, columns), columns, 1, 3)], code)
    y = unaligned(np.zeros((rows, columns), np.float32))
    native.run(program.array(), [unaligned(x), unaligned(number), y])
    np.testing.assert_allclose(y, np.tanh(x) * number, rtol=2e-6, atol=1e-37)


def test_elementwise_code_may_write_its_inputs_registers_and_several_results(native: Library) -> None:
    for columns in (5, 64, 700):
        a, b = numbers(4, columns), numbers(4, columns)
        before = a.copy()
        program = Program(4, 5)
        place = [Place(i, 0, columns) for i in range(5)]
        code = [Instruction("add", 0, 0, 1), Instruction("mul", 2, 0, 1), Instruction("mul", 2, 2, 1)]
        inputs = [Operand(place[i], columns, 1, i) for i in (0, 1)]
        outputs = [Operand(place[i], columns, 1, register) for i, register in ((2, 2), (3, 1), (4, 2))]
        program.elementwise(1, columns, inputs, outputs, code)
        made = [np.zeros_like(a) for _ in range(3)]
        native.run(program.array(), [a, b, *made])
        np.testing.assert_array_equal(a, before)
        np.testing.assert_allclose(made[0], (a + b) * b * b, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(made[1], b)
        np.testing.assert_array_equal(made[2], made[0])


@pytest.mark.parametrize("name", ["max", "min"])
def test_extremes_of_two_keep_nan_from_either_side(native: Library, name: str) -> None:
    a = np.array([[np.nan, 1, np.nan, np.inf, -1]], np.float32)
    b = np.array([[1, np.nan, np.nan, 3, -np.inf]], np.float32)
    expected = {"max": np.maximum, "min": np.minimum}[name](a, b)
    np.testing.assert_array_equal(elementwise(native, 1, 5, [a, b], [Instruction(name, 2, 0, 1)]), expected)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 17, 1), (2, 300, 1), (4, 5, 33), (1, 6, 16), (7, 1, 3)])
@pytest.mark.parametrize("kind", ["sum", "max", "min"])
def test_reductions(native: Library, shape: tuple[int, int, int], kind: str) -> None:
    x = numbers(3, *shape)
    program = Program(3, 2)
    outer, reduced, inner = shape
    program.reduce(Place(0, 0, x[0].size), Place(1, 0, outer * inner), outer, reduced, inner, kind)
    y = unaligned(np.zeros((3, outer, inner), np.float32))
    native.run(program.array(), [unaligned(x), y])
    np.testing.assert_allclose(y, getattr(x, kind)(2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 17, 1), (2, 300, 1), (4, 5, 33)])
@pytest.mark.parametrize("kind", ["argmax", "argmin"])
def test_places_of_extremes(native: Library, shape: tuple[int, int, int], kind: str) -> None:
    outer, reduced, inner = shape
    x = rng.integers(-3, 4, (3, *shape)).astype(np.float32)
    x[1].reshape(-1)[:: 1 + x[1].size // 3] = np.nan
    program = Program(3, 2)
    program.reduce(Place(0, 0, x[0].size), Place(1, 0, outer * inner), outer, reduced, inner, kind)
    y = unaligned(np.zeros((3, outer, inner), np.float32))
    native.run(program.array(), [unaligned(x), y])
    np.testing.assert_array_equal(y, getattr(np, kind)(x, 2))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_whole_numbers(native: Library, dtype: Any) -> None:
    x = rng.integers(0, 1 << 24, (3, 7)).astype(np.float32)
    bits = np.dtype(dtype).itemsize * 8
    program = Program(3, 2)
    program.whole(Place(0, 0, 7), Place(1, 0, 7 * bits // 32), 7, bits)
    y = np.zeros((3, 7), dtype)
    native.run(program.array(), [unaligned(x), y])
    np.testing.assert_array_equal(y, x)


def drawn(native: Library, count: int, folds: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The words of a key, and uniform numbers that it gives: float32[5, count]."""
    words = np.array([0x12345678, 0xFEDCBA98], np.uint32)
    program = Program(5, 2)
    program.draw(Place(0), Place(1, 0, count), count, folds)
    y = unaligned(np.zeros((5, count), np.float32))
    native.run(program.array(), [words, y])
    return words, y


@pytest.mark.parametrize("count", [1, 15, 16, 17, 31, 700])
@pytest.mark.parametrize("folds", [(), (1,), (7, 2**31 + 5)])
def test_draws_equal_jaxs(native: Library, count: int, folds: tuple[int, ...]) -> None:
    words, y = drawn(native, count, folds)
    with jax.threefry_partitionable(True):
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        for fold in folds:
            key = jax.random.fold_in(key, np.uint32(fold))
        bits = np.asarray(jax.random.bits(key, (5, count)))
    np.testing.assert_array_equal(y, (bits >> 9 | 0x3F800000).view(np.float32))


@pytest.mark.parametrize("count", [1, 17, 700])
@pytest.mark.parametrize("folds", [(-1,), (-1, 3), (7, -1, 2**31 + 5)])
def test_draws_of_single_rows_equal_jaxs(native: Library, count: int, folds: tuple[int, ...]) -> None:
    """A fold of -1 is the row's number; each row counts its own numbers."""
    words, y = drawn(native, count, folds)
    with jax.threefry_partitionable(True):
        for row in range(5):
            key = jax.random.wrap_key_data(words, impl="threefry2x32")
            for fold in folds:
                key = jax.random.fold_in(key, np.uint32(row if fold < 0 else fold))
            bits = np.asarray(jax.random.bits(key, (count,)))
            np.testing.assert_array_equal(y[row], (bits >> 9 | 0x3F800000).view(np.float32))


def test_the_inverse_of_the_error_function(native: Library) -> None:
    """The inputs include the smallest and the largest uniform number of 32 bits."""
    x = np.concatenate([np.linspace(-1, 1, 4001), [-0.99999994, 0.99999994, 1e-20, 0.0, np.nan, 1.5]])
    x = x.astype(np.float32).reshape(1, -1)
    given = elementwise(native, 1, x.size, [x], [Instruction("erf_inv", 1, 0)])
    expected = np.asarray(jax.lax.erf_inv(x))
    np.testing.assert_allclose(given, expected, rtol=3e-6, atol=1e-37)
