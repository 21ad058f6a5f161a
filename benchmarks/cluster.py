"""A policy on Ray against ONNX Runtime in the same code: rows and requests per second with 1, 2 and 4 actors.

    python benchmarks/cluster.py rows --json benchmarks/results/cluster_rows.json
    python benchmarks/cluster.py requests --json benchmarks/results/cluster_requests.json

Both contenders are classes with the same methods, called by the same loops, with one thread in each process.
They take turns, so the load of the machine is the same for both. `rows` hands blocks of 1,024 rows from the
object store to actors. `requests` puts a class behind Ray Serve, with the same dynamic batching, and lets 24
clients ask.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from _measure import machine
from _models import POLICIES, mlp
from ray import serve

import memojax
import memojax.ray

OURS, THEIRS = "memojax", "ONNX Runtime"
ACTORS = (1, 2, 4)
BLOCK, BLOCKS = 1024, 48
CLIENTS, MOST, WAIT_S = 24, 32, 0.001
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MEMOJAX_KERNELS_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def networks() -> dict[str, tuple[bytes, str, int]]:
    """ONNX file, name of the input and length of a row, by network."""
    acrobot = (POLICIES / "acrobot_ppo.onnx").read_bytes()
    return {
        "acrobot_ppo": (acrobot, "obs", 6),
        "MLP 376-256-256-17": (mlp([376, 256, 256, 17]).content, "x", 376),
    }


class Session:
    """ONNX Runtime with one thread."""

    def __init__(self, content: bytes):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.names, self.session.run(None, rows), strict=True))


@ray.remote(num_cpus=1)
class Worker:
    """Runs blocks of rows through the callable that `make` returns."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]):
        self.run = make()

    def block(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.run(rows)

    def compiles(self) -> int:
        return self.run.compiles() if hasattr(self.run, "compiles") else 0  # pyright: ignore


def rows_per_second(actors: int, rounds: int) -> list[dict[str, Any]]:
    """A result for each network."""
    found = []
    for name, (content, key, width) in networks().items():
        predictor = memojax.ray.Predictor(content, batch_size=BLOCK, keep=False)
        makers: dict[str, Callable[[], Any]] = {
            OURS: lambda p=predictor: p,
            THEIRS: lambda c=content: Session(c),
        }
        crews = {
            contender: [Worker.remote(make) for _ in range(actors)] for contender, make in makers.items()
        }
        rows = np.random.default_rng(0).standard_normal((BLOCK, width)).astype(np.float32)
        block = ray.put({key: rows})
        answers = {c: ray.get(crew[0].block.remote(block)) for c, crew in crews.items()}
        for output, value in answers[THEIRS].items():
            np.testing.assert_allclose(answers[OURS][output], value, rtol=1e-3, atol=1e-4)
        speeds: dict[str, list[float]] = {contender: [] for contender in crews}
        for turn in range(rounds):
            for contender, crew in list(crews.items())[:: 1 if turn % 2 else -1]:
                begun = time.perf_counter()
                ray.get([crew[i % actors].block.remote(block) for i in range(BLOCKS)])
                speeds[contender].append(BLOCKS * BLOCK / (time.perf_counter() - begun))
        compiled = sum(ray.get([worker.compiles.remote() for worker in crews[OURS]]))
        medians = {contender: statistics.median(values) for contender, values in speeds.items()}
        found.append({"network": name, "actors": actors, "rows_per_second": medians, "compiles": compiled})
        print(found[-1], flush=True)
        for crew in crews.values():
            for worker in crew:
                ray.kill(worker)
    return found


def theirs_behind_serve(content: bytes, replicas: int) -> Any:
    """The counterpart of `memojax.ray.deployment` for ONNX Runtime, written by hand."""

    class Replica:
        def __init__(self, content: bytes):
            self.run = Session(content)

        async def __call__(self, request: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return await self.batch(request)

        @serve.batch(max_batch_size=MOST, batch_wait_timeout_s=WAIT_S)
        async def batch(self, requests: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
            rows = {key: np.stack([request[key] for request in requests]) for key in requests[0]}
            answers = self.run(rows)
            return [{key: value[i] for key, value in answers.items()} for i in range(len(requests))]

    options = {**serve_options(replicas), "max_ongoing_requests": 4 * MOST}
    return serve.deployment(name="theirs", **options)(Replica).bind(content)


def serve_options(replicas: int) -> dict[str, Any]:
    return {"num_replicas": replicas, "ray_actor_options": {"num_cpus": 1}}


def ask(handle: Any, row: np.ndarray, key: str, seconds: float) -> list[float]:
    """Milliseconds of each request of `CLIENTS` clients; a client has one request at a time."""
    found: list[float] = []

    async def client(end: float) -> None:
        while time.perf_counter() < end:
            begun = time.perf_counter()
            await handle.remote({key: row})
            found.append((time.perf_counter() - begun) * 1e3)

    async def all_clients() -> None:
        end = time.perf_counter() + seconds
        await asyncio.gather(*(client(end) for _ in range(CLIENTS)))

    thread = threading.Thread(target=lambda: asyncio.run(all_clients()))
    thread.start()
    thread.join()
    return found


def requests_per_second(actors: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A result for each network."""
    found = []
    for name, (content, key, width) in networks().items():
        ours = memojax.ray.deployment(
            content, max_batch_size=MOST, batch_wait_timeout_s=WAIT_S, name="ours", **serve_options(actors)
        )
        handles = {
            OURS: serve.run(ours, name="ours", route_prefix=None),
            THEIRS: serve.run(theirs_behind_serve(content, actors), name="theirs", route_prefix=None),
        }
        row = np.random.default_rng(0).standard_normal(width).astype(np.float32)
        took: dict[str, list[list[float]]] = {contender: [] for contender in handles}
        for round in range(rounds + 1):
            for contender, handle in list(handles.items())[:: 1 if round % 2 else -1]:
                times = ask(handle, row, key, seconds if round else 1.0)
                if round:  # the first one warms up
                    took[contender].append(times)
        rates = {c: statistics.median(len(times) / seconds for times in all_) for c, all_ in took.items()}
        median = {c: statistics.median(itertools.chain(*all_)) for c, all_ in took.items()}
        high = {
            c: statistics.median(float(np.percentile(times, 99)) for times in all_)
            for c, all_ in took.items()
        }
        stats = [answer["compiles"] for answer in handles[OURS].broadcast("stats").results()]
        found.append(
            {
                "network": name,
                "actors": actors,
                "clients": CLIENTS,
                "requests_per_second": rates,
                "median_ms": median,
                "p99_ms": high,
                "compiles": sum(stats),
            }
        )
        print(found[-1], flush=True)
        serve.delete("ours")
        serve.delete("theirs")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["rows", "requests"])
    parser.add_argument("--actors", type=int, nargs="+", default=list(ACTORS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each round of requests")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--note", default="", help="what the page says of this measurement")
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)  # before XLA and Ray start; workers inherit it
    ray.init(num_cpus=12, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    results = []
    for actors in options.actors:
        if options.what == "rows":
            results += rows_per_second(actors, options.rounds)
        else:
            results += requests_per_second(actors, options.rounds, options.seconds)
    ray.shutdown()
    if options.json:
        known = json.loads(options.json.read_text())["results"] if options.json.exists() else []
        kept = [one for one in known if one["actors"] not in options.actors]
        merged = sorted(kept + results, key=lambda one: (one["network"], one["actors"]))
        options.json.write_text(
            json.dumps({"machine": machine(), "note": options.note, "results": merged}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
