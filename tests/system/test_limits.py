"""Each limit says what a file asks for, what is allowed, and which variable allows more."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import memojax
from memojax.errors import LimitError, TripCountError
from memojax.ops import trips
from memojax.xla import limits
from tests.system import odd_models
from tests.system.odd_models import FLOAT, node

MESSAGE = re.compile(
    r"asks for ([\d,]+) (.+), but ([\d,]+) are allowed: .* variable (MEMOJAX_MAX_\w+) to a number above"
)


def _load(file: Path) -> None:
    memojax.TypedModel.from_model(file)


def _run(file: Path) -> None:
    memojax.run(file, {"x": np.ones((2, 4), np.float32)})


def _infer(file: Path) -> None:
    policy = memojax.load(file)
    policy.infer_arrays({spec.name: np.ones(spec.rows(2), spec.dtype) for spec in policy.api.inputs})


def _filled(size: int) -> onnx.ModelProto:
    return odd_models.filled([size], 2.0, node("Cos", ["c"], ["r"]))


def _shared_external_data() -> onnx.ModelProto:
    """Tensors that all read the same four floats."""
    made = odd_models.model(
        [node("Sum", ["x", *(f"w{index}" for index in range(9))], ["y"])],
    )
    for index in range(9):
        tensor = odd_models.external("data.bin", length="16")
        tensor.name = f"w{index}"
        made.graph.initializer.append(tensor)
    return made


def _picking() -> onnx.ModelProto:
    cast = {"to": FLOAT}
    return odd_models.model(
        [
            node("NonZero", ["x"], ["i"]),
            node("Cast", ["i"], ["f"], **cast),
            node("NonZero", ["f"], ["j"]),
            node("Cast", ["j"], ["y"], **cast),
        ]
    )


CASES: dict[limits.Limit, tuple[Callable[[], onnx.ModelProto], Callable[[Path], None]]] = {
    limits.NODES: (lambda: odd_models.laughs(4), _load),
    limits.NAMES: (lambda: odd_models.laughs(4), _load),
    limits.DEPTH: (lambda: odd_models.nested(5), _load),
    limits.ELEMENTS: (lambda: _filled(100), _load),
    limits.FOLDED: (lambda: _filled(100), _load),
    limits.STEPS: (lambda: odd_models.loops_in_loops(2, 100), _load),
    limits.COMPILED: (lambda: odd_models.chain(5), _run),
    limits.EXTERNAL: (_shared_external_data, _load),
    limits.BREAKS: (_picking, _run),
    limits.HOISTED: (lambda: odd_models.weights_alone(12), _infer),
    limits.MEMORY: (lambda: odd_models.chain(3), _infer),
}


@pytest.mark.parametrize("limit", CASES, ids=lambda limit: limit.variable)
def test_a_limit_says_the_requested_and_the_allowed_amount(
    limit: limits.Limit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, use = CASES[limit]
    file = tmp_path / "model.onnx"
    (tmp_path / "data.bin").write_bytes(np.ones(4, np.float32).tobytes())
    file.write_bytes(made().SerializeToString())
    monkeypatch.setenv(limit.variable, "1")
    with pytest.raises(LimitError) as caught:
        use(file)
    _check(caught.value, limit)


def test_the_limit_on_embedded_bytes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.EMBEDDED.variable, "1")
    with pytest.raises(LimitError) as caught:
        limits.Budget(nodes=1).embed(np.ones(8, np.float32))
    _check(caught.value, limits.EMBEDDED)


def test_the_limit_on_trips_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.TRIPS.variable, "1")
    with pytest.raises(TripCountError) as caught, trips.nested(5):
        pass
    _check(caught.value, limits.TRIPS)
    assert trips.OPTION not in str(caught.value)


def _loop_over_weights(name: str) -> onnx.ModelProto:
    """20 steps on a constant: counted or until its end, with or without an output for each step."""
    counted, stacked = "counted" in name, "stacked" in name
    ends = [node("Identity", ["c"], ["g"])] if counted else [node("Less", ["s", "high"], ["g"])]
    step = odd_models.body(
        [node("Add", ["s", "one"], ["t"]), *ends, node("Identity", ["t"], ["each"])],
        [("i", odd_models.INT64, []), ("c", odd_models.BOOL, []), ("s", FLOAT, [])],
        ["g", "t", *["each"] * stacked],
    )
    loop = node("Loop", ["M" if counted else "", "", "zero"], ["end", *["all"] * stacked], body=step)
    return odd_models.model(
        [loop, node("Add", ["x", "end"], ["y"])],
        one=np.float32(1),
        zero=np.float32(0),
        high=np.float32(19),
        M=np.array(20),
    )


@pytest.mark.parametrize("name", ["counted", "counted, stacked", "until", "until, stacked"])
def test_a_loop_over_weights_alone_has_the_same_limit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, x = _loop_over_weights(name).SerializeToString(), np.zeros((2, 4), np.float32)
    np.testing.assert_array_equal(memojax.run(file, {"x": x}, max_trip_count=20)["y"], x + 20)
    with pytest.raises(TripCountError, match=r"20 trips.*19 are allowed.* give a larger max_trip_count="):
        memojax.run(file, {"x": x}, max_trip_count=19)
    monkeypatch.setenv(limits.TRIPS.variable, "19")
    with pytest.raises(TripCountError) as caught:
        memojax.load(file)
    _check(caught.value, limits.TRIPS)
    assert "max_trip_count" not in str(caught.value), "an inferer has no such option"


def test_a_scan_ends_with_its_inputs_whatever_max_trip_count_says() -> None:
    step = odd_models.body([node("Add", ["s", "r"], ["t"])], [("s", FLOAT, [4]), ("r", FLOAT, [4])], ["t"])
    scan = node("Scan", ["start", "x"], ["y"], body=step, num_scan_inputs=1)
    file = odd_models.model([scan], start=np.zeros(4, np.float32)).SerializeToString()
    x = np.ones((2000, 4), np.float32)
    np.testing.assert_array_equal(memojax.run(file, {"x": x}, max_trip_count=10)["y"], x.sum(0))


@pytest.mark.parametrize("given", [0, -1, 2.5, "many", True])
def test_max_trip_count_is_a_positive_whole_number(given: Any) -> None:
    with pytest.raises(memojax.errors.InputError, match="max_trip_count"):
        memojax.run(
            odd_models.endless(None).SerializeToString(), {"x": np.ones((2, 4))}, max_trip_count=given
        )


@pytest.mark.skipif(os.name != "posix", reason="files have no holes here")
@pytest.mark.parametrize("tensors", [1, 64])
def test_holes_of_external_data_are_limited(tensors: int, tmp_path: Path) -> None:
    """A file that stores nothing asks for 512 MiB, for one tensor or many."""
    made = odd_models.model([node("Sum", ["x", *(f"w{index}" for index in range(tensors))], ["y"])])
    for index in range(tensors):
        tensor = odd_models.external("data.bin", offset=str(index * (512 << 20) // tensors))
        tensor.name = f"w{index}"
        tensor.dims[:] = [(128 << 20) // tensors]
        made.graph.initializer.append(tensor)
    with (tmp_path / "data.bin").open("wb") as file:
        file.truncate(512 << 20)
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(LimitError) as caught:
        _load(tmp_path / "model.onnx")
    _check(caught.value, limits.EXTERNAL)


def _check(error: LimitError, limit: limits.Limit) -> None:
    found: Any = MESSAGE.search(str(error))
    assert found, str(error)
    asked, what, allowed, variable = found.groups()
    assert (what, variable) == (limit.what, limit.variable)
    assert int(asked.replace(",", "")) > int(allowed.replace(",", ""))


def test_every_limit_has_a_case() -> None:
    # A pattern over its limit names the package that matches it in time instead.
    assert {*CASES, limits.EMBEDDED, limits.TRIPS, limits.PATTERN} == {*limits.ALL}


def test_security_md_names_every_limit_with_its_default() -> None:
    """The table of SECURITY.md and the code have the same limits, defaults and growth with the batch."""
    page = Path(__file__).parents[2] / "SECURITY.md"
    rows = re.findall(
        r"^\| `(MEMOJAX_MAX_\w+)` \| ([\d,]+)( MiB)? \| (.+) \|$", page.read_text(), re.MULTILINE
    )
    growth = {"quarter": 4, "64th": 64, "": 0}
    named = {}
    for variable, number, unit, counts in rows:
        share = re.search(r"a (\w+) more for each row", counts)
        default = int(number.replace(",", "")) << (20 if unit else 0)
        named[variable] = default, growth[share[1] if share else ""]
    made = [value for value in vars(limits).values() if isinstance(value, limits.Limit)]
    assert named == {limit.variable: (limit.default, limit.rows) for limit in made}
    assert set(made) == set(limits.ALL)
    assert len({limit.variable for limit in made}) == len(made)
