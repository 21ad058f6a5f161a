"""External data come from the model's folder, wherever the tensor is, and are part of its identity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import memojax
from memojax.errors import ModelLoadError
from memojax.model import load_model
from tests.system import odd_models

X = np.zeros((2, 4), np.float32)


def in_attribute() -> onnx.ModelProto:
    return odd_models.with_external(location="w.bin")


def in_initializer() -> onnx.ModelProto:
    made = odd_models.model([helper.make_node("Add", ["x", "w"], ["y"])])
    made.graph.initializer.append(odd_models.external("w.bin"))
    return made


def in_subgraph() -> onnx.ModelProto:
    taken = odd_models.body([helper.make_node("Add", ["x", "w"], ["z"])], [], ["z"])
    taken.initializer.append(odd_models.external("w.bin"))
    other = odd_models.body([helper.make_node("Neg", ["x"], ["z"])], [], ["z"])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=taken, else_branch=other)
    return odd_models.model([choice], c=np.array(True))


def in_sparse() -> onnx.ModelProto:
    made = odd_models.model([helper.make_node("Add", ["x", "w"], ["y"])])
    indices = numpy_helper.from_array(np.arange(4))
    made.graph.sparse_initializer.append(
        helper.make_sparse_tensor(odd_models.external("w.bin"), indices, [4])
    )
    return made


def in_function() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=odd_models.external("w.bin")),
        helper.make_node("Add", ["a", "w"], ["b"]),
    ]
    return odd_models.model(
        [helper.make_node("F", ["x"], ["y"], domain="f")], functions=[odd_models.function("F", nodes)]
    )


PLACES = (in_attribute, in_initializer, in_subgraph, in_sparse, in_function)


def weights(value: float) -> bytes:
    return np.full(4, value, np.float32).tobytes()


@pytest.mark.parametrize("place", PLACES)
def test_it_comes_from_the_model_folder_not_from_the_working_directory(
    place: Callable[[], onnx.ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "w.bin").write_bytes(weights(1))
    (elsewhere / "w.bin").write_bytes(weights(2))
    (folder / "m.onnx").write_bytes(place().SerializeToString())
    monkeypatch.chdir(elsewhere)
    np.testing.assert_array_equal(memojax.run(folder / "m.onnx", {"x": X})["y"], X + 1)
    np.testing.assert_array_equal(memojax.load(folder / "m.onnx").infer_arrays({"x": X})["y"], X + 1)
    with pytest.raises(ModelLoadError, match="by its path"):
        memojax.run((folder / "m.onnx").read_bytes(), {"x": X})


@pytest.mark.parametrize("place", PLACES)
def test_every_byte_of_it_tells_models_apart(place: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(place().SerializeToString())
    digests = set()
    for value in (1, 2):
        (tmp_path / "w.bin").write_bytes(weights(value))
        digests.add(load_model(tmp_path / "m.onnx").digest)
        policy = memojax.load(tmp_path / "m.onnx", cache_dir=tmp_path / "cache", preload=[2])
        np.testing.assert_array_equal(policy.infer_arrays({"x": X})["y"], X + value)
    assert len(digests) == 2


def test_links_of_a_model_hub_load(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1f").write_bytes(in_attribute().SerializeToString())
    (blobs / "2e").write_bytes(weights(3))
    (snapshot / "m.onnx").symlink_to("../../blobs/1f")
    (snapshot / "w.bin").symlink_to("../../blobs/2e")
    np.testing.assert_array_equal(memojax.run(snapshot / "m.onnx", {"x": X})["y"], X + 3)


def test_a_link_out_of_both_folders_is_refused(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    (tmp_path / "secret").write_bytes(weights(3))
    (blobs / "1f").write_bytes(in_attribute().SerializeToString())
    (snapshot / "m.onnx").symlink_to("../blobs/1f")
    (snapshot / "w.bin").symlink_to("../secret")
    with pytest.raises(ModelLoadError, match="outside the model's folder"):
        memojax.load(snapshot / "m.onnx")


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(in_attribute().SerializeToString())
    (tmp_path / "w.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 16\n")
    with pytest.raises(ModelLoadError, match="git lfs pull"):
        memojax.load(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x1f\x8b\x08\0rest", "gzip"),
        (b"\x80\x04\x95rest", "pickle"),
        (b"PK\x03\x04rest", "ZIP"),
        (b"\x1c\0\0\0TFL3rest", "TensorFlow Lite"),
        (b"\x1c\0\0\0ORTMrest", "ONNX Runtime's own format"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b'\x10\0\0\0\0\0\0\0{"a":1}', "safetensors"),
    ],
)
def test_other_formats_get_their_next_step(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelLoadError, match=what):
        memojax.load(tmp_path / "m.onnx")


def test_urls_are_refused_and_the_home_folder_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelLoadError, match="download the file first"):
        memojax.load("https://example.com/policy.onnx")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "m.onnx").write_bytes(
        odd_models.model(odd_models.LINEAR, w=np.eye(4, dtype=np.float32)).SerializeToString()
    )
    np.testing.assert_array_equal(memojax.run("~/m.onnx", {"x": X + 1})["y"], X + 1)
    assert memojax.load("~/m.onnx").input_shapes() == [("x", [4])]
