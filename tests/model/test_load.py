"""Bad files raise a typed error with file and cause; odd files that ONNX Runtime takes load."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import memojax
from memojax.errors import ModelLoadError, UnsupportedOpError
from memojax.model import load_model

POLICY = Path(memojax.__file__).parent / "policies" / "acrobot_ppo.onnx"


def model_of(
    nodes: list[onnx.NodeProto],
    *,
    inputs: dict[str, list] | None = None,
    outputs: tuple[str, ...] = ("y",),
    initializers: dict[str, np.ndarray] | None = None,
    opset: int = 17,
    functions: list[onnx.FunctionProto] = [],
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (inputs or {"x": ["batch", 3]}).items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (initializers or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def relu(source: str = "x", target: str = "y") -> onnx.NodeProto:
    return helper.make_node("Relu", [source], [target], name=f"relu_{target}")


X = np.array([[-1.0, 0.0, 2.0]], np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"not a model at all", "not an ONNX model"),
        (b"<!DOCTYPE html><html></html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        (b"PK\x03\x04rest", "ZIP"),
        (POLICY.read_bytes()[:1000], "truncated"),
        (POLICY.read_bytes()[:-7], "truncated|cannot be read"),
    ],
    ids=["empty", "text", "html", "lfs", "zip", "truncated-early", "truncated-late"],
)
def test_a_file_that_is_not_a_model_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "policy.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=message) as failure:
        memojax.load(path)
    assert "policy.onnx" in str(failure.value)


def test_a_trained_model_is_answered_with_the_way_to_export_it() -> None:
    trainer: Any = SimpleNamespace(policy=None)
    network: Any = len
    for given in (trainer, network):
        with pytest.raises(ModelLoadError, match="export a trained model to ONNX first"):
            memojax.load(given)
    other: Any = 3.5
    with pytest.raises(ModelLoadError, match="give a path.*ModelProto$"):
        memojax.load(other)


def test_missing_file_and_wrong_type(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"nothing\.onnx.*cannot be read"):
        memojax.load(tmp_path / "nothing.onnx")
    with pytest.raises(ModelLoadError, match="give a path"):
        memojax.load(42)
    with pytest.raises(ModelLoadError, match="mode 'rb'"):
        memojax.load(io.StringIO("text"))


def test_every_kind_of_source_gives_the_same_model() -> None:
    raw = POLICY.read_bytes()
    assert len({load_model(source).digest for source in (POLICY, str(POLICY), raw, io.BytesIO(raw))}) == 1
    sources = [POLICY, raw, io.BytesIO(raw), onnx.load(str(POLICY))]
    results = [memojax.run(source, {"obs": np.ones((2, 6), np.float32)})["logits"] for source in sources]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_cycle_is_refused() -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
    ]
    with pytest.raises(ModelLoadError, match="cycle through node 'first'"):
        load_model(model_of(nodes, outputs=("b",)))


def test_undefined_and_doubly_defined_names_are_refused() -> None:
    with pytest.raises(ModelLoadError, match="reads 'nowhere'"):
        load_model(model_of([relu("nowhere")]))
    with pytest.raises(ModelLoadError, match="'y' is defined twice"):
        load_model(model_of([relu(), relu()]))


def test_operators_without_a_version_are_refused() -> None:
    """Softmax of version 1 normalizes all entries of a row, and ONNX Runtime takes the newest version."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Softmax", ["x"], ["y"])],
        "g",
        [value("x", onnx.TensorProto.FLOAT, ["n", 2, 3])],
        [value("y", onnx.TensorProto.FLOAT, ["n", 2, 3])],
    )
    made = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("else", 15)])
    with pytest.raises(ModelLoadError, match="imports no version of ai.onnx.*opset_import"):
        memojax.load(made)
    made.opset_import.append(onnx.helper.make_opsetid("", 15))
    assert memojax.load(made).infer_arrays({"x": np.zeros((1, 2, 3), np.float32)})["y"][0, 0, 0] > 0.3


def test_newer_opset_and_ir_are_refused_by_number() -> None:
    with pytest.raises(ModelLoadError, match="opset 999"):
        load_model(model_of([relu()], opset=999))
    model = model_of([relu()])
    model.ir_version = 999
    with pytest.raises(ModelLoadError, match="IR version 999"):
        load_model(model)


def test_huge_dimensions_are_refused_before_anything_is_allocated() -> None:
    huge = onnx.TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[1 << 40, 1 << 20], raw_data=b"\0" * 16
    )
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])])
    model.graph.initializer.append(huge)
    with pytest.raises(ModelLoadError, match="'w'"):
        load_model(model)
    with pytest.raises(memojax.errors.DimensionError, match="too large for a policy"):
        memojax.load(model_of([relu()], inputs={"x": ["batch", 1 << 40]}))
    shape = np.array([1 << 40, 1 << 20], np.int64)
    grown = model_of(
        [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])],
        initializers={"s": shape},
    )
    with pytest.raises(memojax.errors.LoweringError, match="ConstantOfShape"):
        memojax.load(grown)


