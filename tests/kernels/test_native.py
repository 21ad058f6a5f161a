"""Products, windows and copies of the kernels, without XLA; the sanitizers also run these tests."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from memojax.kernels.library import Library
from memojax.kernels.packing import pack_matrix, pack_vector
from memojax.kernels.program import ABSENT, Place, Product, Program

from ..helpers import in_threads

NO_RUNS = ((1, 0), (1, 0), (1, 0))
rng = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def unaligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins 4 bytes after a cache line."""
    room = np.empty(array.size + 32, np.float32)
    start = (-room.ctypes.data // 4) % 16 + 1
    found = room[start : start + array.size].reshape(array.shape)
    found[...] = array
    return found


def dense(
    native: Library, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, activation: str = ""
) -> np.ndarray:
    (rows, depth), columns = x.shape, w.shape[1]
    program = Program(rows, 4)
    bias = ABSENT if b is None else Place(2)
    y_place, steps = Place(3, 0, columns), ((depth, 0, 0), (columns, columns, columns))
    program.product(
        Product(
            *(Place(0, 0, depth), Place(1), bias, y_place, 1, (1, 1)),
            *(columns, depth, NO_RUNS, *steps, activation),
        )
    )
    y = unaligned(np.full((rows, columns), np.nan, np.float32))
    packed = pack_matrix(w, native.panel), pack_vector(np.zeros(columns, np.float32) if b is None else b)
    native.run(program.array(), [unaligned(x), *map(unaligned, packed), y])
    return y


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 31, 33, 48, 63, 64, 65, 127, 130])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6, 7, 8, 9, 97])
def test_dense_layers_at_every_edge(native: Library, columns: int, depth: int) -> None:
    w, b = numbers(depth, columns), numbers(columns)
    for rows in (0, 1, 2, 3, 5, 6, 7, 11, 12, 13, 25):
        x = numbers(rows, depth)
        np.testing.assert_allclose(dense(native, x, w, b), x @ w + b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 8, 67, 400])
