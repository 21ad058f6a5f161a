"""Export a policy: its function as a StableHLO program, its weights and its `ModelApi`, in one CRVO asset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jaxlib.version
import numpy as np
from jax import export

from .._types import Source
from ..errors import AssetError, DimensionError, InputError
from ..inferer.asset import AssetData
from ..lowering.exported.header import FORMAT, MAGIC, PREFIX
from ..lowering.exported.load import ExportedFunction, only_size
from ..lowering.host_rows import HostRows
from ..lowering.loading import typed_model
from ..lowering.typed_model import TypedModel
from ..model.crvo import AssetKind
from ..model.signature import TensorSpec
from ..xla.fork import check_not_forked
from ..xla.settings import own_settings

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def to_stablehlo(
    source: Source | TypedModel,
    *,
    batch_size: int | None = None,
    platforms: Sequence[str] | None = None,
    precision: str | None = "highest",
    **options: Any,
) -> AssetData:
    """Export a policy with its weights, so loading it needs neither the ONNX file nor its operators.

    `memojax.load` and every inferer take the result, and return the same answers as for the file, with one
    exception: a random model that needs its batch size as a number may draw other numbers of the same
    distribution.

    >>> asset = memojax.to_stablehlo(memojax.policies.bundled("acrobot_ppo"))
    >>> asset.kind
    <AssetKind.STABLEHLO: 74>
    >>> memojax.load(asset.serialize()).infer_single({"obs": np.zeros(6)})["logits"].shape
    (3,)

    Args:
        source: as for `memojax.load`, or a `TypedModel`.
        batch_size: the only batch size that the program runs; None: any, and each size compiles on demand.
        platforms: JAX's names of the platforms to export for; None: all of `PLATFORMS`, or the platforms of
            the asset `source`.
        precision: precision of matrix products on accelerators (JAX's names); it is fixed in the asset.
        options: loading options, see `TypedModel.from_model`.

    Raises:
        InputError: `platforms` names an unknown platform.
        AssetError: `source` is an asset that was exported for other platforms.
        DimensionError: the model cannot be exported for this batch size, or for any; the message says why,
            and what is possible.
        ModelLoadError, UnsupportedOpError: `source` cannot be loaded, see `memojax.load`.
    """
    check_not_forked()

    typed = typed_model(source, **options)
    if batch_size is not None and batch_size < 1:
        raise DimensionError(f"batch_size is {batch_size}, expected at least 1, or None for any size")
    if isinstance(typed.fn, HostRows):
        raise DimensionError(
            f"{typed.name}: its graph breaks at {', '.join(typed.fn.breaks)}, which run on the host, and an "
            "exported program has no host: use outputs= to keep only outputs that do not need them"
        )
    _check_closed(typed)
    batch_size = typed.only_rows if batch_size is None else batch_size
    chosen = _platforms(typed, platforms)
    if (only := only_size(typed)) not in (None, batch_size):
        raise DimensionError(
            f"this model runs {only} rows only: give batch_size={only}, or export the original ONNX file "
            "again"
        )
    names, leaves = _named_leaves(typed.params)
    exported, fn = _exported(typed, batch_size, chosen, precision)
    mixing = () if fn == "rows" else typed.mixing_outputs()
    typed.check_evidence(mixing)
    constants = [TensorSpec(name, value.shape, value.dtype) for name, value in typed.constant.items()]
    sections = [
        bytes(exported.serialize()),
        *map(_bytes_of, leaves),
        *(_bytes_of(typed.constant[spec.name]) for spec in constants),
    ]
    header = {
        **_about(typed, exported),
        "batch_size": batch_size,
        "params": _described(
            TensorSpec(name, np.shape(leaf), leaf.dtype) for name, leaf in zip(names, leaves, strict=True)
        ),
        "constants": _described(constants),
        "independent": not mixing,
        "program_bytes": len(sections[0]),
        "sha256": _digest(sections),
    }
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return AssetData(AssetKind.STABLEHLO, b"".join([PREFIX.pack(MAGIC, len(text)), text, *sections]))


def _digest(sections: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for section in sections:
        digest.update(section)
    return digest.hexdigest()


def _about(typed: TypedModel, exported: export.Exported) -> dict[str, Any]:
    """The part of an asset's header that says what the program is, and what wrote it."""
    from .. import __version__

    return {
        "format": FORMAT,
        "written_by": {
            "memojax": __version__,
            "jax": jax.__version__,
            "jaxlib": jaxlib.version.__version__,
        },
        "calling_convention": exported.calling_convention_version,
        "platforms": list(exported.platforms),
        "inputs": _described(typed.api.inputs),
        "outputs": _described(typed.api.outputs),
        "computed": list(typed.computed),
        "random": typed.random,
        "rule": typed.rule,
        "name": typed.name,
        "metadata": dict(typed.metadata),
    }


def _check_closed(typed: TypedModel) -> None:
    """Check that every dimension but the batch has a known size.

    Raises:
        DimensionError: there is a free dimension, a static input, or an element shape that depends on the
            batch size.
    """
    if typed.is_open:
        names = [*typed.api.free, *(spec.name for spec in typed.api.inputs if spec.static)]
        raise DimensionError(
            "an exported policy has one size for each dimension but the batch: set "
            f"{', '.join(map(repr, names))} with dims= or constants="
        )
    if odd := [spec.name for spec in typed.api.outputs if not spec.is_fixed]:
        raise DimensionError(
            f"output {odd[0]!r} has elements whose shape depends on the batch size, which cannot be "
            "exported: keep only the other outputs with outputs=[...]"
        )


def _platforms(typed: TypedModel, wanted: Sequence[str] | None) -> tuple[str, ...]:
    if wanted is not None and (not wanted or isinstance(wanted, str) or not set(wanted) <= set(PLATFORMS)):
        raise InputError(
            f"platforms= takes a list of {', '.join(map(repr, PLATFORMS))} (or None for all), not {wanted!r}"
        )
    if not isinstance(typed.fn, ExportedFunction):
        return PLATFORMS if wanted is None else tuple(wanted)
    there = typed.fn.header.platforms
    if missing := [name for name in wanted or () if name not in there]:
        raise AssetError(
            f"this asset was exported for {', '.join(there)}, not for {', '.join(missing)}: export its ONNX "
            "file again"
        )
    return there if wanted is None else tuple(wanted)


def _exported(
    typed: TypedModel, batch_size: int | None, platforms: tuple[str, ...], precision: str | None
) -> tuple[export.Exported, str]:
    """The exported function, and how it was traced: the whole "batch", or one row, mapped over all "rows"."""
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
        rows = [jax.ShapeDtypeStruct(spec.rows(n), spec.dtype) for spec in typed.api.inputs]
        with own_settings(precision or "default"):
            return export.export(jax.jit(fn), platforms=platforms)(leaves, rows, *key)

    if batch_size is not None:
        return run(whole, batch_size), "batch"
    (n,) = export.symbolic_shape("n")
    try:
        return run(whole, n), "batch"
    except Exception as cause:
        # An operator needs the batch size as a number, but the function of one row never does.
        if mixing := typed.mixing_outputs():
            raise DimensionError(
                "this model cannot be exported for any number of rows: an operator needs the batch size as a "
                f"number, and rows influence each other (output {', '.join(map(repr, mixing))}); export it "
                "for one size, such as batch_size=8 (the operator's error: "
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
    return [
        {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype.name}
        | ({"shared": True} if spec.shared else {})
        for spec in specs
    ]
