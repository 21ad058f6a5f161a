"""A short soak test; `python -m tests.system.soak` is the long one."""

from __future__ import annotations

import sys

import pytest

from .soak import Soak, left_by_loads, left_by_sizes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
]


def test_every_row_is_right_while_weights_plans_and_models_change() -> None:
    soak = Soak()
    soak.run(20, 10)
    assert not soak.wrong
    assert soak.calls.keys() == {"arrays", "on_device", "agents", "in_runtime", "swap", "clear"}
    assert soak.rows > 1000
    assert soak.growth < 0.15  # Allocators have not settled by then; the long soak allows 5 %.


def test_sizes_and_loads_leave_little_behind() -> None:
    assert left_by_sizes(60) < 0.1
    assert left_by_loads(30) < 0.2
