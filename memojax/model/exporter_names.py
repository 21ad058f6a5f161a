"""Names that exporters give: every guess that memojax makes from a name, with the exporter that needs it.

The caller's options come before a guess, and shapes and dtypes must fit as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

# Hidden state: the input's name -> the name of the output with its next value, tried in this order.

EQUAL_STATE = ((r"(.*)", r"\1"),)
"""cervo's own rule: the output repeats the input's name."""

COMMON_STATE = (
    (r"(.+[\W_])in(s?)", r"\1out\2"),  # Godot RL Agents and RLlib: `state_ins`; ours: `h_in`
    (r"in(s?[\W_].+)", r"out\1"),  # `in_state`, in exports by hand
    (r"(.+[\W_])in(s?[\W_].+)", r"\1out\2"),  # RLlib with TensorFlow: `state_in_0`
    (r"(.*)", r"\1_out"),  # GTCRN: `conv_cache`
    (r"(.*)", r"next_\1"),  # `next_state`, in exports by hand
    (r"(.*)", r"new_\1"),  # `new_state`
    (r"(.*)", r"\1_next"),  # `h_next`
    (r"(.*)", r"\1_new"),  # `h_new`
    (r"(.*)0", r"\1n"),  # torch.nn.LSTM's own names: `h0`, `hn`
    (r"(state)", r"\1N"),  # Silero VAD
)
TENSORFLOW_STATE = ((r"(.*)input(.+)", r"\1output\2"), (r"(.+)input(.*)", r"\1output\2"))
"""tf2onnx numbers unnamed inputs and outputs: `input_2` and `output_2` (TEN VAD)."""


def continuations(name: str, rules: tuple[tuple[str, str], ...]) -> Iterator[str]:
    """Names, by `rules`, of outputs that may hold the next value of the input `name`."""
    for pattern, output in rules:
        if match := re.fullmatch(pattern, name):
            yield match.expand(output)


def continues_state(name: str, output: str) -> bool:
    """Whether an output has the name of the next value of the input `name`."""
    return any(
        output in continuations(name, rules) for rules in (EQUAL_STATE, COMMON_STATE, TENSORFLOW_STATE)
    )


# Dimensions

_MADE_UP = re.compile(
    r"unk_.*|unknown.*"  # tf2onnx
    r"|.*_dim_\d+|.*_dynamic_axes_\d+|dim_?\d+"  # torch.onnx.export, by TorchScript
    r"|[su]\d+"  # torch.onnx.export, by dynamo
    r"|d\d+|\?"  # keras2onnx, hand-written exports
    r"|.*\.\d+",  # memojax's own name for an unnamed dimension: input.axis
    re.IGNORECASE,
)
_BATCH_LETTERS = ("N", "B", "n", "b")
_BATCH_COUNTS = re.compile(
    r"(num|n)_?(agents?|envs?|environments|actors|samples)|agents|envs|bs|bsz", re.IGNORECASE
)


def is_made_up_dimension(symbol: str) -> bool:
    """Whether an exporter made up the name of a dimension, so the name carries no meaning."""
    return _MADE_UP.fullmatch(symbol) is not None


def is_batch_dimension(symbol: str, leads: bool) -> bool:
    """Whether a dimension has the name of a batch.

    Letters such as `N`, and counts of agents, are such names only if the dimension `leads` an input.
    """
    short = symbol in _BATCH_LETTERS or _BATCH_COUNTS.fullmatch(symbol) is not None
    return "batch" in symbol.lower() or (leads and short)


# Inputs


def canonical(name: str) -> str:
    """`name` without case, punctuation, an `obs` prefix and a plural s.

    ML-Agents' `obs/Position` becomes `position`.
    """
    short = re.sub(r"^(observations?|obs|inputs?)[^a-z0-9]+(?=[a-z0-9])", "", name.casefold())
    short = "".join(filter(str.isalnum, short))
    return "obs" if short in ("observations", "observation", "obs") else short.removesuffix("s") or short


def is_mask(name: str) -> bool:
    """Whether an input masks actions or tokens, so its neutral value is one: ML-Agents' `action_masks`."""
    return "mask" in name.casefold()


def is_action_mask(name: str) -> bool:
    """Whether an input masks actions: ML-Agents' `action_masks`, RLlib's `action_mask`."""
    return canonical(name) in ("actionmask", "mask")


def is_noise(name: str) -> bool:
    """Whether a float input takes noise: cervo's `epsilon`, `noise`, and `ep` of hand-written SAC exports."""
    short = canonical(name)
    return short == "ep" or "epsilon" in short or "noise" in short


def is_episode_start(name: str) -> bool:
    """Whether an input marks the first step of an episode: sb3-contrib's `episode_starts`."""
    return canonical(name) in ("episodestart", "episodebegin")


# Outputs

_SIDE_PRODUCTS = (
    *("value", "logprob", "entropy", "critic", "vf", "loss"),  # Stable-Baselines3, RLlib, CleanRL
    *("logstd", "std", "stddev", "scale", "sigma"),  # Gaussian policies that give mean and spread
    *("version", "memory"),  # ML-Agents: `version_number`, `memory_size`
)


def is_side_product(name: str) -> bool:
    """Whether an output is never an action; ML-Agents also gives `continuous_action_output_shape`."""
    short = canonical(name)
    return "outputshape" in short or short.startswith(_SIDE_PRODUCTS)


def is_best_action(name: str) -> bool:
    """Whether an output is the centre of a distribution: ML-Agents' `deterministic_...`, or `mean`, `mu`."""
    short = canonical(name)
    return "deterministic" in short or short in ("mean", "mu", "mode", "actionmean", "meanaction")


def action_likelihood(name: str) -> int:
    """How likely an output is the action by its name: 0 for `action`, 1 for scores, 2 for other names."""
    short = canonical(name)
    if "action" in short:
        return 0
    return 1 if short.startswith(("logit", "polic", "pi", "prob", "q", "mean", "mu")) else 2


def are_probabilities(name: str) -> bool:
    """Whether scores are probabilities, not logits: scikit-learn's `probabilities`, `action_probs`."""
    return "prob" in canonical(name)


def are_q_values(name: str) -> bool:
    """Whether scores are values of actions, which are not a distribution to draw from: `q_values`."""
    return canonical(name).startswith("q")


def are_scores(name: str) -> bool:
    """Whether a float output has a score per action: `logits`, `action_probs`, `q_values`."""
    short = canonical(name)
    return "logit" in short or are_probabilities(name) or are_q_values(name)


def is_action(name: str) -> bool:
    """Whether a float output is the action itself: `actions`, `continuous_actions`, `mean`, `mu`."""
    return not are_scores(name) and ("action" in canonical(name) or is_best_action(name))


# Metadata

_CLIP_ACTIONS = "clip_actions"


def wants_clipping(metadata: Mapping[str, str]) -> bool:
    """Whether Box actions must be clipped, by `clip_actions`, the name in Isaac Lab's configurations."""
    return metadata.get(_CLIP_ACTIONS, "true").strip().casefold() not in ("false", "0", "no", "none")
