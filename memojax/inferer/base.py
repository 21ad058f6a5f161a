"""The interface of every inferer: cervo's methods, built on `infer_raw` over a scratch pad view."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .._types import Arrays
from ..errors import (
    BatchSizeError,
    IncompatibleModelError,
    InputError,
)
from ..model.signature import ModelApi
from ..rows.device_choice import DeviceChoice
from ..rows.groups import grouped
from ..rows.scratch import ScratchPadView
from ..rows.states import Response, gather, responses_of

if TYPE_CHECKING:
    from ..wrapper.base import InfererWrapper, StatefulInferer
    from ..wrapper.epsilon import EpsilonInjector, NoiseGenerator
    from .batcher import Batched
    from .predictor import Predictor

T = TypeVar("T")
Shapes = list[tuple[str, list[int]]]
_WHERE_THEY_LIE = DeviceChoice()


class Inferer(abc.ABC):
    """Evaluates a policy for a batch of agents.

    `raw_*` describe the model's own inputs and outputs. `input_shapes` and `output_shapes` leave out those
    that wrappers fill in or keep. Shapes are lists of (name, element shape) without the batch axis.

    >>> policy: memojax.Inferer = memojax.load(memojax.policies.bundled("acrobot_ppo"))
    >>> policy.input_shapes(), policy.output_shapes()
    ([('obs', [6])], [('logits', [3])])
    """

    _predictor: Predictor | None = None
    quick_api: ModelApi | None = None
    """The model's inputs and outputs if `rows_at_once` may answer; None if it never does."""

    def rows_at_once(  # noqa: B027
        self, rows: Sequence[np.ndarray], n: int
    ) -> list[np.ndarray] | None:
        """Outputs of `n` rows in the order of `quick_api`, if one compiled plan can run the rows unchanged.

        None means that nothing has run; the caller then takes the checked way. Arrays that are no views
        belong to the caller.
        """

    @property
    def device_choice(self) -> DeviceChoice:
        """Devices on which calls with `jax.Array`s run."""
        return _WHERE_THEY_LIE

    @property
    @abc.abstractmethod
    def raw_api(self) -> ModelApi:
        """The model's own inputs and outputs."""

    @property
    @abc.abstractmethod
    def api(self) -> ModelApi:
        """The inputs that callers give and the outputs that they get."""

    @abc.abstractmethod
    def select_batch_size(self, max_count: int) -> int:
        """Number of rows, of `max_count` waiting ones, that the next `infer_raw` should take."""

    @abc.abstractmethod
    def infer_raw(self, view: ScratchPadView) -> None:
        """Run the model on the rows of `view`, whose slots are those of `raw_api`, and fill its outputs.

        Raises:
            BatchSizeError: this inferer cannot run that many rows at once.
        """

    @abc.abstractmethod
    def infer_arrays(
        self, inputs: Mapping[str, Any], *, ids: Sequence[int] | None = None, dones: Any = None
    ) -> Arrays:
        """Run a whole batch: `{name: [n, *element_shape]}` in, `{name: [n, *element_shape]}` out.

        NumPy inputs give NumPy outputs. These are computed when the call returns, and are read-only views of
        XLA's results. `jax.Array` (or DLPack) inputs give `jax.Array` outputs on the same device, without a
        copy through the host. Inputs on several devices are moved to the first one's device, with one warning
        per inferer. An empty batch gives empty outputs and compiles nothing.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> answers = policy.infer_arrays({"obs": np.zeros((5, 6), np.float32)})
        >>> answers["logits"].shape
        (5, 3)

        Args:
            inputs: every input by name.
            ids: the agent of each row, for inferers that keep state by agent. Without it, the rows belong to
                agents 0, 1, ...
            dones: bool[n]; inferers that keep state zero the state of these rows before they run. True
                belongs to the first observation of an episode.

        Raises:
            InputError: an unknown, missing, misshapen or mistyped input.
            DeviceError: `jax.Array`s lie on several devices, and the inferer has `strict=True`.
        """

    def with_one_set_of_weights(self, run: Callable[[], T]) -> T:
        """The result of `run`, which calls this inferer several times.

        If the weights change meanwhile, `run` starts again: one result never mixes two sets of weights.
        """
        return run()

    @abc.abstractmethod
    def begin_agent(self, agent: int) -> None:
        """Note that `agent` appears; inferers that keep state make room for it."""

    @abc.abstractmethod
    def end_agent(self, agent: int) -> None:
        """Note that `agent` is gone; inferers that keep state forget it."""

    @abc.abstractmethod
    def is_ready(self, count: int) -> bool:
        """Whether `count` rows would run now without a compile."""

    @abc.abstractmethod
    def prepare(self, count: int) -> Future[None]:
        """Compile the plans for `count` rows on the background worker."""

    def raw_input_shapes(self) -> Shapes:
        """(name, element shape) of each input of the model itself."""
        return self.raw_api.input_shapes()

    def raw_output_shapes(self) -> Shapes:
        """(name, element shape) of each output of the model itself."""
        return self.raw_api.output_shapes()

    def input_shapes(self) -> Shapes:
        """(name, element shape) of each input that callers give."""
        return self.api.input_shapes()

    def output_shapes(self) -> Shapes:
        """(name, element shape) of each output that callers get."""
        return self.api.output_shapes()

    def infer_batch(self, batch: Mapping[int, Mapping[str, Any]]) -> dict[int, Response]:
        """Run a batch of agents, `{id: state}` to `{id: response}`.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> answers = policy.infer_batch({3: {"obs": np.zeros(6)}, 7: {"obs": np.ones(6)}})
        >>> sorted(answers), answers[7]["logits"].shape
        ([3, 7], (3,))

        Raises:
            InputError: a state does not fit; nothing has run.
        """
        if not hasattr(batch, "values"):
            raise InputError(
                f"the batch is {type(batch).__name__}, expected agent -> state (input name -> array)"
            )
        api, agents = self.api, list(batch)
        if api.is_plain:
            outputs = self.infer_arrays(gather(api.inputs, agents, list(batch.values())), ids=agents)
            return responses_of(list(outputs), agents, [np.array(rows) for rows in outputs.values()])
        answers: dict[int, Response] = {}
        for group, inputs in grouped(api, agents, list(batch.values())):
            outputs = self.infer_arrays(inputs, ids=group)
            answers |= responses_of(list(outputs), group, [np.array(rows) for rows in outputs.values()])
        return {agent: answers[agent] for agent in agents}

    def infer_single(self, state: Mapping[str, Any]) -> Response:
        """Run one agent, which has id 0.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> policy.infer_single({"obs": [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]})["logits"].shape
        (3,)
        """
        return self.infer_batch({0: state})[0]

    def infer(self, batch: Mapping[int, Mapping[str, Any]]) -> dict[int, Response]:
        """cervo's older name of `infer_batch`.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> list(policy.infer({7: {"obs": np.zeros(6)}}))
        [7]
        """
        return self.infer_batch(batch)

    def __call__(self, inputs: Any, *, copy: bool = False, out: Any = None) -> Any:
        """Run one agent or a batch, arrays in and arrays out.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> policy(np.zeros(6)).shape, policy(np.zeros((5, 6), np.float32)).shape
        ((3,), (5, 3))

        Args:
            inputs: input name -> array, or the array alone if the model has one input. The arrays have the
                element shape (one agent) or a batch axis in front. They are NumPy arrays, `jax.Array`s or
                PyTorch tensors, and the answer is of the same kind. Tensors are not copied on the way in or
                out, except for outputs that are constants of the model.
            copy: return arrays that the caller owns and may write to.
            out: buffers to write the answer to: output name -> array, or the array alone if there is one
                output. They are also the return value.

        Returns:
            Output name -> array, or the array alone if there is one output.

        Raises:
            InputError: an input does not fit, a tensor requires a gradient, or a buffer cannot hold its
                output.
        """
        from .calls import call

        return call(self, inputs, copy=copy, out=out)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Any, tuple[np.ndarray, ...] | None]:
        """Actions and hidden state, like Stable-Baselines3's `predict`; see `Predictor.predict`.

        This method does not know the action space. `for_env` gives a `Predictor` that clips to it.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> actions, state = policy.predict(np.zeros((5, 6), np.float32))
        >>> actions.shape, state
        ((5,), None)
        """
        if self._predictor is None:
            from .predictor import Predictor

            self._predictor = Predictor(self)
        return self._predictor.predict(observation, state, episode_start, deterministic, action_masks)

    def for_env(self, env: Any, *, seed: int = 0, **wiring: Any) -> Predictor:
        """A `Predictor` of this policy for the spaces of `env`, which Stable-Baselines3 takes as a model.

        >>> import gymnasium
        >>> policy = memojax.load(memojax.policies.bundled("pendulum_ppo"))
        >>> policy.for_env(gymnasium.make("Pendulum-v1")).predict(np.zeros(3, np.float32))[0].shape
        (1,)

        Args:
            env: any object with an `observation_space` and an `action_space`: a Gymnasium environment, a
                vector environment, or Stable-Baselines3's `VecEnv`.
            seed: seed of the draws if `deterministic` is False.
            wiring: `observation`, `action`, `epsilon`, `recurrent`, `observation_transforms`,
                `action_transforms`; see `memojax.evaluate`.

        Raises:
            SpaceMismatchError: the spaces do not fit the model; the message names both sides.
        """
        from .predictor import Predictor, Wiring

        return Predictor(self, env, Wiring(**wiring), seed)

    def with_default_epsilon(self, key: str) -> EpsilonInjector:
        """Feed the input `key` with standard normal noise.

        >>> noisy = memojax.load(memojax.policies.bundled("pendulum_ppo")).with_default_epsilon("epsilon")
        >>> noisy.input_shapes()
        [('obs', [3])]
        """
        from ..wrapper.epsilon import EpsilonInjector

        return EpsilonInjector(self, key)

    def with_epsilon(self, generator: NoiseGenerator, key: str) -> EpsilonInjector:
        """Feed the input `key` from `generator`.

        >>> policy = memojax.load(memojax.policies.bundled("pendulum_ppo"))
        >>> steady = policy.with_epsilon(memojax.ConstantGenerator.zeros(), "epsilon")
        >>> steady.infer_single({"obs": np.zeros(3)}) == steady.infer_single({"obs": np.zeros(3)})
        True
        """
        from ..wrapper.epsilon import EpsilonInjector

        return EpsilonInjector(self, key, generator)

    def into_batched(self) -> Batched:
        """Collect agents one by one and run them together.

        >>> batched = memojax.load(memojax.policies.bundled("acrobot_ppo")).into_batched()
        >>> batched.push(7, {"obs": np.zeros(6)})
        >>> list(batched.execute())
        [7]
        """
        from .batcher import Batched

        return Batched(self)

    def into_stateful(self, wrapper_stack: InfererWrapper) -> StatefulInferer:
        """Put a stack of wrappers around this inferer; `StatefulInferer` can swap the inferer later.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> policy.into_stateful(memojax.BaseWrapper()).input_shapes()
        [('obs', [6])]
        """
        from ..wrapper.base import StatefulInferer

        return StatefulInferer(wrapper_stack, self)


