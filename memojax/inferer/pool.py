"""Many weight sets of one network behind one call, for league training and population-based evaluation."""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

import jax
import numpy as np

from .._argument_checks import as_count
from .._types import Arrays, Source
from ..errors import IncompatibleModelError, InputError, InputShapeError, RowsMixError
from ..lowering.exported import ExportedFunction
from ..lowering.loading import typed_model
from ..lowering.new_weights import with_new_weights
from ..lowering.typed_model import TypedModel
from ..model.signature import ModelApi
from ..plans.cache import CacheInfo
from ..plans.plan import PlanInfo
from ..rows.checks import as_jax, check_names, checked_rows
from ..rows.device_choice import DeviceChoice
from ..rows.scratch import ScratchPadView
from .memoizing import MemoizingDynamicInferer
from .of_model import InfererOfModel
from .stacked_weights import OverWeights, stacked, turns_of, widened, with_slot

if TYPE_CHECKING:
    from .predictor import Predictor

FIRST_CAPACITY = 8


@final
class PolicyPool:
    """Weight sets of one network by name; agents with different weights run in one call.

    A call deals its rows to the weight sets, and uses `vmap` over the weights. It runs every set on as many
    rows as the busiest set has, rounded up to a power of two. Weights are arguments of the executables, so
    adding, dropping or swapping a set compiles nothing. Only more sets than `capacity` do; the capacity then
    doubles.

    `pool["main"]` is an inferer of one set, for `evaluate`, `predict` and all else that takes an inferer.

    >>> pool = memojax.PolicyPool(memojax.policies.bundled("acrobot_ppo"))
    >>> pool.add("main")
    >>> pool.add("rival", {name: 0.5 * weight for name, weight in pool.params("main").items()})
    >>> answers = pool.infer_arrays({"obs": np.ones((3, 6), np.float32)}, ["main", "rival", "main"])
    >>> logits = answers["logits"]
    >>> bool((logits[0] == logits[2]).all()), bool((logits[0] == logits[1]).all())
    (True, False)
    """

    def __init__(self, source: Source | TypedModel, capacity: int = FIRST_CAPACITY, **options: Any):
        """Take the network of `source`, at first without weight sets.

        Args:
            source: a source for `memojax.load`.
            capacity: number of weight sets that fit without a new compile.
            options: options of `MemoizingDynamicInferer`, such as `maxsize`, `device`, `seed` or `precision`.

        Raises:
            ModelLoadError, UnsupportedOpError, DimensionError: see `TypedModel.from_model`.
            RowsMixError: rows of the model influence each other.
            IncompatibleModelError: an exported program, whose weights cannot be stacked.
            InputError: `capacity` is less than 1.
        """
        self._typed = typed_model(source)
        if isinstance(self._typed.fn, ExportedFunction):
            raise IncompatibleModelError(
                "an exported program holds one weight set: pass the ONNX file that it was exported from"
            )
        if mixing := self._typed.mixing_outputs():
            raise RowsMixError(
                "a pool needs rows that do not influence each other, but in this model they do (output "
                f"{', '.join(mixing)})"
            )
        capacity = as_count("capacity", capacity, InputError)
        self._options = {"bucketing": "pow2", **options, "weights": "argument"}
        self._slots: dict[Hashable, int] = {}
        self._choice = DeviceChoice()
        self._predictor: Predictor | None = None
        # Calls and changes take turns, so a call never finds another set in a slot that it has looked up.
        self._lock = threading.RLock()
        self._build(stacked(self._typed.params, capacity), capacity)

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, name: Hashable) -> bool:
        return name in self._slots

    def __repr__(self) -> str:
        names = ", ".join(map(repr, self._slots))
        return f"PolicyPool({self._typed.api}; {len(self)} of {self.capacity}: {names})"

    @property
    def names(self) -> list[Hashable]:
        """The weight sets, in the order of their addition."""
        return list(self._slots)

    @property
    def api(self) -> ModelApi:
        """The inputs and outputs of one agent."""
        return self._typed.api

    def add(self, name: Hashable, weights: Any = None) -> None:
        """Add a weight set.

        Args:
            name: any hashable name.
            weights: by name, a pytree, or another export of the same network, as for `update_params`. Missing
                names keep the network's own weights, and None keeps all of them.

        Raises:
            IncompatibleModelError: `name` is taken, or the weights belong to another network; nothing
                changes.
        """
        with self._lock:
            if name in self._slots:
                raise IncompatibleModelError(f"{name!r} is already in the pool: swap it, or drop it first")
            params = self._checked(weights)
            slot = next(free for free in range(len(self) + 1) if free not in self._slots.values())
            if slot >= self.capacity:
                grown = 2 * self.capacity
                more = stacked(self._typed.params, grown - self.capacity)
                stack = jax.tree.map(lambda old, new: np.concatenate([old, new]), self._stack, more)
                self._build(with_slot(stack, slot, params), grown)
            else:
                self._write(slot, params)
            self._slots[name] = slot

    def swap(self, name: Hashable, weights: Any) -> None:
        """Replace a weight set; calls that start after this method returns use the new one.

        Raises:
            IncompatibleModelError: `name` is unknown, or the weights belong to another network; nothing
                changes.
        """
        with self._lock:
            self._write(self._slot(name), self._checked(weights))

    def drop(self, name: Hashable) -> None:
        """Forget a weight set, which frees its slot.

        Raises:
            IncompatibleModelError: `name` is unknown.
        """
        with self._lock:
            self._slot(name)
            del self._slots[name]

    def params(self, name: Hashable) -> Any:
        """A copy of the weights of one set.

        Raises:
            IncompatibleModelError: `name` is unknown.
        """
        with self._lock:
            slot = self._slot(name)
            return jax.tree.map(lambda stack: stack[slot].copy(), self._stack)

    def __getitem__(self, name: Hashable) -> PoolMember:
        """The inferer of one weight set; it follows `swap`.

        Raises:
            IncompatibleModelError: `name` is not in the pool.
        """
        return PoolMember(self, name)

    def infer_arrays(self, inputs: Mapping[str, Any], policies: Sequence[Hashable]) -> Arrays:
        """Run a batch whose rows belong to the weight sets that `policies` names, one name per row.

        The pool deals rows out in the host's memory, those of `jax.Array`s too: on an accelerator, that would
        take an executable for each number of rows.

        Returns:
            Output name -> `[n, *element_shape]`, in the order of the given rows: `jax.Array`s on the device
            of the inputs if an input is one, else NumPy arrays.

        Raises:
            InputError: an input is unknown, missing, misshapen or mistyped, or there is not one name per row.
            IncompatibleModelError: a name is not in the pool.
        """
        return self.answer(inputs, lambda n: policies)

    def answer(self, inputs: Mapping[str, Any], names_of: Callable[[int], Sequence[Hashable]]) -> Arrays:
        """`infer_arrays` with the names that `names_of` gives for the number of rows.

        Raises:
            InputError, IncompatibleModelError: as for `infer_arrays`.
        """
        specs = self._typed.api.inputs
        check_names(specs, inputs)
        given = [as_jax(inputs[spec.name]) for spec in specs]
        device = None
        if any(isinstance(value, jax.Array) for value in given):
            device = self._choice.choose(specs, given)
            given = [np.asarray(value) if isinstance(value, jax.Array) else value for value in given]
        rows, n = checked_rows(specs, {spec.name: value for spec, value in zip(specs, given, strict=True)})
        policies = names_of(n)
        if len(policies) != n:
            raise InputShapeError(
                f"policies names {len(policies)} weight sets for {n} rows, expected one name per row"
            )
        named = self._run(rows, n, policies) if n else self._nothing()
        answers: Arrays = {}
        for name, row in named.items():
            answers[name] = row if device is None else jax.device_put(row, device)
        return answers

    def _nothing(self) -> dict[str, np.ndarray]:
        return {spec.name: np.zeros((0, *spec.shape), spec.dtype) for spec in self._typed.api.outputs}

    def _run(self, rows: Sequence[np.ndarray], n: int, policies: Sequence[Hashable]) -> dict[str, np.ndarray]:
        with self._lock:
            slots = np.array([self._slot(name) for name in policies])
            turns = turns_of(slots, self.capacity)
            shape = int(turns.max()) + 1, self.capacity
            dealt = {}
            for spec, row in zip(self._typed.api.inputs, rows, strict=True):
                dealt[spec.name] = np.zeros((*shape, *spec.shape), spec.dtype)
                dealt[spec.name][turns, slots] = row
            outputs = self._inferer.infer_arrays(dealt)
        named = {name: np.asarray(rows)[turns, slots] for name, rows in outputs.items()}
        for name, value in self._typed.constant.items():
            named[name] = np.broadcast_to(value, (n, *value.shape))
        return {spec.name: named[spec.name] for spec in self._typed.api.outputs}

    def predict(
        self,
        observation: Any,
        policies: Sequence[Hashable],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Any, tuple[np.ndarray, ...] | None]:
        """Actions and hidden state of rows that belong to the weight sets `policies`, one name per row.

        The other arguments and the results are those of `Predictor.predict`.

        Raises:
            InputError: there is not one name per row.
            IncompatibleModelError: a name is not in the pool.
            SpaceMismatchError, ActionError: as for `Predictor.predict`.
        """
        with self._lock:
            if self._predictor is None:
                from .predictor import Predictor

                self._predictor = Predictor(_Network(self))
        return self._predictor._predict_by(
            lambda inputs, dones: self.infer_arrays(inputs, policies),
            observation,
            state,
            episode_start,
            deterministic,
            action_masks,
        )

    @property
    def network(self) -> TypedModel:
        """The network with the weights of its file."""
        return self._typed

    def is_ready(self, count: int) -> bool:
        """Whether `count` rows of one weight set would run now without a compile."""
        return self._inferer.is_ready(count)

    def prepare(self, count: int) -> Future[None]:
        """Compile, on the background worker, the plan for `count` rows of one weight set."""
        return self._inferer.prepare(count)

    def cache_info(self) -> CacheInfo:
        """Counts of plans and calls, for all weight sets together."""
        return self._inferer.cache_info()

    def preload(self, sizes: Iterable[int]) -> None:
        """Compile plans for these numbers of rows per weight set.

        Raises:
            BatchSizeError: a size is not a positive whole number.
        """
        self._inferer.preload(sizes)

    def plans(self) -> list[PlanInfo]:
        """One `PlanInfo` per plan; `size` counts rows per weight set."""
        return self._inferer.plans()

    def _build(self, stack: Any, capacity: int) -> None:
        """Make an inferer for `capacity` weight sets; it compiles a plan at its first use."""
        typed = self._typed
        stacked = replace(
            typed,
            fn=OverWeights(typed.fn, capacity, typed.random),
            params=stack,
            api=ModelApi(
                widened(typed.api.inputs, capacity),
                widened([spec for spec in typed.api.outputs if spec.name in typed.computed], capacity),
            ),
            constant={},
            independent=True,
            rule="a row for each of several weight sets",
            model=None,
            fingerprint=None,
        )
        # One assignment, which no interrupt can split.
        self._held = MemoizingDynamicInferer.from_typed(stacked, **self._options), capacity

    @property
    def capacity(self) -> int:
        """How many weight sets fit before plans must be compiled anew."""
        return self._held[1]

    @property
    def _inferer(self) -> MemoizingDynamicInferer:
        return self._held[0]

    @property
    def _stack(self) -> Any:
        """The weights of all sets `[capacity, ...]`, those in use: a copy beside them could fall behind."""
        return self._inferer.params

    def _write(self, slot: int, params: Any) -> None:
        self._inferer.update_params(with_slot(self._stack, slot, params))

    def _checked(self, weights: Any) -> Any:
        if weights is None:
            return self._typed.params
        new = with_new_weights(self._typed, weights)
        for name, value in self._typed.constant.items():
            if not np.array_equal(value, new.constant[name], equal_nan=value.dtype.kind == "f"):
                raise IncompatibleModelError(
                    f"output {name!r} depends only on the weights, and these give it another value than the "
                    "network's own"
                )
        return new.params

    def _slot(self, name: Hashable) -> int:
        if name not in self._slots:
            known = ", ".join(map(repr, self._slots)) or "none"
            raise IncompatibleModelError(f"{name!r} is not in the pool; the weight sets are: {known}")
        return self._slots[name]


