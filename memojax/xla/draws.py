"""Many random draws, drawn at once: XLA compiles one hash for draws of one shape, not one for each.

A draw by Threefry takes XLA:CPU as long as some two hundred light steps. Draws read a key alone, so all of
them can come first. The numbers are the same, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .equations import bodies, bound

MANY = 8
"""Draws up to which a function stays as it is; policies have one or two."""

SMALL = 1 << 14
"""Numbers in one draw up to which draws come at once, since all of them are in memory then."""

_FOLD = "random_fold_in"
_BITS = "random_bits"
_RANDOM = (_FOLD, _BITS)
_THREEFRY = "key<fry>"
"""The dtype of keys whose draws do not change if they are mapped."""

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
"""Primitives that only call a jaxpr, and the parameter that holds it."""


def at_once(closed: Any) -> Any:
    """A closed jaxpr with the draws of `closed` at its start, those of one shape as one; few draws stay."""
    if draws(closed.jaxpr) <= MANY:
        return closed
    given = closed.in_avals

    def whole(*arguments: Any) -> list[Any]:
        return _inlined(closed.jaxpr, closed.consts, arguments)

    flat = jax.make_jaxpr(whole)(*given)

    def run(*arguments: Any) -> list[Any]:
        return _Order(flat.jaxpr).run(flat.consts, arguments)

    return jax.make_jaxpr(run)(*given)


def draws(jaxpr: Any) -> int:
    """The number of draws in a jaxpr and in the calls and bodies of it."""
    return sum((eqn.primitive.name == _BITS) + sum(map(draws, bodies(eqn.params))) for eqn in jaxpr.eqns)


def _inlined(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Trace a jaxpr with those calls inlined that draw."""
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
    for eqn in jaxpr.eqns:
        inner = eqn.params.get(_CALLS.get(eqn.primitive.name, ""))
        inputs = _read(env, eqn.invars)
        if inner is not None and hasattr(inner, "jaxpr") and draws(inner.jaxpr):
            made = _inlined(inner.jaxpr, inner.consts, inputs)
        else:
            made = bound(eqn.primitive, eqn.params, inputs)
        env.update(zip(eqn.outvars, made, strict=True))
    return _read(env, jaxpr.outvars)


class _Row:
    """One row of an array of values that were made at once; it is cut out where a step reads it."""

    def __init__(self, rows: Any, place: int):
        self.rows = rows
        self.place = place

    def value(self) -> Any:
        return lax.index_in_dim(self.rows, self.place, keepdims=False)


class _Order:
    """The steps of a jaxpr in the order in which draws come first."""

    def __init__(self, jaxpr: Any):
        self.jaxpr = jaxpr
        # The level of a step counts the draws and folds behind it; those of one level can run at once.
        level: dict[Any, int] = {}
        self.levels: list[int] = []
        for eqn in jaxpr.eqns:
            own = max((level.get(var, 0) for var in _variables(eqn.invars)), default=0) + _merges(eqn)
            level.update(dict.fromkeys(eqn.outvars, own))
            self.levels.append(own)
        needed: set[Any] = set()
        self.first: set[int] = set()
        for place in range(len(jaxpr.eqns) - 1, -1, -1):
            eqn = jaxpr.eqns[place]
            if _merges(eqn) or needed.intersection(eqn.outvars):
                self.first.add(place)
                needed.update(_variables(eqn.invars))
        self.env: dict[Any, Any] = {}

    def run(self, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        jaxpr = self.jaxpr
        self.env.update(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
        groups: dict[Any, list[Any]] = {}
        plain: dict[int, list[Any]] = {}
        for place in sorted(self.first):
            eqn, level = jaxpr.eqns[place], self.levels[place]
            if _merges(eqn):
                groups.setdefault((level, *_alike(eqn)), []).append(eqn)
            else:
                plain.setdefault(level, []).append(eqn)
        for level in range(max(self.levels, default=0) + 1):
            for (own, *_), eqns in groups.items():
                if own == level:
                    self._together(eqns)
            for eqn in plain.get(level, ()):
                self._alone(eqn)
        for place, eqn in enumerate(jaxpr.eqns):
            if place not in self.first:
                self._alone(eqn)
        return [self._value(atom) for atom in jaxpr.outvars]

    def _alone(self, eqn: Any) -> None:
        made = bound(eqn.primitive, eqn.params, [self._value(atom) for atom in eqn.invars])
        self.env.update(zip(eqn.outvars, made, strict=True))

    def _together(self, eqns: Sequence[Any]) -> None:
        if len(eqns) == 1:
            self._alone(eqns[0])
            return
        one = eqns[0]

        def step(*given: Any) -> Any:
            (made,) = bound(one.primitive, one.params, given)
            return made

        stacked = [self._stacked(atoms) for atoms in zip(*(eqn.invars for eqn in eqns), strict=True)]
        rows = jax.vmap(step)(*stacked)
        for place, eqn in enumerate(eqns):
            self.env[eqn.outvars[0]] = _Row(rows, place)

    def _stacked(self, atoms: Sequence[Any]) -> Any:
        """The values of `atoms` along a new first axis."""
        if all(hasattr(atom, "val") for atom in atoms):
            return np.stack([np.asarray(atom.val) for atom in atoms])
        values = [atom.val if hasattr(atom, "val") else self.env[atom] for atom in atoms]
        rows = values[0].rows if isinstance(values[0], _Row) else None
        places = [value.place for value in values if isinstance(value, _Row) and value.rows is rows]
        if rows is not None and places == list(range(rows.shape[0])):
            return rows
        given = [value.value() if isinstance(value, _Row) else value for value in values]
        return jnp.stack(given)

    def _value(self, atom: Any) -> Any:
        if hasattr(atom, "val"):
            return atom.val
        value = self.env[atom]
        return value.value() if isinstance(value, _Row) else value


def _merges(eqn: Any) -> bool:
    """Whether a step is a fold or a small draw of a key of Threefry."""
    if eqn.primitive.name not in _RANDOM or str(eqn.invars[0].aval.dtype) != _THREEFRY:
        return False
    return math.prod(eqn.outvars[0].aval.shape) <= SMALL


def _alike(eqn: Any) -> tuple[Any, ...]:
    """What two steps share that can run at once."""
    avals = [(atom.aval.shape, str(atom.aval.dtype)) for atom in eqn.invars]
    params = [(name, repr(value)) for name, value in sorted(eqn.params.items())]
    return eqn.primitive.name, *avals, *params


def _read(env: dict[Any, Any], atoms: Sequence[Any]) -> list[Any]:
    return [atom.val if hasattr(atom, "val") else env[atom] for atom in atoms]


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [atom for atom in atoms if not hasattr(atom, "val")]
