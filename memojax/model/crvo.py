"""cervo's CRVO container: a header of eight bytes names the kind of the policy behind it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from os import PathLike, fspath
from pathlib import Path
from typing import IO, Any, Self

from ..errors import AssetError, ModelLoadError
from .files import path_of, read_file

MAGIC = b"CRVO"
HEADER_BYTES = 8
MAX_BYTES = 1 << 31


class AssetKind(IntEnum):
    """The kind of an asset: cervo's own numbers, and a distant number for StableHLO, which cervo lacks.

    >>> memojax.AssetKind.ONNX.value, str(memojax.AssetKind.ONNX)
    (1, 'onnx')
    """

    ONNX = 1
    """The bytes of an ONNX `ModelProto`."""
    NNEF = 2
    """A tar archive of a network in NNEF; memojax recognises it but cannot run it."""
    STABLEHLO = 74
    """An exported JAX function with its weights; see `memojax.to_stablehlo`."""

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Asset:
    """The bytes of a policy, and their kind; its public subclass `AssetData` can also load the policy."""

    kind: AssetKind
    data: bytes = field(repr=False)
    name: str = field(default="", repr=False, compare=False)
    """File name for messages."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", AssetKind(self.kind))
        object.__setattr__(self, "data", bytes(self.data))

    @classmethod
    def deserialize(cls, source: bytes | bytearray | memoryview | IO[bytes], name: str = "<bytes>") -> Self:
        """Read an asset, without parsing the policy in it; `name` is for messages.

        Raises:
            AssetError: `source` is not a CRVO asset, is truncated, or has an unknown kind or version.
        """
        readable: Any = source
        raw = readable.read(MAX_BYTES + 1) if hasattr(source, "read") else bytes(readable)
        if not isinstance(raw, bytes):
            raise AssetError(f"{name}: opened as text; open it in mode 'rb'")
        if len(raw) > MAX_BYTES:
            raise AssetError(f"{name}: more than {MAX_BYTES:,} bytes, the limit for a policy")
        if raw[:4] != MAGIC:
            raise AssetError(f"{name}: not a CRVO asset: it begins with {raw[:4]!r}, expected {MAGIC!r}")
        if len(raw) < HEADER_BYTES:
            raise AssetError(
                f"{name}: truncated: the header of a CRVO asset has {HEADER_BYTES} bytes, this file has "
                f"{len(raw)}"
            )
        version, compressed, reserved, number = raw[4:HEADER_BYTES]
        if compressed or reserved or version > 1:
            what = (
                "is compressed, which no released cervo supports" if compressed else "has an unknown header"
            )
            raise AssetError(
                f"{name}: this CRVO asset {what} ({raw[4:8].hex(' ')}): make it again from the ONNX file "
                "(`memojax package`)"
            )
        try:
            kind = AssetKind(number)
        except ValueError:
            known = ", ".join(f"{kind.value} ({kind})" for kind in AssetKind)
            raise AssetError(f"{name}: asset kind {number} is unknown; the known kinds are {known}") from None
        if len(raw) == HEADER_BYTES:
            raise AssetError(f"{name}: the asset is empty: nothing follows its header")
        return cls(kind, raw[HEADER_BYTES:], name)

    def serialize(self) -> bytes:
        """The asset as bytes, which cervo reads too, if it knows the kind."""
        return MAGIC + bytes((0, 0, 0, self.kind)) + self.data

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Self:
        """Read an asset from a file.

        Raises:
            AssetError: the file cannot be read, or its content is not an asset, see `deserialize`.
        """
        try:
            return cls.deserialize(read_file(path_of(path)), fspath(path))
        except AssetError:
            raise
        except ModelLoadError as cause:
            raise AssetError(str(cause)) from cause

    def write(self, path: str | PathLike[str]) -> None:
        """Write the asset to a file.

        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "policy.crvo")
        >>> data = memojax.policies.bundled("acrobot_ppo").read_bytes()
        >>> memojax.AssetData(memojax.AssetKind.ONNX, data).write(path)
        >>> memojax.load(path).input_shapes()
        [('obs', [6])]
        """
        Path(path).write_bytes(self.serialize())


@contextlib.contextmanager
def naming(asset: Asset) -> Iterator[None]:
    """Put the asset's file name before the messages of `AssetError`s raised inside."""
    try:
        yield
    except AssetError as cause:
        if not asset.name:
            raise
        raise AssetError(f"{asset.name}: {cause}") from cause


def is_asset(raw: bytes) -> bool:
    """Whether `raw` begins as a CRVO asset does."""
    return raw[:4] == MAGIC


def onnx_bytes(raw: bytes, name: str) -> bytes:
    """The ONNX file in a CRVO asset; other bytes are returned unchanged.

    Raises:
        AssetError: the asset cannot be read, or holds another kind of policy.
    """
    if not is_asset(raw):
        return raw
    asset = Asset.deserialize(raw, name)
    if asset.kind is not AssetKind.ONNX:
        raise AssetError(f"{name}: this CRVO asset holds {asset.kind}: {_INSTEAD[asset.kind]}")
    return asset.data


_INSTEAD = {
    AssetKind.NNEF: "memojax reads ONNX; package the ONNX file from which the NNEF was converted "
    "(`memojax package model.onnx`)",
    AssetKind.STABLEHLO: "it has no ONNX graph; use memojax.load or an inferer, which take it from a path, "
    "bytes or a seekable file, and pass their result to memojax.to_jax",
}
