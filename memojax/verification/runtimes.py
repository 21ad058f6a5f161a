"""Other runtimes behind one interface, to compare results with them, and to time them beside memojax."""

from __future__ import annotations

import abc
import math
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx

from .._types import Shape
from ..errors import MemojaxError, MissingPackageError
from ..lowering.batch_axis import BatchedFunction
from ..lowering.binding import with_inputs
from ..lowering.host_rows import HostRows
from ..lowering.typed_model import TypedModel
from .file_layout import FileLayout, Rows
from .tolerance import Tolerance, tolerances

_LONGEST_LOOP = 4
"""Seconds after which a run of a file with a Loop is stopped."""


class ContenderError(MemojaxError):
    """Another runtime cannot load or run a model, which says nothing about memojax."""


class Contender(abc.ABC):
    """A model in another runtime, with rows in and out as for `Inferer.infer_arrays`.

    A file whose batch is fixed to 1 runs row by row.
    """

    name: str

    def __init__(self, typed: TypedModel):
        """Load the file behind `typed`.

        Raises:
            MissingPackageError: the runtime is not installed.
            ContenderError: the runtime cannot load the model, or `typed` has no file.
        """
        if typed.model is None or not isinstance(typed.fn, (BatchedFunction, HostRows)):
            raise ContenderError(
                f"{self.name} runs ONNX files, and this policy has none (it was exported, or is a function): "
                "name the file from which it was made (--onnx FILE on the command line, reference=FILE of "
                "memojax.verify)"
            )
        self._rows = typed.fn
        self._shown = {
            spec.name: (spec, self._rows.file_names[1][i]) for i, spec in enumerate(typed.api.outputs)
        }
        self._files = dict(
            zip((spec.name for spec in typed.api.inputs), self._rows.file_names[0], strict=True)
        )
        self._allowed = tolerances(typed.model.graph)
        self.row_by_row: bool = self._rows.rule.kind == "vmap"
        self.layout: FileLayout = FileLayout(
            with_inputs(
                typed.model.graph, [n for n in self._files.values() if n in typed.model.graph.defaults]
            ),
            typed.api,
            self._rows.constants,
            {name: axis for name, (axis, _) in self._rows.rule.inputs.items()},
        )

    def tolerances(self) -> dict[str, Tolerance]:
        """How closely two runtimes can agree on each output, by its shown name."""
        return {name: self._allowed.get(in_file, Tolerance()) for name, (_, in_file) in self._shown.items()}

    @abc.abstractmethod
    def prepare(self, n: int) -> None:
        """Do the work of a first call with `n` rows, such as compiling."""

    @abc.abstractmethod
    def _run(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Outputs by their names in the file, in the file layout."""

    def __call__(self, inputs: Rows) -> dict[str, np.ndarray]:
        """Run a batch.

        Raises:
            ContenderError: the runtime fails.
        """
        n = self._count(inputs)
        try:
            if self._rows.rule.only_rows:
                return self._padded(inputs, n, self._rows.rule.only_rows)
            return self._each(inputs, n) if self.row_by_row else self._whole(inputs, n)
        except MemojaxError:
            raise
        except Exception as cause:
            raise ContenderError(f"{self.name}, batch of {n}: {cause}") from cause

    def alone(self, inputs: Rows) -> list[dict[str, np.ndarray]]:
        """Run each row alone; for each row, shown name -> output in the file layout.

        Raises:
            ContenderError: the runtime fails.
        """
        if self._rows.rule.only_rows:
            raise ContenderError(
                f"{self.name}: the file runs {self._rows.rule.only_rows} rows only, so no row runs alone"
            )
        count = self._count(inputs)
        return [self._shown_of(self.layout.alone(inputs, row), f"row {row} alone") for row in range(count)]

    def whole(self, inputs: Rows) -> dict[str, np.ndarray] | None:
        """Run all rows at once; shown name -> output in the file layout. None if the file declares no batch.

        Raises:
            ContenderError: the runtime fails.
        """
        feeds = self.layout.whole(inputs)
        return None if feeds is None else self._shown_of(feeds, "all rows at once")

    def contradictions(self, inputs: Rows, first: Rows) -> dict[str, str]:
        """Shown name -> the fault, for outputs of `first`, the first row alone, with an undeclared size."""
        in_file = {file_name: name for name, (_, file_name) in self._shown.items()}
        outputs = {name: first[shown] for name, shown in in_file.items()}
        found = self.layout.contradictions(self.layout.alone(inputs, 0), outputs)
        return {in_file[name]: note for name, note in found.items()}

    def _shown_of(self, feeds: Mapping[str, np.ndarray], what: str) -> dict[str, np.ndarray]:
        try:
            results = self._run(feeds)
        except MemojaxError:
            raise
        except Exception as cause:
            raise ContenderError(f"{self.name}, {what}: {cause}") from cause
        return {name: np.asarray(results[in_file]) for name, (_, in_file) in self._shown.items()}

    def bound(self, inputs: Rows) -> Callable[[], Any]:
        """A call without arguments, whose inputs are prepared already, for benchmarks."""
        if self.row_by_row:
            rows = [self._single(inputs, i) for i in range(self._count(inputs))]
            return lambda: [self._run(row) for row in rows]
        feeds = self._feeds(inputs)
        return lambda: self._run(feeds)

    def _whole(self, inputs: Rows, n: int) -> dict[str, np.ndarray]:
        results = self._run(self._feeds(inputs))
        shown = {}
        for name, (spec, in_file) in self._shown.items():
            value = results[in_file]
            how = self._rows.rule.outputs.get(in_file)
            if how is None:
                shown[name] = np.broadcast_to(value, (n, *value.shape))
            elif n == 1 and how.axis is not None and spec.is_fixed and value.size == math.prod(spec.shape):
                shown[name] = value.reshape(1, *spec.shape)  # a Squeeze may have dropped the batch
            else:
                shown[name] = how.of(value, n)
        return shown

    def _padded(self, inputs: Rows, n: int, size: int) -> dict[str, np.ndarray]:
        """Run a file that takes `size` rows only: pad and split the batch."""
        shared = {spec.name for spec in self._rows.api.inputs if spec.shared}
        parts = []
        for start in range(0, n, size):
            taken = min(size, n - start)
            part = {
                name: rows
                if name in shared
                else np.resize(rows[start : start + taken], (size, *rows.shape[1:]))
                for name, rows in inputs.items()
            }
            parts.append({name: value[:taken] for name, value in self._whole(part, size).items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _count(self, inputs: Rows) -> int:
        batched = (spec.name for spec in self._rows.api.inputs if not spec.shared)
        return len(inputs[next(batched)])

    def _each(self, inputs: Rows, n: int) -> dict[str, np.ndarray]:
        singles = [self._run(self._single(inputs, i)) for i in range(n)]
        return {
            name: np.stack([np.asarray(single[in_file]).reshape(spec.shape) for single in singles])
            for name, (spec, in_file) in self._shown.items()
        }

    def _feeds(self, inputs: Rows) -> dict[str, np.ndarray]:
        feeds = dict(self._rows.constants)
        for name, rows in inputs.items():
            axis = self._rows.rule.inputs[self._files[name]][0]
            feeds[self._files[name]] = np.ascontiguousarray(np.moveaxis(rows, 0, axis)) if axis else rows
        return feeds

    def _single(self, inputs: Rows, i: int) -> dict[str, np.ndarray]:
        shapes = self._rows.rule.inputs
        given = {
            self._files[name]: rows[i].reshape(shapes[self._files[name]][1]) for name, rows in inputs.items()
        }
        return {**self._rows.constants, **given}


@final
class OnnxRuntime(Contender):
    """ONNX Runtime on the CPU, with its default options."""

    name = "onnxruntime"

    def __init__(self, typed: TypedModel):
        super().__init__(typed)
        try:
            import onnxruntime
        except ImportError as cause:
            raise MissingPackageError("onnxruntime", "the comparison", "bench") from cause
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        assert typed.model is not None
        try:
            self._session = onnxruntime.InferenceSession(
                typed.model.content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as cause:
            raise ContenderError(f"onnxruntime cannot load {typed.model.name}: {cause}") from cause
        self._names = list(dict.fromkeys(in_file for _, in_file in self._shown.values()))
        # An input with a default in the file is no input by ONNX Runtime's list, but takes a value as well.
        given = [*self._session.get_inputs(), *self._session.get_overridable_initializers()]
        self._takes = {value.name for value in given}
        # Nothing in ONNX Runtime ends a loop that never stops, so such runs are watched.
        self._watched = any(node.op_type == "Loop" for node in typed.model.graph.all_nodes())
        self._endless = False
        self._options = onnxruntime.RunOptions

    def prepare(self, n: int) -> None:
        """Do nothing: a session takes any batch size."""

    def _run(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        taken = {name: value for name, value in feeds.items() if name in self._takes}
        values = self._within_limit(taken) if self._watched else self._session.run(self._names, taken)
        return dict(zip(self._names, map(np.asarray, values), strict=True))

    def bound(self, inputs: Rows) -> Callable[[], Any]:
        """As of `Contender`; such calls are timed, so nothing watches their loops."""
        self._watched = False
        return super().bound(inputs)

    def _within_limit(self, feeds: Mapping[str, np.ndarray]) -> Sequence[Any]:
        """The outputs of a run that is stopped after `_LONGEST_LOOP` seconds.

        Raises:
            ContenderError: the run was stopped, or an earlier one was.
        """
        options = self._options()
        if not self._endless:
            timer = threading.Timer(_LONGEST_LOOP, setattr, (options, "terminate", True))
            timer.daemon = True
            timer.start()
            try:
                return self._session.run(self._names, feeds, options)
            except Exception:
                if not options.terminate:
                    raise
                self._endless = True
            finally:
                timer.cancel()
        raise ContenderError(
            f"onnxruntime does not come to the end of a Loop within {_LONGEST_LOOP} seconds, so there is "
            "nothing to compare with: compare a file whose loops end"
        )


@final
class Tract(Contender):
    """tract, cervo's engine, by its Python wheel, with an optimized model for each batch size."""

    name = "tract"

    def __init__(self, typed: TypedModel):
        super().__init__(typed)
        try:
            import tract  # pyright: ignore[reportMissingImports]
        except ImportError as cause:
            raise MissingPackageError("tract", "the comparison", "bench") from cause
        self._onnx = tract.onnx()
        assert typed.model is not None
        self._model = typed.model
        proto = onnx.ModelProto.FromString(typed.model.content)
        # Files often declare wrong shapes of intermediate values, and tract relies on them.
        del proto.graph.value_info[:]
        self._content = proto.SerializeToString()
        self._outputs = [output.name for output in proto.graph.output]
        self._dtypes = {name: _tract_dtype(value.dtype) for name, value in self.layout.bound.items()}
        self._dtypes |= {
            name: _tract_dtype(spec.dtype)
            for spec, name in zip(typed.api.inputs, self._rows.file_names[0], strict=True)
        }
        self._plans: dict[tuple[Shape, ...], tuple[Any, list[str]]] = {}

    def prepare(self, n: int) -> None:
        shapes = {name: value.shape for name, value in self.layout.bound.items()}
        for name, (axis, shape) in self._rows.rule.inputs.items():
            size = 1 if self.row_by_row else n
            shapes[name] = tuple(size if place == axis else dim for place, dim in enumerate(shape))
        if tuple(shapes.values()) not in self._plans:
            self._plans[tuple(shapes.values())] = self._plan(shapes)

    def _plan(self, shapes: Mapping[str, Shape]) -> tuple[Any, list[str]]:
        try:
            return self._made(shapes)
        except Exception as cause:
            said = " ".join(str(cause).partition("Stack backtrace")[0].split())[:300]
            raise ContenderError(
                f"tract cannot load {self._model.name} for inputs of {dict(shapes)}: {said}"
            ) from cause

    def _made(self, shapes: Mapping[str, Shape]) -> tuple[Any, list[str]]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            path.write_bytes(self._content)
            model = self._onnx.load(path)
        inputs = [model.input_name(i) for i in range(model.input_count())]
        for i in range(len(self._outputs)):
            model.set_output_fact(i, None)
        for i, name in enumerate(inputs):
            model.set_input_fact(i, ",".join(map(str, (*shapes[name], self._dtypes[name]))))
        return model.into_model().into_runnable(), inputs

    def _run(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        key = tuple(value.shape for value in feeds.values())
        if key not in self._plans:
            self._plans[key] = self._plan({name: value.shape for name, value in feeds.items()})
        runnable, inputs = self._plans[key]
        values = runnable.run([feeds[name] for name in inputs])
        return dict(zip(self._outputs, (value.to_numpy() for value in values), strict=True))


CONTENDERS: dict[str, type[Contender]] = {"onnxruntime": OnnxRuntime, "tract": Tract}


def _tract_dtype(dtype: np.dtype) -> str:
    return {"f": "f", "i": "i", "u": "u", "b": "bool"}[dtype.kind] + (
        "" if dtype.kind == "b" else str(dtype.itemsize * 8)
    )
