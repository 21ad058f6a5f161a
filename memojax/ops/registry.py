"""The registry of operators: one decorator above each function, with a half-open range of versions.

An operator is a plain function. Its positional parameters are the ONNX inputs (absent optional ones are
None), and its keyword-only parameters are the ONNX attributes with ONNX's defaults. A subgraph is a callable
`Body`. The function returns an array, or a tuple with one value for each output.

The caller fills in seven keyword-only names, unless the node has an attribute of the same name:

- `n_outputs`: the number of outputs that the node lists
- `key`: a JAX PRNG key for this node
- `opset`: the version of the node's domain
- `output_names`: the names of its outputs
- `recompute`: a function that gives the value of another name in the graph if some names had other values
- `trips`: a `Trips`, which counts the trips of loops
- `in_range`: a function that tells whether the values of the input at a position are known to lie between two
  bounds, both included. If not, `checked=True` of a call checks them, unless `in_range` gets `checked=False`
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
    """One operator over a range of versions, `since <= opset < until`; without `until` it is current.

    See `op` for the fields.
    """

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
        """Whether a node of this operator draws random numbers; if not, its `key` is None."""
        return "key" in self.injected and (self.random_if is None or self.random_if(node))

    @property
    def asks_nodes(self) -> bool:
        """Whether the answers of `draws` and the next methods depend on more than a node's attributes."""
        return bool(self.static or self.host or self.static_if or self.random_if)

    def covers(self, opset: int) -> bool:
        """Whether `opset` is in the range."""
        return self.since <= opset and (self.until is None or opset < self.until)

    def static_positions(self, node: Any) -> tuple[int, ...]:
        """Positions of a node's inputs that must be known while tracing."""
        if self.host:
            return self.host_positions(node)
        if not self.static or (self.static_if is not None and not self.static_if(node)):
            return ()
        return tuple(i for i in range(len(node.inputs)) if self.input_name(i) in self.static)

    def host_positions(self, node: Any) -> tuple[int, ...]:
        """Positions of a node's inputs that make it run on the host if they depend on data."""
        return tuple(i for i, name in enumerate(node.inputs) if name and self.input_name(i) in self.host)

    def input_name(self, position: int) -> str:
        """The parameter name of an input."""
        return self.positional[min(position, len(self.positional) - 1)] if self.positional else "*"

    def call(
        self, inputs: Sequence[Any], attributes: Mapping[str, Any], context: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """Lower one node.

        Raises:
            LoweringError: this version of the operator does not have an attribute, or so many inputs.
        """
        if self.fn is None:
            raise LoweringError(self.reason)
        given = {name: value for name, value in attributes.items() if not name.startswith("__")}
        if unknown := given.keys() - self.attributes - self.injected:
            raise LoweringError(
                f"{self.op_type} has no attribute {min(unknown)!r}; its attributes are "
                f"{', '.join(sorted(self.attributes)) or 'none'}"
            )
        if len(inputs) > len(self.positional) and not self.variadic:
            raise LoweringError(
                f"{len(inputs)} inputs are given, but {self.op_type} takes at most {len(self.positional)}"
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
    """Register the function below as `op_type` for `since <= opset < until`; decorators may be stacked.

    Args:
        op_type: ONNX's name of the operator.
        since: the first version that the function implements.
        until: the first version that it does not implement; None if it is current.
        domain: the operator's domain, "" for ONNX's own.
        static: inputs that must be known while tracing.
        shape_only: whether the result depends on shapes and dtypes of the inputs only, and not on values.
        random_if: tells whether a node draws random numbers, for an operator that takes a `key` but does not
            always need it.
        static_if: tells whether `static` applies to a node.
        host: inputs whose values no XLA executable can take, since they decide the output's shape or are
            strings. If they depend on data, the function runs on the host, on NumPy arrays.

    >>> @memojax.ops.register("Snake", domain="my.example", since=1)
    ... def snake(x, *, alpha=1.0):
    ...     return x + jax.numpy.sin(alpha * x) ** 2 / alpha
    >>> memojax.ops.lookup("my.example", "Snake", 1) is not None
    True
    >>> memojax.ops.registry.remove("my.example", "Snake")

    Raises:
        ValueError: the range overlaps a registered one, or `static` or `host` names no input.
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
            raise ValueError(f"{op_type}: static= or host= names no input of {fn.__name__}: {min(unknown)!r}")
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
    """Register operators without attributes: ONNX's name -> function of arrays."""
    for op_type, fn in functions.items():
        variadic = OpDef(domain, op_type, since, until, fn, positional=("inputs",), variadic=True)
        add(variadic)


def unsupported(
    op_type: str, reason: str, since: int = 1, until: int | None = None, *, domain: str = ""
) -> None:
    """Refuse an operator, with the reason to show when a model uses it."""
    add(OpDef(domain, op_type, since, until, None, origin="no", reason=reason))


def add(definition: OpDef) -> None:
    """Put a definition into the registry.

    Raises:
        ValueError: its version range is empty or overlaps a registered one.
    """
    known = _ops.setdefault((definition.domain, definition.op_type), [])
    end = definition.until or 1 << 30
    if definition.since >= end:
        raise ValueError(
            f"{definition.op_type}: the range from {definition.since} to {definition.until} is empty"
        )
    for other in known:
        if definition.since < (other.until or 1 << 30) and other.since < end:
            raise ValueError(
                f"{definition.domain or 'ai.onnx'}.{definition.op_type}: versions {definition.since} to "
                f"{definition.until} overlap the registered {other.since} to {other.until}: call remove first"
            )
    known.append(definition)


def lookup(domain: str, op_type: str, opset: int) -> OpDef | None:
    """The definition at `opset`, or None."""
    return next(
        (definition for definition in _ops.get((domain, op_type), ()) if definition.covers(opset)), None
    )


def definitions() -> Iterator[OpDef]:
    """All definitions, in order of registration."""
    for known in _ops.values():
        yield from known


def remove(domain: str, op_type: str) -> None:
    """Remove all versions of an operator, for tests, or to replace an operator of memojax by your own."""
    _ops.pop((domain, op_type), None)
