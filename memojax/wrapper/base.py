"""Wrappers: logic around an inferer. `InfererWrapper` keeps its state apart from the inferer, so that the inferer can be swapped."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, final

from .._types import Arrays
from ..errors import IncompatibleModelError
from ..inferer.base import Inferer, infer_through_view
from ..model.signature import ModelApi, TensorSpec
from ..scratch import ScratchPadView


class InfererWrapper(abc.ABC):
    """One layer of logic; the inferer is handed to each method, never kept."""

    @abc.abstractmethod
    def api(self, inferer: Inferer) -> ModelApi:
        """What callers see once this wrapper is around `inferer`."""

    @abc.abstractmethod
    def invoke(self, inferer: Inferer, view: ScratchPadView) -> None:
        """Run `view` through `inferer`, with what this wrapper adds before and after."""

    @abc.abstractmethod
    def begin_agent(self, inferer: Inferer, agent: int) -> None:
        """An agent appears."""

    @abc.abstractmethod
    def end_agent(self, inferer: Inferer, agent: int) -> None:
        """An agent is gone."""

    def input_shapes(self, inferer: Inferer) -> list[tuple[str, list[int]]]:
        """(name, element shape) of each input that callers give."""
        return self.api(inferer).input_shapes()

    def output_shapes(self, inferer: Inferer) -> list[tuple[str, list[int]]]:
        """(name, element shape) of each output that callers get."""
        return self.api(inferer).output_shapes()

    def wrap(self, inferer: Inferer) -> StatefulInferer:
        """This wrapper around `inferer`."""
        return StatefulInferer(self, inferer)


@final
class BaseWrapper(InfererWrapper):
    """The innermost wrapper: calls the inferer and nothing else."""

    def api(self, inferer: Inferer) -> ModelApi:
        return inferer.api

    def invoke(self, inferer: Inferer, view: ScratchPadView) -> None:
        inferer.infer_raw(view)

    def begin_agent(self, inferer: Inferer, agent: int) -> None:
        inferer.begin_agent(agent)

    def end_agent(self, inferer: Inferer, agent: int) -> None:
        inferer.end_agent(agent)


@final
class StatefulInferer(Inferer):
    """A stack of wrappers around an inferer that can be replaced while the wrappers keep their state."""

    def __init__(self, wrapper_stack: InfererWrapper, inferer: Inferer):
        """Put `wrapper_stack` around `inferer`."""
        self.wrapper_stack = wrapper_stack
        self.inferer = inferer

    @property
    def raw_api(self) -> ModelApi:
        return self.inferer.raw_api

    @property
    def api(self) -> ModelApi:
        return self.wrapper_stack.api(self.inferer)

    def select_batch_size(self, max_count: int) -> int:
        return self.inferer.select_batch_size(max_count)

    def infer_raw(self, view: ScratchPadView) -> None:
        self.wrapper_stack.invoke(self.inferer, view)

    def infer_arrays(self, inputs: Mapping[str, Any], *, ids: Sequence[int] | None = None, dones: Any = None) -> Arrays:
        return {**infer_through_view(self, inputs, ids, dones)}

    def begin_agent(self, agent: int) -> None:
        self.wrapper_stack.begin_agent(self.inferer, agent)

    def end_agent(self, agent: int) -> None:
        self.wrapper_stack.end_agent(self.inferer, agent)

    def is_ready(self, count: int) -> bool:
        return self.inferer.is_ready(count)

    def prepare(self, count: int) -> Future[None]:
        return self.inferer.prepare(count)

    def with_new_inferer(self, inferer: Inferer) -> StatefulInferer:
        """A new `StatefulInferer` with the same wrappers, and their state, around `inferer`.

        Raises:
            IncompatibleModelError: `inferer` has other inputs or outputs; this one is not changed.
        """
        check_compatible(self.inferer, inferer)
        return StatefulInferer(self.wrapper_stack, inferer)

    def replace_inferer(self, inferer: Inferer) -> Inferer:
        """Swap the inferer in place, keep the wrappers' state, and give the old one back.

        Raises:
            IncompatibleModelError: `inferer` has other inputs or outputs; nothing is changed.
        """
        check_compatible(self.inferer, inferer)
        old, self.inferer = self.inferer, inferer
        return old


def check_compatible(old: Inferer, new: Inferer) -> None:
    """Make sure that `new` takes and gives what `old` does: counts, names, shapes and dtypes.

    Raises:
        IncompatibleModelError: the first difference.
    """
    _check_same("input", old.raw_api.inputs, new.raw_api.inputs)
    _check_same("output", old.raw_api.outputs, new.raw_api.outputs)


def _check_same(kind: str, old: Sequence[TensorSpec], new: Sequence[TensorSpec]) -> None:
    for before, after in zip(old, new, strict=False):
        if before != after:
            raise IncompatibleModelError(f"{kind} {before} of the old inferer is {after} in the new one: export it with the same {kind}s")
    if len(old) != len(new):
        longer = (old if len(old) > len(new) else new)[min(len(old), len(new))]
        raise IncompatibleModelError(f"the old inferer has {len(old)} {kind}s, the new one {len(new)}: {longer} is on one side only")