def run_view(inferer: Inferer, view: ScratchPadView) -> None:
    """Run `view` in the batch sizes that `inferer` selects, in order, with one set of weights."""
    total = len(view)
    done = next_size(inferer, total) if total else 0
    if done == total:
        if total:
            inferer.infer_raw(view)
        return
    first = view.part(0, done)
    parts = inferer.with_one_set_of_weights(lambda: _run_parts(inferer, view, first))
    for slot in range(len(view.output_specs)):
        view.set_output(slot, np.concatenate([part.output_slot(slot) for part in parts]))


def _run_parts(inferer: Inferer, view: ScratchPadView, first: ScratchPadView) -> list[ScratchPadView]:
    parts, done, total = [first], len(first), len(view)
    inferer.infer_raw(first)
    while done < total:
        size = next_size(inferer, total - done)
        parts.append(view.part(done, done + size))
        inferer.infer_raw(parts[-1])
        done += size
    return parts


def next_size(inferer: Inferer, waiting: int) -> int:
    """Number of rows, of `waiting` ones, that `inferer` selects.

    Raises:
        BatchSizeError: the number is below 1 or above `waiting`.
    """
    size = inferer.select_batch_size(waiting)
    if not 1 <= size <= waiting:
        raise BatchSizeError(
            f"{type(inferer).__name__}.select_batch_size({waiting}) gave {size}: expected 1 to {waiting}"
        )
    return size


def check_inferer(given: Any) -> None:
    """Check that `given` is an inferer.

    Raises:
        IncompatibleModelError: it is something else, for example a path.
    """
    if not hasattr(given, "raw_api"):
        raise IncompatibleModelError(f"expected an inferer, got {given!r}: memojax.load(file) makes one")
