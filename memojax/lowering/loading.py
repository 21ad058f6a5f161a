"""Load a policy, whatever holds it: an ONNX file, a StableHLO asset, or a `TypedModel` that is loaded
already."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .. import policies
from .._argument_checks import named_options
from .._types import Source
from ..errors import InputError
from .batch_evidence import BatchAxis
from .exported.load import find_stablehlo, load_stablehlo
from .typed_model import TypedModel


@named_options
def typed_model(
    source: Source | TypedModel,
    *,
    dims: Mapping[str, int] | None = None,
    batch_axis: BatchAxis = None,
    constants: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | str | None = None,
    inputs: Sequence[str] | str = (),
    strict: bool = False,
) -> TypedModel:
    """`source`, whatever it is by its content, as a `TypedModel`; options are those of
    `TypedModel.from_model`.

    A name of a bundled policy loads that, unless there is a file of this name.

    Raises:
        InputError: options of loading for what is loaded already, or was when it was exported.
        ModelLoadError, UnsupportedOpError, DimensionError: see `TypedModel.from_model`.
    """
    if isinstance(source, str) and source in policies.names() and not os.path.exists(source):
        source = policies.bundled(source)
    options = {
        "dims": dims,
        "batch_axis": batch_axis,
        "constants": constants,
        "outputs": outputs,
        "inputs": inputs or None,
    }
    given = sorted(name for name, value in options.items() if value is not None)
    loaded = source if isinstance(source, TypedModel) else None
    if loaded is None and (asset := find_stablehlo(source)) is not None:
        loaded = load_stablehlo(asset)
    if loaded is None:
        return TypedModel.from_model(
            source,
            dims=dims,
            batch_axis=batch_axis,
            constants=constants,
            outputs=outputs,
            inputs=inputs,
            strict=strict,
        )
    if given:
        raise InputError(
            f"options {given} belong to loading an ONNX model, but this one is loaded already: give them "
            "there"
        )
    return loaded
