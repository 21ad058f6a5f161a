"""Load a policy, whatever holds it: an ONNX file, a StableHLO asset, or a `TypedModel` that is loaded already."""

from __future__ import annotations

from typing import Any

from ._types import Source
from .errors import InputError
from .lowering.typed_model import TypedModel
from .stablehlo.load import find_stablehlo, load_stablehlo


def typed_model(source: Source | TypedModel, **options: Any) -> TypedModel:
    """`source`, whatever it is by its content, as a `TypedModel`; options are those of `TypedModel.from_model`.

    Raises:
        InputError: options of loading for what is loaded already, or was when it was exported.
        ModelLoadError, UnsupportedOpError, DimensionError: see `TypedModel.from_model`.
    """
    loaded = source if isinstance(source, TypedModel) else None
    if loaded is None and (asset := find_stablehlo(source)) is not None:
        loaded = load_stablehlo(asset)
    if loaded is None:
        return TypedModel.from_model(source, **options)
    if options:
        raise InputError(
            f"options {sorted(options)} belong to loading an ONNX model, but this one is loaded already: give them there"
        )
    return loaded
