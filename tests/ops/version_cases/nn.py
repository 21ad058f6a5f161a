"""Convolution, pooling, normalization, attention: old versions and options that ONNX's cases leave out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.ops.version_cases import Case

f16, f32, f64 = np.float16, np.float32, np.float64


def normal(*shape: int, dtype: Any = f32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def positive(*shape: int, dtype: Any = f32) -> np.ndarray:
    return np.abs(normal(*shape, dtype=dtype)) + dtype(0.1)


def integers(low: int, high: int, *shape: int, dtype: Any) -> np.ndarray:
    return np.random.default_rng(1).integers(low, high, shape).astype(dtype)


def conv(
    opset: int,
    x: tuple[int, ...],
    w: tuple[int, ...],
    bias: bool = True,
    op_type: str = "Conv",
    **attributes: Any,
) -> Case:
    outputs = w[1] * attributes.get("group", 1) if op_type == "ConvTranspose" else w[0]
    return Case(
        op_type,
        opset,
        (normal(*x), normal(*w, seed=1), normal(outputs, seed=2) if bias else None),
        attributes,
    )


def pool(
    op_type: str, opset: int, *spatial: int, n_outputs: int = 1, dtype: Any = f32, **attributes: Any
) -> Case:
    return Case(op_type, opset, (normal(2, 3, *spatial, dtype=dtype),), attributes, n_outputs=n_outputs)


def batch_norm(opset: int, *shape: int, n_outputs: int = 1, dtype: Any = f32, **attributes: Any) -> Case:
    per = shape[1:] if attributes.get("spatial") == 0 else shape[1:2]
    inputs = (
        normal(*shape, dtype=dtype),
        *(normal(*per, dtype=dtype, seed=s) for s in (1, 2, 3)),
        positive(*per, dtype=dtype),
    )
    return Case("BatchNormalization", opset, inputs, attributes, n_outputs=n_outputs)


CONVOLUTIONS = [
    conv(7, (2, 3, 7), (4, 3, 3), strides=[2], pads=[1, 0]),
    conv(7, (1, 2, 5, 6, 4), (3, 2, 2, 3, 2), dilations=[1, 2, 1], pads=[0, 1, 1, 1, 0, 0]),
    conv(7, (1, 4, 9, 8), (6, 2, 3, 3), group=2, dilations=[2, 2], bias=False),
    conv(11, (2, 4, 7, 7), (8, 1, 3, 3), group=4, pads=[1, 1, 1, 1], strides=[2, 2]),
    conv(11, (2, 4, 7, 7), (4, 1, 3, 2), group=4, pads=[1, 1, 0, 1], strides=[2, 1], dilations=[1, 2]),
    conv(11, (1, 4, 9), (4, 1, 4), group=4, auto_pad="SAME_LOWER", strides=[2], bias=False),
    *(
        conv(11, (1, 2, 7, 8), (3, 2, 4, 3), auto_pad=auto, strides=[2, 3])
        for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    conv(22, (1, 2, 7, 8), (3, 2, 3, 3), auto_pad="NOTSET", pads=[1, 2, 0, 3]),
]

TRANSPOSED = [
    conv(7, (2, 3, 7), (3, 4, 3), op_type="ConvTranspose", strides=[2], pads=[1, 0]),
    conv(
        11,
        (1, 4, 5, 4),
        (4, 3, 3, 2),
        op_type="ConvTranspose",
        group=2,
        strides=[2, 3],
        dilations=[2, 1],
        output_padding=[1, 2],
    ),
    conv(
        11,
        (1, 2, 3, 4, 3),
        (2, 2, 2, 3, 2),
        op_type="ConvTranspose",
        strides=[2, 1, 2],
        pads=[0, 1, 0, 1, 0, 1],
    ),
    *(
        conv(opset, (1, 2, 4, 5), (2, 3, 3, 4), op_type="ConvTranspose", strides=[2, 3], auto_pad=auto)
        for opset in (11, 22)
        for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    *(
        conv(
            11,
            (1, 2, 4, 5),
            (2, 3, 3, 4),
            op_type="ConvTranspose",
            strides=[2, 3],
            auto_pad=auto,
            output_shape=[8, 14],
        )
        for auto in ("NOTSET", "SAME_UPPER", "SAME_LOWER")
    ),
    conv(11, (1, 2, 4, 5), (2, 3, 3, 3), op_type="ConvTranspose", strides=[3, 3], output_shape=[13, 17]),
]


def bytes_(*shape: int) -> np.ndarray:
    return integers(0, 256, *shape, dtype=np.uint8)


def byte(value: int) -> np.ndarray:
    return np.array(value, np.uint8)


def qlinear_conv(w_scale: np.ndarray, bias: np.ndarray | None) -> Case:
    # Small weights: ONNX Runtime's sum of products of uint8 and int8 saturates in int16 on machines without
    # VNNI.
    x, w = bytes_(1, 2, 5, 5), integers(-60, 60, 3, 2, 3, 3, dtype=np.int8)
    weights = (w, w_scale, np.zeros(w_scale.shape, np.int8))
    inputs = (x, np.array(0.02, f32), byte(120), *weights, np.array(0.05, f32), byte(100), bias)
    return Case("QLinearConv", 10, inputs, {"pads": [1, 1, 1, 1]})


QUANTIZED = [
    Case(
        "ConvInteger",
        10,
        (bytes_(1, 2, 5, 5), bytes_(3, 2, 3, 3), byte(7), byte(130)),
        {"pads": [1, 1, 1, 1]},
    ),
    Case("ConvInteger", 10, (bytes_(1, 40, 4, 4), bytes_(2, 40, 3, 3), byte(9))),
    Case(
        "ConvInteger",
        10,
        (bytes_(1, 4, 5, 5), bytes_(4, 2, 3, 3)),
        {"group": 2, "auto_pad": "SAME_LOWER", "strides": [2, 2]},
    ),
    qlinear_conv(np.array(0.01, f32), None),
    qlinear_conv(np.array([0.01, 0.02, 0.005], f32), integers(-500, 500, 3, dtype=np.int32)),
]

POOLS = [
    *(
        pool("AveragePool", opset, 7, 8, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1])
        for opset in (7, 10, 11, 19, 22)
    ),
    *(
        pool("AveragePool", opset, 7, 8, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
        for opset in (7, 11, 22)
    ),
    *(
        pool(
            "AveragePool",
            opset,
            7,
            8,
            kernel_shape=[3, 3],
            strides=[2, 3],
            pads=[1, 0, 0, 1],
            ceil_mode=1,
            count_include_pad=count,
        )
        for opset in (10, 11, 19)
        for count in (0, 1)
    ),
    *(
        pool("AveragePool", 11, 7, 8, kernel_shape=[3, 4], strides=[2, 3], auto_pad=auto)
        for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    pool("AveragePool", 11, 7, 8, kernel_shape=[2, 3], strides=[2, 3], auto_pad="VALID", ceil_mode=1),
    pool(
        "AveragePool", 19, 7, 8, kernel_shape=[2, 3], dilations=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    pool("AveragePool", 19, 7, 8, kernel_shape=[2, 3], dilations=[2, 2], pads=[1, 1, 1, 1]),
    pool("AveragePool", 7, 9, kernel_shape=[4], strides=[3]),
    pool("AveragePool", 11, 4, 5, 6, kernel_shape=[2, 3, 2], strides=[2, 2, 2], ceil_mode=1),
    *(
        pool("MaxPool", opset, 7, 8, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1])
        for opset in (7, 8, 10, 11, 12, 22)
    ),
    *(
        pool(
            "MaxPool",
            opset,
            7,
            8,
            kernel_shape=[3, 2],
            strides=[2, 2],
            pads=[1, 0, 1, 1],
            storage_order=order,
            n_outputs=2,
        )
        for opset in (8, 10, 11, 12)
        for order in (0, 1)
    ),
    pool("MaxPool", 11, 4, 5, 6, kernel_shape=[2, 3, 2], strides=[1, 2, 2], dilations=[2, 1, 1], n_outputs=2),
    pool("MaxPool", 11, 4, 5, 6, kernel_shape=[2, 3, 2], storage_order=1, n_outputs=2),
    pool("MaxPool", 10, 9, kernel_shape=[4], strides=[3], ceil_mode=1, n_outputs=2),
    pool(
        "MaxPool",
        10,
        7,
        8,
        kernel_shape=[2, 3],
        strides=[3, 3],
        pads=[1, 1, 1, 1],
        ceil_mode=1,
        dilations=[2, 1],
    ),
    pool("MaxPool", 11, 7, 8, kernel_shape=[3, 4], strides=[2, 3], auto_pad="SAME_LOWER", n_outputs=2),
    pool("MaxPool", 11, 7, 8, kernel_shape=[2, 3], strides=[2, 3], auto_pad="VALID", ceil_mode=1),
    pool("MaxPool", 11, 7, 8, kernel_shape=[2, 2], dtype=f64, n_outputs=2),
    Case(
        "MaxPool",
        12,
        (integers(-128, 128, 1, 2, 6, 6, dtype=np.int8),),
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    ),
    Case(
        "MaxPool",
        12,
        (integers(0, 256, 1, 2, 6, 6, dtype=np.uint8),),
        {"kernel_shape": [2, 2], "strides": [2, 2]},
    ),
    *(
        pool("LpPool", opset, 7, 8, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1], p=p)
        for opset in (7, 11, 18, 22)
        for p in (1, 2, 3)
    ),
    pool("LpPool", 11, 7, 8, kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
    pool("LpPool", 18, 7, 8, kernel_shape=[3, 2], dilations=[2, 2]),
    pool("LpPool", 18, 9, kernel_shape=[4], strides=[3], ceil_mode=1),
    *(pool(op_type, opset, 5, 6) for op_type in ("GlobalAveragePool", "GlobalMaxPool") for opset in (7, 22)),
    pool("GlobalLpPool", 7, 5, 6),
    Case(
        "GlobalLpPool",
        22,
        (normal(2, 3, 5, 6),),
        expected=(np.linalg.norm(normal(2, 3, 30), axis=2)[..., None, None],),
    ),
    *(pool("GlobalLpPool", 7, 5, p=p) for p in (1, 3)),
    pool("GlobalAveragePool", 7, 4),
    pool("GlobalMaxPool", 7, 2, 3, 4),
]

FOUND = np.array([[[[0, 3], [9, 11]], [[21, 18], [24, 31]]]], np.int64)
UNPOOLED = [
    Case("MaxUnpool", opset, (normal(1, 2, 2, 2), FOUND), {"kernel_shape": [2, 2], "strides": [2, 2]})
    for opset in (9, 11, 22)
]

REGIONS = np.array(
    [[0, 0, 0, 8, 7], [1, 3, 2, 12, 13], [0, 4, 4, 4, 4], [1, 7, 6, 2, 1], [1, 20, 20, 24, 24]], f32
)


def max_roi_pool(x: np.ndarray, rois: np.ndarray, rows: int, columns: int) -> np.ndarray:
    y = np.zeros((len(rois), x.shape[1], rows, columns), f32)
    for n, (image, left, top, right, bottom) in enumerate(rois.astype(int)):
        height, width = max(bottom - top + 1, 1) / rows, max(right - left + 1, 1) / columns
        for i, j in np.ndindex(rows, columns):
            vertical = slice(top + int(np.floor(i * height)), top + int(np.ceil((i + 1) * height)))
            horizontal = slice(left + int(np.floor(j * width)), left + int(np.ceil((j + 1) * width)))
            bin = x[image, :, vertical, horizontal].reshape(x.shape[1], -1)
            y[n, :, i, j] = bin.max(1) if bin.size else 0
    return y


REGION_POOLS = [
    *(
        Case("MaxRoiPool", 7, (normal(2, 3, 8, 9), REGIONS), {"pooled_shape": [2, 3], "spatial_scale": scale})
        for scale in (1.0, 0.55)
    ),
    Case(
        "MaxRoiPool",
        22,
        (normal(2, 3, 8, 9), REGIONS),
        {"pooled_shape": [2, 3]},
        expected=(max_roi_pool(normal(2, 3, 8, 9), REGIONS, 2, 3),),
    ),
]


def batch_norm_training(opset: int) -> Case:
    """Five outputs: normalized by the batch's statistics, moving averages, and the batch's statistics."""
    case = batch_norm(opset, 2, 3, 4, n_outputs=5, momentum=0.7)
    x, scale, b, mean, var = (value.astype(f64) for value in case.inputs if value is not None)
    own_mean, own_var = x.mean((0, 2)), x.var((0, 2))
    y = (x - own_mean[:, None]) / np.sqrt(own_var + 1e-5)[:, None] * scale[:, None] + b[:, None]
    outputs = y, mean * 0.7 + own_mean * 0.3, var * 0.7 + own_var * 0.3, own_mean, own_var
    return replace(case, expected=tuple(value.astype(f32) for value in outputs))


NORMALISATIONS = [
    *(batch_norm(opset, 2, 3, 4, 5) for opset in (7, 9, 14, 15)),
    batch_norm(7, 2, 3, 4, spatial=0),
    *map(batch_norm_training, (7, 9)),
    batch_norm(7, 4, 3, epsilon=1e-2),
    batch_norm(9, 4, 3, dtype=f64),
    *(batch_norm(opset, 2, 3, 4, 5, n_outputs=3, training_mode=1, momentum=0.7) for opset in (14, 15)),
    *(
        Case(
            "InstanceNormalization",
            opset,
            (normal(2, 3, 4, 5), normal(3, seed=1), normal(3, seed=2)),
            {"epsilon": 1e-2},
        )
        for opset in (7, 22)
    ),
    Case("InstanceNormalization", 7, (normal(2, 3, 4), normal(3, seed=1), normal(3, seed=2))),
    Case(
        "GroupNormalization",
        18,
        (normal(2, 6, 4, 5), normal(3, seed=1), normal(3, seed=2)),
        {"num_groups": 3},
    ),
    Case(
        "GroupNormalization",
        21,
        (normal(2, 6, 4, 5), normal(6, seed=1), normal(6, seed=2)),
        {"num_groups": 3, "epsilon": 1e-2},
    ),
    *(
        Case(
            "LayerNormalization",
            17,
            (normal(2, 3, 4), normal(*shape, seed=1), normal(*shape, seed=2)),
            {"axis": axis},
            n_outputs=outputs,
        )
        for axis, shape, outputs in ((-1, (4,), 1), (1, (3, 4), 3), (-2, (3, 4), 3))
    ),
    Case("LayerNormalization", 17, (normal(2, 3, 4), normal(4, seed=1)), {"epsilon": 1e-2}),
    Case("LayerNormalization", 17, (normal(2, 3, 4, dtype=f64), normal(4, dtype=f64, seed=1))),
    Case("LayerNormalization", 17, (normal(2, 3, 4, dtype=f16), normal(4, dtype=f16, seed=1))),
    Case("RMSNormalization", 23, (normal(2, 3, 4), normal(3, 4)), {"axis": 1}),
    *(
        Case("LRN", opset, (normal(2, 7, 3, 4),), {"size": size, "alpha": 0.01, "bias": 2.0})
        for opset in (7, 13)
        for size in (1, 3, 5)
    ),
    *(
        Case("LpNormalization", opset, (normal(2, 3, 4),), {"axis": axis, "p": p})
        for opset in (7, 22)
        for axis, p in ((-1, 2), (0, 1), (1, 2))
    ),
    Case("LpNormalization", 7, (np.zeros((2, 3), f32),)),
    Case("MeanVarianceNormalization", 9, (normal(2, 3, 4, 5),)),
    Case("MeanVarianceNormalization", 13, (normal(2, 3, 4, 5),), {"axes": [0, 2]}),
]

OTHERS = [
    *(
        Case("Flatten", opset, (normal(2, 3, 4, 5),), {"axis": axis})
        for opset in (7, 9, 11, 13, 21, 23, 24, 25)
        for axis in (0, 1, 3, 4)
    ),
    *(Case("Flatten", opset, (normal(2, 3, 4),), {"axis": -1}) for opset in (11, 13, 21)),
    Case("Flatten", 9, (integers(-5, 5, 2, 3, 4, dtype=np.int64),)),
    *(Case("Dropout", opset, (normal(3, 4),), {"ratio": 0.3}) for opset in (7, 10)),
    Case("Dropout", 10, (normal(3, 4),), n_outputs=2),
    *(Case("Dropout", opset, (normal(3, 4), np.array(0.3, f32)), n_outputs=2) for opset in (12, 13, 22)),
    *(
        Case("Dropout", opset, (normal(3, 4), np.array(0.0, f32), np.array(True)), {"seed": 3}, n_outputs=2)
        for opset in (12, 13)
    ),
    Case("Dropout", 13, (normal(3, 4), np.array(0.3, f32), np.array(False))),
    Case("Shrink", 9, (normal(3, 4),), {"lambd": 0.3, "bias": 0.2}),
    *(
        Case(
            "TfIdfVectorizer",
            9,
            (x,),
            {
                "mode": mode,
                "min_gram_length": low,
                "max_gram_length": high,
                "max_skip_count": skips,
                "ngram_counts": [0, 2],
                "ngram_indexes": [3, 0, 2, 1, 4],
                "pool_int64s": [2, 3, 2, 3, 3, 4, 4, 4],
                "weights": [0.5, 2.0, 3.0, 4.0, 5.0],
            },
        )
        for x in (integers(2, 5, 3, 8, dtype=np.int32), integers(2, 5, 9, dtype=np.int64))
        for mode in ("TF", "IDF", "TFIDF")
        for low, high, skips in ((1, 2, 0), (2, 2, 3), (1, 1, 2))
    ),
]

DEFORMED = [
    Case(
        "DeformConv",
        opset,
        (
            normal(2, 4, 6, 7),
            normal(6, 2, 3, 2, seed=1),
            normal(2, 24, 3, 4, seed=2),
            normal(6, seed=3),
            mask,
        ),
        {"group": 2, "offset_group": 2, "pads": [1, 0, 0, 1], "strides": [2, 2]},
    )
    for opset in (19, 22)
    for mask in (None, normal(2, 12, 3, 4, seed=4))
]

COLUMNS = [
    Case(
        "Col2Im",
        18,
        (normal(2, 12, 9), np.array([6, 5]), np.array([3, 2])),
        {"pads": [1, 0, 0, 1], "strides": [2, 1], "dilations": [1, 3]},
    )
]


def attention(
    opset: int,
    heads: tuple[int, int],
    lengths: tuple[int, int],
    past: int = 0,
    mask: np.ndarray | None = None,
    flat: bool = False,
    **attributes: Any,
) -> Case:
    (h, g), (queries, keys), batch, size = heads, lengths, 2, 4
    shapes = [(batch, h, queries, size), (batch, g, keys, size), (batch, g, keys, size)]
    inputs = [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    if flat:
        inputs = [np.swapaxes(x, 1, 2).reshape(batch, x.shape[2], -1) for x in inputs]
        attributes.update(q_num_heads=h, kv_num_heads=g)
    caches = [normal(batch, g, past, size, seed=seed) for seed in (5, 6)] if past else [None, None]
    return Case("Attention", opset, (*inputs, mask, *caches), attributes, n_outputs=3 if past else 1)


ATTENTIONS = [
    *(attention(opset, (4, 2), (3, 5), flat=flat) for opset in (23, 24) for flat in (False, True)),
    attention(23, (4, 4), (3, 5), past=2, flat=True),
    attention(23, (4, 4), (3, 3), is_causal=1, softcap=2.0),
    attention(23, (4, 1), (3, 5), mask=normal(3, 5)),
    attention(23, (4, 4), (3, 5), mask=np.tril(np.ones((3, 5), bool)), scale=0.3),
]

CASES: list[Case] = [
    *CONVOLUTIONS,
    *TRANSPOSED,
    *QUANTIZED,
    *POOLS,
    *UNPOOLED,
    *REGION_POOLS,
    *NORMALISATIONS,
    *OTHERS,
    *DEFORMED,
    *COLUMNS,
    *ATTENTIONS,
]
