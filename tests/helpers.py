"""Fakes and small policies that several test files use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, final

import jax.numpy as jnp
import numpy as np
import pytest

import memojax as mj
from memojax.kernels import build
from memojax.plans.helper import Helper

Shapes = Mapping[str, tuple[int, ...]]
STATE = (3,)


def model_api(inputs: Shapes, outputs: Shapes, dtype: Any = np.float32) -> mj.ModelApi:
    return mj.ModelApi(
        *(
            tuple(mj.TensorSpec(name, shape, np.dtype(dtype)) for name, shape in given.items())
            for given in (inputs, outputs)
        )
    )


class Fake(mj.Inferer):
    """Base of all fakes: an inferer that compiles nothing and is always ready.

    Attributes:
        take: count of waiting rows -> how many to take at once.
    """

    def __init__(self, api: mj.ModelApi, take: Callable[[int], int] = lambda count: count):
        self._api, self.take = api, take

    @property
    def raw_api(self) -> mj.ModelApi:
        return self._api

    @property
    def api(self) -> mj.ModelApi:
        return self._api

    def select_batch_size(self, max_count: int) -> int:
        return self.take(max_count)

    def is_ready(self, count: int) -> bool:
        return True

    def prepare(self, count: int) -> Future[None]:
        future: Future[None] = Future()
        future.set_result(None)
        return future


@final
class FakeInferer(Fake):
    """An inferer made of closures; it notes the sizes that it ran and the agents that came and went."""

    def __init__(
        self,
        run: Callable[[mj.ScratchPadView], None] = lambda view: None,
        *,
        take: Callable[[int], int] = lambda count: count,
        inputs: Shapes = {"first": (11,)},
        outputs: Shapes = {"out": (11,)},
        dtype: Any = np.float32,
    ):
        super().__init__(model_api(inputs, outputs, dtype), take)
        self.run = run
        self.sizes: list[int] = []
        self.begun: list[int] = []
        self.ended: list[int] = []

    def infer_raw(self, view: mj.ScratchPadView) -> None:
        self.run(view)
        self.sizes.append(len(view))

    def infer_arrays(
        self, inputs: Mapping[str, Any], *, ids: Sequence[int] | None = None, dones: Any = None
    ) -> dict[str, Any]:
        return mj.StatefulInferer(mj.BaseWrapper(), self).infer_arrays(
            {k: np.asarray(v) for k, v in inputs.items()}, ids=ids, dones=dones
        )

    def begin_agent(self, agent: int) -> None:
        self.begun.append(agent)

    def end_agent(self, agent: int) -> None:
        self.ended.append(agent)


def echo(view: mj.ScratchPadView) -> None:
    """The first input comes back as the first output."""
    view.set_output(0, view.input_slot(0).copy())


def counting_lstm(**options: Any) -> FakeInferer:
    """cervo's recurrent dummy: the hidden state counts by one, the cell state by two, and both are also given
    out."""

    def run(view: mj.ScratchPadView) -> None:
        for slot in range(2):
            new = view.input_slot(slot) + slot + 1
            view.set_output(slot, new)
            view.set_output(slot + 2, new.reshape(len(new), -1))

    state = {"lstm_hidden_state": (2, 1), "lstm_cell_state": (2, 3)}
    return FakeInferer(
        run, inputs=state, outputs={**state, "hidden_output": (2,), "cell_output": (6,)}, **options
    )


def counts(tracker: mj.Inferer, agents: Sequence[int]) -> list[tuple[float, float]]:
    """One step of `counting_lstm` for `agents`: the means of its outputs."""
    batcher = mj.Batcher(tracker)
    for agent in agents:
        batcher.push(agent, {})
    responses = batcher.execute(tracker)
    assert all(response.keys() == {"hidden_output", "cell_output"} for response in responses.values())
    return [
        (float(responses[a]["hidden_output"].mean()), float(responses[a]["cell_output"].mean()))
        for a in agents
    ]


def summing(**options: Any) -> FakeInferer:
    """h_out = 2 h_in + obs, which is also given out: exact in float32, and no two histories give the same
    state."""

    def run(view: mj.ScratchPadView) -> None:
        new = 2 * view.input_slot(1) + view.input_slot(0)
        view.set_output(0, new)
        view.set_output(1, new.copy())

    options = {"inputs": {"obs": (1,), "h_in": (1,)}, "outputs": {"act": (1,), "h_out": (1,)}, **options}
    return FakeInferer(run, **options)


def noisy_echo() -> FakeInferer:
    """A fake that gives its noise as the output `seen`."""
    return FakeInferer(
        lambda view: view.set_output(0, np.array(view.input_slot(1))),
        inputs={"obs": (1,), "epsilon": (2,)},
        outputs={"seen": (2,)},
    )


def track_stacked(inferer: mj.Inferer) -> mj.StatefulInferer:
    return mj.RecurrentTrackerWrapper(mj.BaseWrapper(), inferer).wrap(inferer)


WEIGHTS = np.random.default_rng(1).standard_normal((4, 2)).astype(np.float32)


def _policy(weights: Any, x: Mapping[str, Any]) -> dict[str, Any]:
    act = x["obs"] @ weights + x["epsilon"] + 2 * x["h_in"][:, :2]
    return {
        "act": act,
        "choice": jnp.argmax(act, axis=1).astype(jnp.int32),
        "h_out": x["h_in"] + jnp.sum(x["obs"], axis=1, keepdims=True),
    }


def policy() -> mj.TypedModel:
    """A policy with an observation, noise and a hidden state; `policy_oracle` says the same in NumPy."""
    inputs = {"obs": ((4,), np.float32), "epsilon": ((2,), np.float32), "h_in": (STATE, np.float32)}
    return mj.TypedModel.from_function(_policy, WEIGHTS, inputs)


def policy_oracle(obs: np.ndarray, epsilon: Any, state: np.ndarray) -> dict[str, np.ndarray]:
    act = obs @ WEIGHTS + epsilon + 2 * state[:, :2]
    return {"act": act, "choice": act.argmax(axis=1), "h_out": state + obs.sum(axis=1, keepdims=True)}


def mixing() -> mj.TypedModel:
    """Every row is compared with the mean of the batch."""
    return mj.TypedModel.from_function(
        lambda _, x: {"plain": x["obs"] * 2, "centred": x["obs"] - x["obs"].mean(0)},
        (),
        {"obs": ((3,), np.float32)},
    )


def scaling(factor: float = 2.0) -> mj.TypedModel:
    """out = factor * obs."""
    return mj.TypedModel.from_function(
        lambda w, x: {"out": w * x["obs"]}, np.float32(factor), {"obs": ((3,), np.float32)}
    )


def own_helper(monkeypatch: pytest.MonkeyPatch) -> Helper:
    """A separate helper process instead of the one that tests share."""
    made = Helper()
    monkeypatch.setattr("memojax.plans.engine.helper", made)
    return made


def in_threads(count: int, task: Callable[[int], Any]) -> list[Any]:
    """`task(0)`, ..., each in its own thread; raises what they raise."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(task, range(count), timeout=120))


def rows(*values: Iterable[float] | float) -> np.ndarray:
    """One float32 row of one element per value."""
    return np.asarray(values, np.float32).reshape(len(values), -1)


def mostly_slow(quick: Iterable[Any], slow: Iterable[Any]) -> list[Any]:
    """Parameters of a test: `quick` ones, and others with the mark `slow`."""
    return [*quick, *(pytest.param(value, marks=pytest.mark.slow) for value in slow)]


def has_compiler() -> bool:
    """Whether the native code should build here."""
    return build.supported() and (build.system_compiler() or build.ziglang()) is not None
