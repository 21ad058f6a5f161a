"""What every inferer offers: cervo's methods, on top of `infer_raw` over a scratch pad view."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Arrays
from ..errors import (
    BatchSizeError,
    IncompatibleModelError,
    InputDtypeError,
    InputError,
    InputShapeError,
    MissingInputError,
    UnknownInputError,
)
from ..model.signature import ModelApi, TensorSpec
from ..rows.device_choice import DeviceChoice
from ..rows.scratch import ScratchPadView
from ..rows.states import Response, as_dtype, can_cast, check_fits, dtype_message, gather, responses_of
from ..xla.settings import own_settings

if TYPE_CHECKING:
    from ..glue.predictor import Predictor
    from ..wrapper.base import InfererWrapper, StatefulInferer
    from ..wrapper.epsilon import EpsilonInjector, NoiseGenerator
    from .batcher import Batched

T = TypeVar("T")
Shapes = list[tuple[str, list[int]]]
_WHERE_THEY_LIE = DeviceChoice()


class Inferer(abc.ABC):
    """Evaluates a policy for a batch of agents.

    `raw_*` is what the model itself takes and gives; `input_shapes` and `output_shapes` leave out what wrappers around it fill in or
    keep. Shapes are lists of (name, element shape): the batch axis is not part of them.

    >>> policy: memojax.Inferer = memojax.load(memojax.policies.bundled("acrobot_ppo"))
    >>> policy.input_shapes(), policy.output_shapes()
    ([('obs', [6])], [('logits', [3])])
    """

    _predictor: Predictor | None = None

    @property
    def placement(self) -> DeviceChoice:
        """Where calls with `jax.Array`s run."""
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
        """How many of `max_count` waiting rows to take in one `infer_raw`."""

    @abc.abstractmethod
    def infer_raw(self, view: ScratchPadView) -> None:
        """Run the model on the rows of `view`, whose slots are those of `raw_api`, and fill its outputs.

        Raises:
            BatchSizeError: as many rows cannot be run at once.
        """

    @abc.abstractmethod
    def infer_arrays(
        self, inputs: Mapping[str, Any], *, ids: Sequence[int] | None = None, dones: Any = None
    ) -> Arrays:
        """Run a whole batch, `{name: [n, *element_shape]}` to `{name: [n, *element_shape]}`.

        NumPy in gives NumPy out, when the call returns the numbers are there; the arrays are read-only views of XLA's own results. A
        `jax.Array` (or DLPack) in gives `jax.Array` out, without a trip to the host, on the device where it lies; where inputs lie on
        several, they are moved to that of the first, with one warning per inferer. No rows give no rows and compile nothing.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> answers = policy.infer_arrays({"obs": np.zeros((5, 6), np.float32)})
        >>> answers["logits"].shape
        (5, 3)

        Args:
            inputs: every input by name.
            ids: the agents of the rows, for inferers that keep state by agent; rows are agents 0, 1, ... without it.
            dones: bool[n], rows whose state is to be zeroed before they run, for inferers that keep state.

        Raises:
            InputError: an unknown, missing, misshapen or mistyped input.
            DeviceError: `jax.Array`s on several devices, for an inferer with `strict=True`.
        """

    def with_one_set_of_weights(self, run: Callable[[], T]) -> T:
        """The result of `run`, which runs this inferer several times; again from its start, if the weights change meanwhile."""
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
        """Compile, on the background worker, what `count` rows need."""

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
            InputError: a state that does not fit; nothing has run then.
        """
        if not hasattr(batch, "values"):
            raise InputError(
                f"the batch is {type(batch).__name__}, expected agent -> state (input name -> array)"
            )
        api, agents = self.api, list(batch)
        outputs = self.infer_arrays(gather(api.inputs, agents, list(batch.values())), ids=agents)
        return responses_of(list(outputs), agents, [np.array(rows) for rows in outputs.values()])

    def infer_single(self, state: Mapping[str, Any]) -> Response:
        """Run one agent, which has id 0.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> policy.infer_single({"obs": [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]})["logits"].shape
        (3,)
        """
        return self.infer_batch({0: state})[0]

    def infer(self, batch: Mapping[int, Mapping[str, Any]]) -> dict[int, Response]:
        """Deprecated name of `infer_batch`."""
        warnings.warn("Inferer.infer is deprecated: call infer_batch", DeprecationWarning, stacklevel=2)
        return self.infer_batch(batch)

    def __call__(self, inputs: Any, *, copy: bool = False, out: Any = None) -> Any:
        """Run one agent or a batch, arrays in and arrays out.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> policy(np.zeros(6)).shape, policy(np.zeros((5, 6), np.float32)).shape
        ((3,), (5, 3))

        Args:
            inputs: input name -> array; the array alone where there is one input. With or without an axis for agents
                in front. NumPy, `jax.Array`s or PyTorch tensors; the answer is of the same kind. Tensors are not
                copied, neither in nor out, but for outputs that are constants of the model.
            copy: give arrays of the caller's own, which may be written to.
            out: buffers that the answer is written to, and that are given back: output name -> array, the array alone
                where there is one output.

        Returns:
            Output name -> array; the array alone where there is one output.

        Raises:
            InputError: an input that does not fit, a tensor that requires a gradient, a buffer that cannot take its output.
        """
        from ..glue.calls import call

        return call(self, inputs, copy=copy, out=out)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Any, tuple[np.ndarray, ...] | None]:
        """Actions and hidden state, as Stable-Baselines3's `predict` gives them; see `Predictor.predict`.

        The action space is not known here: `for_env` gives a `Predictor` that clips to it.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> actions, state = policy.predict(np.zeros((5, 6), np.float32))
        >>> actions.shape, state
        ((5,), None)
        """
        if self._predictor is None:
            from ..glue.predictor import Predictor

            self._predictor = Predictor(self)
        return self._predictor.predict(observation, state, episode_start, deterministic, action_masks)

    def for_env(self, env: Any, *, seed: int = 0, **wiring: Any) -> Predictor:
        """This policy for the spaces of `env`: what Stable-Baselines3's functions take as a model.

        >>> import gymnasium
        >>> agent = memojax.load(memojax.policies.bundled("pendulum_ppo")).for_env(gymnasium.make("Pendulum-v1"))
        >>> agent.predict(np.zeros(3, np.float32))[0].shape
        (1,)

        Args:
            env: anything with an `observation_space` and an `action_space`: Gymnasium's, or a `VecEnv`.
            seed: of the draws where `deterministic` is False.
            wiring: `observation`, `action`, `epsilon`, `recurrent`, `observation_transforms`, `action_transforms`, as for
                `memojax.evaluate`.

        Raises:
            SpaceMismatchError: the spaces do not fit the model; both sides are named.
        """
        from ..glue.predictor import Predictor, Wiring

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
        """Put a stack of wrappers around this inferer, which can be swapped later.

        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> policy.into_stateful(memojax.BaseWrapper()).input_shapes()
        [('obs', [6])]
        """
        from ..wrapper.base import StatefulInferer

        return StatefulInferer(wrapper_stack, self)


