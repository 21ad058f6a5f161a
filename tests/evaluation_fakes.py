"""Policies of NumPy closures for the tests of `memojax.evaluate`: nothing compiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, final

import numpy as np

import memojax as mj

from .helpers import Fake

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]


@final
class Policy(Fake):
    """A policy of NumPy closures: nothing compiles; it notes the batches and the agents that it saw."""

    def __init__(
        self,
        run: Run,
        inputs: Mapping[str, Any] = {"obs": (2,)},
        outputs: Mapping[str, Any] = {"logits": (2,)},
        metadata: Mapping[str, str] = {},
    ):
        super().__init__(mj.ModelApi(specs_of(inputs), specs_of(outputs)))
        self.run, self.metadata = run, metadata
        self.batches: list[Mapping[str, np.ndarray]] = []
        self.sizes: list[int] = []
        self.alive: set[int] = set()

    def infer_raw(self, view: mj.ScratchPadView) -> None:
        given = {spec.name: np.array(view.input_slot(slot)) for slot, spec in enumerate(self._api.inputs)}
        results = self._answer(given, len(view))
        for slot, spec in enumerate(self._api.outputs):
            view.set_output(slot, results[spec.name])

    def infer_arrays(
        self, inputs: Mapping[str, Any], *, ids: Sequence[int] | None = None, dones: Any = None
    ) -> Any:
        assert ids is not None
        assert set(ids) == self.alive
        for spec in self._api.inputs:
            assert inputs[spec.name].dtype == spec.dtype
            assert inputs[spec.name].shape == (len(ids), *spec.shape)
        return self._answer(inputs, len(ids))

    def _answer(self, inputs: Mapping[str, Any], n: int) -> dict[str, np.ndarray]:
        self.batches.append(inputs)
        self.sizes.append(n)
        answers = self.run(inputs)
        return {
            s.name: np.broadcast_to(np.asarray(answers[s.name], s.dtype), (n, *s.shape))
            for s in self._api.outputs
        }

    def prepare(self, count: int) -> Future[None]:
        raise AssertionError("an evaluation prepares no sizes")

    def begin_agent(self, agent: int) -> None:
        assert agent not in self.alive
        self.alive.add(agent)

    def end_agent(self, agent: int) -> None:
        if agent not in self.alive:
            raise mj.errors.UnknownAgentError(f"agent {agent} is unknown")
        self.alive.remove(agent)


def specs_of(given: Mapping[str, Any]) -> tuple[mj.TensorSpec, ...]:
    """From name -> element shape (float32), or name -> (element shape, dtype)."""
    typed = {
        name: spec if spec and isinstance(spec[-1], type) else (spec, np.float32)
        for name, spec in given.items()
    }
    return tuple(mj.TensorSpec(name, shape, np.dtype(dtype)) for name, (shape, dtype) in typed.items())


def first(inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    """Prefers action 0."""
    return {"logits": [1.0, 0.0]}


def linear(inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    """Decides by the observation, row by row."""
    return {"logits": inputs["obs"] * [1.0, 2.0]}
