"""Model file -> any inferer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from .._types import Source
from ..loading import typed_model
from ..lowering.typed_model import TypedModel
from .basic import BasicInferer
from .dynamic import DEFAULT_CAPACITY, DynamicInferer
from .fixed import FixedBatchInferer
from .memoizing import MemoizingDynamicInferer


@final
class InfererBuilder:
    """Loads a model once and builds inferers from it; all of them share its weights.

    >>> builder = memojax.InfererBuilder(memojax.policies.bundled("acrobot_ppo"))
    >>> small, large = builder.build_basic(), builder.build_fixed([8, 32])
    >>> [plan.size for plan in large.plans()]
    [8, 32]
    """

    def __init__(self, source: Source | TypedModel, **options: Any):
        """Load `source`; options are those of `TypedModel.from_model`.

        Raises:
            ModelLoadError, UnsupportedOpError, DimensionError: see `TypedModel.from_model`.
        """
        self.typed = typed_model(source, **options)

    def build_basic(self, **options: Any) -> BasicInferer:
        """An inferer for one agent at a time."""
        return BasicInferer(self.typed, **options)

    def build_fixed(self, sizes: Iterable[int], **options: Any) -> FixedBatchInferer:
        """An inferer for known batch sizes."""
        return FixedBatchInferer(self.typed, sizes, **options)

    def build_memoizing(self, preload_sizes: Iterable[int] = (), **options: Any) -> MemoizingDynamicInferer:
        """An inferer that compiles each size when it is first seen."""
        return MemoizingDynamicInferer(self.typed, preload_sizes, **options)

    def build_dynamic(self, capacity: int = DEFAULT_CAPACITY, **options: Any) -> DynamicInferer:
        """An inferer with one plan of fixed capacity."""
        return DynamicInferer(self.typed, capacity, **options)
