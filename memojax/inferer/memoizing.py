"""Every batch size on its own plan."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Any, Literal, final

from .._types import Source
from ..errors import BatchSizeError, CompileForbiddenError, nearest
from ..loading import typed_model
from ..lowering.typed_model import TypedModel
from ..plans.batch_sizes import Bucketing, bucket_of
from ..xla.background import submit
from .compiled import ModelInferer, refuse_mixing

OnMiss = Literal["compile", "pad", "warn", "error"]

log = logging.getLogger("memojax")


@final
class MemoizingDynamicInferer(ModelInferer):
    """Compiles a plan for each batch size when it is first seen, and keeps it.

    Pick it when the number of agents is unknown or changes; preload the sizes you expect.

    >>> policy = memojax.MemoizingDynamicInferer.from_model(memojax.policies.bundled("acrobot_ppo"), [8])
    >>> for n in (8, 3, 8):
    ...     answers = policy.infer_arrays({"obs": np.zeros((n, 6), np.float32)})
    >>> [(plan.size, plan.calls) for plan in policy.plans()]
    [(3, 1), (8, 2)]

    Pros:
        Best speed at every size, without tuning; rows are never padded, so models that mix rows are right too.
    Cons:
        A new size costs a compile (tens to hundreds of milliseconds) unless it was preloaded; memory grows with the number of sizes
        (`maxsize=` caps it).
    """

    def __init__(
        self,
        typed: TypedModel,
        preloaded_sizes: Iterable[int] = (),
        *,
        bucketing: Bucketing = "exact",
        max_batch_size: int | None = None,
        on_miss: OnMiss = "compile",
        **options: Any,
    ):
        """Compile `preloaded_sizes` now.

        Args:
            typed: the model.
            preloaded_sizes: batch sizes to compile now and never to drop.
            bucketing: which sizes get a plan: "exact" (each), "pow2", a list, or a function; the others are padded.
            max_batch_size: the most rows in one plan; larger batches are split.
            on_miss: what a call does whose size has no plan yet. "compile": it waits for one. "pad": it runs at once, padded into the
                next larger plan or split over smaller ones, while the right plan is compiled in the background (the very first call
                compiles). "warn": as "compile", with a warning in the log. "error": it raises.
            options: `maxsize`, `device`, `seed`, `precision`, `strict` and the others of `ModelInferer`.

        Raises:
            BatchSizeError: a size that is no positive whole number, or an unknown policy.
            RowsMixError: "pad" for a model in which rows influence each other.
        """
        if on_miss not in ("compile", "pad", "warn", "error"):
            raise BatchSizeError(f"unknown on_miss {on_miss!r}: give 'compile', 'pad', 'warn' or 'error'")
        self._policy = {"bucketing": bucketing, "max_batch_size": max_batch_size, "on_miss": on_miss}
        self._bucket = bucket_of(bucketing, max_batch_size)
        self._on_miss: OnMiss = on_miss
        self._compiling: set[int] = set()
        self._compiling_lock = threading.Lock()
        super().__init__(typed, preloaded_sizes, **options)
        if on_miss == "pad":
            refuse_mixing(self, "on_miss='pad'")

    @classmethod
    def from_model(
        cls, model: Source, preloaded_sizes: Iterable[int] = (), **options: Any
    ) -> MemoizingDynamicInferer:
        """Load an ONNX model; options are those of `TypedModel.from_model` and of the constructor.

        Raises:
            ModelLoadError, UnsupportedOpError, DimensionError: see `TypedModel.from_model`.
        """
        loading = {name: options.pop(name) for name in _LOADING if name in options}
        return cls(typed_model(model, **loading), preloaded_sizes, **options)

    @classmethod
    def from_typed(
        cls, model: TypedModel, preloaded_sizes: Iterable[int] = (), **options: Any
    ) -> MemoizingDynamicInferer:
        """Use a `TypedModel` that is loaded already."""
        return cls(model, preloaded_sizes, **options)

    def _arguments(self) -> dict[str, Any]:
        return {**self._policy, "maxsize": self._cache.maxsize}

    def _route(self, count: int) -> tuple[int, int]:
        size = self._bucket(count)
        rows = min(size, count)
        if self._on_miss != "pad" or size in self._cache:
            return rows, size
        larger = self._cache.next_larger(rows)
        if larger is not None:
            return rows, larger
        smaller = self._cache.next_smaller(rows)
        return (smaller, smaller) if smaller is not None else (rows, size)

    def _arrived(self, count: int) -> None:
        size = self._bucket(count)
        if size in self._cache:
            return
        if self._on_miss == "pad":
            if len(self._cache):
                self._compile_later(size)
        elif self._on_miss == "error":
            raise CompileForbiddenError(size, self._cache.sizes(), "with on_miss='error'")
        elif self._on_miss == "warn":
            near = nearest(self._cache.sizes(), size) or "none"
            log.warning(
                "batch size %d has no plan and is compiled now; nearest plans: %s. preload([%d]) avoids the wait",
                size,
                near,
                size,
            )

    def _compile_later(self, size: int) -> None:
        with self._compiling_lock:
            if size in self._compiling or self._cache.has_failed(size):
                return
            self._compiling.add(size)

        def compile_now() -> None:
            try:
                self._cache.get_in_background(size)
            finally:
                with self._compiling_lock:
                    self._compiling.discard(size)

        submit(compile_now)


_LOADING = ("dims", "batch_axis", "constants", "outputs")
