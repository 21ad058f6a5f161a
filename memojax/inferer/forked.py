"""What an inferer becomes in a forked worker: every call says that XLA cannot run there."""

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

    It is made by unpickling, which must not raise: a pool of workers would wait for ever for the task that
    was lost by that.
    """

    def __init__(self, api: ModelApi):
        """Stand for an inferer of a model with this `api`."""
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
        """Whatever else the inferer could do."""
        if name.startswith("__") or name == "_api":
            raise AttributeError(name)
        return refuse


def refuse(*given: Any, **options: Any) -> NoReturn:
    """Say that the process was forked.

    Raises:
        ForkError: always.
    """
    raise ForkError()
