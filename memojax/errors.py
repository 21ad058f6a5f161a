"""Every exception of memojax; each names the thing, the given and the expected value, and the next step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LONGEST = 2000
"""Characters that a message may have, since a hostile file may have names of megabytes."""


def printable(text: str) -> str:
    """`text` with characters escaped that control a terminal; line breaks stay."""
    if text.isprintable():
        return text
    return "".join(
        char if char == "\n" or char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )


def _message(text: str) -> str:
    """`text` as a message: printable, and without its middle if it is too long."""
    text = printable(text if len(text) <= 4 * _LONGEST else text[: 2 * _LONGEST] + text[-2 * _LONGEST :])
    if len(text) <= _LONGEST:
        return text
    tail = _LONGEST // 4
    return f"{text[: _LONGEST - tail - 40]} [... the middle is left out ...] {text[-tail:]}"


class MemojaxError(Exception):
    """Base of all errors that memojax raises on purpose.

    They pickle, so a pool of workers can pass them to its owner. Whatever names a file has, a message is
    printable and has at most 2,000 characters.
    """

    def __init__(self, *args: Any):
        super().__init__(*(_message(arg) if isinstance(arg, str) else arg for arg in args))

    def __reduce__(self) -> tuple[Any, ...]:
        return _revived, (type(self), self.args, self.__dict__)


def _revived(kind: type[MemojaxError], args: tuple[Any, ...], state: dict[str, Any]) -> MemojaxError:
    """An unpickled error; its `__init__`, which made the message, is not called again."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ModelLoadError(MemojaxError):
    """A file, byte string or `ModelProto` cannot be loaded as a model."""


@dataclass(frozen=True)
class Unsupported:
    """An operator that memojax cannot lower, with the nodes that use it."""

    domain: str
    op_type: str
    version: int
    nodes: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        shown = ", ".join(self.nodes[:3]) + (
            f" and {len(self.nodes) - 3} more" if len(self.nodes) > 3 else ""
        )
        return (
            f"{self.domain or 'ai.onnx'}.{self.op_type} (opset {self.version}; nodes {shown}): {self.reason}"
        )


class UnsupportedOpError(MemojaxError):
    """A model uses operators that cannot be lowered.

    Attributes:
        missing: all of them.
    """

    missing: tuple[Unsupported, ...]

    def __init__(self, missing: Sequence[Unsupported]):
        self.missing = tuple(missing)
        listing = "\n  ".join(str(item) for item in self.missing)
        super().__init__(
            f"{len(self.missing)} operator(s) of this model cannot be lowered:\n  {listing}\n"
            "Add them with memojax.ops.register; `memojax ops` lists the supported operators."
        )


class LoweringError(MemojaxError):
    """A node cannot be lowered; the message names the node, its operator and its inputs.

    Attributes:
        located: whether the message names the node already.
    """

    located: bool = False


class LimitError(ModelLoadError, LoweringError):
    """A model asks for more than a limit allows; the message says how to raise it (see SECURITY.md)."""


class TripCountError(LimitError):
    """A loop did not end within the allowed number of trips."""


class StaticInputError(LoweringError):
    """A value that decides a shape is not known while tracing."""


class DimensionError(MemojaxError):
    """The batch axis or a symbolic dimension of a model is not determined."""


class InputError(MemojaxError, ValueError):
    """Base of errors about the data given to an inferer."""


class OptionError(InputError, TypeError):
    """An option does not exist, or its value has the wrong kind; the message names the nearest right one."""


class UnknownInputError(InputError):
    """The model has no input of a given name.

    Attributes:
        names: the names that were given.
        expected: the names that the model has.
    """

    names: tuple[str, ...]
    expected: tuple[str, ...]

    def __init__(self, names: Iterable[str], expected: Iterable[str], where: str = "the model"):
        self.names = tuple(names)
        self.expected = tuple(expected)
        super().__init__(
            f"unknown input {', '.join(map(repr, self.names))}: {where} takes "
            f"{', '.join(map(repr, self.expected))}."
        )


class MissingInputError(InputError):
    """An input of the model was not given.

    Attributes:
        names: of the inputs that are missing.
        given: the names that were given.
    """

    names: tuple[str, ...]
    given: tuple[str, ...]

    def __init__(self, names: Iterable[str], given: Iterable[str], where: str = "the model"):
        self.names = tuple(names)
        self.given = tuple(given)
        had = f"only {', '.join(map(repr, self.given))}" if self.given else "nothing"
        super().__init__(f"missing input {', '.join(map(repr, self.names))} for {where}: {had} was given.")


class InputShapeError(InputError):
    """An input has another shape than the model takes."""


class InputDtypeError(InputError):
    """An input has a dtype that cannot be cast to the model's without loss of kind."""


class IndexRangeError(InputError):
    """With `checked=True`: an index that depends on data is out of range.

    Attributes:
        index: the value of the index.
        place: its position in the tensor of indices.
        agent: the agent whose row led to it; None if rows are not told apart.
    """

    index: int
    place: tuple[int, ...]
    agent: int | None

    def __init__(self, node: str, index: int, place: Sequence[int], agent: int | None = None):
        self.index = index
        self.place = tuple(place)
        self.agent = agent
        whose = "" if agent is None else f" for agent {agent}"
        super().__init__(
            f"{node}: index {index} (at {list(self.place)} of its indices{whose}) is out of range: check the "
            "inputs from which it comes"
        )


class DuplicateIdError(InputError):
    """An agent id was pushed twice into one batch."""