class InfererOfPool(InfererOfModel):
    """Runs rows in a pool (abstract)."""

    def __init__(self, pool: PolicyPool):
        self.pool: PolicyPool = pool

    @abc.abstractmethod
    def _names(self, ids: Sequence[int] | None, n: int) -> Sequence[Hashable]:
        """The weight set of each of `n` rows."""

    def infer_arrays(
        self, inputs: Mapping[str, Any], *, ids: Sequence[int] | None = None, dones: Any = None
    ) -> Arrays:
        return self.pool.answer(inputs, lambda n: self._names(ids, n))

    def infer_raw(self, view: ScratchPadView) -> None:
        if not len(view):
            return
        inputs = {spec.name: rows for spec, rows in zip(self.raw_api.inputs, view.inputs, strict=True)}
        outputs = self.pool.answer(inputs, lambda n: self._names(view.ids, n))
        for slot, spec in enumerate(self.raw_api.outputs):
            view.set_output(slot, outputs[spec.name])

    def select_batch_size(self, max_count: int) -> int:
        return max(0, max_count)

    def is_ready(self, count: int) -> bool:
        return count < 1 or self.pool.is_ready(count)

    def prepare(self, count: int) -> Future[None]:
        return self.pool.prepare(count)

    def plans(self) -> list[PlanInfo]:
        """The plans of the pool; `size` counts rows per weight set."""
        return self.pool.plans()

    def cache_info(self) -> CacheInfo:
        """Counts of plans and calls of the pool."""
        return self.pool.cache_info()


