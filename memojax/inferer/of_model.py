"""Inferers that run a model themselves, in contrast to wrappers."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any

from ..lowering.typed_model import TypedModel
from ..model.signature import ModelApi
from ..xla.cores import pin_cores
from .base import Inferer


class InfererOfModel(Inferer):
    """An inferer of one `TypedModel` that keeps nothing by agent (abstract)."""

    @property
    @abc.abstractmethod
    def typed(self) -> TypedModel:
        """The model with its present weights."""

    @property
    def raw_api(self) -> ModelApi:
        return self.typed.api

    @property
    def api(self) -> ModelApi:
        return self.typed.api

    @property
    def params(self) -> Any:
        """The weights, as a pytree."""
        return self.typed.params

    @property
    def metadata(self) -> dict[str, str]:
        """The `metadata_props` of the model file."""
        return dict(self.typed.metadata)

    @staticmethod
    def pin_cores(cores: int | Iterable[int]) -> tuple[int, ...]:
        """Keep this process, with all of its policies, on some cores; see `memojax.pin_cores`.

        >>> import os
        >>> policy = memojax.load(memojax.policies.bundled("acrobot_ppo"))
        >>> policy.pin_cores(os.sched_getaffinity(0)) == tuple(sorted(os.sched_getaffinity(0)))
        True
        """
        return pin_cores(cores)

    def begin_agent(self, agent: int) -> None:
        """Nothing is kept by agent here."""

    def end_agent(self, agent: int) -> None:
        """Nothing is kept by agent here."""
