"""Hidden state of a model: pairs of an input and the output with its value for the next call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import IncompatibleModelError
from ..model.exporter_names import COMMON_STATE, EQUAL_STATE, TENSORFLOW_STATE, continuations
from ..model.signature import ModelApi, TensorSpec
from ..rows.input_checks import can_cast, check_names


@dataclass(frozen=True)
class RecurrentInfo:
    """One piece of hidden state: an input, and the output with its value for the next call.

    >>> policy = memojax.load(memojax.policies.bundled("recurrent_lstm"))
    >>> pairs = [memojax.RecurrentInfo("h_in", "h_out"), memojax.RecurrentInfo("c_in", "c_out")]
    >>> memojax.RecurrentTracker(policy, pairs).input_shapes()
    [('obs', [2])]
    """

    inkey: str
    outkey: str


def find_pairs(api: ModelApi) -> list[RecurrentInfo]:
    """Pairs of an input and its continuing output, which has the same shape and a matching name.

    Equal names come first. Without any, common pairs count: `h_in` and `h_out`, `state_ins` and `state_outs`,
    `cache` and `cache_out`, `next_cache`, `new_cache`, `cache_next` or `cache_new`, `h0` and `hn`.
    TensorFlow's `input_2` and `output_2` come last, and only if callers still have an input left.

    Raises:
        IncompatibleModelError: no pair was found.
    """
    for rules in (EQUAL_STATE, COMMON_STATE, TENSORFLOW_STATE):
        outputs = {spec.name: spec for spec in api.outputs}
        found = []
        for into in api.inputs:
            names = continuations(into.name, rules)
            if name := next((name for name in names if name in outputs and _fits(into, outputs[name])), None):
                del outputs[name]
                found.append(RecurrentInfo(into.name, name))
        if found and (rules is not TENSORFLOW_STATE or len(found) < len(api.inputs)):
            return found
    raise IncompatibleModelError(
        f"no output continues an input by name and shape; the model has {api}: name the pairs in "
        "RecurrentTracker(inferer, [RecurrentInfo(inkey, outkey)])"
    )


def checked_pairs(api: ModelApi, infos: Sequence[RecurrentInfo]) -> list[tuple[TensorSpec, TensorSpec]]:
    """The input and output of each of `infos`.

    Raises:
        UnknownInputError: the model lacks an input.
        IncompatibleModelError: the model lacks an output, or a pair does not fit together.
    """
    inputs, outputs = ({spec.name: spec for spec in specs} for specs in (api.inputs, api.outputs))
    pairs = []
    for info in infos:
        check_names(inputs, [info.inkey], optional=inputs)
        if info.outkey not in outputs:
            raise IncompatibleModelError(
                f"no output {info.outkey!r} to continue input {info.inkey!r}; the model has {api}"
            )
        into, out = inputs.pop(info.inkey), outputs.pop(info.outkey)
        if not _fits(into, out):
            raise IncompatibleModelError(
                f"output {out} cannot continue input {into}: expected equal shapes and kinds of number"
            )
        pairs.append((into, out))
    return pairs


def _fits(into: TensorSpec, out: TensorSpec) -> bool:
    return into.shape == out.shape and can_cast(out.dtype, into.dtype)
