"""Random numbers as one step, so that a policy that samples its actions stays with the kernels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..plans.hoist import Atom, Residual, StandIn, Step, alive, literal
from ..plans.numpy_eval import NotExactError

_SMALL = 64
"""Elements up to which a result of literals becomes a literal itself."""


ROW = -1
"""Stands among folds for the number of the row."""

_DRAW = StandIn("draw")


class Draw(Step):
    """Numbers in [1, 2) of JAX's threefry, from the two words of a key.

    `params["folds"]` are the numbers that are folded into the key, one after the other; `ROW` is the
    number of each of `params["rows"]` rows, which then count their own numbers. `params["steps"]` are
    JAX's own steps.
    """

    def bind(self, inputs: Sequence[Any]) -> list[Any]:
        env: dict[Atom, Any] = dict(zip(self.inputs, inputs, strict=True))
        for step in self.params["steps"]:
            given = [env[atom] if isinstance(atom, int) else atom.value for atom in step.inputs]
            env.update(zip(step.outputs, step.bind(given), strict=True))
        return [env[number] for number in self.outputs]


def with_draws(residual: Residual) -> Residual:
    """`residual`, with its draws as one step each, and what literals alone give as literals."""
    steps = _folded(residual.steps)
    maker = {number: step for step in steps for number in step.outputs}
    uses = Counter(atom for step in steps for atom in step.inputs if isinstance(atom, int))
    uses.update(atom for atom in residual.outputs if isinstance(atom, int))
    found: list[Step] = []
    for step in steps:
        found.append(_draw(step, maker, uses) or step)
    kept, needed = alive(found, residual.outputs)
    pairs = [pair for pair in zip(residual.leading, residual.nodes, strict=True) if pair[0] in needed]
    return replace(
        residual,
        nodes=tuple(node for _, node in pairs),
        leading=tuple(number for number, _ in pairs),
        steps=kept,
    )


def without_draws(residual: Residual) -> Residual:
    """`residual` with JAX's own steps in the place of draws."""
    steps: list[Step] = []
    there: set[int] = set()
    for step in residual.steps:
        for one in step.params["steps"] if isinstance(step, Draw) else (step,):
            if not there.issuperset(one.outputs):
                steps.append(one)
                there.update(one.outputs)
    return replace(residual, steps=tuple(steps))


def _folded(steps: Sequence[Step]) -> list[Step]:
    known: dict[Atom, Atom] = {}
    kept = []
    for step in steps:
        inputs = tuple(known.get(atom, atom) if isinstance(atom, int) else atom for atom in step.inputs)
        if inputs and all(map(_is_typed, inputs)) and _is_small(step):
            try:
                made = step.on_host([np.asarray(atom.value) for atom in inputs if not isinstance(atom, int)])
            except NotExactError:
                pass
            else:
                known.update(zip(step.outputs, map(literal, made), strict=True))
        kept.append(replace(step, inputs=inputs))
    return kept


def _is_typed(atom: Atom) -> bool:
    return not isinstance(atom, int) and hasattr(atom.value, "dtype")


def _is_small(step: Step) -> bool:
    return all(isinstance(aval.dtype, np.dtype) and math.prod(aval.shape) <= _SMALL for aval in step.avals)


def _draw(last: Step, maker: Mapping[Any, Step], uses: Mapping[Any, int]) -> Draw | None:
    """The draw that ends with `last`: random bits, of which 23 stand behind the exponent of 1, as a float."""
    if last.primitive.name != "bitcast_convert_type" or last.avals[0].dtype != np.float32:
        return None
    steps = [last]
    for name, operand in (("or", 0x3F800000), ("shift_right_logical", 9), ("random_bits", None)):
        before = steps[0].inputs[0]
        step = maker.get(before)
        if step is None or step.primitive.name != name or uses[before] != 1:
            return None
        if operand is not None and not _is(step.inputs[1], operand):
            return None
        steps.insert(0, step)
    if steps[0].params["bit_width"] != 32:
        return None
    behind = _folds(steps[0], maker)
    if behind is None:
        return None
    before, folds, rows = behind
    (key,) = before[0].inputs
    if not isinstance(key, int):
        return None
    counts = [step for step in before if step.primitive.name == "random_fold_in"]
    counting = [one for step in counts for one in _counting(step.inputs[1], maker) or ()]
    given = {"folds": tuple(folds), "rows": rows, "steps": (*counting, *before, *steps)}
    return Draw(_DRAW, given, (key,), last.outputs, last.avals)


def _folds(bits: Step, maker: Mapping[Any, Step]) -> tuple[list[Step], list[int], int] | None:
    """The steps from two words to the key of `bits`, what they fold in, and the rows that have own keys."""
    steps: list[Step] = []
    folds: list[int] = []
    rows, key = 0, bits.inputs[0]
    while (step := maker.get(key)) is not None:
        steps.insert(0, step)
        if step.primitive.name == "random_wrap":
            found = str(step.params["impl"].name) == "threefry2x32" and not step.avals[0].shape
            return (steps, folds, rows) if found else None
        if step.primitive.name != "random_fold_in":
            return None
        key, folded = step.inputs
        counting = _counting(folded, maker)
        if counting is not None:
            if rows or step.avals[0].shape != counting[-1].avals[0].shape:
                return None
            (rows,) = step.avals[0].shape
            folds.insert(0, ROW)
        elif isinstance(folded, int) or np.ndim(folded.value):
            return None
        else:
            folds.insert(0, int(np.asarray(folded.value)))
    return None


def _counting(atom: Atom, maker: Mapping[Any, Step]) -> list[Step] | None:
    """The steps behind the numbers 0, 1, 2 and so on, if `atom` names them; else None."""
    steps: list[Step] = []
    step = maker.get(atom)
    while step is not None and step.primitive.name == "convert_element_type":
        steps.insert(0, step)
        step = maker.get(step.inputs[0])
    if step is None or step.primitive.name != "iota" or len(step.avals[0].shape) != 1:
        return None
    return [step, *steps]


def _is(atom: Atom, number: int) -> bool:
    if isinstance(atom, int):
        return False
    array = np.asarray(atom.value)
    return array.size > 0 and bool((array == number).all())
