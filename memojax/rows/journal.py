"""Change several objects at once, so an interrupt in the middle does no harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import final


@final
class Journal:
    """Notes the last step of a change before doing it, so the next caller can finish an interrupted step.

    Ctrl-C or a lack of memory can interrupt Python between any two lines. Work that may fail comes before
    `commit`. The owner of a journal calls `finish` before it reads or changes the state that the journal
    protects.
    """

    __slots__ = ("owed",)

    def __init__(self) -> None:
        self.owed: Callable[[], None] | None = None

    def commit(self, step: Callable[[], None]) -> None:
        """Do `step`, which must be repeatable: a run after an interrupted one gives the same result."""
        try:
            self.owed = step
            self.finish()
        except BaseException:
            self.finish()  # at once, for readers that do not call `finish`
            raise

    def finish(self) -> None:
        """Do the noted step, if there is one."""
        if self.owed is not None:
            self.owed()
            self.owed = None


@final
class Outcome:
    """Whether a batch has run to its end: one flag for all layers that change state with the batch.

    Attributes:
        counts: set once, when the outermost layer has run; a failed batch never sets it.
    """

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: bool = False
