"""Contenders of the benchmarks: calls with prepared inputs, which return NumPy arrays."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
from _models import Case
from jax.sharding import SingleDeviceSharding

import memojax
from memojax.verification.runtimes import ContenderError, Tract
from memojax.xla.cpu_client import cpu_device

Rows = Mapping[str, np.ndarray]
Call = Callable[[], Any]

ORT, ORT1, BOUND, TRACT, JIT, JAXORT = (
    "ORT",
    "ORT 1 thread",
    "ORT io-binding",
    "tract",
    "jax.jit",
    "jaxonnxruntime",
)


def contenders(
    case: Case, inferer: memojax.Inferer, rows: Rows, wanted: tuple[str, ...]
) -> tuple[dict[str, Call], dict[str, str]]:
    """Calls by name, and the reasons that other contenders are absent."""
    calls: dict[str, Call] = {}
    absent: dict[str, str] = {}
    makers = {ORT: _ort, ORT1: _ort1, BOUND: _bound, TRACT: _tract, JIT: _jit, JAXORT: _jaxonnxruntime}
    for name in wanted:
        try:
            calls[name] = makers[name](case, inferer, rows)
            with _quiet():
                calls[name]()
        except Exception as cause:
            calls.pop(name, None)
            absent[name] = " ".join(str(cause).split())[:120] or type(cause).__name__
    return calls, absent


def session(content: bytes, threads: int = 0) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session; `threads` 0 means ONNX Runtime's default."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def row_by_row(ort: onnxruntime.InferenceSession, inferer: Any, rows: Rows) -> Call:
    """A call for each row, the only way for a file with its batch fixed to 1."""
    function, takes = inferer.typed.fn, {value.name for value in ort.get_inputs()}
    size = len(next(iter(rows.values())))
    calls = []
    for index in range(size):
        given = dict(function.constants)
        for name, spec in zip(function.file_names[0], inferer.typed.api.inputs, strict=True):
            axis = function.rule.inputs[name][0]
            row = rows[spec.name][index]
            given[name] = row if axis is None else np.ascontiguousarray(np.expand_dims(row, axis))
        calls.append({name: value for name, value in given.items() if name in takes})

    def run() -> None:
        for given in calls:
            ort.run(None, given)

    return run


def feeds(ort: onnxruntime.InferenceSession, inferer: Any, rows: Rows) -> dict[str, np.ndarray]:
    """`rows` under the file's names and in its layout.

    Raises:
        ContenderError: the file only runs one row at a time.
    """
    function = inferer.typed.fn
    if function.rule.kind == "vmap":
        raise ContenderError("the file's batch is fixed: it runs row by row")
    given = dict(function.constants)
    for name, spec in zip(function.file_names[0], inferer.typed.api.inputs, strict=True):
        axis = function.rule.inputs[name][0]
        given[name] = np.ascontiguousarray(np.moveaxis(rows[spec.name], 0, axis)) if axis else rows[spec.name]
    takes = {value.name for value in ort.get_inputs()}
    return {name: value for name, value in given.items() if name in takes}


def _ort(case: Case, inferer: Any, rows: Rows, threads: int = 0) -> Call:
    ort = session(case.content, threads)
    if inferer.typed.fn.rule.kind == "vmap":
        return row_by_row(ort, inferer, rows)
    given = feeds(ort, inferer, rows)
    return lambda: ort.run(None, given)


def _ort1(case: Case, inferer: Any, rows: Rows) -> Call:
    return _ort(case, inferer, rows, 1)


def _bound(case: Case, inferer: Any, rows: Rows) -> Call:
    ort = session(case.content)
    binding = ort.io_binding()
    kept = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in feeds(ort, inferer, rows).values()]
    for name, value in zip(feeds(ort, inferer, rows), kept, strict=True):
        binding.bind_ortvalue_input(name, value)
    results = ort.run(None, feeds(ort, inferer, rows))
    kept += [onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(value)) for value in results]
    for output, value in zip(ort.get_outputs(), kept[-len(results) :], strict=True):
        binding.bind_ortvalue_output(output.name, value)
    return lambda kept=kept: ort.run_with_iobinding(binding)


def _tract(case: Case, inferer: Any, rows: Rows) -> Call:
    tract = Tract(inferer.typed)
    tract.prepare(len(next(iter(rows.values()))))
    return tract.bound(rows)


def _jit(case: Case, inferer: Any, rows: Rows) -> Call:
    if case.written is None:
        raise ContenderError("this network has no handwritten version")
    place = SingleDeviceSharding(cpu_device())
    fn = jax.jit(case.written, in_shardings=place, out_shardings=place)
    given = [rows[spec.name] for spec in inferer.typed.api.inputs]
    return lambda: [np.asarray(value) for value in fn(*given)]


def _jaxonnxruntime(case: Case, inferer: Any, rows: Rows) -> Call:
    from jaxonnxruntime import config
    from jaxonnxruntime.core import call_onnx

    config.update("jaxort_only_allow_initializers_as_static_args", False)
    given = feeds(session(case.content, 1), inferer, rows)
    with _quiet():
        fn, params = call_onnx.call_onnx_model(onnx.ModelProto.FromString(case.content), given)
        fn = jax.jit(fn)
        params = jax.tree.map(jax.numpy.asarray, params)
    return lambda: [np.asarray(value) for value in jax.tree.leaves(fn(params, given))]


@contextlib.contextmanager
def _quiet() -> Any:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
