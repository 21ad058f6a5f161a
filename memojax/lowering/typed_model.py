"""`TypedModel`: a function of rows with its weights and its `ModelApi`, from which inferers are built."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from .._types import Source
from ..errors import (
    DimensionError,
    IncompatibleModelError,
    LimitError,
    LoweringError,
    Unsupported,
    UnsupportedOpError,
    printable,
)
from ..model import Model, load_model
from ..model.signature import ModelApi, TensorSpec, spec_of
from ..ops.resolve import Operators
from ..xla.settings import own_settings
from .batch_axis import BatchedFunction
from .batch_evidence import BatchAxis, settled_by
from .binding import bind_inputs, check_no_text, with_inputs
from .find_batch import batched
from .free_function import Binding, FreeFunction
from .graph_breaks import host_nodes, unmasked
from .graph_function import GraphFunction
from .host_rows import HostRows, host_rows, single_runs
from .row_probe import SOME_ROWS, mixing_rows, unlike_alone
from .trial_run import trial_run

log: logging.Logger = logging.getLogger("memojax")
RowFunction = Callable[[Any, Sequence[Any], Any], Sequence[Any]]


@dataclass(frozen=True)
class TypedModel:
    """A policy as a function of rows, with weights, names and shapes; inferers compile it for batch sizes.

    >>> typed = memojax.TypedModel.from_model(memojax.policies.bundled("acrobot_ppo"))
    >>> typed.api.input_shapes(), typed.rule
    ([('obs', [6])], "axis (the file's own batch axis)")

    Attributes:
        fn: `fn(params, rows, key)`. `rows` is a tuple of `[n, *element_shape]` arrays in the order of
            `api.inputs`; `key` is None unless `random`. It returns one array `[n, *element_shape]` for each
            name in `computed`.
        params: the weights, any pytree of arrays.
        api: named inputs and outputs, without the batch axis.
        computed: names of the outputs that `fn` returns.
        constant: outputs that depend on no input, name -> value for each agent.
        random: whether `fn` draws random numbers.
        rule: how the batch was found, for messages.
        independent: whether rows are known not to influence each other; None if it was not checked.
        model: the ONNX file, if the model comes from one.
        name: name of the ONNX file, or of the one from which the model was exported; empty for a function.
        metadata: `metadata_props` of the ONNX file.
        fingerprint: identifies the model and its options in the disk cache; None if it has no identity there
            (functions, new weights).
        weak: if only the place of a symbol is evidence for the batch: the calls that would settle it. Rows
            that mix refute such a batch. Otherwise empty.
        only_rows: the only batch size that the model runs; inferers pad and split other batches to it.
        binding: sizes of symbols and values of static inputs, if `at` filled them in.
        loading: the options under which `from_model` read the file, by name.
    """

    fn: RowFunction = field(repr=False)
    params: Any = field(repr=False)
    api: ModelApi
    computed: tuple[str, ...]
    constant: Mapping[str, np.ndarray] = field(default_factory=dict)
    random: bool = False
    rule: str = "the function's own batch axis"
    independent: bool | None = None
    model: Model | None = field(default=None, repr=False)
    name: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str | None = None
    weak: str = ""
    only_rows: int | None = None
    binding: Binding = field(default_factory=Binding)
    loading: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_model(
        cls,
        source: Source,
        *,
        dims: Mapping[str, int] | None = None,
        batch_axis: BatchAxis = None,
        constants: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | str | None = None,
        inputs: Sequence[str] | str = (),
        strict: bool = False,
    ) -> TypedModel:
        """Load an ONNX model.

        >>> typed = memojax.TypedModel.from_model(memojax.policies.bundled("acrobot_ppo"))
        >>> memojax.BasicInferer(typed).infer_single({"obs": np.zeros(6)})["logits"].shape
        (3,)

        Args:
            source: path, bytes, file object, `ModelProto` or loaded `Model`.
            dims: sizes of symbolic dimensions. A symbol that is neither the batch nor named here stays free:
                each call decides it.
            batch_axis: the batch, if the file does not declare it or declares it wrongly: an axis for all
                inputs, the symbol that counts the agents, input -> axis (None: shared by all agents), or
                False (the file runs once for each agent).
            constants: inputs that are the same for all agents and calls, name -> value in the file layout.
            outputs: keep only these outputs and the nodes that they need.
            inputs: inputs with a default in the file that callers give with each call. The others keep their
                default, unless `constants` binds them.
            strict: refuse a file with operators that only the host can run; otherwise each of its rows runs
                by itself, partly on the host.

        Raises:
            ModelLoadError: the file cannot be loaded.
            UnsupportedOpError: operators cannot be lowered; it lists all of them.
            DimensionError: the batch or a dimension is not determined.
            InputError: an option names no input, or a value does not fit its input.
        """
        wanted = (outputs,) if isinstance(outputs, str) else tuple(outputs) if outputs is not None else None
        model = source if isinstance(source, Model) else load_model(source, outputs=wanted)
        given = (inputs,) if isinstance(inputs, str) else tuple(inputs)
        said = {"dims": dims, "batch_axis": batch_axis, "constants": constants, "inputs": given or None}
        loading = {name: value for name, value in said.items() if value is not None}
        graph = with_inputs(bind_inputs(model.graph, constants or {}), given)
        operators = Operators()
        breaks = host_nodes(graph, operators)
        check_no_text(graph)
        failure: LoweringError | None = None
        # Breaks at NonZero and Compress may be unnecessary, if the nodes after them can work in place (see
        # masked.py). If they cannot, tracing fails, and the file runs with its breaks.
        if not unmasked(breaks):
            try:
                rows = batched(GraphFunction(graph, operators), dims=dims, batch_axis=batch_axis)
                typed = _of_rows(
                    cls, model, rows, _fingerprint(model, dims, batch_axis, constants, wanted, given)
                )
                if _declared_size(rows) and typed.mixing_outputs():
                    # A number leads every shape, but its rows mix: it is no batch, and belongs to the element
                    # of one agent.
                    rows = batched(GraphFunction(graph, operators), dims=dims, batch_axis=False)
                    typed = _of_rows(cls, model, rows, typed.fingerprint)
                return replace(typed, loading=loading)
            except LimitError:
                raise
            except LoweringError as cause:
                if not breaks:
                    raise
                failure = cause
        if strict:
            why = f"{_ON_HOST}{f' ({failure})' if failure else ''}"
            raise UnsupportedOpError(
                [Unsupported(n.domain, n.op_type, n.opset, (n.name,), why) for n in breaks]
            ) from failure
        rows = host_rows(graph, single_runs(graph, dims or {}, batch_axis))
        return replace(_on_host(cls, model, rows), loading=loading)

    @classmethod
    def from_function(
        cls,
        fn: Callable[..., Any],
        params: Any,
        inputs: Mapping[str, Any],
        *,
        random: bool = False,
        name: str = "output",
    ) -> TypedModel:
        """Make a model of a JAX function, for the same inferers as ONNX models.

        The function is traced under the current x64 setting, as by your own `jit`, and with x64 on if an
        input is 64 bits wide.

        >>> weights = np.full((3, 2), 0.5, np.float32)
        >>> policy = lambda weights, inputs: {"act": inputs["obs"] @ weights}
        >>> typed = memojax.TypedModel.from_function(policy, weights, {"obs": ((3,), np.float32)})
        >>> memojax.load(typed).infer_single({"obs": np.ones(3)})["act"]
        array([1.5, 1.5], dtype=float32)

        Args:
            fn: `fn(params, inputs)`, or `fn(params, inputs, key)` if `random`, where `inputs` maps names to
                arrays `[n, *element_shape]`. It returns a dict of arrays `[n, *element_shape]`, or one such
                array, whose name is then `name`.
            params: any pytree of arrays; numbers become arrays.
            inputs: name -> `TensorSpec`, `jax.ShapeDtypeStruct`, array, or (element shape, dtype); without
                the batch axis.
            random: whether `fn` takes a key.
            name: name of the output, if `fn` returns one array.

        Raises:
            DimensionError: an output does not have the batch on axis 0.
            InputError: a value of `inputs` describes no array.
        """
        specs = tuple(spec_of(key, given) for key, given in inputs.items())
        x64 = jax.dtypes.canonicalize_dtype("int64") == np.int64 or any(
            spec.dtype in _NARROWED for spec in specs
        )
        params = jax.tree.map(lambda leaf: _weight(leaf, x64), params)
        rows_of = _ByName(fn, specs, name, random, x64)
        order: list[str] = []

        def shapes(n: int) -> dict[str, Any]:
            def traced(params: Any, rows: Any, key: Any) -> dict[str, Any]:
                named = rows_of.named(params, rows, _as_key(key) if random else None)
                order[:] = named  # eval_shape sorts a dict by name
                return named

            rows = [jax.ShapeDtypeStruct((n, *spec.shape), spec.dtype) for spec in specs]
            with own_settings():
                return jax.eval_shape(traced, params, rows, _KEY)

        at_five, at_seven = shapes(5), shapes(7)
        outputs = []
        for key in order:
            five, seven = at_five[key], at_seven[key]
            if five.shape[:1] != (5,) or seven.shape != (7, *five.shape[1:]):
                shapes_found = f"{list(five.shape)} for 5 rows and {list(seven.shape)} for 7"
                raise DimensionError(f"output {key!r} has shape {shapes_found}: put the batch first")
            outputs.append(TensorSpec(key, five.shape[1:], five.dtype))
        names = tuple(spec.name for spec in outputs)
        return cls(
            fn=replace(rows_of, outputs=names),
            params=params,
            api=ModelApi(specs, tuple(outputs)),
            computed=names,
            random=random,
        )

    def with_params(self, params: Any) -> TypedModel:
        """This model with other weights.

        >>> policy = lambda weight, inputs: {"act": weight * inputs["obs"]}
        >>> typed = memojax.TypedModel.from_function(policy, 2.0, {"obs": ((3,), np.float32)})
        >>> memojax.load(typed.with_params(np.float32(3.0))).infer_single({"obs": np.ones(3)})["act"]
        array([3., 3., 3.], dtype=float32)

        Raises:
            IncompatibleModelError: names, shapes or dtypes differ.
        """
        check_same_params(self.params, params)
        return replace(self, params=params, fingerprint=None)

    @property
    def is_open(self) -> bool:
        """Whether plans depend on more than the batch size: on free symbols or static inputs."""
        return self.api.is_open

    def at(self, binding: Binding) -> TypedModel:
        """This model with its free symbols and static inputs bound; the result has no such inputs.

        Raises:
            DimensionError: this model has no free dimension, or it does not run at these sizes.
            LoweringError: this model does not run at these sizes.
        """
        if not isinstance(self.fn, FreeFunction):
            raise DimensionError(
                f"the model has no free dimension and no static input, so it cannot be bound to {binding}"
            )
        rows = self.fn.at(binding)
        print_ = None if self.fingerprint is None else f"{self.fingerprint} {binding}"
        return replace(
            self,
            fn=rows,
            params={name: self.params[name] for name in rows.function.params},
            api=rows.api,
            computed=rows.computed,
            constant=rows.constant,
            rule=str(rows.rule),
            independent=True if rows.rule.keeps_rows_apart else None,
            only_rows=rows.rule.only_rows,
            binding=binding,
            fingerprint=print_ and hashlib.sha256(print_.encode()).hexdigest(),
        )

    def check_evidence(self, mixing: Sequence[str] | None = None) -> None:
        """Check that rows do not influence each other, if only the place of a symbol suggested the batch.

        `mixing` are the outputs in which they do; None finds them by trial runs.

        Raises:
            DimensionError: they do, so that symbol may not be the batch.
        """
        if not self.weak:
            return
        if mixing := self.mixing_outputs() if mixing is None else mixing:
            raise DimensionError(
                f"rows influence each other in output {', '.join(map(repr, mixing))}, so the first axis of "
                f"the inputs may not be a batch of agents. {self.weak}"
            )

    def mixing_outputs(self) -> tuple[str, ...]:
        """Names of the outputs in which one row influences another, found by trial runs on random rows."""
        if self.independent:
            return ()
        if isinstance(self.fn, FreeFunction):
            return () if self.fn.trial is None else self.at(self.fn.trial).mixing_outputs()
        for n in (self.only_rows,) if self.only_rows else self.by_size or (SOME_ROWS,):
            if found := self.mixing_by(self._trial(n), n):
                return found
        return ()

    @property
    def by_size(self) -> tuple[int, ...]:
        """Batch sizes to check, if the size may decide something; empty if one size tells of all."""
        return self.fn.rule.by_size if isinstance(self.fn, BatchedFunction) else ()

    def mixing_by(
        self, run: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]], n: int
    ) -> tuple[str, ...]:
        """As `mixing_outputs`, by runs of this model for `n` rows, which must draw alike at each call."""
        # A mean over the rows has their number in its arithmetic, and is found as any output that mixes rows.
        rule = self.fn.rule if isinstance(self.fn, BatchedFunction) else None
        found = self.computed if rule and rule.by_number else ()
        if rule is None or not rule.apart:
            by_place, numbers = not self.random and not self.only_rows, rule.numbers if rule else ()
            mixing = mixing_rows(self.api.inputs, self.computed, n, run, by_place=by_place, numbers=numbers)
            found = mixing or found
        if not found and self.by_size and not self.random:
            found = unlike_alone(self.api.inputs, self.computed, n, run, self._trial(1))
        return found

    def _trial(self, n: int) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
        limited = self.model is not None
        return trial_run(self.fn, self.params, self.api.inputs, n, random=self.random, limited=limited)


@dataclass(frozen=True)
class _ByName:
    """A function of named inputs as a function of rows; a class, so it pickles if the function does."""

    fn: Callable[..., Any]
    specs: tuple[TensorSpec, ...]
    output: str
    random: bool
    x64: bool
    outputs: tuple[str, ...] = ()

    def __call__(self, params: Any, rows: Sequence[Any], key: Any) -> tuple[Any, ...]:
        named = self.named(params, rows, key)
        return tuple(named[name] for name in self.outputs)

    def named(self, params: Any, rows: Sequence[Any], key: Any) -> dict[str, Any]:
        given = {spec.name: row for spec, row in zip(self.specs, rows, strict=True)}
        with jax.enable_x64(self.x64):
            result = self.fn(params, given, key) if self.random else self.fn(params, given)
        return dict(result) if isinstance(result, Mapping) else {self.output: result}


_ON_HOST = (
    "it runs on the host (its output shape depends on data, or it works on strings), so rows have no fixed "
    "shape: use memojax.run or memojax.OneShot, which break the graph there"
)
_KEY = np.zeros(2, np.uint32)
_NARROWED = {
    np.dtype(wide): np.dtype(narrow)
    for wide, narrow in (
        ("int64", "int32"),
        ("uint64", "uint32"),
        ("float64", "float32"),
        ("complex128", "complex64"),
    )
}
"""64-bit dtypes -> the dtypes that JAX uses for them without x64."""


def check_same_params(old: Any, new: Any) -> None:
    """Check that the weights `new` can replace the weights `old`.

    Raises:
        IncompatibleModelError: names, shapes or dtypes differ; it names the first difference.
    """
    before, after = (dict(jax.tree_util.tree_flatten_with_path(tree)[0]) for tree in (old, new))
    if missing := before.keys() - after.keys():
        raise IncompatibleModelError(
            f"parameter {jax.tree_util.keystr(min(missing, key=str))} is missing from the new weights"
        )
    if extra := after.keys() - before.keys():
        raise IncompatibleModelError(
            f"the new weights have parameter {jax.tree_util.keystr(min(extra, key=str))}, which the model "
            "does not have"
        )
    for path, array in before.items():
        other = after[path]
        if np.shape(array) != np.shape(other) or np.dtype(array.dtype) != np.dtype(other.dtype):
            name = jax.tree_util.keystr(path)
            raise IncompatibleModelError(
                f"parameter {name} is {other.dtype}{list(np.shape(other))} in the new weights, "
                f"the model has {array.dtype}{list(array.shape)}"
            )


def _weight(leaf: Any, x64: bool) -> Any:
    """A weight as an array of the dtype that JAX would give it."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return leaf.astype(_NARROWED[leaf.dtype]) if not x64 and leaf.dtype in _NARROWED else leaf


