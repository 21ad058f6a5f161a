"""The call of a program as a primitive of JAX, which keeps no program.

`jax.ffi.ffi_call` copies an array into the call's parameters. JAX remembers the parameters of its last 2,048
calls, so the programs of dropped plans would stay.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, final

import jax
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import mlir

from .library import TARGET


def bind(
    program: np.ndarray, inputs: Sequence[Any], results: Sequence[Any], *, held: bool = False
) -> list[Any]:
    """Call `program` in the trace of JAX.

    `results` have the shapes and dtypes of the arrays that it gives. The trace holds `program` if `held`;
    else the caller holds it until the trace is lowered.
    """
    return _program_p.bind(*inputs, program=_Words(program, held), results=tuple(results))


@final
class _Words:
    """A program that is equal only to itself; unless it is held, it lives no longer than its plan's trace."""

    __slots__ = ("_array", "_held")

    def __init__(self, array: np.ndarray, held: bool):
        self._array = weakref.ref(array)
        self._held = array if held else None

    def array(self) -> np.ndarray:
        array = self._array()
        if array is None:
            raise RuntimeError("a program was dropped before its call was lowered")
        return array


def _avals(*_: Any, program: _Words, results: Sequence[Any]) -> list[Any]:
    # As the trace had them: in a `shard_map` they say which axes of the mesh they vary over.
    return [result.update(weak_type=False) for result in results]


def _lowered(ctx: Any, *operands: Any, program: _Words, results: Any) -> Any:
    return jax.ffi.ffi_lowering(TARGET)(ctx, *operands, program=program.array())


_program_p = Primitive(TARGET)
_program_p.multiple_results = True
_program_p.def_abstract_eval(_avals)
mlir.register_lowering(_program_p, _lowered, platform="cpu")
