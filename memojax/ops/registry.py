"""Which function lowers which operator: half-open version ranges, one decorator above each function.

An operator is a plain function. Its positional parameters are the ONNX inputs (absent optional ones are
None), its keyword-only parameters the ONNX attributes with the spec's defaults; a subgraph attribute arrives
as a callable `Body`. Seven keyword-only names are filled in by the caller instead: `n_outputs` (how many
outputs the node lists), `key` (a JAX PRNG key of its own), `opset`, `output_names`, `recompute` (the value of
another name in the graph if some had other values), `trips` (a `Trips`, which counts how often loops go
round), and `in_range` (whether the values of the input at a position are known to lie between two bounds,
both included; where they are not, `checked=True` looks at them, unless the call says `checked=False`); an
attribute of such a name comes first. It returns an array, or a tuple with one value per output.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ..errors import LoweringError

Function = TypeVar("Function", bound=Callable[..., Any])
Origin = Literal["ours", "delegated", "host", "no"]

INJECTED = frozenset({"n_outputs", "key", "opset", "output_names", "recompute", "trips", "in_range"})


@dataclass(frozen=True)
class OpDef:
    """One operator over a range of opset versions: `since <= opset < until` (no `until`: still current)."""

    domain: str
    op_type: str
    since: int
    until: int | None
    fn: Callable[..., Any] | None
    static: frozenset[str] = frozenset()
    shape_only: bool = False
    origin: Origin = "ours"
    reason: str = ""
    positional: tuple[str, ...] = ()
    variadic: bool = False
    attributes: frozenset[str] = frozenset()
    injected: frozenset[str] = frozenset()
    random_if: Callable[[Any], bool] | None = None
    host: frozenset[str] = frozenset()
    static_if: Callable[[Any], bool] | None = None

    def draws(self, node: Any) -> bool:
        """Whether a node of this operator draws random numbers, so that it gets a `key` (otherwise `key` is
        None)."""
        return "key" in self.injected and (self.random_if is None or self.random_if(node))

    def covers(self, opset: int) -> bool:
        return self.since <= opset and (self.until is None or opset < self.until)

    def static_positions(self, node: Any) -> tuple[int, ...]:
        """Which of a node's inputs must be known while tracing."""
        if self.host:
            return self.host_positions(node)
        if not self.static or (self.static_if is not None and not self.static_if(node)):
            return ()
        return tuple(i for i in range(len(node.inputs)) if self.input_name(i) in self.static)

    def host_positions(self, node: Any) -> tuple[int, ...]:
        """Which of a node's inputs, if they depend on data, make it run on the host."""
        return tuple(i for i, name in enumerate(node.inputs) if name and self.input_name(i) in self.host)

    def input_name(self, position: int) -> str:
        """Parameter name of an input."""
        return self.positional[min(position, len(self.positional) - 1)] if self.positional else "*"

    def call(
        self, inputs: Sequence[Any], attributes: Mapping[str, Any], context: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """Lower one node.

        Raises:
            LoweringError: an attribute or a number of inputs that this version of the operator does not have.
        """
        if self.fn is None:
            raise LoweringError(self.reason)
        given = {name: value for name, value in attributes.items() if not name.startswith("__")}
        if unknown := given.keys() - self.attributes - self.injected:
            raise LoweringError(
                f"attribute {min(unknown)!r} is not one of {self.op_type}'s: "
                f"{', '.join(sorted(self.attributes))}"
            )
        if len(inputs) > len(self.positional) and not self.variadic:
            raise LoweringError(
                f"{len(inputs)} inputs given, {self.op_type} takes at most {len(self.positional)}"
            )
        result = self.fn(*inputs, **{name: context[name] for name in self.injected - given.keys()}, **given)
        return result if isinstance(result, tuple) else (result,)


_ops: dict[tuple[str, str], list[OpDef]] = {}


def op(
    op_type: str,
    since: int = 1,
    until: int | None = None,
    *,
    domain: str = "",
    static: Iterable[str] = (),
    shape_only: bool = False,
    random_if: Callable[[Any], bool] | None = None,
    static_if: Callable[[Any], bool] | None = None,
    host: Iterable[str] = (),
) -> Callable[[Function], Function]:
    """Register the function below as `op_type` for `since <= opset < until`; several may be stacked.

    `static` names the inputs that must be known while tracing; `shape_only` says that the inputs' values do
    not matter; `host` names the inputs whose values no XLA executable can take (they decide the output's
    shape, or are strings), so that the function runs on the host, on NumPy arrays, where they depend on data;
    `random_if` tells from a node whether it draws random numbers, for an operator that takes a `key` and does
    so only at times; `static_if` tells from a node whether `static` holds for it.

    >>> @memojax.ops.register("Snake", domain="my.example", since=1)
    ... def snake(x, *, alpha=1.0):
    ...     return x + jax.numpy.sin(alpha * x) ** 2 / alpha
    >>> memojax.ops.lookup("my.example", "Snake", 1) is not None
    True
    >>> memojax.ops.registry.remove("my.example", "Snake")

    Raises:
        ValueError: the range overlaps one that is registered, or `static` names no input.
    """

    def register(fn: Function) -> Function:
        parameters = inspect.signature(fn).parameters.values()
        positional = tuple(
            p.name
            for p in parameters
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)
        )
        keywords = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        if unknown := {*static, *host} - set(positional):
            raise ValueError(f"{op_type}: static= or host={unknown} names no input of {fn.__name__}")
        add(
            OpDef(
                domain,
                op_type,
                since,
                until,
                fn,
                frozenset(static),
                shape_only,
                positional=positional,
                variadic=any(p.kind is p.VAR_POSITIONAL for p in parameters),
                attributes=keywords - INJECTED,
                injected=keywords & INJECTED,
                random_if=random_if,
                origin="host" if host else "ours",
                host=frozenset(host),
                static_if=static_if,
            )
        )
        return fn

    return register


