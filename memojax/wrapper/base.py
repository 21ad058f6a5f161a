"""Wrappers: layers of logic without an inferer of their own, so a swap of the inferer keeps their state."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, final

import jax
import numpy as np

from .._types import Array, Arrays
from ..display import Card, card_of, html_of, text_of
from ..errors import IncompatibleModelError, InputShapeError
from ..inferer.base import Inferer, run_view
from ..model.signature import ModelApi, TensorSpec
from ..rows.checks import checked_rows, device_rows, lives_on_device, on_device
from ..rows.device_choice import DeviceChoice
from ..rows.scratch import ScratchPadView
from ..xla.fork import check_not_forked


class InfererWrapper(abc.ABC):
    """One layer of logic; each method receives the inferer and does not keep it.

    >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
    >>> wrapped = memojax.BaseWrapper().wrap(policy)
    >>> wrapped.inferer is policy
    True
    """

    @abc.abstractmethod
    def api(self, inferer: Inferer) -> ModelApi:
        """Inputs and outputs that callers see with this wrapper around `inferer`."""

    @abc.abstractmethod
    def invoke(self, inferer: Inferer, view: ScratchPadView) -> None:
        """Run `view` through `inferer`, with this wrapper's work before and after."""

    @abc.abstractmethod
    def begin_agent(self, inferer: Inferer, agent: int) -> None:
        """Called when an agent appears."""

    @abc.abstractmethod
    def end_agent(self, inferer: Inferer, agent: int) -> None:
        """Called when an agent is gone."""

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
    """The innermost wrapper: calls the inferer and nothing else.

    >>> policy = memojax.load(memojax.policies.bundled("pendulum_ppo"))
    >>> stack = memojax.EpsilonInjectorWrapper(memojax.BaseWrapper(), policy, "epsilon")
    >>> stack.wrap(policy).input_shapes()
    [('obs', [3])]
    """

    def __repr__(self) -> str:
        return "BaseWrapper()"

    def api(self, inferer: Inferer) -> ModelApi:
        return inferer.api

    def invoke(self, inferer: Inferer, view: ScratchPadView) -> None:
        if isinstance(inferer, LayeredInferer):
            inferer.infer_raw(view)
        elif view.device is None:
            run_view(inferer, view)
        else:
            _run_on_device(inferer, view)

    def begin_agent(self, inferer: Inferer, agent: int) -> None:
        inferer.begin_agent(agent)

    def end_agent(self, inferer: Inferer, agent: int) -> None:
        inferer.end_agent(agent)


class LayeredInferer(Inferer):
    """An inferer with wrappers around it: the base of `StatefulInferer` and of wrappers that own an inferer.

    `infer_raw` takes any number of rows. It splits them below the wrappers, so the wrappers' state changes
    only after all rows have run.
    """

    def __init__(self, wrapper_stack: InfererWrapper, inferer: Inferer):
        """Put `wrapper_stack` around `inferer`.

        Raises:
            IncompatibleModelError: the wrappers were made for another model.
        """
        self.wrapper_stack: InfererWrapper = wrapper_stack
        self.inferer: Inferer = inferer
        self._layout: _Layout | None = None
        wrapper_stack.api(inferer)

    def __repr__(self) -> str:
        """Inputs and outputs of callers, the wrappers, and the inferer inside."""
        return text_of(self)

    def _repr_html_(self) -> str:
        return html_of(self)

    def _card(self) -> Card:
        facts = [("wrappers", repr(self.wrapper_stack))]
        shown, raw = self.api, self.raw_api
        if hidden := [spec.name for spec in raw.inputs if spec not in shown.inputs]:
            facts.append(("filled in", ", ".join(hidden)))
        return Card(type(self).__name__, facts, shown, inner=[card_of(self.inferer)])

    @property
    def device_choice(self) -> DeviceChoice:
        return self.inferer.device_choice

    @property
    def raw_api(self) -> ModelApi:
        return self.inferer.raw_api

    @property
    def api(self) -> ModelApi:
        return self.wrapper_stack.api(self.inferer)

    def select_batch_size(self, max_count: int) -> int:
        return self.inferer.select_batch_size(max_count)

    def infer_raw(self, view: ScratchPadView) -> None:
        check_not_forked()  # First, because in a forked child the locks below may be held forever.
        outermost = view.enter(self)
        try:
            self.wrapper_stack.invoke(self.inferer, view)
        except BaseException:
            if outermost:
                view.leave()
            raise
        if outermost:
            view.settle()

    def infer_arrays(
        self, inputs: Mapping[str, Any], *, ids: Sequence[int] | None = None, dones: Any = None
    ) -> Arrays:
        layout = self._layout_now()
        view = _view_of(layout, inputs, ids, dones, self.device_choice)
        if len(view):
            self.infer_raw(view)
        return {name: _result(view, slot) for name, slot in layout.outslots}

    def _layout_now(self) -> _Layout:
        raw, api, layout = self.raw_api, self.api, self._layout
        if layout is None or layout.raw is not raw or layout.api is not api:
            layout = self._layout = _layout_of(raw, api)
        return layout

    def begin_agent(self, agent: int) -> None:
        self.wrapper_stack.begin_agent(self.inferer, agent)

    def end_agent(self, agent: int) -> None:
        self.wrapper_stack.end_agent(self.inferer, agent)

    def is_ready(self, count: int) -> bool:
        return self.inferer.is_ready(count)

    def prepare(self, count: int) -> Future[None]:
        return self.inferer.prepare(count)


