"""Load a policy from any source: an ONNX file, a StableHLO asset, or a `TypedModel`."""

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
    """Load `source` as a `TypedModel`; its content decides how, and not its name.

    The name of a bundled policy loads that policy, unless a file has the same name. The options are those of
    `TypedModel.from_model`.

    Raises:
        InputError: options were given, but the source is a `TypedModel` or an exported program, which cannot
            take them any more.
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
            f"options {given} apply when an ONNX model is loaded, but this model is loaded already: give "
            "them where you load the ONNX file"
        )
    return loaded
