"""Trees, support vector machines and whole scikit-learn models against onnxruntime."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import memojax
from memojax.errors import LoweringError
from memojax.lowering import oneshot

pytestmark = pytest.mark.corpus

F, F32 = onnx.TensorProto.FLOAT, np.float32
TRANSFORMS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT")
MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")


def check(op_type: str, x: np.ndarray, n_outputs: int = 1, version: int = 1, **attributes: Any) -> None:
    """Compare one operator with onnxruntime."""
    outputs = [f"y{index}" for index in range(n_outputs)]
    node = helper.make_node(
        op_type, ["x"], outputs, domain="ai.onnx.ml", **{k: v for k, v in attributes.items() if v is not None}
    )
    info = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
    graph = helper.make_graph([node], "g", [info], [onnx.ValueInfoProto(name=name) for name in outputs])
    opsets = [helper.make_opsetid("ai.onnx.ml", version), helper.make_opsetid("", 17)]
    compare(helper.make_model(graph, opset_imports=opsets, ir_version=8), {"x": x})


def compare(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    want = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = oneshot.run(model, feeds).values()
    for one, other in zip(got, want, strict=True):
        if isinstance(other, list):  # The output of a ZipMap is a dictionary for each row.
            other = np.array([list(row.values()) for row in other], F32)
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-4)


def features(rng: np.random.Generator, dtype: Any) -> np.ndarray:
    """Small whole numbers, so some are equal, with NaN holes if the dtype has them."""
    x = rng.integers(-3, 4, size=(9, 3)).astype(F32)
    if dtype != np.int64 and rng.random() < 0.5:
        x[rng.random(x.shape) < 0.15] = np.nan
    return x.astype(dtype)


def random_trees(
    rng: np.random.Generator, n_trees: int, depth: int, modes: tuple[str, ...], missing: bool
) -> tuple[dict[str, list[Any]], list[tuple[int, int]]]:
    """Node attributes of versions 1 and 3, and (tree, node) of each leaf."""
    names = (
        "treeids",
        "nodeids",
        "modes",
        "featureids",
        "values",
        "truenodeids",
        "falsenodeids",
        "missing_value_tracks_true",
    )
    nodes: dict[str, list[Any]] = {f"nodes_{name}": [] for name in names}
    leaves: list[tuple[int, int]] = []

    def grow(tree: int, level: int, count: list[int]) -> int:
        node, place = count[0], len(nodes["nodes_treeids"])
        count[0] += 1
        leaf = level == 0 or (level < depth and rng.random() < 0.2)
        mode = "LEAF" if leaf else str(rng.choice(modes))
        row = (
            tree,
            node,
            mode,
            int(rng.integers(3)),
            float(rng.integers(-2, 3)),
            0,
            0,
            int(missing and not leaf and rng.random() < 0.5),
        )
        for column, value in zip(nodes.values(), row, strict=True):
            column.append(value)
        if leaf:
            leaves.append((tree, node))
        else:
            nodes["nodes_truenodeids"][place] = grow(tree, level - 1, count)
            nodes["nodes_falsenodeids"][place] = grow(tree, level - 1, count)
        return node

    for tree in range(n_trees):
        grow(tree, depth, [0])
    return nodes, leaves


def leaf_weights(
    prefix: str, leaves: list[tuple[int, int]], ids: list[int], weight: Any
) -> dict[str, list[Any]]:
    rows = [(tree, node, target, float(weight())) for tree, node in leaves for target in ids]
    names = (
        f"{prefix}_treeids",
        f"{prefix}_nodeids",
        f"{'class' if prefix == 'class' else 'target'}_ids",
        f"{prefix}_weights",
    )
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


@pytest.mark.parametrize("seed", range(40))
def test_tree_ensemble_regressor(seed: int) -> None:
    rng = np.random.default_rng(seed)
    modes = (MODES[:1], (str(rng.choice(MODES)),), MODES)[seed % 3]
    nodes, leaves = random_trees(
        rng, int(rng.choice([1, 3, 7])), int(rng.choice([0, 2, 4])), modes, missing=seed % 2 == 1
    )
    transform, n = str(rng.choice(TRANSFORMS[:4])), int(rng.choice([1, 2, 3]))
    targets = leaf_weights("target", leaves, list(range(n)), rng.normal)
    base = rng.normal(size=n).astype(F32).tolist() if rng.random() < 0.5 else None
    aggregate = str(rng.choice(["SUM", "AVERAGE", "MIN", "MAX"]))
    x = features(rng, (F32, np.float64)[seed % 2])
    given: dict[str, Any] = {
        "n_targets": n,
        "aggregate_function": aggregate,
        "post_transform": transform,
        "base_values": base,
    }
    check("TreeEnsembleRegressor", x, version=int(rng.choice([1, 3])), **given, **targets, **nodes)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("kind", ["one class of two", "many classes"])
def test_tree_ensemble_classifier(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    modes = (MODES[:1], (str(rng.choice(MODES)),), MODES)[seed % 3]
    nodes, leaves = random_trees(
        rng, int(rng.choice([1, 3, 7])), int(rng.choice([0, 2, 4])), modes, missing=seed % 2 == 1
    )
    n, ids = (2, [0]) if kind == "one class of two" else (int(rng.choice([3, 4])),) * 2
    size = abs if rng.random() < 0.5 else float
    classes = leaf_weights(
        "class", leaves, ids if isinstance(ids, list) else list(range(n)), lambda: size(rng.normal())
    )
    base = rng.normal(size=1 if n == 2 else n).astype(F32).tolist() if rng.random() < 0.5 else None
    transform = str(rng.choice(TRANSFORMS[:4]))
    labels = list(range(n)) if rng.random() < 0.5 else [5, 2, 9, 0][:n]
    x = features(rng, (F32, np.float64, np.int64)[seed % 3])
    given: dict[str, Any] = {"classlabels_int64s": labels, "post_transform": transform, "base_values": base}
    check("TreeEnsembleClassifier", x, 2, int(rng.choice([1, 3])), **given, **classes, **nodes)


def test_thresholds_and_weights_as_tensors() -> None:
    rng = np.random.default_rng(0)
    nodes, leaves = random_trees(rng, 3, 3, MODES[:1], missing=False)
    targets = leaf_weights("target", leaves, [0], rng.normal)
    nodes["nodes_values_as_tensor"] = numpy_helper.from_array(np.array(nodes.pop("nodes_values")) + 1e-9)  # pyright: ignore[reportArgumentType]
    weights = numpy_helper.from_array(np.array(targets.pop("target_weights")))
    x = features(rng, np.float64)
    check("TreeEnsembleRegressor", x, 1, 3, n_targets=1, target_weights_as_tensor=weights, **targets, **nodes)


def string_classifier() -> onnx.ModelProto:
    nodes = {
        "nodes_treeids": [0] * 3,
        "nodes_nodeids": [0, 1, 2],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_featureids": [0] * 3,
    }
    nodes |= {"nodes_values": [0.0] * 3, "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0]}
    classes = {
        "class_treeids": [0, 0],
        "class_nodeids": [1, 2],
        "class_ids": [0, 0],
        "class_weights": [0.2, 0.9],
    }
    node = helper.make_node(
        "TreeEnsembleClassifier",
        ["x"],
        ["y", "z"],
        domain="ai.onnx.ml",
        classlabels_strings=["no", "yes"],
        **nodes,
        **classes,
    )
    info = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ("batch", 1))
    nodes = [
        node,
        helper.make_node("Cast", ["y"], ["text"], to=onnx.TensorProto.STRING),
        helper.make_node("Reshape", ["text", "column"], ["label"]),
    ]
    outputs = [
        helper.make_tensor_value_info("label", onnx.TensorProto.STRING, ("batch", 1)),
        helper.make_tensor_value_info("z", F, ("batch", 2)),
    ]
    graph = helper.make_graph(
        nodes, "g", [info], outputs, [numpy_helper.from_array(np.array([-1, 1]), "column")]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_string_labels_are_strings_on_the_host_and_positions_in_inferers() -> None:
    model, x = string_classifier(), np.array([[-1.0], [1.0]], F32)
    result = oneshot.run(model, {"x": x})
    expected = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(None, {"x": x})
    np.testing.assert_array_equal(result["label"], expected[0])
    assert result["label"].tolist() == [["no"], ["yes"]]
    np.testing.assert_allclose(result["z"], expected[1], rtol=1e-6)
    policy = memojax.load(model)
    np.testing.assert_array_equal(policy.infer_arrays({"x": x})["label"], [[0], [1]])
    assert "output label has positions in the labels 'no', 'yes'" in " ".join(str(policy).split())


def test_string_labels_as_numbers_are_refused() -> None:
    model = string_classifier()
    model.graph.node.append(helper.make_node("Cast", ["label"], ["number"], to=onnx.TensorProto.INT64))
    model.graph.output.append(helper.make_tensor_value_info("number", onnx.TensorProto.INT64, ("batch", 1)))
    for door in (memojax.load, memojax.to_jax, memojax.OneShot):
        with pytest.raises(LoweringError, match="casts the string labels 'no', 'yes' to numbers"):
            door(model)


def test_strings_picked_by_data_are_strings_on_the_host() -> None:
    names = numpy_helper.from_array(np.array(["left", "right", "up"], object), "names")
    nodes = [
        helper.make_node("ArgMax", ["x"], ["best"], axis=1, keepdims=0),
        helper.make_node("ArrayFeatureExtractor", ["names", "best"], ["picked"], domain="ai.onnx.ml"),
    ]
    info = helper.make_tensor_value_info("x", F, ("batch", 3))
    graph = helper.make_graph(nodes, "g", [info], [onnx.ValueInfoProto(name="picked")], [names])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    x = np.array([[0, 1, 0], [0, 0, 1]], F32)
    assert oneshot.run(model, {"x": x})["picked"].tolist() == [["right", "up"]]


@pytest.mark.parametrize("seed", range(30))
def test_tree_ensemble(seed: int) -> None:
    """This is version 5; onnxruntime reads post_transform 1 as LOGISTIC and 2 as SOFTMAX, unlike ONNX."""
    rng = np.random.default_rng(seed)
    dtype, n, missing = (F32, np.float64)[seed % 2], int(rng.choice([1, 2, 3])), seed % 4 == 1
    modes = [0] if seed % 3 == 0 else list(range(6 + seed % 2))
    nodes: list[list[Any]] = []
    leaves: list[tuple[int, float]] = []

    def grow(level: int) -> int:
        place = len(nodes)
        nodes.append(
            [
                int(rng.integers(3)),
                float(rng.integers(-2, 3)),
                int(rng.choice(modes)),
                int(missing and rng.random() < 0.5),
                0,
                0,
                0,
                0,
            ]
        )
        for side in (4, 6):
            leaf = level == 0 or rng.random() < 0.2
            if leaf:
                leaves.append((int(rng.integers(n)), rng.normal()))
            nodes[place][side : side + 2] = (len(leaves) - 1 if leaf else grow(level - 1)), int(leaf)
        return place

    depth = int(rng.choice([0, 2, 4]))
    roots = [grow(depth) for _ in range(int(rng.choice([1, 4])))]
    feature, split, mode, track, yes, yes_leaf, no, no_leaf = map(list, zip(*nodes, strict=True))
    members = [
        float(value)
        for kind in mode
        if kind == 6
        for value in (*rng.choice(np.arange(-3, 4), int(rng.integers(1, 4)), replace=False), np.nan)
    ]
    check(
        "TreeEnsemble",
        features(rng, dtype),
        1,
        5,
        n_targets=n,
        tree_roots=roots,
        nodes_featureids=feature,
        nodes_splits=numpy_helper.from_array(np.array(split, dtype)),
        nodes_modes=numpy_helper.from_array(np.array(mode, np.uint8)),
        nodes_truenodeids=yes,
        nodes_trueleafs=yes_leaf,
        nodes_falsenodeids=no,
        nodes_falseleafs=no_leaf,
        nodes_missing_value_tracks_true=track if missing else None,
        membership_values=numpy_helper.from_array(np.array(members, dtype)) if members else None,
        leaf_targetids=[target for target, _ in leaves],
        leaf_weights=numpy_helper.from_array(np.array([w for _, w in leaves], dtype)),
        aggregate_function=int(rng.choice(4)),
        post_transform=int(rng.choice([0, 3])),
    )


KERNELS = {
    "LINEAR": [0.0, 0.0, 0.0],
    "RBF": [0.3, 0.0, 0.0],
    "POLY": [0.5, 1.0, 3.0],
    "SIGMOID": [0.2, 0.1, 0.0],
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("transform", TRANSFORMS[:4])
@pytest.mark.parametrize("probability", [True, False])
def test_svm_classifier(kernel: str, n: int, transform: str, probability: bool) -> None:
    rng = np.random.default_rng(n)
    vectors_per_class = [2, 3, 1, 2][:n]
    vectors, pairs = sum(vectors_per_class), n * (n - 1) // 2
    check(
        "SVMClassifier",
        rng.normal(size=(6, 4)).astype(F32),
        2,
        kernel_type=kernel,
        kernel_params=KERNELS[kernel],
        post_transform=transform,
        coefficients=rng.normal(size=(n - 1) * vectors).astype(F32).tolist(),
        vectors_per_class=vectors_per_class,
        support_vectors=rng.normal(size=vectors * 4).astype(F32).tolist(),
        rho=rng.normal(size=pairs).astype(F32).tolist(),
        classlabels_ints=[3, 1, 4, 5][:n],
        prob_a=(-rng.random(pairs)).astype(F32).tolist() if probability else None,
        prob_b=rng.normal(size=pairs).astype(F32).tolist() if probability else None,
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("one_class", [0, 1])
def test_svm_regressor(kernel: str, one_class: int) -> None:
    rng = np.random.default_rng(0)
    check(
        "SVMRegressor",
        rng.normal(size=(6, 4)).astype(F32),
        kernel_type=kernel,
        kernel_params=KERNELS[kernel],
        one_class=one_class,
        n_supports=5,
        coefficients=rng.normal(size=5).astype(F32).tolist(),
        rho=[0.3],
        support_vectors=rng.normal(size=20).astype(F32).tolist(),
    )


SKLEARN = {
    "ensemble": [
        "RandomForestClassifier",
        "GradientBoostingClassifier",
        "AdaBoostClassifier",
        "RandomForestRegressor",
        "IsolationForest",
    ],
    "svm": ["SVC", "NuSVC", "LinearSVC", "SVR", "OneClassSVM"],
    "linear_model": ["LogisticRegression", "RidgeClassifier", "LinearRegression", "PoissonRegressor"],
    "neural_network": ["MLPClassifier"],
    "neighbors": ["KNeighborsClassifier", "KNeighborsRegressor"],
    "naive_bayes": ["GaussianNB", "BernoulliNB"],
    "mixture": ["GaussianMixture"],
    "cluster": ["KMeans"],
    "gaussian_process": ["GaussianProcessRegressor"],
}


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in SKLEARN.items() for name in names]
)
def test_scikit_learn_models(module: str, name: str, n_classes: int) -> None:
    sklearn = pytest.importorskip("sklearn." + module)
    skl2onnx = pytest.importorskip("skl2onnx")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype(F32)
    y = np.digitize(x[:, 0] + x[:, 1], [-0.5, 0.7][: n_classes - 1])
    small = {"n_estimators": 5, "max_iter": 100, "random_state": 0, "n_init": 1}
    kind = getattr(sklearn, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = kind(**{key: value for key, value in small.items() if key in kind().get_params()}).fit(x, y)
        model = skl2onnx.to_onnx(fitted, x[:1], target_opset={"": 17, "ai.onnx.ml": 3})
    compare(model, {"X": x[:20]})
