"""The engines of one model: a single one, or one for each binding of its free symbols and static inputs."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..lowering.free_function import Binding
from ..lowering.typed_model import TypedModel
from .engine import Engine

_SPARE = 64
"""Number of engines without plans to keep; under `maxsize`, engines of unused bindings would pile up."""


class Family:
    """Engines by binding; all engines of a model share its weights and `maxsize`.

    Attributes:
        typed: the model with its present weights.
    """

    def __init__(self, typed: TypedModel, make: Callable[[TypedModel, Engine | None], Engine]):
        """Make engines by `make(bound model, another engine)`; a model without free symbols gets one now."""
        self.typed = typed
        self._make = make
        self._lock = threading.RLock()
        self._engines: dict[Binding, Engine] = {}
        if not typed.is_open:
            self._engines[Binding()] = make(typed, None)

    def at(self, binding: Binding) -> Engine:
        """The engine for `binding`, made now if there is none.

        Raises:
            DimensionError, LoweringError: the model does not run with this binding.
        """
        engine = self._engines.get(binding)
        if engine is not None:
            return engine
        with self._lock:
            if binding not in self._engines:
                beside = next(iter(self._engines.values()), None)
                engine = self._make(self.typed.at(binding), beside)
                self._prune()
                self._engines[binding] = engine
            return self._engines[binding]

    def holds(self, engine: Engine) -> bool:
        """Whether the family still holds `engine`."""
        return self._engines.get(engine.typed.binding) is engine

    def engines(self) -> list[Engine]:
        """All engines, in the order of their bindings' first use."""
        return list(self._engines.copy().values())

    def update(self, typed: TypedModel) -> None:
        """Switch all engines to the weights of `typed`; see `Engine.update`."""
        with self._lock:
            first: Engine | None = None
            for binding, engine in self._engines.items():
                engine.update(typed.at(binding) if typed.is_open else typed, first)
                first = first or engine
            self.typed: TypedModel = typed

    def _prune(self) -> None:
        idle = [binding for binding, engine in self._engines.items() if engine.is_idle]
        for binding in idle[: max(0, len(idle) - _SPARE)]:
            del self._engines[binding]
