"""ONNX's own backend cases, run through `memojax.backend`; `python -m tests.ops.corpus PATTERN` prints what fails.

`--kind simple|pytorch-converted|pytorch-operator|light`, `--exact OpType` (cases that contain the operator), `-v` for tracebacks.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")


@functools.cache
def cases(kind: str) -> dict[str, Any]:
    """Test cases of one kind, by name."""
    return {case.name: case for case in load_model_tests(kind=kind)}


def run_case(case: Any) -> None:
    """Run all data sets of a case and compare, at the case's own tolerance but at least rtol 1e-3, atol 1e-5.

    Raises:
        AssertionError: an output differs in value, shape or dtype.
    """
    from memojax import backend

    model = case.model if case.model is not None else onnx.load(str(Path(case.model_dir) / "model.onnx"))
    prepared = backend.prepare(model)
    sets = case.data_sets if case.data_sets is not None else _stored_sets(Path(case.model_dir), model)
    for inputs, expected in sets:
        outputs = prepared.run([_array(value) for value in inputs])
        Runner.assert_similar_outputs([_array(value) for value in expected], outputs, rtol=max(case.rtol, 1e-3), atol=max(case.atol, 1e-5))


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _stored_sets(folder: Path, model: onnx.ModelProto) -> list[Any]:
    def read(paths: list[Path], infos: Any) -> list[Any]:
        paths = sorted(paths, key=lambda p: int(re.findall(r"\d+", p.stem)[-1]))
        return [_read_value(p.read_bytes(), info.type) for p, info in zip(paths, infos, strict=False)]

    sets = []
    for data in sorted(folder.glob("test_data_set*")):
        sets.append((read(list(data.glob("input_*.pb")), model.graph.input), read(list(data.glob("output_*.pb")), model.graph.output)))
    return sets


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
    parser.add_argument("--kind", default="node")
    parser.add_argument("--exact", help="only cases whose model contains this operator")
    parser.add_argument("-v", action="store_true")
    options = parser.parse_args()
    passed, failed, started = 0, [], time.perf_counter()
    for name, case in sorted(cases(options.kind).items()):
        if not re.search(options.pattern, name):
            continue
        if options.exact and options.exact not in {node.op_type for node in case.model.graph.node}:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                run_case(case)
            passed += 1
        except Exception as error:
            failed.append(name)
            print(f"FAIL {name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            if options.v:
                traceback.print_exc()
    print(f"{passed} passed, {len(failed)} failed, {time.perf_counter() - started:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
