"""Load a policy from a CRVO asset that holds a function exported by `jax.export`, and its weights.

The payload of the asset is the magic `MJXA`, the length of a JSON header as a little-endian uint32, and the
header. The exported program, the weights and the constant outputs follow end to end. The header holds the
length of each, the `ModelApi`, and a SHA-256 of all bytes behind the header.

jax.export promises that newer versions of JAX can read a program for at least six months, and older ones for
three weeks. The header names the versions that wrote the program, for the error message after that time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import jax
import numpy as np
from jax import export

from ...errors import AssetError, DimensionError, ForkError
from ...model.crvo import HEADER_BYTES, Asset, AssetKind, is_asset, naming
from ...model.files import path_of, start_of
from ...xla.fork import check_not_forked, was_forked
from ..typed_model import TypedModel
from .header import Header, arrays_of, header_and_body
from .parse_guard import parse_failure

_CUSTOM_CALLS = re.compile(
    r"(?:mhlo|chlo|stablehlo)\..*|Sharding|shape_assertion|cu_threefry2x32_ffi|hip_threefry2x32_ffi"
)
"""Custom calls that a program may make. All others are refused: a Python callback, say, is a bare address."""


def only_size(typed: TypedModel) -> int | None:
    """The only batch size that a model runs; None if it runs any."""
    return typed.only_rows


def find_stablehlo(source: Any) -> Asset | None:
    """The StableHLO asset in `source`; None if the first bytes of `source` are not those of such an asset.

    `source` may be a path, bytes, a seekable file or an `Asset`; other objects give None.

    Raises:
        AssetError: `source` is a StableHLO asset, but it cannot be read.
    """
    if isinstance(source, Asset):
        return source if source.kind is AssetKind.STABLEHLO else None
    start = _start_of(source)
    if len(start) < HEADER_BYTES or not is_asset(start) or start[HEADER_BYTES - 1] != AssetKind.STABLEHLO:
        return None
    return Asset.read(source) if isinstance(source, (str, PathLike)) else Asset.deserialize(source)


def read_header(asset: Asset) -> Header:
    """The header of a StableHLO asset; the program is not read.

    Raises:
        AssetError: the asset is of another kind, or damaged.
    """
    with naming(asset):
        return header_and_body(asset)[0]


def load_stablehlo(asset: Asset, *, trusted: bool = False) -> TypedModel:
    """Load the model in a StableHLO asset.

    On the first load, a child process parses the program before this process does (about 0.3 s), because
    crafted bytes can crash XLA's parser; `trusted` skips the child. A program can only compute, but like any
    model it may run long or need much memory.

    >>> asset = memojax.to_stablehlo(memojax.policies.bundled("acrobot_ppo"))
    >>> memojax.load_stablehlo(asset).api.output_shapes()
    [('logits', [3])]

    Raises:
        AssetError: the asset is of another kind or damaged, its JAX version is too old or too new, or its
            program is not plain computation.
    """
    check_not_forked()
    with naming(asset):
        header, body = header_and_body(asset)
        _check_versions(header)
        digest = hashlib.sha256(body).hexdigest()
        if digest != header.sha256:
            raise AssetError(
                f"this asset is damaged: its content has SHA-256 {digest}, but the header says "
                f"{header.sha256}: export or copy it again"
            )
        exported = _program(header, bytes(body[: header.program_bytes]), trusted)
    arrays = arrays_of(body[header.program_bytes :], (*header.params, *header.constants))
    return TypedModel(
        fn=ExportedFunction(asset, header, exported),
        params={spec.name: array for spec, array in zip(header.params, arrays, strict=False)},
        api=header.api,
        computed=header.computed,
        constant={
            spec.name: array
            for spec, array in zip(header.constants, arrays[len(header.params) :], strict=True)
        },
        random=header.random,
        rule=f"{header.rule}; exported for {header.batch_size or 'any number of'} rows",
        independent=True if header.independent else None,
        only_rows=header.batch_size,
        name=header.name,
        metadata=header.metadata,
        fingerprint=hashlib.sha256(asset.data).hexdigest(),
    )


@dataclass(frozen=True)
class ExportedFunction:
    """The program of an asset, as the function of a `TypedModel`."""

    asset: Asset
    header: Header
    exported: export.Exported

    def __call__(self, params: Any, rows: Sequence[Any], key: Any) -> tuple[Any, ...]:
        """One array for each name in `header.computed`.

        Raises:
            DimensionError: the program was exported for another batch size.
        """
        batched = [row for spec, row in zip(self.header.api.inputs, rows, strict=True) if not spec.shared]
        count = batched[0].shape[0] if batched else 1
        if self.header.batch_size not in (None, count):
            raise DimensionError(
                f"this asset was exported for {self.header.batch_size} rows only, not for {count}: use an "
                "inferer, which pads and splits, or export with batch_size=None"
            )
        leaves = [params[spec.name] for spec in self.header.params]
        return tuple(
            self.exported.call(
                leaves, list(rows), *([jax.random.key_data(key)] if self.header.random else [])
            )
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _revived, (self.asset,)


def _revived(asset: Asset) -> Any:
    return ForkedFunction(asset) if was_forked() else load_stablehlo(asset, trusted=True).fn


@dataclass(frozen=True)
class ForkedFunction:
    """Stands for the program of an asset in a forked process.

    Unpickling must not raise there: a `multiprocessing` pool would wait for ever. The call raises instead.
    """

    asset: Asset

    def __call__(self, params: Any, rows: Sequence[Any], key: Any) -> tuple[Any, ...]:
        """Raise an error.

        Raises:
            ForkError: always.
        """
        raise ForkError()

    def __reduce__(self) -> tuple[Any, ...]:
        return _revived, (self.asset,)


def _start_of(source: Any) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source[:HEADER_BYTES])
    if isinstance(source, (str, PathLike)):
        return start_of(path_of(source), HEADER_BYTES)
    if hasattr(source, "read") and hasattr(source, "seek") and source.seekable():
        place = source.tell()
        start = source.read(HEADER_BYTES)
        source.seek(place)
        return start if isinstance(start, bytes) else b""
    return b""


def _check_versions(header: Header) -> None:
    low, high = (
        export.minimum_supported_calling_convention_version,
        export.maximum_supported_calling_convention_version,
    )
    if low <= header.calling_convention <= high:
        return
    wrote = header.written_by.get("jax", "an unknown version")
    way_out = (
        "export the policy again from its ONNX file" if header.calling_convention < low else "update jax"
    )
    raise AssetError(
        f"this asset was written with JAX {wrote} (calling convention {header.calling_convention}), but JAX "
        f"{jax.__version__} reads calling conventions {low} to {high}: {way_out}"
    )


def _program(header: Header, program: bytes, trusted: bool) -> export.Exported:
    exported: Any = None
    try:
        exported = export.deserialize(bytearray(program))
        failure = None if trusted else parse_failure(exported.mlir_module_serialized)
        text = "" if failure else exported.mlir_module()
    except Exception as cause:
        failure, text = f"{type(cause).__name__}: {str(cause)[:200]}", ""
    if failure:
        wrote = ", ".join(f"{name} {version}" for name, version in header.written_by.items())
        raise AssetError(
            f"JAX {jax.__version__} cannot read the program in this asset ({failure}). The program is "
            f"damaged, too old or too new: it was written by {wrote}. Export the policy again, or use these "
            "versions"
        )
    called = set(re.findall(r"custom_call\s+@\"?([\w.$-]+)", text)) | set(
        re.findall(r"call_target_name\s*=\s*\"([^\"]*)\"", text)
    )
    if strange := sorted(name for name in called if not _CUSTOM_CALLS.fullmatch(name)):
        raise AssetError(
            f"the program in this asset calls {', '.join(map(repr, strange))}, which is not known to be "
            "plain computation, so it is refused: export the policy without callbacks"
        )
    _check_signature(header, exported)
    return exported


def _check_signature(header: Header, exported: export.Exported) -> None:
    """Check that the program has the inputs and outputs that the header describes."""
    named = {spec.name: spec for spec in header.api.outputs}
    key = [((2,), np.dtype(np.uint32))] if header.random else []
    takes = [(spec.shape, spec.dtype) for spec in header.params]
    takes += [
        (spec.shape if spec.shared else (header.batch_size, *spec.shape), spec.dtype)
        for spec in header.api.inputs
    ] + key
    gives = [((header.batch_size, *named[name].shape), named[name].dtype) for name in header.computed]
    for what, said, found in (("takes", takes, exported.in_avals), ("gives", gives, exported.out_avals)):
        real = [
            (tuple(None if export.is_symbolic_dim(dim) else dim for dim in aval.shape), np.dtype(aval.dtype))
            for aval in found
        ]
        if real != said:
            raise AssetError(
                f"the program in this asset does not fit its header: it {what} {real}, but the header says "
                f"{said}"[:600]
            )
