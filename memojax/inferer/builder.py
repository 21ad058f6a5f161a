"""Builds any inferer from a model file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack, final

from .._argument_checks import named_options
from .._types import Source
from ..lowering.batch_evidence import BatchAxis
from ..lowering.loading import typed_model
from ..lowering.typed_model import TypedModel
from .basic import BasicInferer
from .dynamic import DEFAULT_CAPACITY, DynamicInferer
from .fixed import FixedBatchInferer
from .memoizing import MemoizingDynamicInferer
from .options import MemoizingOptions, SharedOptions
from .sizes import Size


@final
class InfererBuilder:
    """Loads a model once and builds inferers from it; all of them share its weights.

    >>> builder = memojax.InfererBuilder(memojax.policies.bundled("acrobot_ppo"))
    >>> small, large = builder.build_basic(), builder.build_fixed([8, 32])
    >>> [plan.size for plan in large.plans()]
    [8, 32]
    """

    @named_options
    def __init__(
        self,
        source: Source | TypedModel,
        *,
        dims: Mapping[str, int] | None = None,
        batch_axis: BatchAxis = None,
        constants: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | str | None = None,
        inputs: Sequence[str] | str = (),
    ):
        """Load `source`; options are those of `TypedModel.from_model`.

        Raises:
            OptionError: an option does not exist, or has the wrong type.
            ModelLoadError, UnsupportedOpError, DimensionError: see `TypedModel.from_model`.
        """
        self.typed: TypedModel = typed_model(
            source, dims=dims, batch_axis=batch_axis, constants=constants, outputs=outputs, inputs=inputs
        )

    def build_basic(self, **options: Unpack[SharedOptions]) -> BasicInferer:
        """An inferer for one agent at a time."""
        return BasicInferer(self.typed, **options)

    def build_fixed(self, sizes: Iterable[int], **options: Unpack[SharedOptions]) -> FixedBatchInferer:
        """An inferer for known batch sizes."""
        return FixedBatchInferer(self.typed, sizes, **options)

    def build_memoizing(
        self, preload_sizes: Iterable[Size] | Size = (), **options: Unpack[MemoizingOptions]
    ) -> MemoizingDynamicInferer:
        """An inferer that compiles each size at its first use."""
        return MemoizingDynamicInferer(self.typed, preload_sizes, **options)

    def build_dynamic(
        self, capacity: int = DEFAULT_CAPACITY, **options: Unpack[SharedOptions]
    ) -> DynamicInferer:
        """An inferer with one plan of fixed capacity."""
        return DynamicInferer(self.typed, capacity, **options)
