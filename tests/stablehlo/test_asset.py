"""CRVO assets: cervo's own, and policies exported as StableHLO."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import memojax as mj
from memojax import AssetData, AssetKind
from memojax.errors import AssetError, DimensionError, InputError, ModelLoadError, RowsMixError
from memojax.stablehlo import find_stablehlo, load_stablehlo, read_header, to_stablehlo

from ..helpers import mixing, policy

POLICIES = ("acrobot_ppo", "pendulum_ppo", "recurrent_lstm")
MODELS = sorted(path.stem for path in (Path(__file__).parents[1] / "models").glob("*.onnx"))


def model_path(stem):
    return (
        Path(str(mj.policies.bundled(stem)))
        if stem in POLICIES
        else Path(__file__).parents[1] / "models" / f"{stem}.onnx"
    )


def batch(api, n, seed=0):
    rng = np.random.default_rng(seed)
    return {
        spec.name: rng.standard_normal((n, *spec.shape)).astype(spec.dtype)
        if jnp.issubdtype(spec.dtype, jnp.floating)
        else rng.integers(0, 2, (n, *spec.shape)).astype(spec.dtype)
        for spec in api.inputs
    }


def assert_same(left, right, n, **tolerance):
    inputs = batch(left.api, n)
    expected, got = left.infer_arrays(inputs), right.infer_arrays(inputs)
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert (got[name].dtype, got[name].shape) == (value.dtype, value.shape)
        np.testing.assert_allclose(
            np.float64(got[name]),
            np.float64(value),
            err_msg=name,
            **(tolerance or {"rtol": 1e-5, "atol": 1e-5}),
        )


@pytest.fixture(scope="module")
def onnx_file():
    return model_path("acrobot_ppo").read_bytes()


@pytest.fixture(scope="module")
def exported():
    return to_stablehlo(mj.policies.bundled("acrobot_ppo"))


# The container


def test_the_layout_matches_cervo(onnx_file):
    asset = AssetData(AssetKind.ONNX, onnx_file)
    assert asset.serialize() == b"CRVO\x00\x00\x00\x01" + onnx_file
    assert AssetData(AssetKind.NNEF, b"tar").serialize() == b"CRVO\x00\x00\x00\x02tar"
    assert AssetData.deserialize(b"CRVO\x00\x00\x00\x01" + onnx_file) == asset
    assert AssetData.deserialize(b"CRVO\x01\x00\x00\x01" + onnx_file) == asset
    assert (str(AssetKind.ONNX), str(AssetKind.NNEF)) == ("onnx", "nnef")


@given(st.sampled_from(AssetKind), st.binary(min_size=1))
def test_an_asset_round_trips(kind, data):
    asset = AssetData(kind, data)
    assert (
        AssetData.deserialize(asset.serialize())
        == AssetData.deserialize(io.BytesIO(asset.serialize()))
        == asset
    )


def test_files(tmp_path, onnx_file):
    path = tmp_path / "policy.crvo"
    asset = AssetData(AssetKind.ONNX, onnx_file)
    asset.write(path)
    assert AssetData.read(path) == asset
    with pytest.raises(AssetError, match="cannot be read"):
        AssetData.read(tmp_path / "missing.crvo")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not a CRVO asset"),
        (b"CRV", "not a CRVO asset"),
        (b"CRVN\x00\x00\x00\x01x", "not a CRVO asset"),
        (b"CRVO\x00\x00\x00", "truncated"),
        (b"CRVO\x00\x00\x00\x01", "empty"),
        (b"CRVO\x00\x00\x00\x00x", "kind 0 is unknown"),
        (b"CRVO\x00\x00\x00\x03x", "kind 3 is unknown"),
        (b"CRVO\x01\x01\x00\x01x", "compressed"),
        (b"CRVO\x00\x00\x05\x01x", "unknown header"),
        (b"CRVO\x02\x00\x00\x01x", "unknown header"),
    ],
)
def test_a_broken_header_is_an_error(raw, reason, tmp_path):
    with pytest.raises(AssetError, match=reason):
        AssetData.deserialize(raw)
    if raw[:4] == b"CRVO":
        path = tmp_path / "policy.onnx"
        path.write_bytes(raw)
        for source in (raw, path, io.BytesIO(raw)):
            with pytest.raises(AssetError, match=reason):
                mj.load(source)


def test_text_files_are_named():
    with pytest.raises(AssetError, match="'rb'"):
        AssetData.deserialize(io.StringIO("CRVO"))  # pyright: ignore[reportArgumentType]


def test_an_asset_error_is_a_load_error():
    assert issubclass(AssetError, ModelLoadError)


# ONNX inside


def test_onnx_assets_load_by_content(tmp_path, onnx_file):
    asset = AssetData(AssetKind.ONNX, onnx_file)
    path = tmp_path / "policy.whatever"
    asset.write(path)
    reference = mj.load(onnx_file)
    for source in (path, str(path), asset, asset.serialize(), io.BytesIO(asset.serialize())):
        assert_same(reference, mj.load(source), 2, rtol=0)
    fn, params = mj.to_jax(path)
    inputs = batch(reference.api, 2)
    np.testing.assert_allclose(
        fn(params, inputs)["logits"], reference.infer_arrays(inputs)["logits"], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        mj.run(asset, inputs)["logits"], reference.infer_arrays(inputs)["logits"], rtol=1e-5, atol=1e-5
    )
    assert isinstance(asset.load_basic(), mj.BasicInferer)
    assert asset.load_fixed([2, 4]).sizes == [4, 2]
    assert len(asset.load_memoizing([3]).plans()) == 1


def test_nnef_is_recognised_and_refused():
    asset = AssetData(AssetKind.NNEF, b"some tar")
    for source in (asset, asset.serialize()):
        with pytest.raises(AssetError, match="holds nnef: memojax reads ONNX; package the ONNX file"):
            mj.load(source)


# StableHLO: the same outputs


@pytest.mark.parametrize("stem", [*POLICIES, *MODELS])
def test_an_exported_policy_gives_the_same_outputs(stem, tmp_path):
    path = tmp_path / "policy.crvo"
    to_stablehlo(model_path(stem), platforms=["cpu"]).write(path)
    reference, loaded = mj.load(model_path(stem), seed=5), mj.load(path, seed=5)
    assert loaded.api == reference.api
    for n in (1, 3, 8):
        assert_same(reference, loaded, n)


@pytest.mark.parametrize("n", [1, 4])
def test_random_numbers_are_the_same(n):
    model = model_path("sb3_sac_sampling")
    reference, loaded = mj.load(model, seed=3), mj.load(to_stablehlo(model), seed=3)
    assert loaded.typed.random
    for _ in range(2):
        assert_same(reference, loaded, n, rtol=1e-6, atol=1e-6)
    inputs = batch(loaded.api, n)
    assert not np.array_equal(loaded.infer_arrays(inputs)["action"], loaded.infer_arrays(inputs)["action"])


def int64_model():
    nodes = [
        helper.make_node("Add", ["count", "big"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Identity", ["version"], ["version_number"]),
    ]
    graph = helper.make_graph(
        nodes,
        "counts",
        [helper.make_tensor_value_info("count", TensorProto.INT64, ["batch", 2])],
        [
            helper.make_tensor_value_info("sum", TensorProto.INT64, ["batch", 2]),
            helper.make_tensor_value_info("version_number", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("wide", TensorProto.DOUBLE, ["batch", 2]),
        ],
        [
            helper.make_tensor("big", TensorProto.INT64, [1], [2**40]),
            helper.make_tensor("version", TensorProto.FLOAT, [1], [3.0]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def test_wide_numbers_and_constant_outputs_are_kept():
    loaded = mj.load(to_stablehlo(int64_model()))
    out = loaded.infer_arrays({"count": np.array([[1, 2**50], [3, 4]])})
    assert list(out) == ["sum", "version_number", "wide"]
    np.testing.assert_array_equal(out["sum"], [[2**40 + 1, 2**50 + 2**40], [2**40 + 3, 2**40 + 4]])
    np.testing.assert_array_equal(out["version_number"], [[3], [3]])
    assert (out["sum"].dtype, out["wide"].dtype) == (np.int64, np.float64)


def test_half_precision_and_nested_weights():
    def fn(params, x):
        return {"out": x["obs"] @ params["layer"][0] + params["layer"][1]}

    weights = {"layer": [jnp.full((3, 2), 0.5, jnp.bfloat16), jnp.ones(2, jnp.bfloat16)]}
    typed = mj.TypedModel.from_function(fn, weights, {"obs": ((3,), jnp.bfloat16)})
    reference, loaded = mj.load(typed), mj.load(to_stablehlo(typed))
    assert_same(reference, loaded, 4, rtol=0)
    assert loaded.api.outputs[0].dtype == ml_dtypes.bfloat16
    assert sorted(loaded.params) == ["['layer'][0]", "['layer'][1]"]


def test_weights_keep_their_names_and_can_be_swapped():
    model = model_path("acrobot_ppo")
    reference, loaded = mj.TypedModel.from_model(model), load_stablehlo(to_stablehlo(model))
    assert list(loaded.params) == sorted(reference.params)
    for name, value in reference.params.items():
        np.testing.assert_array_equal(loaded.params[name], value)
    doubled = {name: np.asarray(value) * 2 for name, value in reference.params.items()}
    assert_same(mj.load(reference.with_params(doubled)), mj.load(loaded.with_params(doubled)), 3)


def test_an_inferer_takes_new_weights(exported):
    reference, loaded = (
        mj.load(source, preload=[3]) for source in (mj.policies.bundled("acrobot_ppo"), exported)
    )
    doubled = {name: np.asarray(value) * 2 for name, value in loaded.params.items()}
    for inferer in (reference, loaded):
        inferer.update_params(doubled)
    assert_same(reference, loaded, 3)


def test_plans_of_an_exported_policy_survive_the_process(exported, tmp_path):
    assert load_stablehlo(exported).fingerprint
    assert load_stablehlo(exported).with_params(load_stablehlo(exported).params).fingerprint is None
    first, second = (mj.load(exported, cache_dir=tmp_path) for _ in range(2))
    assert_same(first, second, 3, rtol=0)


def test_it_pickles(exported):
    reference = mj.load(exported)
    assert_same(reference, pickle.loads(pickle.dumps(reference)), 2, rtol=0)


def test_every_inferer_takes_it(exported):
    reference = mj.load(mj.policies.bundled("acrobot_ppo"))
    builder = mj.InfererBuilder(exported)
    for inferer in (
        builder.build_basic(),
        builder.build_fixed([2, 4]),
        builder.build_dynamic(4),
        builder.build_memoizing(),
    ):
        assert_same(reference, inferer, 5)
    assert isinstance(exported.load_basic(), mj.BasicInferer)


def test_it_loads_by_content(exported, tmp_path):
    path = tmp_path / "policy.onnx"
    exported.write(path)
    for source in (exported, exported.serialize(), path, str(path), io.BytesIO(exported.serialize())):
        assert mj.load(source).api == mj.load(exported).api
    with pytest.raises(InputError, match="loaded already"):
        mj.load(exported, dims={"batch": 3})
    with pytest.raises(AssetError, match=r"holds stablehlo: it has no ONNX graph; use memojax\.load"):
        mj.to_jax(path)


def test_a_file_object_keeps_its_position(exported):
    file = io.BytesIO(b"skip" + exported.serialize())
    file.seek(4)
    assert find_stablehlo(file).serialize() == exported.serialize()
    assert find_stablehlo(io.BytesIO(b"short")) is None
    assert find_stablehlo("/no/such/file") is None
    assert find_stablehlo(3) is None


def test_an_exported_policy_can_be_exported_again(exported):
    assert_same(mj.load(exported), mj.load(to_stablehlo(exported)), 3, rtol=0)


def test_an_exported_policy_describes_itself(exported):
    header = read_header(exported)
    assert header.batch_size is None
    assert not header.random
    assert header.independent
    assert header.platforms == ("cpu", "cuda", "rocm", "tpu")
    assert header.written_by["jax"] == jax.__version__
    assert header.name == mj.TypedModel.from_model(mj.policies.bundled("acrobot_ppo")).model.name
    assert "any number" in load_stablehlo(exported).rule


def test_policies_with_wrappers():
    typed = policy()

    def wrapped(source):
        return mj.RecurrentTracker.wrap(
            mj.EpsilonInjector(mj.load(source), "epsilon", mj.ConstantGenerator(0.5))
        )

    one, other = wrapped(typed), wrapped(to_stablehlo(typed))
    for seed in range(3):
        obs = batch(one.api, 2, seed)
        np.testing.assert_allclose(one.infer_arrays(obs)["act"], other.infer_arrays(obs)["act"], rtol=1e-6)


# StableHLO: the batch


def test_one_size_only():
    asset = to_stablehlo(mj.policies.bundled("acrobot_ppo"), batch_size=4)
    assert read_header(asset).batch_size == 4
    reference, typed = mj.load(mj.policies.bundled("acrobot_ppo")), load_stablehlo(asset)
    assert_same(reference, mj.MemoizingDynamicInferer(typed), 4)
    assert_same(reference, mj.FixedBatchInferer(typed, [4]), 6)
    assert_same(reference, mj.DynamicInferer(typed, 4), 3)
    assert_same(reference, mj.load(typed), 3)
    assert [plan.size for plan in mj.load(typed, preload=[1, 8]).plans()] == [4]
    with pytest.raises(DimensionError, match="at least 1"):
        to_stablehlo(mj.policies.bundled("acrobot_ppo"), batch_size=0)


def test_models_that_mix_rows_are_not_padded():
    loaded = load_stablehlo(to_stablehlo(mixing()))
    assert_same(mj.load(mixing()), mj.load(loaded), 3, rtol=1e-6, atol=1e-6)
    with pytest.raises(RowsMixError):
        mj.DynamicInferer(loaded, 4)


def wants_a_number(mix):
    def fn(_, x):
        count = int(x["obs"].shape[0])
        rows = jnp.concatenate([x["obs"][i : i + 1] for i in range(count)])
        return {"out": rows - rows.mean(0) if mix else rows * 2}

    return mj.TypedModel.from_function(fn, (), {"obs": ((3,), np.float32)})


def test_operators_that_need_the_batch_size_as_a_number():
    assert_same(mj.load(wants_a_number(False)), mj.load(to_stablehlo(wants_a_number(False))), 5, rtol=0)
    with pytest.raises(DimensionError, match=r"batch_size=8"):
        to_stablehlo(wants_a_number(True))
    assert_same(
        mj.load(wants_a_number(True)),
        mj.load(to_stablehlo(wants_a_number(True), batch_size=5)),
        5,
        rtol=1e-6,
        atol=1e-6,
    )
