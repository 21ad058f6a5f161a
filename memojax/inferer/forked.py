"""The stand-in for an inferer in a forked worker: each call raises, as XLA cannot run there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NoReturn, final

from .._types import Arrays
from ..errors import ForkError
from ..model.signature import ModelApi
from ..rows.scratch import ScratchPadView
from .base import Inferer


@final
class ForkedInferer(Inferer):
    """Stands for an inferer that was sent to a forked worker.

    Unpickling makes it instead of raising: an exception there would lose the task, and a pool would wait for
    it forever.
    """

    def __init__(self, api: ModelApi):
        """Stand for an inferer of a model with these inputs and outputs."""
        self._api = api

    @property
    def raw_api(self) -> ModelApi:
        return self._api

    @property
    def api(self) -> ModelApi:
        return self._api

    def select_batch_size(self, max_count: int) -> int:
        return refuse()

    def infer_raw(self, view: ScratchPadView) -> None:
        refuse()

    def infer_arrays(
        self, inputs: Mapping[str, Any], *, ids: Sequence[int] | None = None, dones: Any = None
    ) -> Arrays:
        return refuse()

    def begin_agent(self, agent: int) -> None:
        refuse()

    def end_agent(self, agent: int) -> None:
        refuse()

    def is_ready(self, count: int) -> bool:
        return refuse()

    def prepare(self, count: int) -> Future[None]:
        return refuse()

    def __getattr__(self, name: str) -> Any:
        """A function that raises `ForkError`, for each public name of other inferers."""
        if name.startswith("__") or name == "_api":
            raise AttributeError(name)
        return refuse


def refuse(*given: Any, **options: Any) -> NoReturn:
    """Raise the error of a forked process, whatever the arguments.

    Raises:
        ForkError: always.
    """
    raise ForkError()
