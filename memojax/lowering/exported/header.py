"""The header of a StableHLO asset, and its parser, which trusts none of its values."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ...errors import AssetError
from ...model.crvo import Asset, AssetKind
from ...model.signature import ModelApi, TensorSpec

FORMAT = 1

MAGIC = b"MJXA"
PREFIX = struct.Struct("<4sI")
_MOST_HEADER_BYTES = 1 << 23
_MOST_ELEMENTS = 1 << 28
"""Upper limit of elements in one agent's input or output."""

_DTYPES = {
    np.dtype(kind).name: np.dtype(kind)
    for kind in (
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
        "complex64",
        "complex128",
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e4m3fnuz,
        ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e5m2fnuz,
        ml_dtypes.float8_e8m0fnu,
        ml_dtypes.float4_e2m1fn,
        ml_dtypes.int2,
        ml_dtypes.uint2,
        ml_dtypes.int4,
        ml_dtypes.uint4,
    )
}


@dataclass(frozen=True)
class Header:
    """Description of the program in an asset.

    Attributes:
        api: inputs and outputs, without the batch axis.
        computed: names of the outputs that the program computes.
        params: the weights, by name.
        constants: outputs that depend on no input.
        batch_size: the only number of rows that the program runs; None: any.
        random: whether the program takes a random key.
        independent: whether rows are known to be independent.
        platforms: JAX's names of the platforms on which the program runs.
        rule: how the batch was found in the model's file.
        name: name of the model.
        metadata: `metadata_props` of the model's file.
        written_by: package -> version.
        calling_convention: version of jax.export's calling convention.
        program_bytes: length of the program in bytes.
        sha256: hex digest of all bytes behind the header.
    """

    api: ModelApi
    computed: tuple[str, ...]
    params: tuple[TensorSpec, ...]
    constants: tuple[TensorSpec, ...]
    batch_size: int | None
    random: bool
    independent: bool
    platforms: tuple[str, ...]
    rule: str
    name: str
    metadata: Mapping[str, str]
    written_by: Mapping[str, str]
    calling_convention: int
    program_bytes: int
    sha256: str


def header_and_body(asset: Asset) -> tuple[Header, memoryview]:
    """The header of an asset, and the bytes behind it.

    Raises:
        AssetError: the asset is not a StableHLO asset, is truncated or damaged, or has another format.
    """
    if asset.kind is not AssetKind.STABLEHLO:
        raise AssetError(f"this asset holds {asset.kind}, not a StableHLO program")
    data = memoryview(asset.data)
    if len(data) < PREFIX.size or bytes(data[:4]) != MAGIC:
        raise AssetError(
            f"not a StableHLO asset: the payload begins with {bytes(data[:4])!r}, expected {MAGIC!r}"
        )
    length = PREFIX.unpack_from(data)[1]
    if length > min(len(data) - PREFIX.size, _MOST_HEADER_BYTES):
        raise AssetError(
            f"this asset is truncated: its header should have {length:,} bytes, but only "
            f"{len(data) - PREFIX.size:,} follow: export or copy it again"
        )
    body = data[PREFIX.size + length :]
    try:
        fields = json.loads(bytes(data[PREFIX.size : PREFIX.size + length]).decode("utf-8", "surrogatepass"))
        header = _parsed(fields)
    except AssetError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as cause:
        raise AssetError(
            f"this asset is damaged: its header cannot be read ({type(cause).__name__}: {str(cause)[:200]})"
        ) from cause
    expected = header.program_bytes + sum(map(_size, (*header.params, *header.constants)))
    if expected != len(body):
        raise AssetError(
            f"this asset is truncated or damaged: {expected:,} bytes should follow its header, but "
            f"{len(body):,} do: export or copy it again"
        )
    return header, body


def _parsed(fields: Any) -> Header:
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        found = fields.get("format") if isinstance(fields, dict) else type(fields).__name__
        raise AssetError(
            f"this asset has format {found!r}, but this memojax reads format {FORMAT}: update memojax, or "
            "export the policy again"
        )
    api = ModelApi(_specs(fields["inputs"], _MOST_ELEMENTS), _specs(fields["outputs"], _MOST_ELEMENTS))
    header = Header(
        api=api,
        computed=tuple(_text(name) for name in _list(fields["computed"])),
        params=_specs(fields["params"]),
        constants=_specs(fields["constants"]),
        batch_size=None if fields["batch_size"] is None else _number(fields["batch_size"], 1, 1 << 31),
        random=_flag(fields["random"]),
        independent=_flag(fields["independent"]),
        platforms=tuple(_text(name) for name in _list(fields["platforms"])),
        rule=_text(fields["rule"]),
        name=_text(fields["name"]),
        metadata={_text(key): _text(value) for key, value in fields["metadata"].items()},
        written_by={_text(key): _text(value) for key, value in fields["written_by"].items()},
        calling_convention=_number(fields["calling_convention"], 0, 1 << 31),
        program_bytes=_number(fields["program_bytes"], 1, 1 << 62),
        sha256=_text(fields["sha256"]),
    )
    outputs = {spec.name: spec for spec in api.outputs}
    given = [*header.computed, *(spec.name for spec in header.constants)]
    if (
        len(set(given)) != len(given)
        or set(given) != set(outputs)
        or any(outputs[spec.name] != spec for spec in header.constants)
    ):
        raise ValueError("the computed and the constant outputs do not add up to the list of outputs")
    return header


def _specs(described: Any, most: int | None = None) -> tuple[TensorSpec, ...]:
    specs = []
    for one in _list(described):
        dtype = _DTYPES.get(one["dtype"])
        if dtype is None:
            raise ValueError(f"unknown dtype {one['dtype']!r}")
        shape = tuple(_number(dim, 0, 1 << 31) for dim in _list(one["shape"]))
        if len(shape) > 64 or (most is not None and math.prod(shape) > most):
            raise ValueError(f"tensor {one['name']!r} of shape {list(shape)[:8]} is too large for a policy")
        specs.append(TensorSpec(_text(one["name"]), shape, dtype, _flag(one.get("shared", False))))
    if len({spec.name for spec in specs}) != len(specs):
        raise ValueError("two tensors have one name")
    return tuple(specs)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, found {type(value).__name__}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, found {type(value).__name__}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, found {value!r}")
    return value


def _number(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value < high:
        raise ValueError(f"expected a whole number from {low}, found {value!r:.40}")
    return value


def _size(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * spec.dtype.itemsize


def arrays_of(body: memoryview, specs: Sequence[TensorSpec]) -> list[np.ndarray]:
    """The arrays of `specs`, stored end to end in `body`."""
    arrays, start = [], 0
    for spec in specs:
        stop = start + _size(spec)
        arrays.append(np.frombuffer(body[start:stop], np.uint8).copy().view(spec.dtype).reshape(spec.shape))
        start = stop
    return arrays
