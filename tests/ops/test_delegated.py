"""jaxonnxruntime's handlers: those in use agree with onnxruntime on all op-versions; others still fail."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import onnx.defs
import pytest

import memojax
from memojax.lowering import oneshot
from memojax.ops import definitions, registry
from memojax.ops.delegated import FOUND_WANTING, lowering
from memojax.ops.registry import OpDef
from tests.ops import corpus
from tests.ops.test_versions import assert_same, oracle
from tests.ops.version_cases import Case

DELEGATED = [definition for definition in definitions() if definition.origin == "delegated"]


def _random(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng([len(shape), *shape]).standard_normal(shape).astype(dtype)


def _bits(dtype: type, *shape: int, high: int = 7) -> np.ndarray:
    return np.random.default_rng(shape).integers(0, high, shape).astype(dtype)


AGREEMENTS: dict[str, list[Case]] = {
    "BitShift": [
        Case("BitShift", opset, (_bits(dtype, 3, 4, high=200), _bits(dtype, 4)), {"direction": direction})
        for opset in (11, 22)
        for dtype in (np.uint8, np.uint16, np.uint32, np.uint64)
        for direction in ("LEFT", "RIGHT")
        if dtype != np.uint16  # onnxruntime has no kernel for it
    ],
    "Einsum": [
        Case("Einsum", opset, inputs, {"equation": equation})
        for opset in (12, 22)
        for equation, inputs in [
            ("...ij, ...jk -> ...ik", (_random(2, 3, 4), _random(2, 4, 5))),
            ("bij,bj", (_random(2, 3, 4), _random(2, 4))),
            ("ii->i", (_random(3, 3, dtype=np.float64),)),
            ("i->", (_bits(np.int64, 5),)),
            ("ij,jk,k->i", (_random(2, 3), _random(3, 4), _random(4))),
        ]
    ],
    "PRelu": [
        Case("PRelu", opset, (_random(2, 3, 4, dtype=dtype), _random(*slope, dtype=dtype)))
        for opset, dtype in ((7, np.float32), (9, np.float32), (16, np.float32))
        for slope in ((), (1,), (4,), (3, 1), (2, 3, 4))
    ],
}


def op_versions(definition: OpDef) -> list[int]:
    """The versions of the schema that a definition covers."""
    known = {
        s.since_version
        for s in onnx.defs.get_all_schemas_with_history()
        if (s.domain, s.name) == ("", definition.op_type)
    }
    return sorted(version for version in known if definition.covers(version))


def in_force(definition: OpDef, opset: int) -> int:
    return max(version for version in op_versions(definition) if version <= opset)


@pytest.mark.parametrize("definition", DELEGATED, ids=lambda definition: definition.op_type)
def test_every_delegated_op_version_has_cases(definition: OpDef) -> None:
    """Cases of onnxruntime, or of ONNX if onnxruntime is too old for the version."""
    tested = {in_force(definition, case.opset) for case in AGREEMENTS[definition.op_type]}
    for case in corpus.cases("node").values():
        opset = next((entry.version for entry in case.model.opset_import if not entry.domain), 0)
        if any(node.op_type == definition.op_type for node in case.model.graph.node) and definition.covers(
            opset
        ):
            tested.add(in_force(definition, opset))
    assert tested == set(op_versions(definition))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", [case for cases in AGREEMENTS.values() for case in cases], ids=str)
def test_a_delegated_handler_agrees_with_onnxruntime(case: Case) -> None:
    assert registry.lookup("", case.op_type, case.opset).origin == "delegated"  # pyright: ignore[reportOptionalMemberAccess]
    assert_same(oneshot.run(case.model(), case.feeds()).values(), oracle(case))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("op_type", AGREEMENTS)
def test_a_delegated_handler_works_under_transformations(op_type: str, x64: bool) -> None:
    """It works under jit, vmap and grad, in both x64 settings, and keeps dtypes of half precision."""
    for dtype in (np.float16, np.float32) if op_type != "BitShift" else (np.uint8, np.uint32):
        case = next(case for case in AGREEMENTS[op_type] if len(case.inputs) == 2)
        fn, params = memojax.to_jax(case.model())
        with jax.enable_x64(x64):
            x, y = (jax.numpy.asarray(value.astype(dtype)) for value in case.inputs if value is not None)
            out = jax.jit(fn)(params, {"x0": x, "x1": y})["y0"]
            assert out.dtype == dtype
            rows = jax.vmap(lambda x, y: fn(params, {"x0": x, "x1": y})["y0"], (0, None))(x[None], y)
            np.testing.assert_allclose(rows[0], out, rtol=1e-2 if dtype == np.float16 else 1e-5)
            if op_type != "BitShift":
                slope = jax.grad(lambda x, y: fn(params, {"x0": x, "x1": y})["y0"].sum())(x, y)
                assert slope.dtype == dtype
                assert np.isfinite(slope).all()


@contextmanager
def handled(op_type: str, version: int) -> Iterator[None]:
    """The operator, lowered by jaxonnxruntime's handler, for all opsets."""
    from jaxonnxruntime import config

    ours = registry._ops["", op_type]
    current = registry.lookup("", op_type, version)
    assert current is not None
    only_initializers = config.jaxort_only_allow_initializers_as_static_args
    config.update("jaxort_only_allow_initializers_as_static_args", False)
    theirs = OpDef(
        "",
        op_type,
        1,
        None,
        lowering(op_type, op_type.lower(), version),
        current.static,
        positional=current.positional,
        variadic=current.variadic,
        attributes=current.attributes,
        injected=frozenset({"output_names"}),
    )
    registry._ops["", op_type] = [theirs]
    try:
        yield
    finally:
        registry._ops["", op_type] = ours
        config.update("jaxort_only_allow_initializers_as_static_args", only_initializers)


