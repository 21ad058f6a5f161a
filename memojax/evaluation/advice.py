"""Finds likely mistakes in the joint of a policy and an environment; it reports them and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..inferer.base import Inferer
from ..inferer.layers import innermost
from ..lowering.typed_model import TypedModel
from ..model.graph import Graph, Node
from ..model.signature import plain_names
from ..spaces.actions import Actor
from ..spaces.connection import Connection
from ..spaces.transforms import ClipAction

_BOUNDED = ("Tanh", "Softsign", "Sin", "Cos")
"""Operators with results in [-1, 1]."""

_PASSING = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split")
"""Operators that only rearrange the numbers of their first input."""


def advice_on(inferer: Inferer, connection: Connection) -> tuple[str, ...]:
    """One sentence for each likely mistake."""
    typed = getattr(innermost(inferer), "typed", None)
    return _unscaled(connection.actor, connection.action_transforms, typed)


def _unscaled(actor: Actor, transforms: Sequence[Any], typed: TypedModel | None) -> tuple[str, ...]:
    """The advice for unscaled actions in [-1, 1] on a Box with other bounds."""
    from gymnasium import spaces

    space, output = actor.space, actor.reading.output.name
    if not isinstance(space, spaces.Box) or any(not isinstance(one, ClipAction) for one in transforms):
        return ()
    finite = np.isfinite(space.low).all() and np.isfinite(space.high).all()
    if not finite or ((space.low == -1) & (space.high == 1)).all() or typed is None or typed.model is None:
        return ()
    graph = typed.model.graph
    in_file = {shown: name for name, shown in plain_names([value.name for value in graph.outputs]).items()}
    last = _bounding_node(graph, in_file.get(output, output))
    if last is None:
        return ()
    low, high = float(space.low.min()), float(space.high.max())
    return (
        f"output {output!r} lies in [-1, 1] ({last.op_type} comes last), but the environment takes "
        f"{low:g} to {high:g}: if the policy was trained on scaled actions, pass "
        "action_transforms=[ScaleAction()] (--scale-actions)",
    )


def _bounding_node(graph: Graph, name: str) -> Node | None:
    """The operator that keeps the value `name` in [-1, 1]; None if no such operator is found."""
    made_by = {output: node for node in graph.nodes for output in node.outputs}
    while (node := made_by.get(name)) is not None and not node.domain:
        if node.op_type in _BOUNDED or _clips_to_one(node, graph):
            return node
        if node.op_type not in _PASSING:
            return None
        name = node.inputs[0]
    return None


def _clips_to_one(node: Node, graph: Graph) -> bool:
    """Whether `node` is a Clip to [-1, 1]; its bounds are attributes up to opset 10, inputs later."""
    if node.op_type != "Clip":
        return False
    given = [graph.initializers.get(name) for name in node.inputs[1:3]]
    bounds = given if len(given) == 2 else [node.attributes.get("min"), node.attributes.get("max")]
    low, high = (None if bound is None else float(np.asarray(bound).reshape(-1)[0]) for bound in bounds)
    return low is not None and high is not None and -1 <= low <= high <= 1