def test_large_layers_on_two_threads(native: Library, rows: int) -> None:
    x, w, b = numbers(rows, 700), numbers(700, 519) / 26, numbers(519)
    np.testing.assert_allclose(
        dense(native, x, w, b, activation="relu"), np.maximum(x @ w + b, 0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("rows", [23, 24, 49])
@pytest.mark.parametrize("columns", [64, 70])
def test_long_sums_in_parts(native: Library, rows: int, columns: int) -> None:
    """The sums are so long that a panel's weights do not stay in the innermost cache."""
    x, w, b = numbers(rows, 1701), numbers(1701, columns) / 41, numbers(columns)
    expected = np.maximum(x.astype(np.float64) @ w + b, 0)
    np.testing.assert_allclose(dense(native, x, w, b, activation="relu"), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("rows", [6, 7, 8, 9])
@pytest.mark.parametrize("columns", [49, 63, 64, 65, 130])
def test_deep_layers_of_few_rows(native: Library, rows: int, columns: int) -> None:
    """Seven and eight rows take half of a panel at a time."""
    for depth in (255, 256, 301):
        x, w, b = numbers(rows, depth), numbers(depth, columns) / 16, numbers(columns)
        np.testing.assert_allclose(dense(native, x, w, b), x @ w + b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [(8, 4), (4, 2), (3, 1), (3, 2), (5, 1), (5, 2), (3, 3), (4, 6)])
@pytest.mark.parametrize("channels", [1, 16, 17])
def test_windows_along_a_line(native: Library, window: tuple[int, int], channels: int) -> None:
    """Windows overlap or not; lines are a little shorter or longer than a block takes."""
    length, step = window
    for lines, width in ((1, 1), (3, 5), (2, 6), (3, 7), (1, 12), (2, 13), (1, 25)):
        images, depth, long = 3, 2, (width - 1) * step + length
        x, w = numbers(images, depth, lines, long), numbers(channels, depth, length)
        y = np.full((images, lines, width, channels), np.nan, np.float32)
        packed = pack_matrix(w.reshape(channels, -1).T, native.panel)
        program = Program(images, 4)
        program.product(
            Product(
                *(Place(0, 0, x[0].size), Place(1), Place(2), Place(3, 0, y[0].size)),
                images=1,
                size=(lines, width),
                columns=channels,
                length=length,
                runs=((1, 0), (1, 0), (depth, lines * long)),
                x_steps=(x[0].size, long, step),
                y_steps=(y[0].size, width * channels, channels),
                activation="relu",
            )
        )
        b = numbers(channels)
        native.run(program.array(), [x, packed, pack_vector(b), y])
        seen = np.lib.stride_tricks.sliding_window_view(x, length, 3)[:, :, :, ::step]
        expected = np.maximum(np.einsum("idhwk,cdk->ihwc", seen, w) + b, 0)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def convolution(
    native: Library,
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray,
    activation: str = "",
    grown: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The kernels' result for [N, C, H, W] and [M, C, h, w], and NumPy's, both [N, H, W, M]."""
    images, depth, lines, long = x.shape
    channels, _, tall, length = w.shape
    height, width = lines - tall + 1, long - length + 1
    program = Program(images, 4)
    y = unaligned(np.full((images, height, width, channels), np.nan if grown is None else grown, np.float32))
    program.product(
        Product(
            *(Place(0, 0, x[0].size), Place(1), Place(2), Place(3, 0, y[0].size)),
            images=1,
            size=(height, width),
            columns=channels,
            length=length,
            runs=((1, 0), (depth, lines * long), (tall, long)),
            x_steps=(x[0].size, long, 1),
            y_steps=(y[0].size, width * channels, channels),
            activation=activation,
            grows=grown is not None,
        )
    )
    packed = pack_matrix(w.reshape(channels, -1).T, native.panel)
    native.run(program.array(), [unaligned(x), unaligned(packed), unaligned(pack_vector(b)), y])
    seen = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (tall, length), (2, 3))
    expected = np.einsum("nchwij,mcij->nhwm", seen, w, optimize=True) + b + (grown or 0)
    function = {"": lambda v: v, "relu": lambda v: np.maximum(v, 0), "tanh": np.tanh}[activation]
    return y, function(expected)


@pytest.mark.parametrize("columns", [*range(1, 10), 11, 15, 17, 20, 24, 33, 35, 40, 49, 51, 56, 67])
def test_convolutions_with_few_columns_behind_whole_vectors(native: Library, columns: int) -> None:
    """Lines are a little shorter or longer than the vectors whose lanes are neighbours in a line."""
    for height, width in (
        (7, 3),
        (4, 4),
        (6, 5),
        (3, 8),
        (2, 9),
        (5, 13),
        (2, 16),
        (3, 17),
        (1, 38),
        (2, 49),
    ):
        x = numbers(2, 3, height + 2, width + 2)
        w, b = numbers(columns, 3, 3, 3), numbers(columns)
        for activation, grown in (("relu", None), ("tanh", None), ("", 0.5)):
            found, expected = convolution(native, x, w, b, activation, grown)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [3, 35, 51])
def test_few_columns_of_large_convolutions(native: Library, columns: int) -> None:
    """Two threads begin and end within a line; the sum of the deep one is computed in parts."""
    for depth, height, width in ((2, 37, 41), (300, 5, 19)):
        x, w = numbers(3, depth, height + 2, width + 2), numbers(columns, depth, 3, 3)
        found, expected = convolution(native, x, w / (9 * depth) ** 0.5, numbers(columns), "relu")
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_few_columns_read_no_neighbours(native: Library) -> None:
    """What is not finite stays in the windows that hold it."""
    x, w, b = numbers(1, 4, 12, 40), numbers(3, 4, 3, 3), numbers(3)
    x[0, 1, 5, 20] = np.nan
    found, _ = convolution(native, x, w, b)
    lost = np.zeros((10, 38), bool)
    lost[3:6, 18:21] = True
    np.testing.assert_array_equal(np.isnan(found[0]), np.repeat(lost[..., None], 3, 2))


def test_without_a_bias(native: Library) -> None:
    x, w = numbers(5, 40), numbers(40, 20)
    np.testing.assert_allclose(dense(native, x, w, None), x @ w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [1, 16, 37, 64, 65])
def test_a_product_can_be_added_in_place(native: Library, columns: int) -> None:
    x, w, y = numbers(7, 20), numbers(20, columns), numbers(7, columns)
    program = Program(7, 3)
    steps = (20, 0, 0), (columns, columns, columns)
    y_place = Place(2, 0, columns)
    program.product(
        Product(
            Place(0, 0, 20), Place(1), ABSENT, y_place, 1, (1, 1), columns, 20, NO_RUNS, *steps, grows=True
        )
    )
    grown = unaligned(y)
    native.run(program.array(), [unaligned(x), unaligned(pack_matrix(w, native.panel)), grown])
    np.testing.assert_allclose(grown, y + x @ w, rtol=1e-5, atol=1e-5)


def test_relu_keeps_nan(native: Library) -> None:
    x = np.array([[np.nan], [np.inf], [-np.inf], [-1], [2]], np.float32)
    w, b = np.ones((1, 17), np.float32), np.zeros(17, np.float32)
    expected = np.repeat([[np.nan], [np.inf], [0], [0], [2]], 17, 1)
    np.testing.assert_array_equal(dense(native, x, w, b, activation="relu"), expected)


@pytest.mark.parametrize("columns", range(1, 10))
@pytest.mark.parametrize("depth", [15, 16, 17, 64, 97, 1030])
def test_narrow_layers(native: Library, columns: int, depth: int) -> None:
    w, b = numbers(depth, columns) / depth**0.5, numbers(columns)
    for rows in (7, 8, 9, 11, 12, 40):
        x = numbers(rows, depth)
        expected = x.astype(np.float64) @ w + b
        np.testing.assert_allclose(dense(native, x, w, b), expected, rtol=1e-5, atol=3e-6)
        found = dense(native, x, w, b, activation="relu")
        np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-5, atol=3e-6)


def test_a_narrow_layer_keeps_rows_and_columns_apart(native: Library) -> None:
    for columns in range(1, 9):
        x, w = numbers(9, 21), numbers(21, columns)
        clean = dense(native, x, w, None)
        x[4, 20] = np.inf
        w[3, columns // 2] = np.nan
        found = dense(native, x, w, None)
        others = np.arange(columns) != columns // 2
        assert np.isnan(found[:, columns // 2]).all()
        assert not np.isfinite(found[4, others]).any()
        np.testing.assert_array_equal(
            found[np.arange(9) != 4][:, others], clean[np.arange(9) != 4][:, others]
        )


def test_copies_and_fills(native: Library) -> None:
    x = numbers(3, 4, 5)
    program = Program(3, 2)
    program.fill(Place(1, 0, 42), 42, -1.0)
    program.copy(Place(0, 0, 20), Place(1, 8, 42), (20, 42), [(5, 1, 6), (4, 5, 1)])
    y = np.zeros((3, 7, 6), np.float32)
    native.run(program.array(), [x, y])
    expected = np.full((3, 7, 6), -1, np.float32)
    expected[:, 1:6, 2:6] = x.transpose(0, 2, 1)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_large_copies_and_fills_on_two_threads(native: Library, blocks: int) -> None:
    """The last dimension of a copy is adjacent, or it is not."""
    x = numbers(blocks, 37, 53, 61)
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        made = x.transpose(0, *(1 + i for i in order))
        shape = tuple(size + 2 for size in made.shape[1:])
        size, moved = int(np.prod(shape)), [made.strides[1 + i] // 4 for i in range(3)]
        steps = [shape[1] * shape[2], shape[2], 1]
        dims = list(zip(made.shape[1:], moved, steps, strict=True))
        program = Program(blocks, 2)
        program.fill(Place(1, 0, size), size, -1.0)
        program.copy(Place(0, 0, x[0].size), Place(1, sum(steps), size), (x[0].size, size), dims)
        y = np.zeros((blocks, *shape), np.float32)
        native.run(program.array(), [x, y])
        expected = np.full((blocks, *shape), -1, np.float32)
        expected[:, 1:-1, 1:-1, 1:-1] = made
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("channels", [5, 32])
def test_windows_of_images_on_two_threads(native: Library, images: int, channels: int) -> None:
    x = numbers(images, 64, 50, channels)
    program = Program(images, 2)
    sizes = (64, 50, 32, 25, 2, 2, 2, 2, 1, 1, 0, 0)
    program.pool(Place(0, 0, x[0].size), Place(1, 0, x[0].size // 4), 1, channels, "max", sizes)
    y = np.zeros((images, 32, 25, channels), np.float32)
    native.run(program.array(), [x, y])
    np.testing.assert_array_equal(y, x.reshape(images, 32, 2, 25, 2, channels).max((2, 4)))


def test_many_callers_at_once(native: Library) -> None:
    """One caller gets the threads, the others work alone; all results are right."""
    x, w, b = numbers(64, 300), numbers(300, 256) / 17, numbers(256)
    expected = x @ w + b
    wrong = []

    def work(_: int) -> None:
        for _ in range(30):
            if not np.allclose(dense(native, x, w, b), expected, rtol=1e-4, atol=1e-4):
                wrong.append(1)

    in_threads(4, work)
    assert not wrong


def test_a_program_of_other_kernels_is_refused(native: Library) -> None:
    program = Program(1, 2).array()
    program[0] += 1
    with pytest.raises(RuntimeError, match="no such program"):
        native.run(program, [np.zeros(1, np.float32)])


@pytest.mark.parametrize(
    ("rows", "depth", "columns"), [(1, 1500, 700), (40, 1500, 64), (300, 100, 100), (64, 260, 48)]
)
def test_equal_calls_give_equal_bits_whether_workers_sleep(
    native: Library, rows: int, depth: int, columns: int
) -> None:
    # Enough work for two threads, but not for waking one: the first call after a pause works alone.
    x, w = numbers(rows, depth), numbers(depth, columns)
    found = []
    for pause in (0.05, 0, 0, 0.05, 0.05, 0):
        time.sleep(pause)
        found.append(dense(native, x, w, None))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


_ONE_CALL = """
import ctypes, os, sys
import numpy as np

handle = ctypes.CDLL(sys.argv[1])
program, sizes = (np.load(path) for path in sys.argv[2:])
handle.memojax_choose(b"")
handle.memojax_set_threads(2, 100)
arrays = [np.zeros(size, np.float32) for size in sizes]
before = len(os.listdir("/proc/self/task"))
places = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
assert not handle.memojax_run(ctypes.c_void_p(program.ctypes.data), ctypes.c_int64(program.size), places)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("rows", [1, 2, 30])
def test_large_calls_have_a_worker(compiled: Path, tmp_path: Path, rows: int) -> None:
    """One row is enough work for two threads if its layer is large; this one pays for waking a worker."""
    depth, columns = 2400, 2400
    program = Program(rows, 4)
    steps = (depth, 0, 0), (columns, columns, columns)
    x, y = Place(0, 0, depth), Place(3, 0, columns)
    program.product(Product(x, Place(1), Place(2), y, 1, (1, 1), columns, depth, NO_RUNS, *steps))
    np.save(tmp_path / "program.npy", program.array())
    np.save(tmp_path / "sizes.npy", [rows * depth, depth * columns, columns, rows * columns])
    given = [str(compiled), str(tmp_path / "program.npy"), str(tmp_path / "sizes.npy")]
    done = subprocess.run(
        [sys.executable, "-c", _ONE_CALL, *given], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "1", done.stderr
