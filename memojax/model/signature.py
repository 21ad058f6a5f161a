"""What a model takes and gives per agent: named tensors, the batch axis set apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .._types import Shape
from ..errors import printable


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of one agent: `shape` is the element shape, without the batch axis.

    >>> print(memojax.TensorSpec("obs", (6,), np.float32))
    obs: float32[n, 6]
    """

    name: str
    shape: Shape
    dtype: np.dtype

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", np.dtype(self.dtype))
        object.__setattr__(self, "shape", tuple(int(dim) for dim in self.shape))

    def __str__(self) -> str:
        return f"{printable(self.name)}: {self.dtype}[{', '.join(map(str, ('n', *self.shape)))}]"


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

    def input_shapes(self) -> list[tuple[str, list[int]]]:
        """(name, element shape) of each input."""
        return [(spec.name, list(spec.shape)) for spec in self.inputs]

    def output_shapes(self) -> list[tuple[str, list[int]]]:
        """(name, element shape) of each output."""
        return [(spec.name, list(spec.shape)) for spec in self.outputs]

    def without(self, inputs: Iterable[str] = (), outputs: Iterable[str] = ()) -> ModelApi:
        """The same with some inputs and outputs hidden, as a wrapper shows it."""
        hidden_in, hidden_out = set(inputs), set(outputs)
        return ModelApi(
            tuple(spec for spec in self.inputs if spec.name not in hidden_in),
            tuple(spec for spec in self.outputs if spec.name not in hidden_out),
        )


def plain_names(names: Sequence[str]) -> dict[str, str]:
    """File name -> shown name: tf2onnx's `:0` suffix is dropped where that makes no two names equal."""
    short = [name[:-2] if name.endswith(":0") else name for name in names]
    return {name: (cut if short.count(cut) == 1 else name) for name, cut in zip(names, short, strict=True)}
