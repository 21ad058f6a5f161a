"""`policy(inputs)`: one array or several, one agent or many; NumPy, JAX or PyTorch in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ..errors import InputDtypeError, InputError, InputShapeError
from ..model.signature import TensorSpec
from ..rows.torch_arrays import from_torch, is_torch, to_torch
from .base import Inferer
from .layers import innermost


def call(inferer: Inferer, inputs: Any, *, copy: bool = False, out: Any = None) -> Any:
    """Run `inferer`; see `Inferer.__call__`."""
    specs = inferer.api.inputs
    if not isinstance(inputs, Mapping):
        if len(specs) != 1:
            names = ", ".join(repr(spec.name) for spec in specs)
            raise InputError(f"the policy has inputs {names}: pass a mapping, input name -> array")
        inputs = {specs[0].name: inputs}
    rows, kind = Rows.of(inputs, specs)
    targets = _targets(inferer, out, rows, kind) if out is not None else {}
    outputs = inferer.infer_arrays(rows.arrays)
    if targets:
        for name, target in targets.items():
            np.copyto(target, outputs[name] if rows.batched else outputs[name][0])
        return out
    answers = {name: value if rows.batched else value[0] for name, value in outputs.items()}
    if kind == "torch":
        shared = constant_outputs(inferer)
        answers = {name: to_torch(value, copy or name in shared) for name, value in answers.items()}
    elif copy:
        answers = {name: np.array(value) if kind == "numpy" else value for name, value in answers.items()}
    return next(iter(answers.values())) if len(answers) == 1 else answers


@dataclass(frozen=True)
class Rows:
    """Inputs for `infer_arrays`; `batched` is False if one agent came without a batch axis."""

    arrays: Mapping[str, Any]
    batched: bool

    @classmethod
    def of(cls, inputs: Mapping[str, Any], specs: Sequence[TensorSpec]) -> tuple[Rows, str]:
        """The rows, and the library of their arrays: "numpy", "jax" or "torch".

        Raises:
            InputError: a tensor requires a gradient.
        """
        kind = "numpy"
        arrays = {}
        for name, value in inputs.items():
            if is_torch(value):
                kind, value = "torch", from_torch(name, value)
            elif isinstance(value, jax.Array):
                kind = "jax" if kind == "numpy" else kind
            elif not hasattr(value, "shape"):
                value = np.asarray(value)
            arrays[name] = value
        ranks = {spec.name: len(spec.shape) for spec in specs}
        single = [name for name, value in arrays.items() if len(value.shape) == ranks.get(name, -1)]
        if not single or len(single) < len(arrays):
            return cls(arrays, True), kind
        return cls({name: value[None] for name, value in arrays.items()}, False), kind


def constant_outputs(inferer: Any) -> Mapping[str, Any]:
    """Outputs whose arrays belong to the model, not to the call: the caller must not write to them."""
    return getattr(getattr(innermost(inferer), "typed", None), "constant", {})


def _targets(inferer: Inferer, out: Any, rows: Rows, kind: str) -> dict[str, np.ndarray]:
    """The caller's buffers as NumPy arrays, checked before the model runs.

    Raises:
        InputError: a buffer cannot hold its output.
    """
    if kind == "jax":
        raise InputError(
            "out= takes NumPy arrays or CPU tensors, but the inputs are jax.Arrays, whose outputs cannot "
            "be written to a buffer: call without out="
        )
    specs = {spec.name: spec for spec in inferer.api.outputs}
    if not isinstance(out, Mapping):
        if len(specs) != 1:
            raise InputError(
                f"the policy has outputs {', '.join(map(repr, specs))}: pass out= as {{name: buffer}}"
            )
        out = {next(iter(specs)): out}
    if unknown := [name for name in out if name not in specs]:
        raise InputError(f"out= names {unknown[0]!r}, but the outputs are {', '.join(map(repr, specs))}")
    given = next(iter(rows.arrays.values()), None)
    count = given.shape[:1] if rows.batched and given is not None else ()
    return {name: _buffer(specs[name], buffer, (*count, *specs[name].shape)) for name, buffer in out.items()}


def _buffer(spec: TensorSpec, buffer: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = from_torch(spec.name, buffer) if is_torch(buffer) else buffer
    if not isinstance(array, np.ndarray) or not array.flags.writeable:
        raise InputError(f"out= for {spec.name!r} is not a writable array in host memory")
    if array.shape != shape:
        raise InputShapeError(f"out= for {spec.name!r} has shape {list(array.shape)}, expected {list(shape)}")
    if array.dtype != spec.dtype:
        raise InputDtypeError(f"out= for {spec.name!r} is {array.dtype}, expected {spec.dtype}")
    return array