def agrees(case: Case) -> None:
    """Compare with onnxruntime's outputs, dtypes and shapes."""
    expected = oracle(case)
    outputs = oneshot.run(case.model(), case.feeds())
    assert len(outputs) == len(expected)
    assert_same(outputs.values(), expected)


def is_differentiable(case: Case) -> None:
    fn, params = memojax.to_jax(case.model())
    jax.grad(lambda x: fn(params, {"x0": x})["y0"].sum())(case.inputs[0])


def agrees_quietly(case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agrees(case)


X = _random(2, 3, 4)
PIXELS = _random(1, 2, 5, 5)
CHANNELS = tuple(np.abs(_random(3)) + index for index in range(4))
DISAGREEMENTS: dict[tuple[str, int], tuple[Case, Callable[[Case], None]]] = {
    ("AveragePool", 19): (
        Case("AveragePool", 19, (PIXELS,), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        agrees,
    ),
    ("BatchNormalization", 15): (
        Case("BatchNormalization", 15, (X, *CHANNELS), {"training_mode": 1}, n_outputs=3),
        agrees,
    ),
    ("Cast", 19): (Case("Cast", 19, (X,), {"to": 7}), agrees),
    ("Clip", 13): (Case("Clip", 13, (X, np.array(-0.5, np.float32), np.array(0.5, np.float32))), agrees),
    ("ConstantOfShape", 9): (
        Case(
            "ConstantOfShape",
            9,
            (np.array([2, 3]),),
            {"value": onnx.numpy_helper.from_array(np.array([7], np.int32))},
        ),
        agrees,
    ),
    ("Conv", 11): (Case("Conv", 11, (PIXELS, _random(3, 2, 2, 2)), {"auto_pad": "NOTSET"}), agrees),
    ("Div", 14): (Case("Div", 14, (np.array([-7, 7]), np.array([2, -2]))), agrees),
    ("Dropout", 13): (Case("Dropout", 13, (X, np.array(0.5, np.float32))), agrees),
    ("GatherElements", 13): (Case("GatherElements", 13, (X, np.array([[[1, 0, 1]]])), {"axis": 0}), agrees),
    ("Gemm", 13): (Case("Gemm", 13, (X[0], X[0].T, _random(3)), {"beta": 0.0}), agrees),
    ("LRN", 13): (Case("LRN", 13, (PIXELS,), {"size": 3}), is_differentiable),
    ("LogSoftmax", 11): (Case("LogSoftmax", 11, (X,), {"axis": 1}), agrees),
    ("MaxPool", 12): (Case("MaxPool", 12, (PIXELS,), {"kernel_shape": [2, 2]}, n_outputs=2), agrees),
    ("OneHot", 11): (
        Case("OneHot", 11, (np.array([0, 2]), np.array([3]), np.array([0.0, 1.0], np.float32))),
        agrees,
    ),
    ("Pad", 19): (
        Case("Pad", 19, (X, np.array([1, 1]), None, np.array([2])), {"mode": "edge"}),
        agrees_quietly,
    ),
    ("ReduceMax", 18): (
        Case(
            "ReduceMax",
            18,
            (np.zeros((2, 0), np.float32), np.array([1])),
            {"keepdims": 0},
            expected=(np.full(2, -np.inf, np.float32),),
        ),
        agrees,
    ),
    ("Softmax", 11): (Case("Softmax", 11, (X,), {"axis": 1}), agrees),
    ("Squeeze", 11): (Case("Squeeze", 11, (X[:1, :, :1],), {"axes": [0]}), agrees),
    ("Sum", 13): (Case("Sum", 13, (X, X[0, 0])), agrees),
    ("TopK", 11): (
        Case("TopK", 11, (np.array([1, 3, 3, 1], np.float32), np.array([2])), n_outputs=2),
        agrees,
    ),
    ("Trilu", 14): (Case("Trilu", 14, (X, np.array(1))), agrees),
}


def test_every_rejected_handler_has_a_case() -> None:
    assert DISAGREEMENTS.keys() == FOUND_WANTING.keys()
    assert not {op_type for op_type, _ in FOUND_WANTING} & {definition.op_type for definition in DELEGATED}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", FOUND_WANTING, ids=str)
def test_a_rejected_handler_still_fails(key: tuple[str, int]) -> None:
    """Ours agrees, and the handler does not. Once the handler agrees, it may be used."""
    if key == ("Clip", 13) and "a_min" in inspect.signature(jnp.clip).parameters:
        pytest.skip(f"jax {jax.__version__} still has the names that it calls jnp.clip by")
    case, check = DISAGREEMENTS[key]
    check(case)
    with handled(*key):
        problem = None
        try:
            check(case)
        except Exception as caught:
            problem = caught
    assert problem is not None, f"jaxonnxruntime's {key} has healed; so far: {FOUND_WANTING[key]}"
