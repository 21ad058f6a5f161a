"""Plans of nested calls: the same numbers, few parts per level, else XLA's order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memojax import TypedModel
from memojax.plans import compiler as compilers
from memojax.plans import in_order as orders
from memojax.plans.autotune import candidates
from memojax.plans.candidates import ORDERED, PLAIN
from memojax.plans.compiler import PlanCompiler
from memojax.plans.hoist import Residual
from memojax.plans.plan import Plan
from memojax.xla.cpu_client import cpu_device

from ..helpers import mostly_slow

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((3, 12)).astype(np.float32)


def network(branches: int, layers: int = 3, draws: bool = False) -> PlanCompiler:
    """A compiler of branches that a sum joins, with noise on top if `draws`."""
    weights = [
        [RNG.standard_normal((12, 12)).astype(np.float32) / 3 for _ in range(layers)] for _ in range(branches)
    ]

    def fn(params: Any, x: Mapping[str, Any]) -> dict[str, Any]:
        total = jnp.zeros_like(x["x"])
        for branch in params:
            y = x["x"]
            for w in branch:
                y = jnp.tanh(y @ w)
            total = total + y
        if draws:
            total = total + jax.random.normal(jax.random.key(7), total.shape)
        return {"y": jax.nn.softmax(total), "best": jnp.argmax(total, -1)}

    return PlanCompiler(TypedModel.from_function(fn, weights, {"x": ((12,), np.float32)}), cpu_device())


def run(plan: Plan) -> list[np.ndarray]:
    return [np.array(value) for value in plan.executable.run([ROWS])]


def ordered(compiler: PlanCompiler) -> Plan:
    return compiler.lower(3, ORDERED).compile()


@pytest.mark.parametrize("branches", mostly_slow([3], [2, 4]))
@pytest.mark.parametrize("draws", [False, True])
def test_the_numbers_equal_the_plain_plans(branches: int, draws: bool) -> None:
    compiler = network(branches, 2, draws)
    plan, plain = ordered(compiler), compiler.lower(3, PLAIN).compile()
    assert (plan.executable.candidate, plain.executable.candidate) == ("in-order", "xla")
    for one, other in zip(run(plan), run(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_weights_that_are_arguments_stay_arguments() -> None:
    given = network(2)
    as_arguments = PlanCompiler(given.typed, given.device, "argument")
    plan, plain = ordered(as_arguments), as_arguments.lower(3, PLAIN).compile()
    assert plan.executable.candidate == "in-order"
    np.testing.assert_allclose(run(plan)[0], run(plain)[0], rtol=1e-6)


def test_the_executable_keeps_the_calls() -> None:
    text = ordered(network(2, 4)).executable.compiled.as_text()
    entry = text[text.index("ENTRY") :]
    calls = len(re.findall(r" call\(", entry))
    assert 2 <= calls <= 8
    assert not re.search(r" dot\(", entry)


def test_tuning_tries_groups_if_they_may_pay() -> None:
    branches, line = network(2), network(1, 9)
    assert ORDERED in candidates(branches.trace(3), 3, branches)
    assert ORDERED not in candidates(line.trace(3), 3, line)


def test_a_chain_stays_as_it_is() -> None:
    assert ordered(network(1, 9)).executable.candidate == "default"


def parts_at_most(residual: Residual) -> int:
    inner = [step for step in residual.steps if isinstance(step, orders.Group)]
    found = len(residual.steps)
    while inner:
        group = inner.pop()
        steps = group.params["steps"]
        below = [step for step in steps if isinstance(step, orders.Group)]
        found = max(found, len(below) or sum(map(orders._parts, steps)))
        inner.extend(below)
    return found


def test_each_level_has_few_parts() -> None:
    grouped = orders.in_order(network(2, 4, True).trace(3))
    assert grouped is not None
    assert parts_at_most(grouped) <= 8


def fails(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a fault of this test")


def test_a_jax_without_marks_orders_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "call_metadata", lambda: None)
    assert ordered(network(2)).executable.candidate == "default"


def test_a_mistake_in_the_grouping_leaves_the_order_to_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "in_order", fails)
    assert ordered(network(2)).executable.candidate == "default"


def test_a_group_that_cannot_be_traced_leaves_the_order_to_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders.Group, "bind", fails)
    assert ordered(network(2)).executable.candidate == "xla"


def test_a_plan_that_xla_refuses_compiles_in_xlas_order(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_it = compilers.compiled_for

    def refuses_calls(lowered: Any, *rest: Any) -> Any:
        return fails() if "inlineable" in lowered.as_text() else compile_it(lowered, *rest)

    monkeypatch.setattr(compilers, "compiled_for", refuses_calls)
    plan = ordered(network(2))
    assert plan.executable.candidate == "xla"
    assert np.isfinite(run(plan)[0]).all()