def elementwise(
    functions: Mapping[str, Callable[..., Any]], since: int = 1, until: int | None = None, *, domain: str = ""
) -> None:
    """Register operators without attributes, a row each: ONNX name -> function of arrays."""
    for op_type, fn in functions.items():
        variadic = OpDef(domain, op_type, since, until, fn, positional=("inputs",), variadic=True)
        add(variadic)


def unsupported(
    op_type: str, reason: str, since: int = 1, until: int | None = None, *, domain: str = ""
) -> None:
    """Record why an operator is refused; the reason is shown when a model uses it."""
    add(OpDef(domain, op_type, since, until, None, origin="no", reason=reason))


def add(definition: OpDef) -> None:
    """Put a definition into the registry.

    Raises:
        ValueError: its version range is empty or overlaps a registered one.
    """
    known = _ops.setdefault((definition.domain, definition.op_type), [])
    end = definition.until or 1 << 30
    if definition.since >= end:
        raise ValueError(f"{definition.op_type}: empty range {definition.since}..{definition.until}")
    for other in known:
        if definition.since < (other.until or 1 << 30) and other.since < end:
            raise ValueError(
                f"{definition.domain or 'ai.onnx'}.{definition.op_type}: versions "
                f"{definition.since}..{definition.until} overlap "
                f"the registered {other.since}..{other.until}"
            )
    known.append(definition)


def lookup(domain: str, op_type: str, opset: int) -> OpDef | None:
    """The definition in force at `opset`, or None."""
    return next(
        (definition for definition in _ops.get((domain, op_type), ()) if definition.covers(opset)), None
    )


def definitions() -> Iterator[OpDef]:
    """Everything registered, in order of registration."""
    for known in _ops.values():
        yield from known


def remove(domain: str, op_type: str) -> None:
    """Forget all versions of an operator (for tests, and to replace one of ours by your own)."""
    _ops.pop((domain, op_type), None)
