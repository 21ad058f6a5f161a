"""Comparisons, and logic on booleans and bits."""

from __future__ import annotations

from ._common import nx
from .math.elementwise import before_7
from .registry import elementwise, op

_BINARY = {
    "And": nx.logical_and,
    "Equal": nx.equal,
    "Greater": nx.greater,
    "Less": nx.less,
    "Or": nx.logical_or,
    "Xor": nx.logical_xor,
}
elementwise(_BINARY, since=7)
for _op_type, _function in _BINARY.items():
    op(_op_type, until=7)(before_7(_function))

elementwise({"Not": nx.logical_not})
elementwise({"GreaterOrEqual": nx.greater_equal, "LessOrEqual": nx.less_equal}, since=12)
elementwise(
    {
        "BitwiseAnd": nx.bitwise_and,
        "BitwiseNot": nx.bitwise_not,
        "BitwiseOr": nx.bitwise_or,
        "BitwiseXor": nx.bitwise_xor,
    },
    since=18,
)
