"""Every exception of memojax declares its attributes, and comes back from another process as it was."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator

import pytest

from memojax import errors
from memojax.errors import MemojaxError
from memojax.lowering.batch_axis import OddOutputError as OddOutputError
from memojax.verification.runtimes import ContenderError as ContenderError

ARGUMENTS = {
    errors.UnsupportedOpError: ([errors.Unsupported("", "Foo", 17, ("node",), "no such operator")],),
    errors.UnknownInputError: (["x"], ["obs"]),
    errors.MissingInputError: (["obs"], []),
    errors.IndexRangeError: ("node 'gather'", 7, (0, 2), 3),
    errors.CompileForbiddenError: (3, [1, 2], "here"),
    errors.ForkError: (),
    errors.OrphanedDataError: ({"brain 1": [7]},),
    errors.RuntimeErrors: ({"brain 1": ValueError("odd")}, {"brain 2": {}}),
    errors.MissingPackageError: ("gymnasium", "an evaluation", "rl"),
    errors.SpaceMismatchError: ("the message", 2),
    errors.EnvironmentFailedError: ("the message", 1),
    errors.ActionError: ("the message", 2),
}


def _kinds(base: type[MemojaxError]) -> Iterator[type[MemojaxError]]:
    if base.__module__.startswith("memojax."):
        yield base
        for kind in base.__subclasses__():
            yield from _kinds(kind)


KINDS = sorted(set(_kinds(MemojaxError)), key=lambda kind: kind.__name__)


def _example(kind: type[MemojaxError]) -> MemojaxError:
    """An instance with its own attributes, and those of its bases, set to something."""
    error = kind(*ARGUMENTS.get(kind, ("the message",)))
    for name, value in {"partial": "half of it", "located": True}.items():
        if hasattr(kind, name):
            setattr(error, name, value)
    return error


def test_all_exceptions_are_looked_at() -> None:
    found = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)}
    assert found <= set(KINDS)
    own = {kind for kind in KINDS if kind.__init__ is not MemojaxError.__init__}
    assert own - {MemojaxError} <= ARGUMENTS.keys(), "an example of each is needed above"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_attribute_is_declared(kind: type[MemojaxError]) -> None:
    declared = {name for base in kind.__mro__ for name in vars(base).get("__annotations__", {})}
    assert vars(_example(kind)).keys() <= declared


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors_come_back_from_other_processes(kind: type[MemojaxError]) -> None:
    """An error that cannot be read would leave the owner of a pool waiting for ever."""
    error = _example(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert repr(vars(copy)) == repr(vars(error))
