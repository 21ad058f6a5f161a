"""The handle of a preload, to wait for it, watch it or cancel it."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from typing import Any, final

from ..xla.background import submit
from .progress import progress_bar


@final
class Preload:
    """Batch sizes that are being compiled; `preload(...)` returns it.

    Attributes:
        sizes: the sizes, in the order of compiling.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        compile_size: Callable[[int], Any],
        workers: int = 1,
        background: bool = False,
        progress: bool = False,
    ):
        """Compile `sizes` on the background worker, or on `workers` threads.

        With `progress`, `wait` shows a bar by default.
        """
        self.sizes: list[int] = list(sizes)
        self._progress = progress
        if background:
            self._pool = None
            self._futures: list[Future[Any]] = [submit(_task(compile_size, size)) for size in self.sizes]
        else:
            self._pool = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="memojax-preload")
            self._futures = [
                self._pool.submit(contextvars.copy_context().run, compile_size, size) for size in self.sizes
            ]
            self._pool.shutdown(wait=False)

    @classmethod
    def finished(cls, sizes: Sequence[int]) -> Preload:
        """A preload that has already finished."""
        made = cls((), lambda size: None, background=True)
        made.sizes = list(sizes)
        made._futures = [Future() for _ in made.sizes]
        for future in made._futures:
            future.set_result(None)
        return made

    def wait(self, timeout: float | None = None, progress: bool | None = None) -> None:
        """Wait until every size has its plan or was cancelled, for at most `timeout` seconds.

        Args:
            timeout: seconds; None means no limit.
            progress: show a bar in a terminal or a notebook; None takes the choice of `preload`.

        Raises:
            TimeoutError: some sizes are not done yet; they continue.
            LoweringError, CompileError: a size cannot be compiled; the others are done.
        """
        failure: BaseException | None = None
        shown = self._progress if progress is None else progress
        with progress_bar("compiling", len(self.sizes)) if shown else contextlib.nullcontext() as report:
            for done, future in enumerate(as_completed(self._futures, timeout), 1):
                with contextlib.suppress(CancelledError):
                    failure = future.exception() or failure
                if report is not None:
                    report(done, "")
        if failure is not None:
            raise failure

    def done(self) -> bool:
        """Whether no size is left to compile."""
        return all(future.done() for future in self._futures)

    def cancel(self) -> int:
        """Cancel the sizes that have not begun, and return their number."""
        return sum(future.cancel() for future in self._futures)

    def __repr__(self) -> str:
        finished = sum(future.done() for future in self._futures)
        return f"Preload({finished} of {len(self.sizes)} sizes done)"


def _task(compile_size: Callable[[int], Any], size: int) -> Callable[[], Any]:
    return lambda: compile_size(size)
