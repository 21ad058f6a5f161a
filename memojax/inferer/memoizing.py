"""Every batch size on its own plan."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from .._types import Source
from ..typed import TypedModel
from .model import ModelInferer, typed_model


@final
class MemoizingDynamicInferer(ModelInferer):
    """Compiles a plan for each batch size when it is first seen, and keeps it.

    Pick it when the number of agents is unknown or changes; preload the sizes you expect.

    Pros:
        Best speed at every size, without tuning; rows are never padded, so models that mix rows are right too.
    Cons:
        A new size costs a compile (tens to hundreds of milliseconds) unless it was preloaded; memory grows with the number of sizes
        (`maxsize=` caps it).
    """

    def __init__(self, typed: TypedModel, preloaded_sizes: Iterable[int] = (), **options: Any):
        """Compile `preloaded_sizes` now; options are `maxsize`, `device`, `seed` and `precision`.

        Raises:
            BatchSizeError: a size that is no positive whole number.
        """
        super().__init__(typed, preloaded_sizes, **options)

    @classmethod
    def from_model(cls, model: Source, preloaded_sizes: Iterable[int] = (), **options: Any) -> MemoizingDynamicInferer:
        """Load an ONNX model; options are those of `TypedModel.from_model` and of the constructor.

        Raises:
            ModelLoadError, UnsupportedOpError, DimensionError: see `TypedModel.from_model`.
        """
        loading = {name: options.pop(name) for name in _LOADING if name in options}
        return cls(typed_model(model, **loading), preloaded_sizes, **options)

    @classmethod
    def from_typed(cls, model: TypedModel, preloaded_sizes: Iterable[int] = (), **options: Any) -> MemoizingDynamicInferer:
        """Use a `TypedModel` that is loaded already."""
        return cls(model, preloaded_sizes, **options)

    def select_batch_size(self, max_count: int) -> int:
        return max_count

    def _plan_size(self, n: int) -> int:
        return n


_LOADING = ("dims", "batch_axis", "constants", "outputs")
