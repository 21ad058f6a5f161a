"""The order in which a runtime serves its brains, and the queue of one brain."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from ..inferer.batcher import Batcher
from ..inferer.loose_batcher import LooseBatcher
from .brain_id import BrainId

Place = tuple[int, int, BrainId]
"""A brain's place in the queue."""


class Turns:
    """The order of the queue: numbers of frames, and of services within them."""

    def __init__(self) -> None:
        self.frame: int = 1
        self._served = itertools.count(1)

    def begin_frame(self) -> int:
        """Begin a frame; states queued from now on belong to the next one."""
        self.frame += 1
        return self.frame - 1

    def served(self) -> int:
        """A number higher than all before it."""
        return next(self._served)


class Queue(NamedTuple):
    """The two batches of a brain as one record, so a single assignment seals a batch.

    Attributes:
        open: the batch that takes new states.
        sealed: the batch that runs, has failed, or waits for a compile; an empty one counts as absent.
        open_since: frame in which the open batch began to wait.
        sealed_since: frame in which the sealed batch began to wait.
    """

    open: Batcher | LooseBatcher
    sealed: Batcher | LooseBatcher
    open_since: int = 0
    sealed_since: int = 0

    @property
    def next(self) -> tuple[int, int]:
        """Frame in which the next batch began to wait, and its number of agents; zeros if nothing waits."""
        if count := len(self.sealed):
            return self.sealed_since, count
        if self.open_since and (count := len(self.open)):
            return self.open_since, count
        return 0, 0
