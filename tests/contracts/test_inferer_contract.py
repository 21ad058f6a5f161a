"""One contract for every inferer, bare and wrapped; then the promises of each of the four."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memojax as mj
from memojax import (
    BaseWrapper,
    BasicInferer,
    ConstantGenerator,
    DynamicInferer,
    EpsilonInjector,
    EpsilonInjectorWrapper,
    FixedBatchInferer,
    Inferer,
    InfererBuilder,
    MemoizingDynamicInferer,
    RecurrentTracker,
    RecurrentTrackerWrapper,
    TypedModel,
)
from memojax.errors import (
    BatchSizeError,
    InputDtypeError,
    InputError,
    InputShapeError,
    MissingInputError,
    RowsMixError,
    UnknownInputError,
)

from ..helpers import STATE, in_threads, mixing, policy, policy_oracle, scaling

BUILD: dict[str, Callable[[TypedModel], Any]] = {
    "basic": BasicInferer,
    "fixed": lambda typed: FixedBatchInferer(typed, [2, 4]),
    "memoizing": MemoizingDynamicInferer,
    "bucketed": lambda typed: MemoizingDynamicInferer(typed, bucketing="pow2", max_batch_size=4),
    "dynamic": lambda typed: DynamicInferer(typed, capacity=4),
}


def _both_stacked(inferer: Inferer) -> Inferer:
    inner = EpsilonInjectorWrapper(BaseWrapper(), inferer, "epsilon", ConstantGenerator(0.5))
    return inferer.into_stateful(RecurrentTrackerWrapper(inner, inferer))


WRAP: dict[str, Callable[[Inferer], Inferer]] = {
    "bare": lambda inferer: inferer,
    "epsilon": lambda inferer: EpsilonInjector(inferer, "epsilon", ConstantGenerator(0.5)),
    "recurrent": RecurrentTracker.wrap,
    "both": lambda inferer: EpsilonInjector(
        RecurrentTracker.wrap(inferer), "epsilon", ConstantGenerator(0.5)
    ),
    "both-stacked": _both_stacked,
}
SIZES = (1, 3, 4, 6)


@functools.cache
def built(kind: str) -> Inferer:
    return BUILD[kind](policy())


@pytest.fixture(params=BUILD)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=WRAP)
def wrapped(request: pytest.FixtureRequest, kind: str) -> tuple[str, Inferer]:
    return request.param, WRAP[request.param](built(kind))


@pytest.fixture
def inferer(wrapped: tuple[str, Inferer]) -> Inferer:
    return wrapped[1]


def batch(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"obs": (4,), "epsilon": (2,), "h_in": STATE}
    return {name: rng.standard_normal((n, *shape)).astype(np.float32) for name, shape in shapes.items()}


def visible(inferer: Inferer, given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name, _ in inferer.input_shapes()}


def reset(inferer: Inferer, agents: Any) -> None:
    for agent in agents:
        inferer.begin_agent(agent)


def expected(wrap: str, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    noise = given["epsilon"] if wrap in ("bare", "recurrent") else np.float32(0.5)
    state = given["h_in"] if wrap in ("bare", "epsilon") else np.zeros_like(given["h_in"])
    outputs = policy_oracle(given["obs"], noise, state)
    return outputs if wrap in ("bare", "epsilon") else {name: outputs[name] for name in ("act", "choice")}


def assert_same(given: Any, wanted: Any) -> None:
    assert list(given) == list(wanted)
    for name in wanted:
        np.testing.assert_allclose(given[name], wanted[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_shapes(wrapped: tuple[str, Inferer]) -> None:
    wrap, inferer = wrapped
    inputs, outputs = (
        [("obs", [4]), ("epsilon", [2]), ("h_in", [3])],
        [("act", [2]), ("choice", []), ("h_out", [3])],
    )
    assert inferer.raw_input_shapes() == inputs
    assert inferer.raw_output_shapes() == outputs
    hidden = {"epsilon": {"epsilon"}, "recurrent": {"h_in", "h_out"}}.get(
        wrap, set() if wrap == "bare" else {"epsilon", "h_in", "h_out"}
    )
    assert inferer.input_shapes() == [pair for pair in inputs if pair[0] not in hidden]
    assert inferer.output_shapes() == [pair for pair in outputs if pair[0] not in hidden]


@pytest.mark.parametrize("n", SIZES)
def test_arrays_batches_and_single_agents_give_the_same(wrapped: tuple[str, Inferer], n: int) -> None:
    wrap, inferer = wrapped
    given = batch(n, n)
    wanted = expected(wrap, given)
    reset(inferer, range(n))
    arrays = inferer.infer_arrays(visible(inferer, given))
    assert all(type(array) is np.ndarray for array in arrays.values())
    assert_same(arrays, wanted)
    assert arrays["choice"].dtype == np.int32
    reset(inferer, range(n))
    responses = inferer.infer_batch(
        {agent: visible(inferer, {k: v[agent] for k, v in given.items()}) for agent in range(n)}
    )
    assert list(responses) == list(range(n))
    for agent, response in responses.items():
        assert_same(response, {name: array[agent] for name, array in wanted.items()})
    reset(inferer, [0])
    assert_same(inferer.infer_single(visible(inferer, {k: v[0] for k, v in given.items()})), responses[0])


@pytest.mark.parametrize("n", [1, 6])
def test_arrays_on_a_device_stay_there(wrapped: tuple[str, Inferer], n: int) -> None:
    wrap, inferer = wrapped
    given = batch(n, n)
    reset(inferer, range(n))
    arrays = inferer.infer_arrays(
        visible(inferer, {name: jnp.asarray(array) for name, array in given.items()})
    )
    assert all(isinstance(array, jax.Array) for array in arrays.values())
    assert_same(arrays, expected(wrap, given))


def test_one_array_on_a_device_is_enough(wrapped: tuple[str, Inferer]) -> None:
    wrap, inferer = wrapped
    given = batch(3)
    reset(inferer, range(3))
    arrays = inferer.infer_arrays(visible(inferer, {**given, "obs": jnp.asarray(given["obs"])}))
    assert isinstance(arrays["act"], jax.Array)
    assert_same(arrays, expected(wrap, given))


def test_no_rows_give_no_rows_and_compile_nothing(kind: str) -> None:
    for wrap in WRAP:
        inner = built(kind)
        inferer = WRAP[wrap](inner)
        before = [plan.size for plan in inner.plans()]  # pyright: ignore[reportAttributeAccessIssue]
        for convert in (np.asarray, jnp.asarray):
            empty = inferer.infer_arrays(
                visible(inferer, {name: convert(array[:0]) for name, array in batch(1).items()})
            )
            assert {name: array.shape for name, array in empty.items()} == {
                name: (0, *shape) for name, shape in inferer.output_shapes()
            }
            assert empty["choice"].dtype == np.int32
            assert isinstance(empty["act"], type(convert([])))
        assert inferer.infer_batch({}) == {}
        assert [plan.size for plan in inner.plans()] == before  # pyright: ignore[reportAttributeAccessIssue]


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = {
    "unknown": (lambda x: {**x, "speed": x["obs"]}, UnknownInputError, "speed"),
    "missing": (lambda x: {k: v for k, v in x.items() if k != "obs"}, MissingInputError, "obs"),
    "nothing": (lambda x: {}, MissingInputError, "obs"),
    "element shape": (lambda x: {**x, "obs": x["obs"][:, :3]}, InputShapeError, "obs.*3"),
    "no batch axis": (lambda x: {**x, "obs": x["obs"][0]}, InputShapeError, "obs"),
    "scalar": (lambda x: {**x, "obs": 1.0}, InputShapeError, "obs"),
    "extra axis": (lambda x: {**x, "obs": x["obs"][None]}, InputShapeError, "obs"),
    "complex": (lambda x: {**x, "obs": x["obs"] * 1j}, InputDtypeError, "complex64"),
    "text": (lambda x: {**x, "obs": np.full(x["obs"].shape, "a")}, InputDtypeError, "obs"),
    "ragged": (lambda x: {**x, "obs": [[1.0], [1.0, 2.0]]}, InputShapeError, "obs"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(inferer: Inferer, case: str) -> None:
    spoil, error, message = BAD[case]
    reset(inferer, range(3))
    good = visible(inferer, batch(3))
    first = inferer.infer_arrays(good)
    reset(inferer, range(3))
    with pytest.raises(error, match=message) as caught:
        inferer.infer_arrays(spoil(good))
    assert isinstance(caught.value, InputError)
    assert_same(inferer.infer_arrays(good), first)


@pytest.mark.parametrize("case", ["unknown", "missing", "element shape", "no batch axis", "complex"])
def test_bad_input_on_a_device_is_refused_by_name(inferer: Inferer, case: str) -> None:
    spoil, error, message = BAD[case]
    good = {
        name: jnp.asarray(array)
        for name, array in visible(inferer, {**batch(3), "h_in": np.zeros((3, 3), np.float32)}).items()
    }
    given = {**spoil(good)} if len(good) > 1 or case not in ("missing",) else {"speed": good["obs"]}
    with pytest.raises((error, UnknownInputError), match=f"{message}|speed"):
        inferer.infer_arrays(given)


def test_all_inputs_must_have_the_same_number_of_rows(kind: str) -> None:
    given = batch(3)
    with pytest.raises(InputShapeError, match=r"'epsilon' has 2 rows.*'obs' has 3"):
        built(kind).infer_arrays({**given, "epsilon": given["epsilon"][:2]})


@pytest.mark.parametrize(
    "given", [np.float64, np.float16, np.int64, np.int8, np.uint8, np.bool_], ids=lambda dtype: dtype.__name__
)
def test_widths_are_converted(inferer: Inferer, given: Any) -> None:
    obs = np.ones((3, 4), np.float32)
    reset(inferer, range(3))
    wanted = inferer.infer_arrays(visible(inferer, {**batch(3), "obs": obs}))
    for other in (
        obs.astype(given),
        obs.astype(given).tolist(),
        np.asfortranarray(obs.astype(given)),
        jnp.asarray(obs.astype(given)),
    ):
        reset(inferer, range(3))
        assert_same(inferer.infer_arrays(visible(inferer, {**batch(3), "obs": other})), wanted)


def test_nan_passes_through_in_its_own_row(wrapped: tuple[str, Inferer]) -> None:
    wrap, inferer = wrapped
    given = batch(5)
    given["obs"][2] = np.nan
    reset(inferer, range(5))
    outputs = inferer.infer_arrays(visible(inferer, given))
    assert np.isnan(outputs["act"]).all(axis=1).tolist() == [False, False, True, False, False]
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(
        outputs["act"][others], expected(wrap, given)["act"][others], rtol=1e-5, atol=1e-5
    )


def test_inputs_are_not_changed_and_outputs_are_not_reused(inferer: Inferer) -> None:
    given = batch(3)
    before = {name: array.copy() for name, array in given.items()}
    reset(inferer, range(3))
    first = inferer.infer_arrays(visible(inferer, given))
    kept = {name: array.copy() for name, array in first.items()}
    inferer.infer_arrays(visible(inferer, batch(3, seed=9)))
    assert_same(first, kept)
    assert_same(given, before)


def test_agents_are_named_by_ids(wrapped: tuple[str, Inferer]) -> None:
    wrap, inferer = wrapped
    reset(inferer, [7, 3])
    given = batch(2)
    first = inferer.infer_arrays(visible(inferer, given), ids=[7, 3], dones=[False, False])
    again = inferer.infer_arrays(
        visible(inferer, {name: array[::-1] for name, array in given.items()}), ids=[3, 7]
    )
    keeps_state = wrap not in ("bare", "epsilon")
    assert keeps_state != np.allclose(first["act"], again["act"][::-1])


def test_selected_sizes_are_possible(inferer: Inferer) -> None:
    for waiting in range(1, 12):
        assert 1 <= inferer.select_batch_size(waiting) <= waiting


def test_prepared_sizes_are_ready(wrapped: tuple[str, Inferer]) -> None:
    _, inferer = wrapped
    inferer.prepare(5).result(timeout=60)
    assert inferer.is_ready(5)


def test_threads_get_their_own_results(kind: str) -> None:
    for wrap in ("bare", "both"):
        inferer = WRAP[wrap](built(kind))

        def work(thread: int, inferer: Inferer = inferer, wrap: str = wrap) -> None:
            mine = list(range(10 * thread, 10 * thread + 1 + thread))
            for step in range(10):
                given = batch(len(mine), 100 * thread + step)
                reset(inferer, mine)
                assert_same(inferer.infer_arrays(visible(inferer, given), ids=mine), expected(wrap, given))

        in_threads(5, work)


# --- each by itself


def test_basic_has_one_plan() -> None:
    inferer = BasicInferer(policy())
    inferer.infer_arrays(batch(5))
    assert [plan.size for plan in inferer.plans()] == [1]
    assert inferer.select_batch_size(5) == 1


def test_memoizing_compiles_each_size_once() -> None:
    inferer = MemoizingDynamicInferer(policy(), [2])
    for n in (3, 2, 3, 1, 3, 2):
        inferer.infer_arrays(batch(n))
        inferer.infer_batch(
            {agent: {name: array[agent] for name, array in batch(n).items()} for agent in range(n)}
        )
    info = inferer.cache_info()
    assert [plan.size for plan in inferer.plans()] == [1, 2, 3]
    assert (info.misses, info.hits, info.currsize) == (2, 10, 3)
    assert info.compile_seconds > 0


def test_fixed_runs_the_largest_sizes_first_and_pads_the_rest() -> None:
    inferer = FixedBatchInferer(policy(), [2, 5])
    for n, sizes, padding in (
        (5, [5], 0),
        (12, [5, 5, 2], 0),
        (13, [5, 5, 2, 1], 1),
        (1, [1], 1),
        (4, [2, 2], 0),
    ):
        taken, left, before = [], n, inferer.cache_info().padded_rows
        while left:
            taken.append(inferer.select_batch_size(left))
            left -= taken[-1]
        assert taken == sizes
        assert_same(inferer.infer_arrays(batch(n)), expected("bare", batch(n)))
        assert inferer.cache_info().padded_rows - before == padding
    assert [plan.size for plan in inferer.plans()] == [2, 5]


def test_dynamic_has_one_plan_and_pads_and_splits() -> None:
    inferer = DynamicInferer(policy(), capacity=4)
    for n in (1, 4, 9):
        assert_same(inferer.infer_arrays(batch(n)), expected("bare", batch(n)))
    assert [plan.size for plan in inferer.plans()] == [4]
    assert inferer.cache_info().padded_rows == 3 + 0 + 3


def test_padding_and_splitting_are_refused_where_rows_mix() -> None:
    typed = mixing()
    obs = np.arange(12, dtype=np.float32).reshape(4, 3)
    exact = MemoizingDynamicInferer(typed).infer_arrays({"obs": obs})["centred"]
    np.testing.assert_allclose(exact, obs - obs.mean(0))
    with pytest.raises(RowsMixError, match=r"'centred'.*MemoizingDynamicInferer"):
        DynamicInferer(typed, 4)
    fixed = FixedBatchInferer(typed, [3, 4])
    assert (fixed.infer_arrays({"obs": obs})["centred"] == exact).all()
    for inferer, n in ((fixed, 2), (fixed, 7), (BasicInferer(typed), 2)):
        with pytest.raises(RowsMixError, match="centred"):
            inferer.infer_arrays({"obs": np.zeros((n, 3), np.float32)})
        with pytest.raises(RowsMixError, match="centred"):
            inferer.infer_batch({agent: {"obs": np.zeros(3)} for agent in range(n)})
    assert BasicInferer(typed).infer_single({"obs": [1, 2, 3]})["centred"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("size", [0, -1, -8, 1.5, "8", None, True], ids=repr)
def test_impossible_sizes_are_refused(size: Any) -> None:
    typed = scaling()
    for build in (
        lambda: MemoizingDynamicInferer(typed, [2, size]),
        lambda: FixedBatchInferer(typed, [2, size]),
        lambda: DynamicInferer(typed, size),
        lambda: MemoizingDynamicInferer(typed).preload([2, size]),
    ):
        with pytest.raises(BatchSizeError, match=repr(size)):
            build()
    with pytest.raises(BatchSizeError, match="at least one"):
        FixedBatchInferer(typed, [])


def test_raw_calls_of_a_size_without_a_plan_are_refused() -> None:
    from memojax import Batcher, ScratchPad

    for inferer, n in (
        (BasicInferer(scaling()), 2),
        (DynamicInferer(scaling(), 2), 3),
        (FixedBatchInferer(scaling(), [2]), 3),
    ):
        pad = ScratchPad(inferer.raw_api.inputs, inferer.raw_api.outputs)
        for agent in range(n):
            pad.next(agent)
            pad.push(0, np.ones(3))
        with pytest.raises(BatchSizeError, match=str(n)):
            inferer.infer_raw(pad.chunk(0, n))
        assert len(Batcher(inferer)) == 0


def test_the_builder_shares_one_model() -> None:
    builder = InfererBuilder(policy())
    for inferer in (
        builder.build_basic(),
        builder.build_fixed([2]),
        builder.build_memoizing([1]),
        builder.build_dynamic(3),
    ):
        assert inferer.params is builder.typed.params
        assert_same(inferer.infer_arrays(batch(3)), expected("bare", batch(3)))


def test_random_models_repeat_by_seed_and_rows_differ() -> None:
    def draw(_: Any, x: Any, key: Any) -> Any:
        return {"noise": x["obs"] + jax.random.normal(key, x["obs"].shape)}

    typed = TypedModel.from_function(draw, (), {"obs": ((3,), np.float32)}, random=True)
    obs = {"obs": np.zeros((4, 3), np.float32)}
    first, same, other = (MemoizingDynamicInferer(typed, seed=seed) for seed in (1, 1, 2))
    stream = [first.infer_arrays(obs)["noise"] for _ in range(3)]
    assert len(np.unique(np.stack(stream))) == 3 * 4 * 3
    assert all(np.array_equal(noise, same.infer_arrays(obs)["noise"]) for noise in stream)
    assert not np.array_equal(stream[0], other.infer_arrays(obs)["noise"])
    assert isinstance(first.infer_arrays({"obs": jnp.zeros((4, 3))})["noise"], jax.Array)


def test_inputs_of_other_types_are_refused_by_name() -> None:
    policy = mj.load(mj.policies.bundled("acrobot_ppo"))
    rows: Any = np.zeros((2, 6), np.float32)
    for call, message in (
        (lambda: policy.infer_arrays(rows), "inputs is ndarray, expected a mapping of input names"),
        (lambda: policy.infer_arrays(None), "inputs is NoneType"),  # pyright: ignore[reportArgumentType]
        (lambda: policy.infer_batch([rows]), "the batch is list, expected agent -> state"),  # pyright: ignore[reportArgumentType]
        (lambda: policy.infer_batch({3: rows}), "the state of agent 3 is ndarray"),
        (lambda: policy.infer_single(None), "the state of agent 0 is NoneType"),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(mj.errors.InputError, match=message):
            call()


@pytest.mark.parametrize(
    "wrap",
    [mj.RecurrentTracker.wrap, lambda given: mj.EpsilonInjector(given, "epsilon"), mj.Batched, mj.Batcher],
)
def test_a_file_is_refused_as_an_inferer(wrap: Any) -> None:
    with pytest.raises(mj.errors.IncompatibleModelError, match="expected an inferer, got .*memojax.load"):
        wrap(mj.policies.bundled("pendulum_ppo"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "constants"}, "weights= takes .* did you mean 'constant'"),
        ({"autotune": "always"}, "autotune= takes 'off', 'preload', 'background'"),
        ({"on_mis": "pad"}, "no option 'on_mis': did you mean 'on_miss'"),
        ({"maxsize": "a lot"}, "maxsize= takes a whole number or None, not 'a lot'"),
        ({"seed": 0.5}, "seed= takes a whole number"),
        ({"dim": {"seq": 3}}, "no option 'dim': did you mean 'dims'"),
    ],
)
def test_a_wrong_option_is_refused_with_the_nearest_right_one(options: Any, message: str) -> None:
    for load in (mj.load, mj.MemoizingDynamicInferer.from_model):
        with pytest.raises(mj.errors.OptionError, match=message):
            load(mj.policies.bundled("acrobot_ppo"), **options)


def test_options_take_a_single_value_for_a_list() -> None:
    policy = mj.load("acrobot_ppo", outputs="logits", preload=8)
    assert [plan.size for plan in policy.plans()] == [8]
