"""Ids of brains, the policies of a runtime."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

_numbers = itertools.count()


@dataclass(frozen=True, order=True)
class BrainId:
    """The id of a policy in a runtime, unique in the process.

    >>> runtime = memojax.Runtime()
    >>> brain = runtime.add_inferer(memojax.load(memojax.policies.bundled("acrobot_ppo")))
    >>> runtime.brains == [brain]
    True
    """

    _number: int

    @classmethod
    def fresh(cls) -> BrainId:
        """A new id."""
        return cls(next(_numbers))

    def __hash__(self) -> int:
        return self._number

    def __str__(self) -> str:
        return f"brain {self._number}"
