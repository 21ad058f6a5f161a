"""Proves from a trace that no row of a batch influences another, whatever its values.

Each value of the trace is followed with the axis on which its rows lie. An equation that keeps rows apart
passes that axis on; any other makes its results mixed. So a proof holds for all values, and trial runs are
left for the few files without one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from ..xla.equations import constants_and_carries
from .row_rules import FLAT_RULES, everywhere, shape_of, with_units, without
from .row_states import MIXED, Apart, Mixed, Rows, Same, State, joined, moved, of_constant
from .shared_steps import NODES, Step


@dataclass(frozen=True)
class Walk:
    """One walk over a trace for `n` rows.

    Attributes:
        n: the number of rows.
        draws: whether random numbers count as the same for all rows, as trial runs take them.
        passed: how rows lay in the results of each step. It tells walks for other numbers of rows apart: 35
            features divide by 5 and by 7 rows, and not by others.
    """

    n: int
    draws: bool
    passed: list[Rows] = field(default_factory=list, compare=False)
    walked: dict[Any, tuple[list[State], list[Rows]]] = field(default_factory=dict, compare=False)
    """Walks over the steps that nodes share, by the identity of the step and the states of its inputs."""

    def outputs(self, closed: ClosedJaxpr, inputs: Sequence[State]) -> list[State]:
        """How rows lie in each output of a trace."""
        return self.of(closed.jaxpr, [of_constant(value) for value in closed.consts], inputs)

    def of(self, jaxpr: Jaxpr, consts: Sequence[State], inputs: Sequence[State]) -> list[State]:
        """As `outputs`, for a body whose constants are known."""
        states: dict[Any, State] = dict(zip(jaxpr.constvars, consts, strict=True))
        states.update(zip(jaxpr.invars, inputs, strict=True))

        def state_of(var: Any) -> State:
            return (
                of_constant(var.val) if isinstance(var, Literal) else with_units(states[var], shape_of(var))
            )

        for equation in jaxpr.eqns:
            given = [state_of(var) for var in equation.invars]
            results = self._step(equation, given)
            if equation.primitive.name != NODES:  # whose steps are walked, and noted, one by one
                self.passed.extend(state for state in results if isinstance(state, Rows))
            states.update(zip(equation.outvars, results, strict=True))
        return [state_of(var) for var in jaxpr.outvars]

    def _step(self, equation: Any, given: list[State]) -> Sequence[State]:
        name, many = equation.primitive.name, len(equation.outvars)
        if name == NODES:
            return _shared(self, equation, given)
        known = [state for state in given if not isinstance(state, Mixed)]
        if len(known) < len(given):
            return [MIXED] * many
        if (body := _BODIES.get(name)) is not None:
            return body(self, equation, known)
        has_rows = any(isinstance(state, Rows) for state in known)
        if name in _DRAWS and not has_rows:
            return [everywhere(len(shape_of(var))) if self.draws else Same() for var in equation.outvars]
        if (rule := FLAT_RULES.get(name)) is not None:
            found = rule(equation, known, self.n)
            return [found[0]] * many if len(found) == 1 else found
        # Whatever an operator does, it makes nothing of rows from values that have none.
        return [MIXED if has_rows else Same()] * many


def _called(walk: Walk, equation: Any, given: list[Apart]) -> Sequence[State]:
    body = next(
        equation.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in equation.params
    )
    return walk.outputs(body, given) if isinstance(body, ClosedJaxpr) else walk.of(body, [], given)


def _shared(walk: Walk, equation: Any, given: list[State]) -> Sequence[State]:
    """How rows lie in the results of nodes alike, whose traces are walked once for the same states."""

    def step(step: Step, states: list[State]) -> Sequence[State]:
        key = (id(step), *states)
        found = walk.walked.get(key)
        if found is not None:
            walk.passed.extend(found[1])
        else:
            before = len(walk.passed)
            made = walk.outputs(step.traced, states)
            found = walk.walked[key] = made, walk.passed[before:]
        return found[0]

    return equation.params["program"].run(given, step)


def _settled(step: Callable[[list[State]], list[State]], first: Sequence[State]) -> list[State]:
    """The states of a loop's carried values, which another trip does not change."""
    carry = list(first)
    while True:
        after = [joined([a, b]) for a, b in zip(carry, step(carry), strict=True)]
        if after == carry:
            return carry
        carry = after


def _while(walk: Walk, equation: Any, given: list[Apart]) -> Sequence[State]:
    p = equation.params
    test, body = p["cond_nconsts"], p["body_nconsts"]
    carry = _settled(
        lambda carry: walk.outputs(p["body_jaxpr"], [*given[test : test + body], *carry]),
        given[test + body :],
    )
    (more,) = walk.outputs(p["cond_jaxpr"], [*given[:test], *carry])
    return carry if isinstance(more, Same) else [MIXED] * len(carry)


def _scan(walk: Walk, equation: Any, given: list[Apart]) -> Sequence[State]:
    p = equation.params
    consts, carries = constants_and_carries(p, equation.invars)
    first = consts + carries
    # One row at a time: a carried value passes from row to row.
    entries = [without(state, [0]) for state in given[first:]]
    if MIXED in entries:
        return [MIXED] * len(equation.outvars)

    def trip(carry: list[State]) -> list[State]:
        return walk.outputs(p["jaxpr"], [*given[:consts], *carry, *entries])

    carry = _settled(lambda carry: trip(carry)[:carries], given[consts:first])
    made = trip(carry)[carries:]
    return [*carry, *(_behind(state) for state in made)]


def _behind(state: State) -> State:
    """The state of a value that a loop stacks on a new first axis."""
    if isinstance(state, Rows):
        return moved(state, state.axis + 1)
    return state if isinstance(state, Mixed) else Same(frozenset(axis + 1 for axis in state.uniform))


def _cond(walk: Walk, equation: Any, given: list[Apart]) -> Sequence[State]:
    which, *operands = given
    if isinstance(which, Rows):
        return [MIXED] * len(equation.outvars)
    branches = [walk.outputs(branch, operands) for branch in equation.params["branches"]]
    return [joined(list(states)) for states in zip(*branches, strict=True)]


_DRAWS = frozenset({"random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform"})

_BODIES: Mapping[str, Callable[[Walk, Any, list[Apart]], Sequence[State]]] = {
    **dict.fromkeys(("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint"), _called),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"), _called),
    "while": _while,
    "scan": _scan,
    "cond": _cond,
}
"""Primitive with a body -> how rows lie in its results."""
