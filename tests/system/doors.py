"""Every way to load or run a file, on one file after the other, in a process that a `Guard` watches.

The process reads one path per line, and answers with a line of JSON: way -> outcome.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import memojax
from memojax.errors import MemojaxError
from memojax.model import load_model

LONGEST_MESSAGE = 2000
_ROWS = 2
_ENDLESS = 1000
"""Trip limit for `memojax.run`, so a loop that ends only by its input does not count as a hang."""


def example_inputs(path: str, rows: int = _ROWS) -> dict[str, Any]:
    """Small values for every declared input of a file, in the file layout; each symbol is `rows`."""
    rng = np.random.default_rng(0)
    given = {}
    for value in load_model(path).graph.inputs:
        shape = [dim if isinstance(dim, int) and dim > 0 else rows for dim in value.shape or ()]
        dtype = value.dtype or np.dtype(np.float32)
        if int(np.prod(shape, dtype=object)) > 1 << 24:
            raise memojax.errors.InputShapeError(f"the example would have shape {shape}")
        given[value.name] = _sample(rng, tuple(shape), dtype)
    return given


def _sample(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "O":
        return np.full(shape, "a", object)
    if dtype.kind in "biu":
        return rng.integers(0, 2, shape).astype(dtype)
    return np.asarray(rng.standard_normal(shape)).astype(dtype)


def load(path: str) -> None:
    """Make an inferer, and run two rows."""
    policy = memojax.load(path)
    rng = np.random.default_rng(0)
    rows = {
        spec.name: _sample(
            rng, (_ROWS, *(d if isinstance(d, int) else _ROWS for d in spec.shape)), spec.dtype
        )
        for spec in policy.raw_api.inputs
    }
    policy.infer_arrays(rows)


def run(path: str) -> None:
    """Run once in the file layout."""
    memojax.run(path, example_inputs(path))


def to_jax(path: str) -> None:
    """Call the pure function under the caller's own `jit`."""
    fn, params = memojax.to_jax(path)
    jax.block_until_ready(jax.jit(fn)(params, example_inputs(path), jax.random.key(0)))


def typed(path: str) -> None:
    """Load the typed model."""
    str(memojax.TypedModel.from_model(path))


def api(path: str) -> None:
    """Run `memojax api`, whose output must not have control characters."""
    from memojax.cli.main import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["api", path], prog_name="memojax", standalone_mode=False)
    text = out.getvalue() + err.getvalue()
    if strange := {char for char in text if not char.isprintable() and char != "\n"}:
        raise ValueError(f"the terminal gets {sorted(map(ascii, strange))}")
    if code:
        raise MemojaxError(err.getvalue())


def compare(path: str) -> None:
    """Compare with ONNX Runtime, if it takes the file.

    Raises:
        AssertionError: an output differs.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    inputs = example_inputs(path)
    given = memojax.run(path, inputs)
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs() if value.name in given]
        fed = {value.name: inputs[value.name] for value in session.get_inputs() if value.name in inputs}
        wanted = dict(zip(names, session.run(names, fed), strict=True))
    except Exception:  # A file that ONNX Runtime refuses has no oracle.
        return
    if any(word in Path(path).read_bytes() for word in (b"Random", b"Multinomial", b"Bernoulli")):
        return
    for name, value in wanted.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            ours = np.asarray(given[name])
            assert ours.shape == value.shape, (
                f"output {name!r} is {ours.shape}, ONNX Runtime gives {value.shape}"
            )
            known = np.isfinite(ours) & np.isfinite(value)
            # Saturated sums lose their low digits in both; a wrong answer is wrong by more.
            scale = max(1.0, float(np.abs(value[known]).max(initial=0.0)))
            far = np.abs(ours[known].astype(np.float64) - value[known]) > 1e-3 * scale
            assert not far.any(), f"output {name!r} differs in {int(far.sum())} of {value.size} numbers"


DOORS: Mapping[str, Callable[[str], None]] = {
    "load": load,
    "run": run,
    "to_jax": to_jax,
    "typed": typed,
    "api": api,
}


def through(door: str, path: str) -> dict[str, Any]:
    """The outcome of one way: `kind` is "right" (there was an answer), "typed" or "foreign"."""
    begun = time.monotonic()
    try:
        (compare if door == "compare" else DOORS[door])(path)
        kind, message = "right", ""
    except MemojaxError as error:
        message = str(error)
        kind = "typed" if len(message) <= LONGEST_MESSAGE and not _unprintable(message) else "foreign"
        message = f"{type(error).__name__}: {message}"
    except AssertionError as error:
        kind, message = "wrong", str(error)
    except Exception as error:
        kind, message = "foreign", f"{type(error).__name__} in {_place(error)}: {error}"
    return {"kind": kind, "message": ascii(message[:600]), "seconds": round(time.monotonic() - begun, 2)}


def _unprintable(message: str) -> bool:
    return any(not char.isprintable() and char != "\n" for char in message)


def _place(error: BaseException) -> str:
    """The deepest line of memojax that an exception passed."""
    place, trace = "?", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if f"{os.sep}memojax{os.sep}" in file and "tests" not in file:
            place = f"{os.path.basename(os.path.dirname(file))}/{os.path.basename(file)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def main() -> None:
    """Answer line by line until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Text that libraries print is no answer.
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        door, path = json.loads(line)
        answers.write(json.dumps(through(door, path)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
