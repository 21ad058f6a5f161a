"""ONNX's backend cases, run by `memojax.backend`; `python -m tests.ops.corpus PATTERN` prints the failures.

`--kind simple|pytorch-converted|pytorch-operator|light`, `--exact OpType` (cases that contain the operator),
`-v` for tracebacks.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import DATA_DIR, load_model_tests
from onnx.backend.test.runner import Runner

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "light")
"""`light` are the architectures of the model zoo with made-up weights, which ONNX files under "real"."""

XFAILS = Path(__file__).with_name("backend_xfails.txt")


@functools.cache
def cases(kind: str) -> dict[str, TestCase]:
    """Test cases of one kind, by name; ONNX computes the node cases by NumPy each time, with warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in load_model_tests(kind="real" if kind == "light" else kind)}


def known_failures(text: str | None = None) -> dict[str, str]:
    """Case name -> cause, from `backend_xfails.txt`: a `#` comment says the cause of the names below it.

    Raises:
        ValueError: a name is listed twice, or without a cause above it.
    """
    found: dict[str, str] = {}
    cause: list[str] = []
    in_comment = False
    for line in (XFAILS.read_text() if text is None else text).splitlines():
        line = line.strip()
        if line.startswith("#"):
            cause = [*(cause if in_comment else []), line.lstrip("# ")]
        elif line:
            if not cause or line in found:
                raise ValueError(f"{line}: listed twice, or without a cause")
            found[line] = " ".join(cause)
        in_comment = line.startswith("#")
    return found


def tally() -> dict[str, tuple[int, int]]:
    """(cases that pass, all cases) of each kind, by the known failures; `test_backend.py` checks these."""
    failing = known_failures()
    total = {kind: len(cases(kind)) for kind in KINDS}
    failed = Counter(kind for kind in KINDS for name in cases(kind) if name in failing)
    return {kind: (total[kind] - failed[kind], total[kind]) for kind in KINDS}


def model_of(case: TestCase) -> onnx.ModelProto:
    """The model of a case, read from its file if it has one."""
    if case.model is not None:
        return case.model
    return onnx.load(_light_path(case) if case.model_dir is None else Path(case.model_dir) / "model.onnx")


def data_of(case: TestCase, model: onnx.ModelProto) -> list[tuple[list[Any], list[Any]]]:
    """(inputs, expected outputs) of each data set."""
    if case.data_sets is not None:
        return [([*map(_array, inputs)], [*map(_array, outputs)]) for inputs, outputs in case.data_sets]
    if case.model_dir is None:
        weights = {tensor.name for tensor in model.graph.initializer}
        inputs = [Runner.generate_dummy_data(info) for info in model.graph.input if info.name not in weights]
        path = _light_path(case)
        return [
            (inputs, [numpy_helper.to_array(onnx.load_tensor(path.with_name(f"{path.stem}_output_0.pb")))])
        ]
    folders = sorted(Path(case.model_dir).glob("test_data_set*"))
    return [
        (_stored(folder, "input", model.graph.input), _stored(folder, "output", model.graph.output))
        for folder in folders
    ]


def run_case(case: TestCase) -> None:
    """Run all data sets of a case and compare, with the case's tolerance or rtol 1e-3, atol 1e-5, if larger.

    Raises:
        AssertionError: an output differs in value, shape or dtype.
    """
    from memojax import backend

    model = model_of(case)
    prepared = backend.prepare(model)
    for inputs, expected in data_of(case, model):
        _assert_similar(expected, prepared.run(inputs), rtol=max(case.rtol, 1e-3), atol=max(case.atol, 1e-5))


def _assert_similar(expected: Sequence[Any], outputs: Sequence[Any], **tolerance: float) -> None:
    """Compare tensors as ONNX's runner does; sequences element by element, since ONNX's code stacks them."""
    assert len(outputs) == len(expected)
    for want, got in zip(expected, outputs, strict=True):
        if isinstance(want, (list, tuple)):
            assert isinstance(got, (list, tuple))
            _assert_similar(want, got, **tolerance)
        else:
            Runner.assert_similar_outputs([want], [got], **tolerance)


def _light_path(case: TestCase) -> Path:
    return Path(DATA_DIR) / "light" / str(case.url).rsplit("/", 1)[-1]


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _stored(folder: Path, which: str, infos: Any) -> list[Any]:
    paths = sorted(folder.glob(f"{which}_*.pb"), key=lambda path: int(re.findall(r"\d+", path.stem)[-1]))
    return [_read_value(path.read_bytes(), info.type) for path, info in zip(paths, infos, strict=False)]


def _read_value(raw: bytes, declared: onnx.TypeProto) -> Any:
    which = declared.WhichOneof("value")
    if which == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(raw))
    if which == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(raw))
    return numpy_helper.to_array(onnx.TensorProto.FromString(raw))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pattern", nargs="?", default="")
    parser.add_argument("--kind", default="node", choices=KINDS)
    parser.add_argument("--exact", help="only cases whose model contains this operator")
    parser.add_argument("--json", type=Path, help="write {case: [CPU seconds, what failed or null]} here")
    parser.add_argument("-v", action="store_true")
    options = parser.parse_args()
    logging.getLogger("memojax").setLevel(logging.ERROR)
    results: dict[str, tuple[float, str | None]] = {}
    known = known_failures()
    for name, case in sorted(cases(options.kind).items()):
        if not re.search(options.pattern, name):
            continue
        if options.exact and options.exact not in {node.op_type for node in model_of(case).graph.node}:
            continue
        problem, started = None, time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                run_case(case)
        except Exception as error:
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(f"{'known ' if name in known else ''}FAIL {name}: {problem}", flush=True)
            if options.v:
                traceback.print_exc()
        results[name] = time.process_time() - started, problem
    failed = sum(problem is not None for _, problem in results.values())
    print(
        f"{len(results) - failed} passed, {failed} failed, "
        f"{sum(seconds for seconds, _ in results.values()):.0f} s of CPU"
    )
    if options.json:
        options.json.write_text(json.dumps(results))
    return 1 if failed else 0


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
