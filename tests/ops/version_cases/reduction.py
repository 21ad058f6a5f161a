"""Versions of the reductions that ONNX's own cases leave out."""

from __future__ import annotations

import numpy as np

from . import Case

X = np.random.default_rng(0).uniform(0.5, 2, (2, 3, 4)).astype(np.float32)
INTS = np.array([[3, 1, 2, 3], [4, 9, 9, 5]], np.int32)
TIES = INTS.astype(np.float32)
NAMES = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
SPANS = ({}, {"axes": [1]}, {"axes": [0, 2], "keepdims": 0}, {"keepdims": 0})
NEGATIVE = ({"axes": [-1]}, {"axes": [-2, 0], "keepdims": 0})


def _by_attribute() -> list[Case]:
    cases = []
    for name in NAMES:
        for opset in (7, 11, 12, 13):
            if name != "Sum" or opset < 13:
                cases += [Case(f"Reduce{name}", opset, (X,), attributes) for attributes in SPANS]
                cases += [
                    Case(f"Reduce{name}", opset, (X,), attributes) for attributes in NEGATIVE if opset >= 11
                ]
    integers = ("L1", "L2", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare", "LogSum", "LogSumExp")
    cases += [Case(f"Reduce{name}", 11, (INTS,), {"axes": [1]}) for name in integers]
    return cases + [
        Case(f"Reduce{name}", 12, (INTS.astype(np.int8),), {"axes": [0]}) for name in ("Max", "Min")
    ]


def _by_input() -> list[Case]:
    cases = [
        Case("ReduceSum", 13, (X, np.array([-1])), {"keepdims": 0}),
        Case("ReduceSum", 13, (X,), {"noop_with_empty_axes": 1}),
    ]
    for name in NAMES:
        cases += [
            Case(f"Reduce{name}", 18, (X, np.array(axes)), {"keepdims": keep})
            for axes in ([1], [0, -1])
            for keep in (0, 1)
        ]
        cases += [Case(f"Reduce{name}", 18, (X,)), Case(f"Reduce{name}", 18, (X, np.array([], np.int64)))]
        if name in ("Max", "Mean", "Min", "Prod", "Sum"):
            cases += [Case(f"Reduce{name}", 18, (X,), {"noop_with_empty_axes": 1})]
    cases += [
        Case("ReduceLogSum", 18, (INTS.astype(np.int64),), expected=(np.array([[3]], np.int64),))
    ]  # log 36 is 3.58
    return cases


def _arg() -> list[Case]:
    cases = []
    for name in ("ArgMax", "ArgMin"):
        for opset in (7, 11, 12, 13):
            cases += [
                Case(name, opset, (TIES,), attributes)
                for attributes in ({}, {"axis": 1}, {"axis": 1, "keepdims": 0})
            ]
            cases += [Case(name, opset, (TIES,), {"axis": -1, "keepdims": 0}) for _ in range(opset >= 11)]
            cases += [
                Case(name, opset, (TIES,), {"axis": 1, "select_last_index": 1}) for _ in range(opset >= 12)
            ]
        cases += [Case(name, 13, (INTS,), {"axis": 1})]
    return cases


CASES = [*_by_attribute(), *_by_input(), *_arg()]
