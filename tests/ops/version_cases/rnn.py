"""RNN, GRU and LSTM: every option at the versions that ONNX's own cases leave out."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.ops.version_cases import Case

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
STEPS, BATCH, INPUTS, HIDDEN = 4, 3, 5, 2


def case(
    op_type: str,
    opset: int,
    *,
    steps: int = STEPS,
    states: bool = True,
    lens: list[int] | None = None,
    bias: bool = True,
    peepholes: bool = False,
    **attributes: Any,
) -> Case:
    rng = np.random.default_rng(0)
    directions, gates = (2 if attributes.get("direction") == "bidirectional" else 1), GATES[op_type]

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    batch_first = bool(attributes.get("layout"))
    state = normal(BATCH, directions, HIDDEN) if batch_first else normal(directions, BATCH, HIDDEN)
    inputs = [
        normal(BATCH, steps, INPUTS) if batch_first else normal(steps, BATCH, INPUTS),
        normal(directions, gates * HIDDEN, INPUTS),
        normal(directions, gates * HIDDEN, HIDDEN),
        normal(directions, 2 * gates * HIDDEN) if bias else None,
        None if lens is None else np.array(lens, np.int32),
        state if states else None,
    ]
    if op_type == "LSTM":
        inputs += [
            state[::-1].copy() if states else None,
            normal(directions, 3 * HIDDEN) if peepholes else None,
        ]
    return Case(
        op_type,
        opset,
        tuple(inputs),
        {"hidden_size": HIDDEN, **attributes},
        n_outputs=3 if op_type == "LSTM" else 2,
    )


CASES: list[Case] = [
    *(case(op_type, opset) for op_type in GATES for opset in (7, 13, 14, 22)),
    *(
        case(op_type, 7, direction=direction)
        for op_type in GATES
        for direction in ("reverse", "bidirectional")
    ),
    *(case(op_type, 7, direction="bidirectional", lens=[4, 1, 3]) for op_type in GATES),
    *(case(op_type, 14, direction="reverse", lens=[2, 4, 3], bias=False, states=False) for op_type in GATES),
    *(case(op_type, 14, steps=1, direction="bidirectional") for op_type in GATES),
    *(case(op_type, 7, steps=1, states=False) for op_type in GATES),
    *(case(op_type, 7, clip=0.3) for op_type in GATES),
    *(case("RNN", 7, activations=[name]) for name in ("Relu", "Softsign", "Softplus", "Sigmoid")),
    *(
        case("RNN", 7, activations=[name], activation_alpha=[0.7])
        for name in ("LeakyRelu", "Elu", "ThresholdedRelu")
    ),
    *(
        case("RNN", 7, activations=[name], activation_alpha=[0.3], activation_beta=[0.4])
        for name in ("Affine", "ScaledTanh", "HardSigmoid")
    ),
    *(case("RNN", 7, activations=[name]) for name in ("LeakyRelu", "Elu", "HardSigmoid")),
    case("RNN", 7, direction="bidirectional", activations=["LeakyRelu", "Tanh"], activation_alpha=[0.2]),
    case("GRU", 7, linear_before_reset=1),
    case("GRU", 14, linear_before_reset=1, bias=False, direction="bidirectional", lens=[1, 2, 4]),
    case("GRU", 14, linear_before_reset=1, clip=0.3, steps=1),
    case(
        "GRU", 7, activations=["HardSigmoid", "LeakyRelu"], activation_alpha=[0.3, 0.1], activation_beta=[0.4]
    ),
    case("LSTM", 7, peepholes=True),
    case("LSTM", 14, peepholes=True, direction="bidirectional", clip=0.4, lens=[4, 2, 3]),
    case("LSTM", 7, peepholes=True, input_forget=1),
    case(
        "LSTM",
        7,
        activations=["HardSigmoid", "Softsign", "Relu"],
        activation_alpha=[0.3],
        activation_beta=[0.4],
    ),
]