def run_view(inferer: Inferer, view: ScratchPadView) -> None:
    """Run `view` in the batch sizes that `inferer` selects, in order, all of them with the same weights."""
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
    """What `inferer` takes of `waiting` rows.

    Raises:
        BatchSizeError: it takes none, or more than there are.
    """
    size = inferer.select_batch_size(waiting)
    if not 1 <= size <= waiting:
        raise BatchSizeError(
            f"{type(inferer).__name__}.select_batch_size({waiting}) gave {size}: it must be from 1 to {waiting}"
        )
    return size


def checked_rows(specs: Sequence[TensorSpec], inputs: Mapping[str, Any]) -> tuple[list[np.ndarray], int]:
    """Inputs as contiguous NumPy arrays in the order of `specs`, and the number of rows.

    Raises:
        InputError: an unknown, missing, misshapen or mistyped input.
    """
    _check_names(specs, inputs)
    rows = [as_dtype(spec, inputs[spec.name]) for spec in specs]
    return rows, _check_shapes(specs, rows)


def device_rows(
    specs: Sequence[TensorSpec], inputs: Mapping[str, Any], placement: DeviceChoice
) -> tuple[list[jax.Array], int, jax.Device]:
    """Inputs as arrays on the device that `placement` chooses, the number of rows, and that device.

    Raises:
        InputError: an unknown, missing, misshapen or mistyped input.
        DeviceError: `jax.Array`s on several devices, where that is refused.
    """
    given, n, device = chosen_device(specs, inputs, placement)
    with own_settings():
        for index, (spec, value) in enumerate(zip(specs, given, strict=True)):
            if value.dtype != spec.dtype:
                value = _cast(spec, value, device)
            if not isinstance(value, jax.Array):
                # A copy: the CPU backend may take over the caller's memory, and read it after this call has returned.
                value = jax.device_put(np.array(value), device)
            elif value.devices() != {device}:
                value = jax.device_put(value, device)
            given[index] = value
    return given, n, device


