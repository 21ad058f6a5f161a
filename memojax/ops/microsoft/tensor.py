"""Older forms of operators that have since become part of ONNX."""

from __future__ import annotations

import numpy as np

from ..._types import GraphValue
from .._common import nx, scalar
from ..generator import range_
from ..registry import op, unsupported
from ..tensor.index import gather_nd, trilu
from ..tensor.resize import grid_sample, pad
from ._common import MICROSOFT

op("GatherND", domain=MICROSOFT)(gather_nd)
op("Trilu", domain=MICROSOFT)(trilu)


@op("GridSample", domain=MICROSOFT)
def grid_sample_bilinear(
    X: GraphValue,
    Grid: GraphValue,
    *,
    align_corners: int = 0,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
) -> GraphValue:
    """The input, interpolated at the positions in `Grid`."""
    return grid_sample(X, Grid, align_corners=align_corners, mode=mode, padding_mode=padding_mode)


@op("Pad", domain=MICROSOFT, static=("pads",))
def pad_all_axes(
    data: GraphValue, pads: GraphValue, value: GraphValue = None, *, mode: str = "constant"
) -> GraphValue:
    """Pad all axes; a negative pad crops."""
    return pad(data, np.ravel(pads), value, mode=mode)


@op("ExpandDims", domain=MICROSOFT, static=("axis",))
def expand_dims(X: GraphValue, axis: GraphValue) -> GraphValue:
    """Insert a dimension of size 1 at `axis` of the result."""
    return nx.expand_dims(X, int(scalar(axis)))


@op("Range", domain=MICROSOFT, static=("start", "limit", "delta"))
def range_by_one(start: GraphValue, limit: GraphValue, delta: GraphValue = None) -> GraphValue:
    """Numbers from `start` to before `limit`, by default in steps of 1."""
    return range_(start, limit, np.ones((), start.dtype) if delta is None else delta)


for _op_type in (
    "AveragePool",
    "Conv",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "MaxPool",
    "ReorderInput",
    "ReorderOutput",
    "Upsample",
):
    unsupported(
        _op_type,
        "the file was optimized for the blocked layout of one machine: save it with ORT_ENABLE_EXTENDED, not "
        "ORT_ENABLE_ALL",
        domain="com.microsoft.nchwc",
    )