def external_model(folder: Path, location: str, length: int = 12) -> Path:
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], initializers={"w": np.ones(3, np.float32)})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(length)}.items():
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=value))
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_inside_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(np.full(3, 5, np.float32).tobytes())
    np.testing.assert_array_equal(memojax.run(external_model(tmp_path, "weights.bin"), {"x": X})["y"], X + 5)


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname", "link.bin", ""])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(b"\0" * 12)
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(ModelLoadError, match="outside the model's folder"):
        load_model(external_model(folder, location))


def test_external_data_that_is_missing_or_short_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="'weights.bin' is missing"):
        load_model(external_model(tmp_path, "weights.bin"))
    (tmp_path / "weights.bin").write_bytes(b"\0" * 4)
    with pytest.raises(ModelLoadError, match="too few"):
        load_model(external_model(tmp_path, "weights.bin"))
    with pytest.raises(ModelLoadError, match="by its path"):
        load_model(external_model(tmp_path, "weights.bin").read_bytes())


def test_all_unsupported_operators_are_listed_at_once() -> None:
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["a"], name="one", domain="my.domain"),
        helper.make_node("Frobnicate", ["a"], ["b"], name="two", domain="my.domain"),
        helper.make_node("Twiddle", ["b"], ["y"], name="three", domain="my.domain"),
    ]
    with pytest.raises(UnsupportedOpError) as failure:
        memojax.load(model_of(nodes, domains=("my.domain",)))
    assert [(item.op_type, item.nodes) for item in failure.value.missing] == [
        ("Frobnicate", ("one", "two")),
        ("Twiddle", ("three",)),
    ]


def test_odd_but_runnable_files_load() -> None:
    unsorted = model_of([relu("a"), helper.make_node("Neg", ["x"], ["a"])])
    np.testing.assert_array_equal(memojax.run(unsorted, {"x": X})["y"], np.maximum(-X, 0))

    listed = model_of(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        inputs={"x": ["n", 3], "w": [3]},
        initializers={"w": np.ones(3, np.float32)},
    )
    loaded = load_model(listed)
    assert [value.name for value in loaded.graph.inputs] == ["x"]
    assert "also listed as inputs" in loaded.graph.notes[0]

    twice = model_of([relu()], outputs=("y", "y", "ghost"))
    loaded = load_model(twice)
    assert [value.name for value in loaded.graph.outputs] == ["y"]
    assert len(loaded.graph.notes) == 2

    named = model_of([relu("a/b:0 c", "y/out:0")], inputs={"a/b:0 c": ["n", 3]}, outputs=("y/out:0",))
    np.testing.assert_array_equal(memojax.load(named).infer_arrays({"a/b:0 c": X})["y/out"], np.maximum(X, 0))


def test_declared_output_shapes_do_not_matter() -> None:
    model = model_of([relu()])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [7, 7, 7]))
    assert memojax.load(model).output_shapes() == [("y", [3])]


def test_model_local_functions_are_inlined() -> None:
    body = [helper.make_node("Mul", ["a", "b"], ["t"]), helper.make_node("LeakyRelu", ["t"], ["r"])]
    body[1].attribute.append(
        onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    )
    function = helper.make_function(
        "local", "Scaled", ["a", "b"], ["r"], body, [helper.make_opsetid("", 17)], ["slope"]
    )
    outer = helper.make_function(
        "local",
        "Twice",
        ["p"],
        ["q"],
        [
            helper.make_node("Scaled", ["p", "p"], ["m"], domain="local", slope=0.5),
            helper.make_node("Neg", ["m"], ["q"]),
        ],
        [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
    )
    model = model_of(
        [
            helper.make_node("Twice", ["x"], ["h"], domain="local"),
            helper.make_node("Scaled", ["h", "x"], ["y"], domain="local", slope=0.1),
        ],
        functions=[function, outer],
        domains=("local",),
    )
    h = -(X * X)
    np.testing.assert_allclose(
        memojax.run(model, {"x": X})["y"], np.where(h * X > 0, h * X, 0.1 * h * X), rtol=1e-6
    )


def test_functions_that_call_each_other_without_end_are_refused() -> None:
    opsets = [helper.make_opsetid("local", 1)]
    endless = helper.make_function(
        "local", "Loop", ["a"], ["b"], [helper.make_node("Loop", ["a"], ["b"], domain="local")], opsets
    )
    with pytest.raises(ModelLoadError, match="call each other"):
        load_model(
            model_of(
                [helper.make_node("Loop", ["x"], ["y"], domain="local")],
                functions=[endless],
                domains=("local",),
            )
        )


def test_outputs_can_be_chosen() -> None:
    model = model_of([relu(), helper.make_node("Neg", ["x"], ["z"])], outputs=("y", "z"))
    assert [node.op_type for node in load_model(model, outputs=("z",)).graph.nodes] == ["Neg"]
    with pytest.raises(ModelLoadError, match="no output 'w'"):
        load_model(model, outputs=("w",))
