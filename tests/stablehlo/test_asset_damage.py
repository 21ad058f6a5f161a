"""Assets that are damaged, hostile or of another version: an error, never a crash or a large allocation."""

from __future__ import annotations

import json
import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import memojax as mj
from memojax import AssetData, AssetKind
from memojax.errors import AssetError, InputError
from memojax.lowering.exported import load as stablehlo
from memojax.lowering.exported.header import PREFIX
from memojax.stablehlo import load_stablehlo, read_header, to_stablehlo


@pytest.fixture(scope="module")
def onnx_file():
    return mj.policies.bundled("acrobot_ppo").read_bytes()


@pytest.fixture(scope="module")
def exported():
    return to_stablehlo(mj.policies.bundled("acrobot_ppo"))


def rebuilt(asset, body=None, **changes):
    """An asset with a changed header, whose digest is correct."""
    length = PREFIX.unpack_from(asset.data)[1]
    start = PREFIX.size
    header = json.loads(asset.data[start : start + length]) | changes
    body = asset.data[start + length :] if body is None else body
    if "sha256" not in changes:
        header["sha256"] = stablehlo.hashlib.sha256(body).hexdigest()
    text = json.dumps(header).encode()
    return AssetData(AssetKind.STABLEHLO, PREFIX.pack(b"MJXA", len(text)) + text + body)


def body_of(asset):
    return asset.data[PREFIX.size + PREFIX.unpack_from(asset.data)[1] :]


@given(st.data())
def test_truncation_is_noticed(exported, data):
    raw = exported.serialize()
    with pytest.raises(AssetError):
        mj.load(AssetData.deserialize(raw[: data.draw(st.integers(0, len(raw) - 1))]))


