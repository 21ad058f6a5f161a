"""Random graphs: an inferer gives each row the file's answer for it alone, runs whole batches, or raises.

It runs whole batches if the file mixes rows. `python -m tests.lowering.test_batch_property 2000` runs as many
graphs by hand.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import memojax
from memojax.errors import MemojaxError

ort = pytest.importorskip("onnxruntime")
FEATURES = 4
SYMBOL_SIZE = 3


class Case:
    """One random graph with the layout that its generator intended."""

    def __init__(self, seed: int):
        rng = random.Random(seed)
        self.seed = seed
        self.numbers = np.random.default_rng(seed)
        batch = rng.choice(["batch", "batch", "batch_size", "N", None, "s0", "unk__3", "steps", 1, 1, 4])
        time = rng.choice([None, 3, 3, "seq"])
        if rng.random() < 0.2:
            self.shape, self.axis = [1, "seq", FEATURES], 0
        elif rng.random() < 0.25:
            self.shape, self.axis = [3, batch, FEATURES], 1
        elif rng.random() < 0.5:
            self.shape, self.axis = [batch, FEATURES], 0
        else:
            self.shape, self.axis = [batch, time, FEATURES], 0
        self.batch = self.shape[self.axis]
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.inputs: dict[str, list[Any]] = {"x": self.shape}
        self.outputs: list[tuple[str, Any]] = []
        now = self._second_input(rng, "x")
        for step in range(rng.randint(1, 3)):
            now = self._step(rng, now, f"t{step}")
        self._add("Identity", [now], "y")
        declared = rng.choice([list(self.shape), list(self.shape), None])
        self.outputs.insert(0, ("y", declared))

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _constant(self, name: str, *shape: int) -> str:
        self.tensors[name] = self.numbers.standard_normal(shape).astype(np.float32)
        return name

    def _second_input(self, rng: random.Random, now: str) -> str:
        kind = rng.choice(["none", "none", "none", "rows", "shared", "state", "unit"])
        if kind == "none":
            return now
        shape: list[Any] = {
            "rows": list(self.shape),
            "shared": [FEATURES],
            "state": [1] * (len(self.shape) - 1) + [FEATURES],
            "unit": [1] * (len(self.shape) - 1) + [FEATURES],
        }[kind]
        name = "h_in" if kind == "state" else "extra"
        self.inputs[name] = shape
        self._add("Add", [now, name], "sum")
        if kind == "state":
            self._add("Tanh", ["sum"], "h_out")
            self.outputs.append(("h_out", None))
        return "sum"

    def _step(self, rng: random.Random, now: str, out: str) -> str:
        kind = rng.choice(
            [
                "relu",
                "tanh",
                "dense",
                "dense",
                "bias",
                "softmax",
                "mix",
                "scan",
                "baked",
                "pairs",
                "reshape",
                "concat",
            ]
        )
        if kind in ("relu", "tanh"):
            return self._add(kind.capitalize(), [now], out)
        if kind == "dense":
            return self._add("MatMul", [now, self._constant(f"{out}w", FEATURES, FEATURES)], out)
        if kind == "bias":
            return self._add("Add", [now, self._constant(f"{out}b", FEATURES)], out)
        if kind == "softmax":
            return self._add("Softmax", [now], out, axis=-1)
        if kind in ("mix", "scan"):
            axis = self.axis if kind == "mix" or len(self.shape) < 3 else 1 - self.axis
            self._add("ReduceMean", [now], f"{out}m", axes=[axis], keepdims=1)
            return self._add("Sub", [now, f"{out}m"], out)
        if kind == "baked":
            size = rng.choice([1, 4, 6])
            shape = [1] * (len(self.shape) - 1) + [FEATURES]
            shape[self.axis] = size
            return self._add("Mul", [now, self._constant(f"{out}k", *shape)], out)
        if kind == "pairs" and len(self.shape) == 2:
            self._add("Transpose", [now], f"{out}t", perm=[1, 0])
            self._add("MatMul", [now, f"{out}t"], f"{out}p")
            self.outputs.append((f"{out}p", rng.choice([None, [self.batch, self.batch]])))
            return now
        if kind == "reshape" and len(self.shape) == 2:
            self.tensors[f"{out}s"] = np.array([rng.choice([-1, -1, 1, 4]), FEATURES], np.int64)
            return self._add("Reshape", [now, f"{out}s"], out)
        if kind == "concat" and len(self.shape) == 2:
            self._add("Concat", [now, self._constant(f"{out}c", rng.choice([1, 4, 6]), 2)], f"{out}o", axis=1)
            self.outputs.append((f"{out}o", None))
        return now

    def model(self) -> Any:
        infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in self.inputs.items()]
        results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in self.outputs]
        tensors = [numpy_helper.from_array(array, name) for name, array in self.tensors.items()]
        graph = helper.make_graph(self.nodes, f"case{self.seed}", infos, results, tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Oracle:
    """ONNX Runtime on the file, in the file layout, for rows `[n, *element_shape]`."""

    def __init__(self, case: Case, model: Any, policy: Any):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        self._session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._names = [out.name for out in self._session.get_outputs()]
        self._file = case.inputs
        self._elements = {spec.name: spec for spec in policy.api.inputs}

    def rows(self, numbers: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        """Random rows that fit the inferer."""
        rows = {}
        for name, spec in self._elements.items():
            element = [SYMBOL_SIZE if isinstance(dim, str) else dim for dim in spec.shape]
            rows[name] = numbers.standard_normal(element if spec.shared else [n, *element]).astype(np.float32)
        return rows

    def alone(self, rows: dict[str, np.ndarray], row: int) -> dict[str, np.ndarray] | None:
        """The outputs for one row alone; None if the file does not run so."""
        feeds = {}
        for name, value in rows.items():
            one = value if self._elements[name].shared else value[row]
            feeds[name] = one if one.ndim == len(self._file[name]) else np.expand_dims(one, self._axis(name))
        return self._run(feeds)

    def whole(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """The outputs for all rows at once; None if the file does not run so."""
        feeds = {}
        for name, value in rows.items():
            if self._elements[name].shared:
                feeds[name] = value
            elif value.ndim == len(self._file[name]):
                feeds[name] = np.ascontiguousarray(np.moveaxis(value, 0, self._axis(name)))
            else:
                return None
        return self._run(feeds)

    def _axis(self, name: str) -> int:
        """The axis of the file's shape that an element lacks."""
        shape, element = self._file[name], list(self._elements[name].shape)
        for axis, dim in enumerate(shape):
            rest = [*shape[:axis], *shape[axis + 1 :]]
            if (not isinstance(dim, int) or dim in (1, 3, 4)) and [d for d in rest if isinstance(d, int)] == [
                d for d in element if isinstance(d, int)
            ]:
                return axis
        raise AssertionError(f"input {name}: {element} is no element of {shape}")

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        try:
            return dict(zip(self._names, self._session.run(None, feeds), strict=True))
        except Exception:
            return None


