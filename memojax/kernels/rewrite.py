"""Finds the parts of a traced function that the kernels can run, and replaces each by one call."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..plans.hoist import Atom, Hoister, Node, Residual, StandIn, Step, literal
from .draws import with_draws, without_draws
from .emitter import Emitter
from .ffi import bind
from .islands import Island, cut
from .library import Library
from .program import ACTIVATIONS, MOST_BUFFERS, bound_threads
from .steps import ELEMENTWISE, PICKS, STEPS, Fused, Known, Translator, spread
from .unroll import unrolled
from .values import Arrangement, Constant, Refused, Value, arranged, outside
from .weights import packed

log: logging.Logger = logging.getLogger("memojax")

_PRODUCTS = ("dot_general", "conv_general_dilated")
_MOVES = ("reshape", "squeeze", "expand_dims", "transpose", "broadcast_in_dim")
_CONSTANT_MOVES = (*_MOVES, "slice", "split")
_WHOLE = (np.dtype(np.int32), np.dtype(np.int64))
"""Dtypes that are floats in a program: what `argmax` gives, which is then only moved."""

_WHOLE_MOVES = (*_MOVES, "slice", "split", "concatenate", "stack", "convert_element_type")
_WHOLE_MAKERS = ("argmax", "argmin")
_MOST_TRIES = 60


_CALL = StandIn("kernels")


class _Call(Step):
    """Runs one program."""

    def bind(self, inputs: Sequence[Any]) -> list[Any]:
        return bind(self.params["program"], inputs, self.avals)


def is_call(step: Step) -> bool:
    """Whether a step is a run of a program."""
    return step.primitive is _CALL


def rewrite(
    residual: Residual, size: int, hoister: Hoister, kernels: Library, threads: int | None = None
) -> Residual | None:
    """`residual`, traced for `size` rows, with calls of kernels; None if they can run no part of it.

    A call uses `threads` threads at most.
    """
    residual = with_draws(residual)
    written = unrolled(residual)
    # Unrolled loops pay only if programs run all of their steps, so the loops stay whole otherwise.
    made = _rewritten(*written, size, hoister, kernels) if written is not None else None
    made = made or _rewritten(residual, None, size, hoister, kernels)
    for step in made.steps if made and threads else ():
        if is_call(step):
            bound_threads(step.params["program"], threads or 0)
    return without_draws(made) if made else None


def _rewritten(
    residual: Residual, first: int | None, size: int, hoister: Hoister, kernels: Library
) -> Residual | None:
    """The same; also None if a step of an unrolled loop, with a number from `first` on, is in no program."""
    refused: set[int] = set()
    # A step may turn out to be impossible late, while its program is written. It is then left to XLA, and the
    # whole search starts again.
    for _ in range(_MOST_TRIES):
        try:
            made = _Rewriter(residual, size, hoister, kernels, refused).run()
        except _StepRefused as cause:
            log.debug("kernels leave step(s) %s to XLA: %s", cause.steps, cause)
            if any(_belongs(residual.steps[index], first) for index in cause.steps):
                return None
            refused.update(cause.steps)
            continue
        left = made.steps if made is not None else ()
        return None if any(_belongs(step, first) and step.primitive is not _CALL for step in left) else made
    return None


def _belongs(step: Step, first: int | None) -> bool:
    return first is not None and any(number >= first for number in step.outputs)


class _StepRefused(Exception):
    """Steps turned out to be impossible in a program."""

    def __init__(self, cause: Refused, index: int):
        super().__init__(str(cause))
        self.steps = cause.steps or (index,)


class _TooManyArguments(Refused):
    """A program would have more arguments than the kernels take."""


class _Rewriter:
    def __init__(self, residual: Residual, size: int, hoister: Hoister, kernels: Library, refused: set[int]):
        self.residual, self.size, self.hoister, self.kernels, self.refused = (
            residual,
            size,
            hoister,
            kernels,
            refused,
        )
        self.avals: dict[int, Any] = dict(residual.avals)
        self.maker: dict[int, int] = {}
        self.readers: dict[int, list[int]] = {}
        for index, step in enumerate(residual.steps):
            self.avals.update(zip(step.outputs, step.avals, strict=True))
            self.maker.update(dict.fromkeys(step.outputs, index))
            for atom in step.inputs:
                if isinstance(atom, int):
                    self.readers.setdefault(atom, []).append(index)
        self.leaving = {atom for atom in residual.outputs if isinstance(atom, int)}
        self.node_of = dict(zip(residual.leading, residual.nodes, strict=True))
        self.constants = self._constant_steps()
        self.next_number = 1 + max([*self.avals, 0])
        self.new_nodes: dict[Node, int] = {}

    def run(self) -> Residual | None:
        # Steps of one level depend only on lower levels, so each level's steps can be one program.
        levels = self._levels(self._supported())
        islands = {}
        for level in sorted({level for level, inside in levels.values() if inside}):
            members = [index for index, found in levels.items() if found == (level, True)]
            if any(self.residual.steps[index].primitive.name in _PRODUCTS for index in members):
                islands[level] = self._island(members)
        if not islands:
            return None
        inside = {index for island in islands.values() for index in island.steps}
        steps = [self.residual.steps[index] for index in sorted(self.constants)]
        last = max((level for level, _ in levels.values()), default=0)
        for level in range(last + 1):
            if level in islands:
                steps += self._calls(islands[level])
            steps += [
                self.residual.steps[i] for i, (at, _) in levels.items() if at == level and i not in inside
            ]
        return self._with(steps)

    def _with(self, steps: Sequence[Step]) -> Residual:
        """The residual with other steps; steps that no output needs are left out."""
        needed = set(self.leaving)
        alive = []
        for step in reversed(steps):
            if needed.intersection(step.outputs):
                alive.append(step)
                needed.update(atom for atom in step.inputs if isinstance(atom, int))
        known = self.node_of | {number: node for node, number in self.new_nodes.items()}
        leading = tuple(number for number in known if number in needed)
        return replace(
            self.residual,
            nodes=tuple(known[n] for n in leading),
            steps=tuple(reversed(alive)),
            leading=leading,
        )

    # Which steps
    # ----------------------------------------------------------------------------------------------

    def _constant_steps(self) -> set[int]:
        """Moves of weights and literals alone, which become part of their readers."""
        found: set[int] = set()
        for index, step in enumerate(self.residual.steps):
            if step.primitive.name in _CONSTANT_MOVES and all(
                self._is_constant(atom, found) for atom in step.inputs
            ):
                found.add(index)
        return found

    def _is_constant(self, atom: Atom, steps: set[int]) -> bool:
        return not isinstance(atom, int) or atom in self.node_of or self.maker.get(atom, -1) in steps

    def _supported(self) -> set[int]:
        found = set()
        for index, step in enumerate(self.residual.steps):
            name = step.primitive.name
            if index in self.refused or index in self.constants or not (name in STEPS or name in ELEMENTWISE):
                continue
            if self._takes(step) and all(math.prod(aval.shape) for aval in step.avals):
                found.add(index)
        # Truth values have no form outside of a program, so their makers and readers stay together. Whole
        # numbers come from within one.
        while True:
            levels = self._levels(found)
            out = {index for index in found if not self._keeps_truth(index, levels)}
            if not out:
                return found
            found -= out

    def _takes(self, step: Step) -> bool:
        """Whether a program has the dtypes of a step."""
        name = step.primitive.name
        if name == "draw":
            return True
        given: tuple[Any, ...] = (np.float32,)
        if name in ELEMENTWISE:
            given = (np.float32, np.bool_)
        if name in _WHOLE_MOVES:
            given = (*given, *_WHOLE)
        read = step.inputs
        if name in PICKS:  # of floats, by whole numbers that are part of the function, or weights
            if not self._is_constant(read[1], self.constants):
                return False
            read = (read[0], *read[2:])
        inputs, outputs = [self._dtype(atom) for atom in read], [aval.dtype for aval in step.avals]
        if name == "convert_element_type" and outputs[0] in _WHOLE and inputs[0] not in _WHOLE:
            return False
        made = _WHOLE if name in _WHOLE_MAKERS else given
        return all(dtype in given for dtype in inputs) and all(dtype in made for dtype in outputs)

    def _keeps_truth(self, index: int, levels: Mapping[int, tuple[int, bool]]) -> bool:
        step = self.residual.steps[index]
        for atom in step.inputs:
            if (
                self._dtype(atom) in (np.bool_, *_WHOLE)
                and not self._is_part(step, atom)
                and levels.get(self.maker.get(atom, -1) if isinstance(atom, int) else -1) != levels[index]
            ):
                return False
        for number, aval in zip(step.outputs, step.avals, strict=True):
            if aval.dtype == np.bool_ and (
                number in self.leaving
                or any(levels[reader] != levels[index] for reader in self.readers.get(number, ()))
            ):
                return False
        return True

    def _is_part(self, step: Step, atom: Atom) -> bool:
        """Whether truth values are part of the function, or indices."""
        if self._dtype(atom) == np.bool_:
            return self._is_literal(atom)
        return step.primitive.name in PICKS and self._is_constant(atom, self.constants)

    def _is_literal(self, atom: Atom) -> bool:
        """Whether a value is a literal, or moves of one."""
        if not isinstance(atom, int):
            return True
        made = self.maker.get(atom, -1)
        return made in self.constants and all(map(self._is_literal, self.residual.steps[made].inputs))

    def _levels(self, supported: set[int]) -> dict[int, tuple[int, bool]]:
        """For each step, the least number of programs before it, and whether it is inside that program."""
        levels: dict[int, tuple[int, bool]] = {}
        for index, step in enumerate(self.residual.steps):
            if index in self.constants:
                continue
            inside = index in supported
            level = 0
            for atom in step.inputs:
                found = levels.get(self.maker.get(atom, -1)) if isinstance(atom, int) else None
                if found is not None:
                    level = max(level, found[0] + (inside and not found[1]))
            levels[index] = level, inside
        return levels

    def _dtype(self, atom: Atom) -> Any:
        if isinstance(atom, int):
            dtype = self.avals[atom].dtype
        else:
            dtype = np.result_type(atom.value)
            if isinstance(atom.value, float):
                dtype = np.dtype(np.float32)
        return dtype if isinstance(dtype, np.dtype) else None

    def _island(self, members: Sequence[int]) -> Island:
        inside = set(members)
        inputs: dict[int, None] = {}
        outputs = []
        for index in members:
            step = self.residual.steps[index]
            for atom in step.inputs:
                if (
                    isinstance(atom, int)
                    and not self._is_constant(atom, self.constants)
                    and self.maker.get(atom, -1) not in inside
                ):
                    inputs[atom] = None
            for number in step.outputs:
                if number in self.leaving or any(
                    reader not in inside for reader in self.readers.get(number, ())
                ):
                    outputs.append(number)
        return Island(tuple(members), tuple(inputs), tuple(outputs))

    # One program
    # ----------------------------------------------------------------------------------------------

    def _calls(self, island: Island) -> list[Step]:
        """The steps of an island as a call, or as several in a row if one would have too many arguments."""
        try:
            return [self._call(island)]
        except _TooManyArguments as cause:
            if (at := cut(island, self.residual.steps, self._dtype)) is None:
                raise _StepRefused(cause, island.steps[-1]) from cause
            parts = island.steps[:at], island.steps[at:]
            return [call for part in parts for call in self._calls(self._island(part))]

    def _call(self, island: Island) -> Step:
        emitter = Emitter(self.size, self.kernels.panel, len(island.inputs))
        inside = set(island.steps)
        uses = Counter(
            atom
            for index in island.steps
            for atom in self.residual.steps[index].inputs
            if isinstance(atom, int)
        )
        uses.update(island.outputs)
        translator = Translator(emitter, uses)
        index = island.steps[0]
        try:
            for position, number in enumerate(island.inputs):
                index = next(reader for reader in self.readers[number] if reader in inside)
                shape = tuple(self.avals[number].shape)
                is_key = self.residual.steps[index].primitive.name == "draw"
                translator.known[number] = outside(shape, 1 if is_key else self.size, position)
            done: set[int] = set()
            for index in island.steps:
                if index in done:
                    continue
                step = self.residual.steps[index]
                fused = self._fused(index, translator, inside)
                if fused is not None:
                    done.update(fused[1])
                operands = [self._known(atom, translator) for atom in step.inputs]
                translator.add(index, step, operands, fused[0] if fused else None)
                if len(island.inputs) + len(emitter.weights) > MOST_BUFFERS:
                    raise _TooManyArguments(f"over {MOST_BUFFERS} arguments")
            outputs = [emitter.here(translator.known[number]) for number in island.outputs]
            emitter.flush()
            for value in outputs:
                self._check_output(value)
            program = emitter.finish(outputs, [self.avals[number].dtype for number in island.outputs])
            if len(island.inputs) + len(emitter.weights) + len(outputs) > MOST_BUFFERS:
                raise _TooManyArguments(f"over {MOST_BUFFERS} arguments")
        except _TooManyArguments:
            raise
        except Refused as cause:
            raise _StepRefused(cause, index) from cause
        weights = tuple(self._weight(weight.source, weight.arrangement) for weight in emitter.weights)
        return _Call(
            _CALL,
            {"program": program},
            (*island.inputs, *weights),
            island.outputs,
            tuple(self.avals[n] for n in island.outputs),
        )

    def _check_output(self, value: Any) -> None:
        """Check that a result has its blocks in the order that XLA expects."""
        if self.size > 1 and value.axis is None:
            raise Refused("an output without blocks")

    def _known(self, atom: Atom, translator: Translator) -> Known:
        if not isinstance(atom, int):
            return Constant.of(np.asarray(atom.value, np.float32))
        if atom in translator.known:
            return translator.known[atom]
        if atom in self.node_of:
            shape = tuple(self.avals[atom].shape)
            return Constant(shape, shape, atom)
        step = self.residual.steps[self.maker[atom]]
        translator.add(self.maker[atom], step, [self._known(one, translator) for one in step.inputs])
        return translator.known[atom]

    def _fused(self, index: int, translator: Translator, inside: set[int]) -> tuple[Fused, list[int]] | None:
        """Steps after a product that it can absorb, and their indices."""
        step = self.residual.steps[index]
        columns = self._columns(step)
        if columns is None:
            return None
        uses = translator.uses
        number, addend, bias, activation = step.outputs[0], None, None, ""
        is_dense = step.primitive.name == "dot_general"
        moved: list[int] = []
        taken: list[int] = []
        last = number
        while not activation and (follower := self._only_reader(number, uses, inside)) is not None:
            after = self.residual.steps[follower]
            name, other = after.primitive.name, _other(after, number)
            if name in ("squeeze", "expand_dims") or (
                name == "reshape" and after.params["dimensions"] is None
            ):
                moved.append(follower)
            elif name == "add" and bias is None and (found := self._bias(columns, after, other)) is not None:
                bias = found
            elif (
                name == "add"
                and is_dense
                and not (moved or addend or bias)
                and self._may_grow(after, other, translator)
            ):
                addend = translator.known[other]  # pyright: ignore[reportArgumentType]
            elif name == "max" and (zero := self._maybe_constant(other)) is not None and zero.number == 0:
                activation = "relu"
            elif name in ACTIVATIONS:
                activation = name
            else:
                break
            number = after.outputs[0]
            if follower not in moved:  # A reshape at the end gains nothing, so it is not absorbed.
                taken = [*taken, *moved, follower]
                last, moved = number, []
        if not taken:
            return None
        shape = tuple(self.avals[last].shape)
        return Fused(bias, activation, (last,), shape, addend if isinstance(addend, Value) else None), taken

    def _columns(self, product: Step) -> tuple[int, int] | None:
        """A product's columns, and their distance in its result; None if the step is not a product."""
        name, shape = product.primitive.name, tuple(product.avals[0].shape)
        if name == "conv_general_dilated":
            channel = product.params["dimension_numbers"].out_spec[1]
            return shape[channel], math.prod(shape[channel + 1 :])
        if name != "dot_general" or not self._is_constant(product.inputs[1], self.constants):
            return None
        (_, over_b), _ = product.params["dimension_numbers"]
        b = product.inputs[1]
        held = tuple(self.avals[b].shape) if isinstance(b, int) else np.shape(b.value)
        return math.prod(size for i, size in enumerate(held) if i not in over_b), 1

    def _may_grow(self, add: Step, other: Atom | None, translator: Translator) -> bool:
        """Whether a product can be added to `other` in place: it is dense and has no other reader."""
        if not isinstance(other, int) or translator.uses[other] != 1:
            return False
        value = translator.known.get(other)
        if not isinstance(value, Value) or tuple(add.avals[0].shape) != value.shape:
            return False
        return translator.emitter.is_whole(value)

    def _only_reader(self, number: int, uses: Mapping[int, int], inside: set[int]) -> int | None:
        readers = self.readers.get(number, ())
        return readers[0] if len(readers) == 1 and uses[number] == 1 and readers[0] in inside else None

    def _maybe_constant(self, atom: Atom | None) -> Constant | None:
        if atom is None or not self._is_constant(atom, self.constants):
            return None
        try:
            known = self._known(atom, Translator(Emitter(self.size, self.kernels.panel, 0), {}))
        except Refused:
            return None
        return known if isinstance(known, Constant) else None

    def _bias(self, columns: tuple[int, int], add: Step, other: Atom | None) -> Constant | None:
        """The array that is added to a product, if it holds one number per column; else None."""
        constant = self._maybe_constant(other)
        shape = tuple(add.avals[0].shape)
        held = spread(constant, shape) if constant is not None else None
        if constant is None or held is None:
            return None
        if math.prod(held) == 1:
            return constant
        count, apart = columns
        wanted = [1] * len(shape)
        inner = 1
        for i in reversed(range(len(shape))):
            if apart <= inner < apart * count and shape[i] != 1:
                wanted[i] = shape[i]
            inner *= shape[i]
        return constant if held == tuple(wanted) and math.prod(wanted) == count else None

    def _weight(self, source: Any, arrangement: Arrangement) -> Atom:
        """The argument of a program that is made of weights."""
        if not isinstance(source, int):
            return literal(np.ascontiguousarray(arranged(source, arrangement)))
        node = self.node_of[source]
        aval = self.avals[source]
        step = packed(source, arrangement, self.next_number, aval)
        (made,) = self.hoister.made_by(step, (node,))
        if made not in self.new_nodes:
            self.new_nodes[made] = self.next_number
            self.next_number += 1
        return self.new_nodes[made]


def _other(step: Step, number: int) -> Atom | None:
    others = [atom for atom in step.inputs if atom != number]
    return others[0] if len(others) == 1 else None