@given(st.data())
def test_damage_is_noticed(exported, data):
    raw = bytearray(exported.serialize())
    place = data.draw(st.integers(8, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    try:
        loaded = mj.load(bytes(raw))
    except AssetError:
        return
    # In the header, a letter of a name or a comment may change, but never the computation.
    assert place < len(raw) - len(body_of(exported))
    assert [spec.shape for spec in loaded.api.inputs] == [(6,)]


@given(st.binary(max_size=200), st.booleans())
def test_noise_is_refused(noise, with_magic):
    payload = (b"MJXA" + noise if with_magic else noise) or b"x"
    with pytest.raises(AssetError):
        load_stablehlo(AssetData(AssetKind.STABLEHLO, payload))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
_FIELDS = [
    "format",
    "inputs",
    "outputs",
    "computed",
    "params",
    "constants",
    "batch_size",
    "random",
    "independent",
    "platforms",
    "rule",
    "name",
    "metadata",
    "written_by",
    "calling_convention",
    "program_bytes",
    "sha256",
]


@given(st.sampled_from(_FIELDS), _json)
def test_nonsense_in_the_header_is_refused_or_harmless(exported, field, value):
    asset = rebuilt(exported, **{field: value})
    try:
        loaded = load_stablehlo(asset, trusted=True)
    except AssetError:
        return
    same = asset.data == rebuilt(exported).data  # the value may be the one that the header has
    assert same or field in (
        "rule",
        "name",
        "metadata",
        "written_by",
        "independent",
        "platforms",
        "calling_convention",
        "batch_size",
    )
    assert loaded.api == load_stablehlo(exported).api


@pytest.mark.parametrize(
    "changes",
    [
        {"program_bytes": 1 << 60},
        {"inputs": [{"name": "obs", "shape": [1 << 30, 1 << 30], "dtype": "float32"}]},
        {"inputs": [{"name": "obs", "shape": [1] * 100, "dtype": "float32"}]},
        {"inputs": [{"name": "obs", "shape": [-6], "dtype": "float32"}]},
        {"inputs": [{"name": "obs", "shape": [6], "dtype": "object"}]},
        {"inputs": [{"name": "obs", "shape": [7], "dtype": "float32"}]},
        {"inputs": [{"name": "obs", "shape": [6], "dtype": "int32"}]},
        {"params": [{"name": "w", "shape": [1 << 30, 1 << 30], "dtype": "float32"}]},
        {"params": [{"name": "w", "shape": [0, 1 << 30], "dtype": "float32"}]},
        {"params": []},
        {"constants": [{"name": "logits", "shape": [3], "dtype": "float32"}]},
        {"computed": []},
        {"computed": ["logits", "logits"]},
        {"random": True},
        {"batch_size": 3},
    ],
    ids=str,
)
def test_sizes_are_checked_before_anything_is_made(exported, changes):
    asset = rebuilt(exported, **changes)
    load_stablehlo(exported)
    tracemalloc.start()
    try:
        with pytest.raises(AssetError):
            load_stablehlo(asset)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_header_longer_than_the_asset_is_not_read():
    with pytest.raises(AssetError, match="truncated"):
        load_stablehlo(AssetData(AssetKind.STABLEHLO, PREFIX.pack(b"MJXA", 0xFFFFFFFF) + b"{}"))
    deep = b"[" * 100_000
    with pytest.raises(AssetError, match="damaged"):
        load_stablehlo(AssetData(AssetKind.STABLEHLO, PREFIX.pack(b"MJXA", len(deep)) + deep))


def test_other_kinds_are_refused(onnx_file):
    with pytest.raises(AssetError, match="holds onnx"):
        load_stablehlo(AssetData(AssetKind.ONNX, onnx_file))


@pytest.mark.parametrize("seed", range(6))
def test_a_hostile_program_does_not_take_the_process_down(exported, seed):
    """The parser crashes on some of these programs, and allocates gigabytes for others, but in the child."""
    header, body = read_header(exported), bytearray(body_of(exported))
    rng = np.random.default_rng(seed)
    for _ in range(20):
        body[rng.integers(header.program_bytes // 4, header.program_bytes)] = rng.choice([0, 127, 128, 255])
    with pytest.raises(
        AssetError, match="cannot read the program|does not fit|the program in this asset calls"
    ):
        load_stablehlo(rebuilt(exported, bytes(body)))


def test_a_program_may_only_compute(exported):
    """A call of Python by the address of a function would run arbitrary code."""

    def callback(params, x):
        return {
            "out": jax.pure_callback(
                lambda obs: np.asarray(obs) * 2, jax.ShapeDtypeStruct(x["obs"].shape, np.float32), x["obs"]
            )
        }

    typed = mj.TypedModel.from_function(callback, (), {"obs": ((3,), np.float32)})
    with pytest.raises(Exception, match="custom call|callback"):
        to_stablehlo(typed, platforms=["cpu"])
    assert not stablehlo._CUSTOM_CALLS.fullmatch("xla_ffi_python_cpu_callback")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stablehlo, "_CUSTOM_CALLS", stablehlo.re.compile("nothing"))
        with pytest.raises(AssetError, match=r"this asset calls 'shape_assertion'"):
            load_stablehlo(exported)


@pytest.mark.parametrize(("offset", "way_out"), [(-1, "export the policy again"), (1, "update jax")])
def test_programs_of_unsupported_versions_are_refused(exported, offset, way_out):
    edge = (
        jax.export.minimum_supported_calling_convention_version
        if offset < 0
        else jax.export.maximum_supported_calling_convention_version
    )
    asset = rebuilt(exported, calling_convention=edge + offset, written_by={"jax": "0.4.30"})
    with pytest.raises(AssetError, match=rf"JAX 0\.4\.30 .*{way_out}"):
        load_stablehlo(asset)


def test_a_newer_format_is_refused(exported):
    with pytest.raises(AssetError, match="format 2, but this memojax reads format 1: update memojax"):
        load_stablehlo(rebuilt(exported, format=2))


@pytest.mark.parametrize("platforms", [["tpus"], [], "cpu"])
def test_unknown_platforms_are_refused(platforms):
    with pytest.raises(InputError, match="platforms= takes a list of 'cpu', 'cuda'"):
        to_stablehlo(mj.policies.bundled("acrobot_ppo"), platforms=platforms)
