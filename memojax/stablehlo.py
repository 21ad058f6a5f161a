"""A policy without its ONNX file: a function exported by `jax.export`, its weights and its `ModelApi` in one CRVO asset.

The asset's payload is the magic `MJXA`, the length of a JSON header as a little-endian uint32, the header, and then, end to end, the
exported program, the weights and the constant outputs; the header says how long each is, and holds a SHA-256 of all that follows it.

jax.export promises that a program can be read for at least six months by newer versions of JAX, and three weeks by older ones; the
header names the versions that wrote it, for the message when that has passed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import jax
import jaxlib.version
import numpy as np
from jax import export

from ._types import Source
from .errors import AssetError, DimensionError, InputError
from .lowering.typed_model import TypedModel
from .model.crvo import HEADER_BYTES, AssetData, AssetKind, is_asset, naming
from .model.signature import TensorSpec
from .stablehlo_check import parse_failure
from .stablehlo_header import FORMAT, MAGIC, PREFIX, Header, arrays_of, header_and_body
from .xla.fork import check_not_forked

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_CUSTOM_CALLS = re.compile(
    r"(?:mhlo|chlo|stablehlo)\..*|Sharding|shape_assertion|cu_threefry2x32_ffi|hip_threefry2x32_ffi"
)
"""What a program may call by name; anything else (a Python callback by its address, say) is refused."""


def to_stablehlo(
    source: Source | TypedModel,
    *,
    batch_size: int | None = None,
    platforms: Sequence[str] | None = None,
    precision: str | None = "highest",
    **options: Any,
) -> AssetData:
    """Export a policy, weights included, so that it can be loaded without its ONNX file (and without any of its operators known).

    `memojax.load` and every inferer take the result, and give what they give for the file itself. Only where a model draws random
    numbers and its operators need a number for the batch size, are those numbers others (of the same distribution).

    >>> asset = memojax.to_stablehlo(memojax.policies.bundled("acrobot_ppo"))
    >>> asset.kind
    <AssetKind.STABLEHLO: 74>
    >>> memojax.load(asset.serialize()).infer_single({"obs": np.zeros(6)})["logits"].shape
    (3,)

    Args:
        source: as for `memojax.load`, or a `TypedModel`.
        batch_size: the only number of rows to run; None: any, compiled for each size as it is needed.
        platforms: where it is to run, as JAX calls them; None: all of `PLATFORMS`, or those that an asset runs on already.
        precision: of matrix products on accelerators (JAX's names); it cannot be chosen again when the asset is loaded.
        options: of loading, see `TypedModel.from_model`.

    Raises:
        InputError: `platforms` names none that there is.
        AssetError: `source` is an asset itself, for other platforms.
        DimensionError: no symbolic batch is possible; the message says why and what is.
        ModelLoadError, UnsupportedOpError: as for `memojax.load`.
    """
    check_not_forked()
    typed = typed_model(source, **options)
    if batch_size is not None and batch_size < 1:
        raise DimensionError(f"batch_size must be at least 1 (or None for any), got {batch_size}")
    chosen = _platforms(typed, platforms)
    if (only := only_size(typed)) not in (None, batch_size):
        raise DimensionError(
            f"this asset was exported for {only} rows only: give batch_size={only}, or export the ONNX file again"
        )
    names, leaves = _named_leaves(typed.params)
    exported, fn = _exported(typed, batch_size, chosen, precision)
    constants = [TensorSpec(name, value.shape, value.dtype) for name, value in typed.constant.items()]
    sections = [
        bytes(exported.serialize()),
        *map(_bytes_of, leaves),
        *(_bytes_of(typed.constant[spec.name]) for spec in constants),
    ]
    digest = hashlib.sha256()
    for section in sections:
        digest.update(section)
    header = {
        "format": FORMAT,
        "written_by": {"memojax": _version(), "jax": jax.__version__, "jaxlib": jaxlib.version.__version__},
        "calling_convention": exported.calling_convention_version,
        "platforms": list(exported.platforms),
        "batch_size": batch_size,
        "inputs": _described(typed.api.inputs),
        "outputs": _described(typed.api.outputs),
        "computed": list(typed.computed),
        "params": _described(
            TensorSpec(name, np.shape(leaf), leaf.dtype) for name, leaf in zip(names, leaves, strict=True)
        ),
        "constants": _described(constants),
        "random": typed.random,
        "independent": fn == "rows" or not typed.mixing_outputs(),
        "rule": typed.rule,
        "name": typed.name,
        "metadata": dict(typed.metadata),
        "program_bytes": len(sections[0]),
        "sha256": digest.hexdigest(),
    }
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return AssetData(AssetKind.STABLEHLO, b"".join([PREFIX.pack(MAGIC, len(text)), text, *sections]))


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


def only_size(typed: TypedModel) -> int | None:
    """The number of rows that a model was exported for, if it runs no other."""
    return typed.fn.header.batch_size if isinstance(typed.fn, ExportedFunction) else None


def find_stablehlo(source: Any) -> AssetData | None:
    """The asset, if `source` (path, bytes, seekable file or `AssetData`) is one of this kind by its content.

    Raises:
        AssetError: it is, but cannot be read.
    """
    if isinstance(source, AssetData):
        return source if source.kind is AssetKind.STABLEHLO else None
    start = _start_of(source)
    if len(start) < HEADER_BYTES or not is_asset(start) or start[HEADER_BYTES - 1] != AssetKind.STABLEHLO:
        return None
    return AssetData.read(source) if isinstance(source, (str, PathLike)) else AssetData.deserialize(source)


def read_header(asset: AssetData) -> Header:
    """What a StableHLO asset says about itself; the program is not looked at.

    Raises:
        AssetError: another kind of asset, or one that is damaged.
    """
    with naming(asset):
        return header_and_body(asset)[0]


def load_stablehlo(asset: AssetData, *, trusted: bool = False) -> TypedModel:
    """The model in a StableHLO asset.

    A program that is loaded for the first time is parsed in a child process before (about 0.3 s), because XLA's parser may crash on bytes
    made to hurt it; `trusted` leaves that out. It can only compute, but like any model it may take long or need much memory to run.

    >>> asset = memojax.to_stablehlo(memojax.policies.bundled("acrobot_ppo"))
    >>> memojax.load_stablehlo(asset).api.output_shapes()
    [('logits', [3])]

    Raises:
        AssetError: another kind of asset, a damaged one, one from a JAX too old or too new for this, or a program that wants more than
            to compute.
    """
    check_not_forked()
    with naming(asset):
        header, body = header_and_body(asset)
        _check_versions(header)
        digest = hashlib.sha256(body).hexdigest()
        if digest != header.sha256:
            raise AssetError(
                f"this asset is damaged: its content has SHA-256 {digest}, the header says {header.sha256}"
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
        name=header.name,
        metadata=header.metadata,
        fingerprint=hashlib.sha256(asset.data).hexdigest(),
    )


@dataclass(frozen=True)
class ExportedFunction:
    """The program of an asset as the function of a `TypedModel`."""

    asset: AssetData
    header: Header
    exported: export.Exported

    def __call__(self, params: Any, rows: Sequence[Any], key: Any) -> tuple[Any, ...]:
        """One array for each of `header.computed`.

        Raises:
            DimensionError: the program was exported for another number of rows.
        """
        count = rows[0].shape[0] if rows else 1
        if self.header.batch_size not in (None, count):
            raise DimensionError(
                f"this asset was exported for {self.header.batch_size} rows only, not for {count}: use FixedBatchInferer or "
                "DynamicInferer with that size, or export with batch_size=None"
            )
        leaves = [params[spec.name] for spec in self.header.params]
        return tuple(
            self.exported.call(
                leaves, list(rows), *([jax.random.key_data(key)] if self.header.random else [])
            )
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _revived, (self.asset,)


def _platforms(typed: TypedModel, wanted: Sequence[str] | None) -> tuple[str, ...]:
    if wanted is not None and (not wanted or isinstance(wanted, str) or not set(wanted) <= set(PLATFORMS)):
        raise InputError(
            f"platforms= takes a list of {', '.join(map(repr, PLATFORMS))} (or None for all), got {wanted!r}"
        )
    if not isinstance(typed.fn, ExportedFunction):
        return PLATFORMS if wanted is None else tuple(wanted)
    there = typed.fn.header.platforms
    if missing := [name for name in wanted or () if name not in there]:
        raise AssetError(
            f"this asset was exported for {', '.join(there)}, not for {', '.join(missing)}: export its ONNX file again"
        )
    return there if wanted is None else tuple(wanted)


def _revived(asset: AssetData) -> Any:
    return load_stablehlo(asset, trusted=True).fn


def _exported(
    typed: TypedModel, batch_size: int | None, platforms: tuple[str, ...], precision: str | None
) -> tuple[export.Exported, str]:
    """The exported function, and whether it is traced with the whole batch or as one row that is mapped over them."""
    structure = jax.tree.structure(typed.params)
    leaves = [jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) for leaf in jax.tree.leaves(typed.params)]
    key = [jax.ShapeDtypeStruct((2,), np.uint32)] if typed.random else []

    def whole(leaves: Any, rows: Any, *key: Any) -> tuple[Any, ...]:
        return tuple(typed.fn(jax.tree.unflatten(structure, leaves), rows, _key(key)))

    def by_row(leaves: Any, rows: Any, *key: Any) -> tuple[Any, ...]:
        params = jax.tree.unflatten(structure, leaves)

        def one(index: Any, *row: Any) -> tuple[Any, ...]:
            drawn = jax.random.fold_in(_key(key), index) if key else None
            return tuple(output[0] for output in typed.fn(params, [value[None] for value in row], drawn))

        return jax.vmap(one)(jax.numpy.arange(rows[0].shape[0]), *rows)

    def run(fn: Any, n: Any) -> export.Exported:
        rows = [jax.ShapeDtypeStruct((n, *spec.shape), spec.dtype) for spec in typed.api.inputs]
        with jax.enable_x64(True), jax.default_matmul_precision(precision or "default"):
            return export.export(jax.jit(fn), platforms=platforms)(leaves, rows, *key)

    if batch_size is not None:
        return run(whole, batch_size), "batch"
    (n,) = export.symbolic_shape("n")
    try:
        return run(whole, n), "batch"
    except Exception as cause:
        # An operator wants the batch size as a number; the function of one row does not have it.
        if mixing := typed.mixing_outputs():
            raise DimensionError(
                f"this model cannot be exported for any number of rows: an operator needs the batch size as a number, and rows influence "
                f"each other (output {', '.join(map(repr, mixing))}); export it for one size, batch_size=8 (the operator says: "
                f"{str(cause).splitlines()[0][:200]})"
            ) from cause
        return run(by_row, n), "rows"


def _key(key: Sequence[Any]) -> Any:
    return jax.random.wrap_key_data(key[0], impl="threefry2x32") if key else None


def _named_leaves(params: Any) -> tuple[list[str], list[Any]]:
    found = jax.tree_util.tree_flatten_with_path(params)[0]
    flat = isinstance(params, Mapping) and all(len(path) == 1 for path, _ in found)
    return [str(path[0].key) if flat else jax.tree_util.keystr(path) for path, _ in found], [
        leaf for _, leaf in found
    ]


def _bytes_of(array: Any) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _described(specs: Any) -> list[dict[str, Any]]:
    return [{"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype.name} for spec in specs]


def _version() -> str:
    from . import __version__

    return __version__


def _start_of(source: Any) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source[:HEADER_BYTES])
    if isinstance(source, (str, PathLike)):
        try:
            with open(source, "rb") as file:
                return file.read(HEADER_BYTES)
        except OSError:
            return b""  # whoever loads it says so
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
        f"this asset was written with JAX {wrote} (calling convention {header.calling_convention}); JAX {jax.__version__} reads {low} to "
        f"{high}: {way_out}"
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
            f"the program in this asset cannot be read by JAX {jax.__version__} ({failure}). It is damaged, or too old or new: it was "
            f"written by {wrote}. Export the policy again, or use such versions"
        )
    called = set(re.findall(r"custom_call\s+@\"?([\w.$-]+)", text)) | set(
        re.findall(r"call_target_name\s*=\s*\"([^\"]*)\"", text)
    )
    if strange := sorted(name for name in called if not _CUSTOM_CALLS.fullmatch(name)):
        raise AssetError(
            f"the program in this asset wants to call {', '.join(map(repr, strange))}, which is not computation: refused"
        )
    _check_signature(header, exported)
    return exported


def _check_signature(header: Header, exported: export.Exported) -> None:
    """Make sure that the program takes and gives what the header says."""
    named = {spec.name: spec for spec in header.api.outputs}
    key = [((2,), np.dtype(np.uint32))] if header.random else []
    takes = [(spec.shape, spec.dtype) for spec in header.params]
    takes += [((header.batch_size, *spec.shape), spec.dtype) for spec in header.api.inputs] + key
    gives = [((header.batch_size, *named[name].shape), named[name].dtype) for name in header.computed]
    for what, said, found in (("takes", takes, exported.in_avals), ("gives", gives, exported.out_avals)):
        real = [
            (tuple(None if export.is_symbolic_dim(dim) else dim for dim in aval.shape), np.dtype(aval.dtype))
            for aval in found
        ]
        if real != said:
            raise AssetError(
                f"the program in this asset does not fit its header: it {what} {real}, the header says {said}"[
                    :600
                ]
            )