@final
class _Network(InfererOfPool):
    """The network of a pool as a policy that `predict` can connect with observations; it runs no rows."""

    @property
    def typed(self) -> TypedModel:
        return self.pool.network

    def _names(self, ids: Sequence[int] | None, n: int) -> Sequence[Hashable]:
        raise InputError("rows of a pool need the name of a weight set each: pass policies")


@final
class PoolMember(InfererOfPool):
    """One weight set of a `PolicyPool` as an inferer; `pool[name]` gives it.

    In `evaluate`, agents whose policies are members of one pool are answered in one call.

    >>> pool = memojax.PolicyPool(memojax.policies.bundled("acrobot_ppo"))
    >>> pool.add("main")
    >>> pool["main"].infer_single({"obs": np.zeros(6)})["logits"].shape
    (3,)
    """

    def __init__(self, pool: PolicyPool, name: Hashable):
        """Take the set `name`.

        Raises:
            IncompatibleModelError: `name` is not in the pool.
        """
        super().__init__(pool)
        self.name: Hashable = name
        pool.params(name)

    def __repr__(self) -> str:
        return f"PoolMember({self.name!r} of {self.pool!r})"

    @property
    def typed(self) -> TypedModel:
        return self.pool.network.with_params(self.pool.params(self.name))

    @property
    def raw_api(self) -> Any:
        return self.pool.api

    @property
    def api(self) -> Any:
        return self.pool.api

    def update_params(self, weights: Any) -> None:
        """Replace the weights of this set; see `PolicyPool.swap`."""
        self.pool.swap(self.name, weights)

    def _names(self, ids: Sequence[int] | None, n: int) -> Sequence[Hashable]:
        return [self.name] * n
