"""A change of several places that counts from one assignment on, whatever interrupts it afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import final


@final
class Journal:
    """The last step of a change: noted first, then done; what an interrupt leaves undone, the next caller does.

    Python code can be interrupted between any two lines, by Ctrl-C or by a lack of memory. All that may fail comes before `commit`.
    Whoever owns a journal calls `finish` before it reads or changes what the journal is about.
    """

    __slots__ = ("_owed",)

    def __init__(self) -> None:
        self._owed: Callable[[], None] | None = None

    def commit(self, step: Callable[[], None]) -> None:
        """Do `step`, which must give the same result when it is done again, from any place in its middle."""
        try:
            self._owed = step
            self.finish()
        except BaseException:
            self.finish()  # at once, for readers that take no notice of this journal
            raise

    def finish(self) -> None:
        """Do what is owed, if anything is."""
        if self._owed is not None:
            self._owed()
            self._owed = None


@final
class Outcome:
    """Whether a batch has run to its end: one flag for all who change something with it.

    Attributes:
        counts: set once, when the outermost layer has run; what a failed batch would have changed never counts.
    """

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts = False
