"""Serve: right answers in batches, no compile in the loop, weights that change while requests go on."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import memojax
import memojax.ray
from memojax.errors import BatchSizeError

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def handle(ray: Any) -> Iterator[Any]:
    from ray import serve

    serve.start(http_options={"port": 8123})
    app = memojax.ray.deployment(
        "acrobot_ppo",
        max_batch_size=8,
        batch_wait_timeout_s=0.005,
        ray_actor_options={"num_cpus": 0.5},
        health_check_period_s=1,
    )
    yield serve.run(app, name="policy", route_prefix="/act")
    serve.shutdown()


ROWS = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)


def test_requests_run_in_batches_and_compile_nothing(handle: Any) -> None:
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda row: handle.remote({"obs": row}).result(), ROWS))
    expected = memojax.load("acrobot_ppo")(ROWS)
    np.testing.assert_allclose(np.stack([answer["logits"] for answer in answers]), expected, rtol=1e-5)
    stats = handle.stats.remote().result()
    assert stats["compiles"] == 0
    assert stats["disk_hits"] == 4
    assert max(stats["batch_sizes"]) > 1


def test_a_bad_request_raises_alone(handle: Any) -> None:
    with ThreadPoolExecutor(4) as clients:
        good = [clients.submit(lambda: handle.remote({"obs": ROWS[0]}).result()) for _ in range(3)]
        with pytest.raises(Exception, match="obs"):
            handle.remote({"obs": np.zeros(5, np.float32)}).result()
        assert all(answer.result()["logits"].shape == (3,) for answer in good)


def test_http_speaks_json(handle: Any) -> None:
    def ask(state: Any) -> Any:
        request = urllib.request.Request("http://127.0.0.1:8123/act", json.dumps(state).encode())
        return json.loads(urllib.request.urlopen(request, timeout=30).read())

    assert np.shape(ask({"obs": ROWS[0].tolist()})["logits"]) == (3,)
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask({"obs": [1.0]})
    assert caught.value.code == 422
    assert "obs" in json.loads(caught.value.read())["error"]


def scraped(ray: Any) -> str:
    """What Prometheus would read from this machine."""
    port = next(node["MetricsExportPort"] for node in ray.nodes() if node["Alive"])
    return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()


def test_prometheus_reads_the_metrics(handle: Any, ray: Any) -> None:
    handle.remote({"obs": ROWS[0]}).result()
    names = ("ray_memojax_batch_size_count", "ray_memojax_batch_size_bucket", "ray_memojax_compiles")
    lines: list[str] = []

    def all_there() -> bool:
        lines[:] = [line for line in scraped(ray).splitlines() if line.startswith("ray_memojax")]
        return all(any(line.startswith(name) for line in lines) for name in names)

    wait_for(all_there)
    assert all('deployment="policy"' in line for line in lines), lines
    assert {line.split()[-1] for line in lines if line.startswith("ray_memojax_compiles")} == {"0.0"}


def test_weights_change_without_a_dropped_request(handle: Any) -> None:
    policy = memojax.load("acrobot_ppo")
    old = policy(ROWS[:1])[0]
    weights = {name: np.asarray(weight) * 0.5 for name, weight in policy.params.items()}
    policy.update_params(weights)
    new = policy(ROWS[:1])[0]
    stop, seen = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            seen.append(handle.remote({"obs": ROWS[0]}).result()["logits"])

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(ask) for _ in range(4)]
        handle.broadcast("update_params", weights).results()
        stop.set()
        for one in asking:
            one.result()
    after = handle.remote({"obs": ROWS[0]}).result()["logits"]
    np.testing.assert_allclose(after, new, rtol=1e-5)
    assert all(np.allclose(one, old, rtol=1e-4) or np.allclose(one, new, rtol=1e-4) for one in seen)
    assert handle.stats.remote().result()["compiles"] == 0


def kill(handle: Any) -> None:
    """Kill the one replica, and wait for the next one."""
    old = handle.stats.remote().result()["pid"]
    os.kill(old, signal.SIGKILL)

    def pid() -> bool:
        try:
            return handle.stats.remote().result(timeout_s=20)["pid"] != old
        except Exception:  # Ray has not noticed yet.
            return False

    wait_for(pid)


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


def scaled(factor: float) -> tuple[dict[str, Any], np.ndarray]:
    """New weights, and the answer for the first row with them."""
    policy = memojax.load("acrobot_ppo")
    weights = {name: np.asarray(weight) * factor for name, weight in policy.params.items()}
    policy.update_params(weights)
    return weights, policy(ROWS[:1])[0]


def test_a_replica_that_starts_later_begins_with_the_newest_weights(handle: Any) -> None:
    for factor in (0.25, 0.75):
        weights, wanted = scaled(factor)
        handle.broadcast("update_params", weights).results()
        kill(handle)
        np.testing.assert_allclose(handle.remote({"obs": ROWS[0]}).result()["logits"], wanted, rtol=1e-5)
        stats = handle.stats.remote().result()
        assert (stats["compiles"], stats["disk_hits"]) == (0, 4)


def test_replicas_tell_a_new_keeper_of_the_newest_weights(handle: Any, ray: Any) -> None:
    from ray import serve

    weights, wanted = scaled(0.6)
    handle.broadcast("update_params", weights).results()
    keeper = serve.get_deployment_handle("policy-weights", "policy")
    stamp = keeper.stats.remote().result()["stamp"]
    assert stamp > 0
    os.kill(keeper.stats.remote().result()["pid"], signal.SIGKILL)

    def told() -> bool:
        try:
            return keeper.stats.remote().result(timeout_s=20)["stamp"] == stamp
        except Exception:  # Ray has not noticed yet.
            return False

    wait_for(told)
    kill(handle)
    np.testing.assert_allclose(handle.remote({"obs": ROWS[0]}).result()["logits"], wanted, rtol=1e-5)


ONE_LOOP = "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"


def variables_of(**options: Any) -> dict[str, str]:
    app = memojax.ray.deployment("acrobot_ppo", max_batch_size=2, **options)
    return app._bound_deployment.ray_actor_options.get("runtime_env", {}).get("env_vars", {})


def test_a_quick_policy_runs_in_the_loop_of_its_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    assert variables_of() == {ONE_LOOP: "0"}
    mine = {"num_cpus": 0.5, "runtime_env": {"env_vars": {ONE_LOOP: "1", "MINE": "2"}}}
    assert variables_of(ray_actor_options=mine) == {ONE_LOOP: "1", "MINE": "2"}
    monkeypatch.setattr("memojax.ray.serving._seconds", lambda policy, size: 0.1)
    assert variables_of() == {}


def test_impossible_times_are_refused() -> None:
    with pytest.raises(BatchSizeError):
        memojax.ray.deployment("acrobot_ppo", batch_wait_timeout_s=-1)
