"""Unrolls loops of known length, so that a program can run all of their steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jax import lax

from ..plans.hoist import Atom, Residual, Step, alive, flattened, literal
from ..plans.numpy_eval import NotExactError
from ..xla.equations import constants_and_carries

_MOST_STEPS = 1500
"""Most steps of an unrolled loop; more would make the program slow to write."""


def unrolled(residual: Residual) -> tuple[Residual, int] | None:
    """`residual` with its short loops unrolled, and the first of their numbers; None without any."""
    if not any(map(_is_short, residual.steps)):
        return None
    return _Unroller(residual).run()


def _is_short(step: Step) -> bool:
    if step.primitive.name != "scan":
        return False
    return 0 < step.params["length"] * len(step.params["jaxpr"].jaxpr.eqns) <= _MOST_STEPS


class _Unroller:
    def __init__(self, residual: Residual):
        self.residual = residual
        self.avals: dict[int, Any] = dict(residual.avals)
        for step in residual.steps:
            self.avals.update(zip(step.outputs, step.avals, strict=True))
        self.first = self.next = 1 + max(self.avals, default=0)
        self.steps: list[Step] = []
        self.same: dict[int, Atom] = {}
        """Atoms that replace numbers."""
        self.parts: dict[int, list[Atom]] = {}
        """Parts of a loop's gathered results, one per round."""

    def run(self) -> tuple[Residual, int]:
        for step in self.residual.steps:
            self._add(replace(step, inputs=tuple(map(self._now, step.inputs))))
        outputs = tuple(map(self._now, self.residual.outputs))
        steps, needed = alive(self.steps, outputs)
        kept = [
            pair for pair in zip(self.residual.leading, self.residual.nodes, strict=True) if pair[0] in needed
        ]
        made = replace(
            self.residual,
            nodes=tuple(node for _, node in kept),
            leading=tuple(number for number, _ in kept),
            steps=steps,
            outputs=outputs,
        )
        return made, self.first

    def _now(self, atom: Atom) -> Atom:
        return self.same.get(atom, atom) if isinstance(atom, int) else atom

    def _add(self, step: Step) -> None:
        if _is_short(step):
            self._write_out(step)
            return
        found = self._folded(step) or self._passed_on(step)
        if found is None:
            self.steps.append(step)
        else:
            self.same.update(zip(step.outputs, found, strict=True))

    def _folded(self, step: Step) -> list[Atom] | None:
        """Results of a step over literals alone, computed now; else None."""
        if not step.inputs or any(isinstance(atom, int) for atom in step.inputs):
            return None
        try:
            given = [np.asarray(atom.value) for atom in step.inputs if not isinstance(atom, int)]
            return [literal(value) for value in step.on_host(given)]
        except NotExactError:
            return None

    def _passed_on(self, step: Step) -> list[Atom] | None:
        """Result of a step that changes nothing, or takes one round's part of a loop's results."""
        name = step.primitive.name
        (atom, *others) = step.inputs or (None,)
        if others or not isinstance(atom, int):
            return None
        if name == "slice":
            params = step.params
            if params["strides"] is not None and any(stride != 1 for stride in params["strides"]):
                return None
            starts, limits = params["start_indices"], params["limit_indices"]
            whole = tuple(zip((0,) * len(starts), self.avals[atom].shape, strict=True))
            cut = tuple(zip(starts, limits, strict=True))
            if cut == whole:
                return [atom]
            if atom in self.parts and cut[1:] == whole[1:] and limits[0] - starts[0] == 1:
                return [self.parts[atom][starts[0]]]
        if name == "squeeze" and atom in self.parts and step.params["dimensions"] == (1,):
            # Undoes a `stack` along the second dimension, so the parts are those before the `stack`.
            source = next((one for one in self.steps if atom in one.outputs), None)
            if source is not None and source.primitive.name == "stack":
                return [source.inputs[0]]
        if name == "stack" and atom in self.parts and step.params["axis"] == 1:
            self.parts[step.outputs[0]] = self.parts[atom]
        return None

    # A loop
    # ----------------------------------------------------------------------------------------------

    def _write_out(self, loop: Step) -> None:
        params = loop.params
        arguments, body, outputs = flattened(params["jaxpr"])
        consts, carries = constants_and_carries(loop.params, loop.inputs)
        length = params["length"]
        env: dict[int, Atom] = dict(zip(arguments[:consts], loop.inputs[:consts], strict=True))
        # Steps that depend on the loop's constants alone are done once.
        fixed = set(env)
        varying = []
        for step in body:
            if all(not isinstance(atom, int) or atom in fixed for atom in step.inputs):
                fixed.update(step.outputs)
                self._round(step, env)
            else:
                varying.append(step)
        carry = list(loop.inputs[consts : consts + carries])
        gathered: list[list[Atom]] = [[] for _ in outputs[carries:]]
        for index in reversed(range(length)) if params["reverse"] else range(length):
            now = dict(env)
            now.update(zip(arguments[consts : consts + carries], carry, strict=True))
            for argument, sequence in zip(
                arguments[consts + carries :], loop.inputs[consts + carries :], strict=True
            ):
                now[argument] = self._item(sequence, index)
            for step in varying:
                self._round(step, now)
            results = [now[atom] if isinstance(atom, int) else atom for atom in outputs]
            carry = results[:carries]
            for found, result in zip(gathered, results[carries:], strict=True):
                found.append(result)
        self.same.update(zip(loop.outputs[:carries], carry, strict=True))
        for number, found, aval in zip(loop.outputs[carries:], gathered, loop.avals[carries:], strict=True):
            self._gather(number, found[::-1] if params["reverse"] else found, aval)

    def _round(self, step: Step, env: dict[int, Atom]) -> None:
        """Add one step of a loop's body under new numbers."""
        inputs = tuple(env[atom] if isinstance(atom, int) else atom for atom in step.inputs)
        outputs = tuple(self._number(aval) for aval in step.avals)
        self._add(replace(step, inputs=tuple(map(self._now, inputs)), outputs=outputs))
        env.update((old, self._now(new)) for old, new in zip(step.outputs, outputs, strict=True))

    def _number(self, aval: Any) -> int:
        number, self.next = self.next, self.next + 1
        self.avals[number] = aval
        return number

    def _item(self, sequence: Atom, index: int) -> Atom:
        if not isinstance(sequence, int):
            return literal(np.asarray(sequence.value)[index])
        if sequence in self.parts:
            one = self.parts[sequence][index]
        else:
            aval = self.avals[sequence]
            shape = tuple(aval.shape)
            one = self._step(
                lax.slice_p,
                {
                    "start_indices": (index, *(0 for _ in shape[1:])),
                    "limit_indices": (index + 1, *shape[1:]),
                    "strides": None,
                },
                (sequence,),
                aval.update(shape=(1, *shape[1:])),
            )
        assert isinstance(one, int)
        aval = self.avals[one]
        return self._step(lax.squeeze_p, {"dimensions": (0,)}, (one,), aval.update(shape=aval.shape[1:]))

    def _gather(self, number: int, results: Sequence[Atom], aval: Any) -> None:
        """Join the results of all rounds under the number that their readers know."""
        shape = tuple(aval.shape[1:])
        params = {"new_sizes": (1, *shape), "dimensions": None, "sharding": None}
        parts = [
            self._step(lax.reshape_p, params, (atom,), aval.update(shape=(1, *shape))) for atom in results
        ]
        if math.prod(aval.shape) and len(parts) > 1:
            self.steps.append(Step(lax.concatenate_p, {"dimension": 0}, tuple(parts), (number,), (aval,)))
            self.parts[number] = list(parts)
        else:
            self.same[number] = parts[0]

    def _step(self, primitive: Any, params: dict[str, Any], inputs: tuple[Atom, ...], aval: Any) -> int:
        number = self._number(aval)
        self.steps.append(Step(primitive, params, inputs, (number,), (aval,)))
        return number