def _as_key(data: Any) -> Any:
    return jax.random.wrap_key_data(data, impl="threefry2x32")


def _fingerprint(model: Model, *options: Any) -> str:
    plain = jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, (str, int)) else np.asarray(leaf).tolist(), options
    )
    return hashlib.sha256(f"{model.digest} {plain!r}".encode()).hexdigest()


def at_trial(typed: TypedModel) -> TypedModel:
    """`typed` with its free symbols bound to sizes at which it is known to run.

    Raises:
        DimensionError: no such sizes are known; it names the free symbols and static inputs.
    """
    if not typed.is_open:
        return typed
    trial = typed.fn.trial if isinstance(typed.fn, FreeFunction) else None
    if trial is None:
        names = [*typed.api.free, *(spec.name for spec in typed.api.inputs if spec.static)]
        raise DimensionError(
            f"{typed.name or 'this model'} has free dimensions or static inputs, and no values are known for "
            f"{', '.join(map(repr, names))}: load it with dims= or constants= (--dim, --constant)"
        )
    return typed.at(trial)


def _of_rows(
    cls: type[TypedModel], model: Model, rows: BatchedFunction | FreeFunction, fingerprint: str | None
) -> TypedModel:
    """A loaded file as a `TypedModel`."""
    rule = rows.rule if isinstance(rows, BatchedFunction) else None
    strength = rule.strength if rule else rows.layout.strength  # pyright: ignore[reportAttributeAccessIssue]
    return cls(
        fn=rows,
        params=rows.function.params,
        api=rows.api,
        computed=rows.computed,
        constant=rows.constant,
        random=rows.function.random,
        rule=str(rule or rows.rule),
        independent=True if rule and rule.keeps_rows_apart else None,
        model=model,
        name=model.name,
        metadata=dict(model.metadata),
        fingerprint=fingerprint,
        weak=settled_by(rows.layout) if strength == "leading" else "",
        only_rows=rule.only_rows if rule else None,
    )


def _on_host(cls: type[TypedModel], model: Model, rows: HostRows) -> TypedModel:
    """A loaded file with graph breaks as a `TypedModel`.

    It has no fingerprint, since an executable that calls back into Python cannot be kept on disk.
    """
    log.warning(
        "%s: the graph breaks at %s, so each row runs by itself and partly on the host (some 300 us a row); "
        "strict=True refuses such files",
        printable(model.name),
        ", ".join(rows.breaks),
    )
    return cls(
        fn=rows,
        params={},
        api=rows.api,
        computed=tuple(spec.name for spec in rows.api.outputs),
        random=rows.random,
        rule=f"host (each row by itself: the graph breaks at {', '.join(rows.breaks)})",
        independent=True,
        model=model,
        name=model.name,
        metadata=dict(model.metadata),
    )


def _declared_size(rows: BatchedFunction | FreeFunction) -> bool:
    """Whether the batch is a number that leads every declared shape."""
    return (
        isinstance(rows, BatchedFunction) and rows.rule.only_rows is not None and rows.rule.strength == "unit"
    )
