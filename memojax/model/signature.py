"""Inputs and outputs of a model for one agent: named tensors without the batch axis."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import InputError, printable
from .dimension import bound_shape, is_fixed, symbols_of

ANY_SHAPE = ("...",)
"""The element shape of an output whose shape is unknown until the model runs."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of one agent.

    >>> print(memojax.TensorSpec("obs", (6,), np.float32))
    obs: float32[n, 6]

    Attributes:
        name: the name by which callers know it.
        shape: the element shape, without the batch axis. A string is a symbol such as "seq", whose size each
            call decides, or an expression of symbols.
        dtype: the dtype of the elements.
        shared: whether all agents share one value, which has no batch axis.
        static: whether the value decides a shape or a branch, so each value has plans of its own.
    """

    name: str
    shape: tuple[Any, ...]
    dtype: np.dtype
    shared: bool = False
    static: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", np.dtype(self.dtype))
        shape = tuple(dim if isinstance(dim, str) else int(dim) for dim in self.shape)
        object.__setattr__(self, "shape", shape)

    def __str__(self) -> str:
        dims = ", ".join(map(str, self.shape if self.shared else ("n", *self.shape)))
        return f"{printable(self.name)}: {self.dtype}[{dims}]{' (shared)' if self.shared else ''}"

    @property
    def is_fixed(self) -> bool:
        """Whether the element shape has no symbols."""
        return is_fixed(self.shape)

    def rows(self, n: int) -> tuple[int, ...]:
        """The shape of this input or output for `n` agents; free symbols count as 0."""
        shape = tuple(0 if isinstance(dim, str) else dim for dim in self.shape)
        return shape if self.shared else (n, *shape)

    def accepts(self, element: Sequence[int]) -> bool:
        """Whether the element shape `element` fits; a symbol fits any size."""
        if self.shape in (tuple(element), ANY_SHAPE):
            return True
        return len(element) == len(self.shape) and all(
            isinstance(dim, str) or dim == size for dim, size in zip(self.shape, element, strict=True)
        )

    def bound(self, sizes: Mapping[str, int]) -> TensorSpec:
        """This spec with numbers in place of symbols.

        Raises:
            DimensionError: a symbol has no size.
        """
        return self if self.is_fixed else replace(self, shape=bound_shape(self.shape, sizes))


@dataclass(frozen=True)
class ModelApi:
    """Inputs and outputs by name, in the model's order.

    >>> print(memojax.load(memojax.policies.bundled("acrobot_ppo")).api)
    inputs obs: float32[n, 6] and outputs logits: float32[n, 3]
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __str__(self) -> str:
        inputs, outputs = (", ".join(map(str, specs)) or "none" for specs in (self.inputs, self.outputs))
        return f"inputs {inputs} and outputs {outputs}"

    @property
    def free(self) -> tuple[str, ...]:
        """Symbols in the element shapes of the inputs, whose sizes each call decides."""
        dims = (dim for spec in self.inputs for dim in spec.shape)
        return tuple(dict.fromkeys(symbol for dim in dims for symbol in symbols_of(dim)))

    @property
    def is_open(self) -> bool:
        """Whether a plan depends on more than the batch size: on free symbols or static inputs."""
        return bool(self.free) or any(spec.static for spec in self.inputs)

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether each agent gives each input in one shape: there are no symbols and no shared inputs."""
        return all(spec.is_fixed and not spec.shared for spec in self.inputs)

    def input_shapes(self) -> list[tuple[str, list[Any]]]:
        """(name, element shape) of each input; a string is a symbol."""
        return [(spec.name, list(spec.shape)) for spec in self.inputs]

    def output_shapes(self) -> list[tuple[str, list[Any]]]:
        """(name, element shape) of each output; a string is a symbol."""
        return [(spec.name, list(spec.shape)) for spec in self.outputs]

    def without(self, inputs: Iterable[str] = (), outputs: Iterable[str] = ()) -> ModelApi:
        """This API without some inputs and outputs, which a wrapper hides."""
        hidden_in, hidden_out = set(inputs), set(outputs)
        return ModelApi(
            tuple(spec for spec in self.inputs if spec.name not in hidden_in),
            tuple(spec for spec in self.outputs if spec.name not in hidden_out),
        )


def plain_names(names: Sequence[str]) -> dict[str, str]:
    """Name in the file -> shown name, without tf2onnx's suffix `:0` unless two names would become equal."""
    short = [name[:-2] if name.endswith(":0") else name for name in names]
    return {name: (cut if short.count(cut) == 1 else name) for name, cut in zip(names, short, strict=True)}


def spec_of(name: str, given: Any) -> TensorSpec:
    """The spec of an input from a spec, something with a shape and a dtype, or a pair of both.

    Raises:
        InputError: `given` is none of these.
    """
    if isinstance(given, TensorSpec):
        return replace(given, name=name)
    if hasattr(given, "shape") and hasattr(given, "dtype"):
        return TensorSpec(name, given.shape, given.dtype)
    try:
        shape, dtype = given
        return TensorSpec(name, tuple(shape), np.dtype(dtype))
    except (TypeError, ValueError) as cause:
        raise InputError(
            f"input {name!r} is described by {given!r}: give (element shape, dtype), a TensorSpec or a "
            "jax.ShapeDtypeStruct"
        ) from cause
