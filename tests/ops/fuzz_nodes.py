"""Random nodes, one function for each kind."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st
from onnx import helper

from .fuzz_graphs import BOOL, F32, F64, FLOATS, I32, I64, INTS, LIMIT, Builder


def unary(b: Builder) -> None:
    x = b.term(FLOATS)
    jumps = {"Floor": x.bound + 1, "Ceil": x.bound + 1, "Round": x.bound + 1, "Sign": 1}
    exact = {"Neg": x.bound, "Abs": x.bound, "Relu": x.bound, "Identity": x.bound}
    smooth = {"Tanh": 1, "Sigmoid": 1, "Sin": 1, "Cos": 1}
    narrow = {
        "Atan": 2,
        "Erf": 1,
        "Softplus": x.bound + 1,
        "Softsign": 1,
        "Elu": x.bound,
        "LeakyRelu": x.bound,
        "HardSigmoid": 1,
        "Selu": 2 * x.bound,
    }
    smooth |= {"Exp": math.exp(x.bound)} if x.bound <= 4 else {}
    name = b.pick([*exact, *smooth, *(jumps if x.exact else ()), *(narrow if x.dtype == F32 else ())])
    bound = (jumps | exact | smooth | narrow)[name]
    b.add(
        name,
        x,
        shapes=[x.shape],
        bound=bound,
        step=x.step if name in exact else 1.0 if name in jumps else 0.0,
    )


def root(b: Builder) -> None:
    x = b.term(FLOATS)
    one = b.constant(1, x.dtype)
    (positive,) = b.add("Abs", x, shapes=[x.shape], bound=x.bound, step=x.step)
    (positive,) = b.add("Add", positive, one, shapes=[x.shape], bound=x.bound + 1, step=min(x.step, 1.0))
    b.add(b.pick(["Sqrt", "Log", "Reciprocal"]), positive, shapes=[x.shape], bound=x.bound + 1)


def arithmetic(b: Builder) -> None:
    x = b.term((*FLOATS, *INTS))
    y = b.like(x)
    name = b.pick(["Add", "Sub", "Mul", *(["Max", "Min"] if b.opset >= 12 or x.dtype in FLOATS else [])])
    bound = x.bound * y.bound if name == "Mul" else x.bound + y.bound
    if bound <= LIMIT[x.dtype]:
        step = x.step * y.step if name == "Mul" else min(x.step, y.step)
        b.add(name, x, y, shapes=[np.broadcast_shapes(x.shape, y.shape)], bound=bound, step=step)


def division(b: Builder) -> None:
    x = b.term((*FLOATS, *INTS))
    y = b.like(x, nonzero=True)
    name = b.pick(["Div", *(["Mod"] if x.exact and b.opset >= 13 else [])])
    attributes = {"fmod": 1} if name == "Mod" and (x.dtype in FLOATS or b.number(0, 1)) else {}
    bound, step = (x.bound * 8, 0.0) if name == "Div" else (x.bound + y.bound, min(x.step, y.step))
    if bound <= LIMIT[x.dtype]:
        step = 1.0 if x.dtype in INTS else step
        b.add(
            name, x, y, shapes=[np.broadcast_shapes(x.shape, y.shape)], bound=bound, step=step, **attributes
        )


def power(b: Builder) -> None:
    x, exponent = b.term(FLOATS), b.number(0, 3)
    if max(x.bound, 1) ** exponent <= LIMIT[x.dtype]:
        b.add("Pow", x, b.constant(exponent, x.dtype), shapes=[x.shape], bound=max(x.bound, 1) ** exponent)


def clip(b: Builder) -> None:
    x = b.term(FLOATS if b.opset > 11 else [F32])
    low, high = b.number(-8, 0) / 4, b.number(1, 8) / 4
    limits = [b.constant(low, x.dtype), b.constant(high, x.dtype)]
    limits = b.pick([limits, limits[:1], ["", limits[1]], []])
    b.add("Clip", x, *limits, shapes=[x.shape], bound=max(x.bound, 2), step=min(x.step, 0.25))


def comparison(b: Builder) -> None:
    x = b.term((*FLOATS, *INTS), accept=lambda term: term.exact)
    y = b.like(x)
    if y.exact:
        name = b.pick(
            ["Less", "Greater", "Equal", *(["LessOrEqual", "GreaterOrEqual"] if b.opset >= 13 else [])]
        )
        b.add(name, x, y, shapes=[np.broadcast_shapes(x.shape, y.shape)], bound=1, step=1.0, dtype=BOOL)


def logic(b: Builder) -> None:
    x = b.term([BOOL])
    if b.number(0, 2):
        y = b.like(x)
        b.add(
            b.pick(["And", "Or", "Xor"]),
            x,
            y,
            shapes=[np.broadcast_shapes(x.shape, y.shape)],
            bound=1,
            step=1.0,
        )
    else:
        b.add("Not", x, shapes=[x.shape], bound=1, step=1.0)


def where(b: Builder) -> None:
    x = b.term((*FLOATS, *INTS))
    y = b.like(x)
    shape = np.broadcast_shapes(x.shape, y.shape)
    condition = b.fresh(BOOL, shape[b.number(0, len(shape)) :])
    b.add(
        "Where",
        condition,
        x,
        y,
        shapes=[shape],
        bound=max(x.bound, y.bound),
        step=min(x.step, y.step),
        dtype=x.dtype,
    )


def cast(b: Builder) -> None:
    x = b.term()
    target = b.pick([*FLOATS, *(INTS if x.exact else ())])
    step = 1.0 if target in INTS else x.step
    b.add(
        "Cast",
        x,
        shapes=[x.shape],
        bound=x.bound,
        step=step,
        dtype=target,
        to=helper.np_dtype_to_tensor_dtype(target),
    )


def reshape(b: Builder) -> None:
    x = b.term()
    dims = []
    rest = math.prod(x.shape)
    while rest > 1 or (len(dims) < 3 and b.number(0, 1)):
        dims.append(b.pick([d for d in range(1, rest + 1) if rest % d == 0]) if len(dims) < 3 else rest)
        rest //= dims[-1]
    spelled = list(dims)
    if dims and b.number(0, 1):
        spelled[b.number(0, len(dims) - 1)] = -1
    for index, dim in enumerate(dims):
        if index < len(x.shape) and x.shape[index] == dim and b.number(0, 1):
            spelled[index] = 0
    b.add("Reshape", x, b.constant(spelled), shapes=[dims], bound=x.bound, step=x.step)


def computed_reshape(b: Builder) -> None:
    """Shape arithmetic as exporters write it: the shape of a value, taken apart and put together."""
    x = b.term(accept=lambda term: len(term.shape) > 1)
    if len(x.shape) < 2:
        return
    (shape,) = b.add("Shape", x, shapes=[(len(x.shape),)], bound=4, step=1.0, dtype=I64)
    (first,) = b.add("Gather", shape, b.constant([0]), shapes=[(1,)], bound=4, step=1.0, axis=0)
    (target,) = b.add("Concat", first, b.constant([-1]), shapes=[(2,)], bound=4, step=1.0, axis=0)
    b.add("Reshape", x, target, shapes=[(x.shape[0], math.prod(x.shape[1:]))], bound=x.bound, step=x.step)


def transpose(b: Builder) -> None:
    x = b.term()
    perm = b.draw(st.permutations(range(len(x.shape))))
    attributes = {"perm": perm} if perm else {}
    b.add("Transpose", x, shapes=[[x.shape[axis] for axis in perm]], bound=x.bound, step=x.step, **attributes)


def squeeze(b: Builder) -> None:
    x = b.term()
    ones = [axis for axis, dim in enumerate(x.shape) if dim == 1]
    if ones and b.number(0, 1):
        axes = [ones[index] for index in b.subset(len(ones))]
        shape = [dim for axis, dim in enumerate(x.shape) if axis not in axes]
        b.axes("Squeeze", x, axes=axes, input_since=13, shapes=[shape], bound=x.bound, step=x.step)
    elif len(x.shape) < 4:
        axis = b.number(0, len(x.shape))
        shape = [*x.shape[:axis], 1, *x.shape[axis:]]
        b.axes("Unsqueeze", x, axes=[axis], input_since=13, shapes=[shape], bound=x.bound, step=x.step)


def flatten(b: Builder) -> None:
    x = b.term()
    axis = b.number(0, len(x.shape))
    b.add(
        "Flatten",
        x,
        shapes=[(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))],
        bound=x.bound,
        step=x.step,
        axis=axis,
    )


def expand(b: Builder) -> None:
    x = b.term()
    shape = [b.number(1, 3) if dim == 1 else b.pick([dim, 1]) for dim in x.shape]
    shape = [b.number(1, 3), *shape] if len(shape) < 4 and b.number(0, 1) else shape
    b.add(
        "Expand",
        x,
        b.constant(shape),
        shapes=[np.broadcast_shapes(x.shape, tuple(shape))],
        bound=x.bound,
        step=x.step,
    )


def tile(b: Builder) -> None:
    x = b.term((*FLOATS, *INTS), accept=lambda term: math.prod(term.shape) < 500)
    repeats = [b.number(1, 2) for _ in x.shape]
    shape = [dim * count for dim, count in zip(x.shape, repeats, strict=True)]
    b.add("Tile", x, b.constant(repeats), shapes=[shape], bound=x.bound, step=x.step)


def concat(b: Builder) -> None:
    x = b.term(accept=lambda term: bool(term.shape))
    if x.shape:
        axis = b.axis(len(x.shape))
        shape = list(x.shape)
        shape[axis] = b.number(1, 3)
        y = b.fresh(x.dtype, tuple(shape))
        shape[axis] = 2 * x.shape[axis] + y.shape[axis]
        b.add(
            "Concat",
            x,
            y,
            x,
            shapes=[shape],
            bound=max(x.bound, y.bound),
            step=min(x.step, y.step),
            axis=axis,
        )


def split(b: Builder) -> None:
    x = b.term(accept=lambda term: any(dim > 1 for dim in term.shape))
    if any(dim > 1 for dim in x.shape):
        axis = b.pick([axis for axis, dim in enumerate(x.shape) if dim > 1])
        cut = b.number(1, x.shape[axis] - 1)
        sizes = [cut, x.shape[axis] - cut]
        shapes = [[*x.shape[:axis], size, *x.shape[axis + 1 :]] for size in sizes]
        if b.opset >= 13:
            b.add(
                "Split",
                x,
                b.constant(sizes),
                shapes=shapes,
                bound=x.bound,
                step=x.step,
                axis=axis - b.pick([0, len(x.shape)]),
            )
        else:
            b.add("Split", x, shapes=shapes, bound=x.bound, step=x.step, axis=axis, split=sizes)


def slices(b: Builder) -> None:
    x = b.term(accept=lambda term: bool(term.shape))
    if x.shape:
        axes = b.subset(len(x.shape))
        starts, ends, steps, shape = [], [], [], list(x.shape)
        for axis in axes:
            step = b.pick([1, 1, 2, -1, -2])
            start, end = (
                (b.number(-5, 3), b.pick([9, 2**63 - 1]))
                if step > 0
                else (b.number(0, 9), b.pick([-9, -(2**63)]))
            )
            shape[axis] = len(range(x.shape[axis])[start:end:step])
            starts.append(start)
            ends.append(end)
            steps.append(step)
        if all(shape):
            constants = [b.constant(values) for values in (starts, ends, axes, steps)]
            b.add("Slice", x, *constants, shapes=[shape], bound=x.bound, step=x.step)


def pad(b: Builder) -> None:
    x = b.term((*FLOATS, I64), accept=lambda term: bool(term.shape))
    mode = b.pick(["constant", "edge", "reflect"])
    most = [2 if mode != "reflect" else min(2, dim - 1) for dim in x.shape]
    pads = [b.number(0, count) for count in most * 2]
    if x.shape:
        shape = [dim + pads[axis] + pads[axis + len(x.shape)] for axis, dim in enumerate(x.shape)]
        value = [b.constant(b.number(-2, 2), x.dtype)] if mode == "constant" and b.number(0, 1) else []
        b.add(
            "Pad",
            x,
            b.constant(pads),
            *value,
            shapes=[shape],
            bound=max(x.bound, 2),
            step=min(x.step, 1.0),
            mode=mode,
        )


def gather(b: Builder) -> None:
    x = b.term(accept=lambda term: bool(term.shape) and len(term.shape) < 4)
    if x.shape and len(x.shape) < 4:
        axis = b.axis(len(x.shape))
        shape = tuple(b.draw(st.lists(st.integers(1, 3), max_size=1)))
        name = b.constant(b.rng.integers(-x.shape[axis], x.shape[axis], shape))
        if b.number(0, 1):
            b.inputs[name] = b.weights.pop(name)
        axis %= len(x.shape)
        b.add(
            "Gather",
            x,
            name,
            shapes=[(*x.shape[:axis], *shape, *x.shape[axis + 1 :])],
            bound=x.bound,
            step=x.step,
            axis=axis,
        )


def reduction(b: Builder) -> None:
    x = b.term((F32, F64, I32, I64), accept=lambda term: bool(term.shape))
    if not x.shape:
        return
    axes, keepdims = b.subset(len(x.shape)), b.number(0, 1)
    count = math.prod(x.shape[axis] for axis in axes)
    bounds = {"ReduceSum": x.bound * count, "ReduceMax": x.bound, "ReduceMin": x.bound}
    if x.dtype in FLOATS:
        bounds |= {"ReduceMean": x.bound, "ReduceL2": x.bound * count}
    if x.dtype == F32:
        bounds |= {
            "ReduceL1": x.bound * count,
            "ReduceSumSquare": x.bound**2 * count,
            "ReduceLogSumExp": x.bound + count,
        }
        bounds |= {"ReduceProd": max(x.bound, 1) ** count}
    name = b.pick(sorted(bounds))
    if bounds[name] <= LIMIT[x.dtype]:
        exact = {"ReduceSum": x.step, "ReduceMax": x.step, "ReduceMin": x.step, "ReduceL1": x.step}
        shape = [
            1 if axis in axes else dim for axis, dim in enumerate(x.shape) if axis not in axes or keepdims
        ]
        axes = [axis - b.pick([0, len(x.shape)]) for axis in axes]
        since = 13 if name == "ReduceSum" else 18
        b.axes(
            name,
            x,
            axes=axes,
            input_since=since,
            shapes=[shape],
            bound=bounds[name],
            step=exact.get(name, 0.0),
            keepdims=keepdims,
        )


def position(b: Builder) -> None:
    x = b.term((F32, I32), accept=lambda term: bool(term.shape) and term.exact)
    if x.shape and x.exact:
        axis, keepdims = b.axis(len(x.shape)), b.number(0, 1)
        attributes = {"select_last_index": b.number(0, 1)} if b.opset >= 12 else {}
        shape = list(x.shape)
        shape[axis] = 1
        shape = shape if keepdims else [dim for index, dim in enumerate(shape) if index != axis % len(shape)]
        name = b.pick(["ArgMax", "ArgMin"])
        b.add(
            name,
            x,
            shapes=[shape],
            bound=x.shape[axis],
            step=1.0,
            dtype=I64,
            axis=axis,
            keepdims=keepdims,
            **attributes,
        )


def top_k(b: Builder) -> None:
    x = b.term((F32, I64), accept=lambda term: bool(term.shape) and term.exact)
    if x.shape and x.exact:
        axis = b.axis(len(x.shape))
        shape = list(x.shape)
        shape[axis] = b.number(1, x.shape[axis])
        count, largest, bound = b.constant([shape[axis]]), b.number(0, 1), max(x.bound, x.shape[axis])
        b.add(
            "TopK",
            x,
            count,
            shapes=[shape] * 2,
            bound=bound,
            step=min(x.step, 1.0),
            dtype=[x.dtype, I64],
            axis=axis,
            largest=largest,
        )


def along_axis(b: Builder) -> None:
    x = b.term(FLOATS, accept=lambda term: bool(term.shape))
    if x.shape:
        axis = b.axis(len(x.shape))
        name = b.pick(["Softmax", "LogSoftmax", "CumSum"])
        if name != "CumSum":
            b.add(name, x, shapes=[x.shape], bound=2 * x.bound + 8, axis=axis)
        elif x.bound * x.shape[axis] <= LIMIT[x.dtype]:
            attributes = {"exclusive": b.number(0, 1), "reverse": b.number(0, 1)}
            bound = x.bound * x.shape[axis]
            b.add(name, x, b.constant(axis), shapes=[x.shape], bound=bound, step=x.step, **attributes)


def matmul(b: Builder) -> None:
    x = b.term((F32, F64, I32), accept=lambda term: bool(term.shape))
    if x.shape and x.bound * 4 * x.shape[-1] <= LIMIT[x.dtype]:
        inner, columns = x.shape[-1], b.number(1, 4)
        shape = b.pick(
            [(inner,), (inner, columns), (*(1 for _ in x.shape[:-2]), inner, columns), (2, 1, inner, columns)]
        )
        if len(shape) == 4 and len(x.shape) == 4 and x.shape[0] not in (1, 2):
            return
        y = b.fresh(x.dtype, shape)
        result = np.matmul(np.empty(x.shape), np.empty(shape)).shape
        b.add("MatMul", x, y, shapes=[result], bound=x.bound * y.bound * inner, step=x.step * y.step)


def gemm(b: Builder) -> None:
    x = b.term(FLOATS, accept=lambda term: len(term.shape) == 2)
    trans_a, trans_b = b.number(0, 1), b.number(0, 1)
    if len(x.shape) == 2 and x.bound * 8 * max(x.shape) <= LIMIT[x.dtype] / 4:
        (rows, inner), columns = x.shape[:: -1 if trans_a else 1], b.number(1, 4)
        y = b.fresh(x.dtype, (columns, inner) if trans_b else (inner, columns))
        biases = [(columns,), (1,), (rows, 1), (rows, columns), ()]
        bias = [b.fresh(x.dtype, b.pick(biases))] if b.number(0, 2) else []
        scales = {"alpha": b.pick([1.0, 0.5, 0.0, 2.0]), "beta": b.pick([1.0, 0.25, 0.0])}
        bound = 2 * x.bound * y.bound * inner + 4
        b.add(
            "Gemm",
            x,
            y,
            *bias,
            shapes=[(rows, columns)],
            bound=bound,
            transA=trans_a,
            transB=trans_b,
            **scales,
        )


STEPS = (
    unary,
    root,
    arithmetic,
    division,
    power,
    clip,
    comparison,
    logic,
    where,
    cast,
    reshape,
    computed_reshape,
    transpose,
    squeeze,
    flatten,
    expand,
    tile,
    concat,
    split,
    slices,
    pad,
    gather,
    reduction,
    position,
    top_k,
    along_axis,
    matmul,
    gemm,
    arithmetic,
    unary,
    matmul,
)
