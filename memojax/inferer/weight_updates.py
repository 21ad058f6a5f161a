"""Replaces the weights of all plans of a model, while calls run and other updates wait."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol, final

from ..lowering.new_weights import with_new_weights
from ..lowering.typed_model import TypedModel
from ..xla.background import submit_errand


class HoldsWeights(Protocol):
    """The engines of an inferer, or the compiler of a sharded one."""

    @property
    def typed(self) -> TypedModel:
        """The model with the weights in use."""
        ...

    def update(self, typed: TypedModel) -> None:
        """Switch to the weights of `typed`."""
        ...


@final
class WeightUpdates:
    """The updates of one `holder`: each is checked at once, and they come into use in that order.

    Attributes:
        updating: the lock of a switch to new weights; while a thread holds it, the weights stay.
    """

    updating: threading.Lock

    def __init__(self, holder: HoldsWeights):
        """Begin with the weights of `holder`."""
        self._holder = holder
        self.updating, self._accepting = threading.Lock(), threading.Lock()
        self._waiting: list[TypedModel] = []

    def update(self, source: Any, background: bool) -> Future[None]:
        """Check `source` and bring its weights into use; see `ModelInferer.update_params`.

        Raises:
            IncompatibleModelError: `source` does not fit the model; nothing changes.
        """
        accepted = None
        done: Future[None] = Future()
        done.set_result(None)
        try:
            with self._accepting:
                accepted = with_new_weights(self._wanted, source)
                self._waiting.append(accepted)
            if background:
                return submit_errand(partial(self._apply, accepted))
            self._apply(accepted)
        except BaseException:
            self._forget(accepted)
            raise
        return done

    @property
    def _wanted(self) -> TypedModel:
        """The weights that were accepted last, or those in use."""
        return (self._waiting or [self._holder.typed])[-1]

    def _apply(self, accepted: TypedModel) -> None:
        """Switch to the weights that were accepted last: `accepted`, or later ones, which hold these too."""
        try:
            with self.updating:
                if any(one is accepted for one in self._waiting):
                    wanted = self._waiting[-1]
                    self._holder.update(wanted)
                    with self._accepting:
                        self._waiting = _behind(self._waiting, wanted)
        except BaseException:
            self._forget(accepted)
            raise

    def _forget(self, accepted: TypedModel | None) -> None:
        """Go on without weights that were accepted and are not in use, as if they had not come."""
        with self._accepting:
            self._waiting = _without(self._waiting, accepted)


def _behind(models: Sequence[TypedModel], one: TypedModel) -> list[TypedModel]:
    return list(models[1 + next(at for at, other in enumerate(models) if other is one) :])


def _without(models: Sequence[TypedModel], one: TypedModel | None) -> list[TypedModel]:
    return [other for other in models if other is not one]
