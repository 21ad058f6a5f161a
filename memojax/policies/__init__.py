"""Small trained policies for first trials; `tests/models/train_*.py` made them.

Each `NAME.onnx` has a card, `NAME.json`: the environment, the return that training reached, and the roles of
inputs and outputs.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from ..errors import ModelLoadError

DEFAULT = "acrobot_ppo"
"""The policy that `memojax evaluate` uses if no model is named."""

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the bundled policies.

    >>> import memojax
    >>> memojax.policies.names()
    ['acrobot_ppo', 'pendulum_ppo', 'recurrent_lstm']
    """
    return sorted(path.stem for path in _FOLDER.glob("*.onnx"))


def bundled(name: str) -> Path:
    """The ONNX file of a bundled policy.

    >>> import memojax
    >>> memojax.load(memojax.policies.bundled("acrobot_ppo")).input_shapes()
    [('obs', [6])]

    Raises:
        ModelLoadError: there is no such policy; the message lists the names.
    """
    path = _FOLDER / f"{name}.onnx"
    if path.name != f"{name}.onnx" or not path.is_file():
        close = difflib.get_close_matches(name, names(), 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ModelLoadError(f"there is no bundled policy {name!r}{hint}: the names are {', '.join(names())}")
    return path


def card(name: str) -> dict[str, Any]:
    """The card of a bundled policy: `env_id`, `mean_return`, `standard_error`, `observation_indices`, ...

    >>> import memojax
    >>> memojax.policies.card("recurrent_lstm")["env_id"]
    'CartPole-v1'

    Raises:
        ModelLoadError: there is no such policy.
    """
    return json.loads(bundled(name).with_suffix(".json").read_text())