@final
class StatefulInferer(LayeredInferer):
    """A stack of wrappers around an inferer that can be replaced while the wrappers keep their state.

    >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
    >>> stateful = policy.into_stateful(memojax.BaseWrapper())
    >>> old = stateful.replace_inferer(memojax.load(memojax.policies.bundled("acrobot_ppo")))
    >>> old is policy
    True
    """

    inferer: Inferer

    def with_new_inferer(self, inferer: Inferer) -> StatefulInferer:
        """A new `StatefulInferer` with the same wrappers, and their state, around `inferer`.

        >>> policy, newer = (memojax.load(memojax.policies.bundled("recurrent_lstm")) for _ in range(2))
        >>> stateful = memojax.RecurrentTrackerWrapper(memojax.BaseWrapper(), policy).wrap(policy)
        >>> stateful.begin_agent(3)
        >>> stateful.with_new_inferer(newer).wrapper_stack.agents
        [3]

        Raises:
            IncompatibleModelError: `inferer` has other inputs or outputs; this one is not changed.
        """
        check_compatible(self.inferer, inferer)
        return StatefulInferer(self.wrapper_stack, inferer)

    def replace_inferer(self, inferer: Inferer) -> Inferer:
        """Swap the inferer in place, keep the wrappers' state, and return the old inferer.

        Raises:
            IncompatibleModelError: `inferer` has other inputs or outputs; nothing is changed.
        """
        check_compatible(self.inferer, inferer)
        old, self.inferer = self.inferer, inferer
        return old


@dataclass(frozen=True)
class _Layout:
    """Where the inputs and outputs that callers see in `api` are among the slots of `raw`."""

    raw: ModelApi
    api: ModelApi
    inslots: list[int]
    outslots: list[tuple[str, int]]


def _layout_of(raw: ModelApi, api: ModelApi) -> _Layout:
    inputs = {spec.name: slot for slot, spec in enumerate(raw.inputs)}
    outputs = {spec.name: slot for slot, spec in enumerate(raw.outputs)}
    return _Layout(
        raw,
        api,
        [inputs[spec.name] for spec in api.inputs],
        [(spec.name, outputs[spec.name]) for spec in api.outputs],
    )


def _view_of(
    layout: _Layout,
    inputs: Mapping[str, Any],
    ids: Sequence[int] | None,
    dones: Any,
    device_choice: DeviceChoice,
) -> ScratchPadView:
    """A batch as a view of all slots of the inferer; the wrappers fill the slots that they hide."""
    raw, api = layout.raw, layout.api
    rows: Sequence[Array]
    if isinstance(ids, (np.ndarray, jax.Array)):
        ids = ids.tolist()
    if any(map(lives_on_device, inputs.values())):
        rows, n, device = device_rows(api.inputs, inputs, device_choice, cast_later=True)
    else:
        (rows, n), device = checked_rows(api.inputs, inputs), None
    if n < 0:
        n = 0 if ids is None else len(ids)
    if ids is not None and len(ids) != n:
        raise InputShapeError(f"ids names {len(ids)} agents for {n} rows, expected one id per row")
    if dones is not None:
        on_device = isinstance(dones, jax.Array) and device is not None
        dones = jax.device_put(dones, device) if on_device else np.array(dones, np.bool_)
        if dones.shape != (n,):
            raise InputShapeError(f"dones has shape {list(dones.shape)} for {n} rows, expected [{n}]")
    given: list[Array | None] = [None] * len(raw.inputs)
    for slot, row in zip(layout.inslots, rows, strict=True):
        given[slot] = _borrowed(row)
    return ScratchPadView(raw.inputs, raw.outputs, given, n, ids, dones, device=device)


def _borrowed(rows: Array) -> Array:
    """A read-only view of the caller's rows: a wrapper that writes in place must not change them."""
    if not isinstance(rows, np.ndarray):
        return rows
    rows = rows.view()
    rows.flags.writeable = False
    return rows


def _run_on_device(inferer: Inferer, view: ScratchPadView) -> None:
    visible = {spec.name for spec in inferer.api.inputs}
    given = {
        spec.name: rows
        for spec, rows in zip(view.input_specs, view.inputs, strict=True)
        if spec.name in visible
    }
    results = inferer.infer_arrays(given, ids=None if view.anonymous else view.ids, dones=view.dones)
    for slot, spec in enumerate(view.output_specs):
        if spec.name in results:
            view.set_output(slot, results[spec.name])


def _result(view: ScratchPadView, slot: int) -> Array:
    if view.device is None:
        return view.output_slot(slot)
    rows = view.output(slot)
    return rows if isinstance(rows, jax.Array) else on_device(rows, view.device)


def check_compatible(old: Inferer, new: Inferer) -> None:
    """Check that `new` has the inputs and outputs of `old`: counts, names, shapes and dtypes.

    Raises:
        IncompatibleModelError: they differ; the message names the first difference.
    """
    _check_same("input", old.raw_api.inputs, new.raw_api.inputs)
    _check_same("output", old.raw_api.outputs, new.raw_api.outputs)


def _check_same(kind: str, old: Sequence[TensorSpec], new: Sequence[TensorSpec]) -> None:
    for before, after in zip(old, new, strict=False):
        if before != after:
            raise IncompatibleModelError(
                f"{kind} {before} of the old inferer is {after} in the new one: export the new model with "
                f"the same {kind}s"
            )
    if len(old) != len(new):
        longer = (old if len(old) > len(new) else new)[min(len(old), len(new))]
        raise IncompatibleModelError(
            f"the old inferer has {len(old)} {kind}s, the new one {len(new)}: only one of them has {longer}"
        )