def chosen_device(
    specs: Sequence[TensorSpec], inputs: Mapping[str, Any], placement: DeviceChoice
) -> tuple[list[Any], int, jax.Device]:
    """Inputs as they are given, NumPy arrays and `jax.Array`s, the number of rows, and the device that `placement` chooses.

    Raises:
        InputError: an unknown, missing or misshapen input.
        DeviceError: `jax.Array`s on several devices, where that is refused.
    """
    _check_names(specs, inputs)
    given = [as_jax(inputs[spec.name]) for spec in specs]
    n = _check_shapes(specs, given)
    return given, n, placement.choose(specs, given)


def _cast(spec: TensorSpec, value: Any, device: jax.Device) -> Any:
    if not can_cast(np.dtype(value.dtype), spec.dtype):
        raise InputDtypeError(dtype_message(spec, value.dtype))
    check_fits(spec, value)
    # By NumPy where that is no trip: JAX would compile the cast for each number of rows, and keep it for good.
    return (np.asarray(value) if device.platform == "cpu" else value).astype(spec.dtype)


def on_device(rows: np.ndarray, device: jax.Device) -> jax.Array:
    """`rows` on `device`, in their own dtype whatever the x64 setting."""
    with own_settings():
        return jax.device_put(rows, device)


def check_inferer(given: Any) -> None:
    """See that `given` is an inferer.

    Raises:
        IncompatibleModelError: it is something else, a file perhaps.
    """
    if not hasattr(given, "raw_api"):
        raise IncompatibleModelError(f"expected an inferer, as memojax.load(file) gives one, not {given!r}")


def lives_on_device(given: Any) -> bool:
    """Whether `given` is a `jax.Array`, or another library's array that JAX can take over."""
    return isinstance(given, jax.Array) or (
        hasattr(given, "__dlpack__") and not isinstance(given, np.ndarray)
    )


def as_jax(given: Any) -> Any:
    """`given` as a `jax.Array` if it lives on a device, else as a NumPy array."""
    if isinstance(given, (jax.Array, np.ndarray)):
        return given
    return jnp.from_dlpack(given) if hasattr(given, "__dlpack__") else np.asarray(given)


def check_mapping(inputs: Any) -> None:
    """See that inputs come by name.

    Raises:
        InputError: they do not.
    """
    if not isinstance(inputs, Mapping):
        raise InputError(
            f"inputs is {type(inputs).__name__}, expected input name -> array with one row per agent"
        )


def _check_names(specs: Sequence[TensorSpec], inputs: Mapping[str, Any]) -> None:
    check_mapping(inputs)
    names = [spec.name for spec in specs]
    if unknown := [name for name in inputs if name not in names]:
        raise UnknownInputError(unknown, names)
    if missing := [name for name in names if name not in inputs]:
        raise MissingInputError(missing, inputs)


def _check_shapes(specs: Sequence[TensorSpec], rows: Sequence[Any]) -> int:
    n = rows[0].shape[0] if rows and rows[0].ndim else -1
    for spec, row in zip(specs, rows, strict=True):
        if row.shape != (n, *spec.shape):
            raise InputShapeError(_shape_message(spec, row.shape, n, specs[0].name))
    return n


def _shape_message(spec: TensorSpec, given: Sequence[int], n: int, first: str) -> str:
    wanted = f"[n, {', '.join(map(str, spec.shape))}]" if spec.shape else "[n]"
    if tuple(given[1:]) == spec.shape and len(given) == len(spec.shape) + 1:
        return f"input {spec.name!r} has {given[0]} rows, but {first!r} has {n}: all inputs need one row per agent"
    if tuple(given) == spec.shape:
        return f"input {spec.name!r} has shape {list(given)}, one agent without a batch axis; expected {wanted}: add one with x[None]"
    return f"input {spec.name!r} has shape {list(given)}, expected {wanted}, a row per agent"