class UnknownAgentError(InputError, KeyError):
    """An agent id was never begun, or has ended."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # a KeyError would quote the message


class BatchSizeError(InputError):
    """A batch size is not possible: negative, zero for a plan, or too large."""


class BatchMemoryError(BatchSizeError):
    """A batch size needs more memory than is free, by an estimate from a smaller size."""


class RowsMixError(MemojaxError):
    """A batch would be padded or split, but one row changes the result of another in this model."""


class CompileError(MemojaxError):
    """XLA could not compile a plan; other batch sizes are not affected, and nothing is cached."""


class CompileForbiddenError(MemojaxError):
    """A batch size has no plan, and compiling one is not allowed here.

    Attributes:
        size: the batch size.
        ready: the sizes that have plans.
    """

    size: int
    ready: tuple[int, ...]

    def __init__(self, size: int, ready: Sequence[int], why: str):
        self.size = size
        self.ready = tuple(ready)
        have = (
            f"there are plans for {', '.join(map(str, nearest(ready, size)))}"
            if ready
            else "there are no plans yet"
        )
        super().__init__(
            f"batch size {size} has no plan, and none may be compiled {why}; {have}. Add it with "
            f"preload([{size}])."
        )


def nearest(sizes: Sequence[int], size: int, count: int = 4) -> list[int]:
    """The sizes closest to `size`, ascending."""
    return sorted(sorted(sizes, key=lambda other: abs(other - size))[:count])


class DeviceError(MemojaxError):
    """A device is not available, or arrays are on the wrong device."""


class ForkError(MemojaxError):
    """A forked process used memojax after its parent had used it, and XLA would hang."""

    def __init__(self) -> None:
        super().__init__(
            "this process was forked from one that had used memojax, and XLA's threads do not survive a "
            "fork: start workers with multiprocessing.get_context('spawn') (inferers pickle), or load the "
            "model in the child only"
        )


class IncompatibleModelError(MemojaxError):
    """A model or wrapper does not fit the one that it should replace, or the inferer that it should wrap."""


class UnknownBrainError(MemojaxError, KeyError):
    """A brain is not in the runtime: it belongs to another one, or was removed."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class CacheFolderError(InputError):
    """Others can change the folder of compiled plans, so it is not used."""


class OrphanedDataError(MemojaxError):
    """Brains were removed while agents waited for an answer.

    Attributes:
        agents: brain -> the agents whose states are lost.
    """

    agents: dict[Any, tuple[int, ...]]

    def __init__(self, agents: Mapping[Any, Sequence[int]]):
        self.agents = {brain: tuple(waiting) for brain, waiting in agents.items()}
        listing = ", ".join(f"{brain} ({len(waiting)} agents)" for brain, waiting in self.agents.items())
        super().__init__(
            f"brains were removed with states that had not run: {listing}. Run them first, or catch this "
            "error if you do not need the answers."
        )


class RuntimeErrors(MemojaxError):
    """Brains of a runtime failed; the others have answered.

    The states of the failed brains still wait, and run with the next call.

    Attributes:
        failures: brain -> its exception.
        responses: the answers of the other brains, in the form in which the call would have returned them.
    """

    failures: dict[Any, Exception]
    responses: dict[Any, Any]

    def __init__(self, failures: Mapping[Any, Exception], responses: Mapping[Any, Any]):
        self.failures = dict(failures)
        self.responses = dict(responses)
        listing = "\n  ".join(
            f"{brain}: {type(failure).__name__}: {failure}" for brain, failure in self.failures.items()
        )
        super().__init__(
            f"{len(self.failures)} brain(s) failed, {len(self.responses)} answered (see `responses`):\n  "
            f"{listing}"
        )


class AssetError(ModelLoadError):
    """A CRVO asset is truncated or damaged, or has an unknown kind or version."""


class MissingPackageError(MemojaxError, ImportError):
    """An optional package is not installed; the message says how to install it.

    Attributes:
        package: its name.
    """

    package: str

    def __init__(self, package: str, what: str, extra: str):
        self.package = package
        super().__init__(
            f"{what} needs the package {package!r}, which is not installed: pip install 'memojax[{extra}]'"
        )


class EvaluationError(MemojaxError):
    """An evaluation could not begin, or could not go on.

    Attributes:
        partial: the `Evaluation` of the episodes before the failure; None if there were none.
    """

    partial: Any = None


class UnknownEnvironmentError(EvaluationError):
    """Gymnasium does not know an environment id, or packages of the environment are missing."""


class SpaceMismatchError(EvaluationError):
    """The spaces of an environment do not fit the inputs and outputs of a model; the message names both.

    Attributes:
        row: the row of the batch whose observation is outside its space; None if the spaces do not fit.
    """

    row: int | None

    def __init__(self, message: str, row: int | None = None):
        self.row = row
        super().__init__(message)


class EnvironmentFailedError(EvaluationError):
    """An environment raised in `reset` or `step`; the cause is chained, or quoted from a worker process.

    Attributes:
        slot: number of the environment, from 0; None if it could not be made.
    """

    slot: int | None

    def __init__(self, message: str, slot: int | None = None):
        self.slot = slot
        super().__init__(message)


class WorkerDiedError(EvaluationError):
    """A worker process of an asynchronous evaluation ended without an answer."""


class ActionError(EvaluationError):
    """The policy returned an action that cannot be taken: NaN, or outside a discrete space.

    Attributes:
        row: the row of the batch.
    """

    row: int

    def __init__(self, message: str, row: int = 0):
        self.row = row
        super().__init__(message)
