"""cervo's `AssetData`: a CRVO container with methods that load its policy."""

from __future__ import annotations

from typing import Any, final

from ..model.crvo import Asset
from .basic import BasicInferer
from .builder import InfererBuilder
from .fixed import FixedBatchInferer
from .memoizing import MemoizingDynamicInferer


@final
class AssetData(Asset):
    """The bytes of a policy, and their kind.

    >>> asset = memojax.AssetData(memojax.AssetKind.ONNX, b"...")
    >>> memojax.AssetData.deserialize(asset.serialize()) == asset
    True
    """

    def load_basic(self, **options: Any) -> BasicInferer:
        """An inferer for one agent at a time."""
        return InfererBuilder(self).build_basic(**options)

    def load_fixed(self, sizes: Any, **options: Any) -> FixedBatchInferer:
        """An inferer for known batch sizes."""
        return InfererBuilder(self).build_fixed(sizes, **options)

    def load_memoizing(self, preload_sizes: Any = (), **options: Any) -> MemoizingDynamicInferer:
        """An inferer that compiles each size when it is first seen."""
        return InfererBuilder(self).build_memoizing(preload_sizes, **options)