def check(seed: int) -> str:
    """Run one case, and return its outcome as a word."""
    case = Case(seed)
    model = case.model()
    try:
        policy = memojax.load(model)
    except MemojaxError:
        return "refused at load"
    try:
        oracle = Oracle(case, model, policy)
    except ort.capi.onnxruntime_pybind11_state.Fail:
        return "refused by ONNX Runtime"
    outcome = "row by row"
    for n in (1, 2, 5):
        rows = oracle.rows(case.numbers, n)
        try:
            got = policy.infer_arrays(rows)
        except MemojaxError:
            outcome = "refused at a call"
            continue
        alone = [oracle.alone(rows, row) for row in range(n)]
        if all(one is not None and _same_row(got, row, one) for row, one in enumerate(alone)):
            continue
        only = policy.typed.only_rows
        if (
            only is None
            and policy.typed.is_open
            and n not in (sizes := {plan.size for plan in policy.plans()})
        ):
            only = next(iter(sizes))
        if only is not None and _same_padded(case, oracle, policy, rows, got, n, only):
            outcome = "one size"
            continue
        whole = oracle.whole(rows)
        assert whole is not None, (
            f"seed {seed}, {n} rows: right neither alone nor as a batch ({policy.typed.rule})"
        )
        assert policy.mixing_outputs, (
            f"seed {seed}, {n} rows: not the rows' own, and no output is said to mix"
        )
        for name, value in whole.items():
            assert _same_batch(got[name], value, n), (
                f"seed {seed}, {n} rows, output {name} ({policy.typed.rule})"
            )
        outcome = "whole batches"
    return outcome


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return a.size == b.size and np.allclose(a.reshape(-1), b.reshape(-1), rtol=1e-3, atol=1e-4)


def _same_row(got: dict[str, np.ndarray], row: int, alone: dict[str, np.ndarray]) -> bool:
    return all(_close(got[name][row], value) for name, value in alone.items())


def _same_batch(got: np.ndarray, whole: np.ndarray, n: int) -> bool:
    return any(
        _close(got, np.moveaxis(whole, axis, 0)) for axis in range(whole.ndim) if whole.shape[axis] % n == 0
    ) or all(_close(row, whole) for row in got)


def _same_padded(
    case: Case,
    oracle: Oracle,
    policy: Any,
    rows: dict[str, np.ndarray],
    got: dict[str, np.ndarray],
    n: int,
    only: int,
) -> bool:
    """Whether the file gives the same at its only batch size, with zeros for the other rows."""
    if n > only:
        return all(
            _close(got[name][:only], value[:only])
            for name, value in policy.infer_arrays(_first(policy, rows, only)).items()
        )
    shared = {spec.name for spec in policy.api.inputs if spec.shared}
    padded = {
        name: value
        if name in shared
        else np.concatenate([value, np.zeros((only - n, *value.shape[1:]), value.dtype)])
        for name, value in rows.items()
    }
    whole = oracle.whole(padded) if n <= only else None
    if whole is None:
        return False
    return all(
        any(
            _close(got[name], np.moveaxis(value, axis, 0)[:n])
            for axis in range(value.ndim)
            if value.shape[axis] == only
        )
        for name, value in whole.items()
    )


def _first(policy: Any, rows: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    shared = {spec.name for spec in policy.api.inputs if spec.shared}
    return {name: value if name in shared else value[:count] for name, value in rows.items()}


@pytest.mark.parametrize("block", range(4))
def test_a_graph_is_right_or_refused(block: int) -> None:
    outcomes = Counter(check(seed) for seed in range(25 * block, 25 * (block + 1)))
    assert outcomes["row by row"] >= 5, outcomes


if __name__ == "__main__":
    total: Counter[str] = Counter()
    for number in range(int(sys.argv[1])):
        try:
            total[check(number)] += 1
        except AssertionError as failure:
            total["WRONG"] += 1
            print(failure)
        except Exception as failure:
            total["FOREIGN"] += 1
            print(f"seed {number}: {type(failure).__name__}: {failure}")
    print(dict(total))
