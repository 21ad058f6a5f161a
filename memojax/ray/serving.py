"""`deployment`: a policy behind Ray Serve, which batches requests into plans."""

from __future__ import annotations

import bisect
import gc
import importlib
import os
import pickle
import time
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._types import Source
from ..errors import BatchSizeError, InputError, RowsMixError
from ..inferer.of_model import InfererOfModel
from ..lowering.typed_model import TypedModel
from ..plans.batch_sizes import checked_size
from ..plans.forbid import forbid_compile
from ..rows.states import gather
from .newest_weights import NewestWeights, keeper_class
from .shared import compiles, imported_ray, model_of, threads_for_assigned, with_plans

_QUICK_S = 0.005
"""A batch that takes less may keep the event loop from receiving requests meanwhile."""


def deployment(
    policy: InfererOfModel | TypedModel | Source,
    *,
    max_batch_size: int = 32,
    batch_wait_timeout_s: float = 0.001,
    name: str = "policy",
    **options: Any,
) -> Any:
    """An application for `ray.serve.run`: a request is one agent, and concurrent requests are one batch.

    The plans for powers of two up to `max_batch_size` are compiled here and travel to the replicas, which
    compile nothing. Through a handle, a request is input name -> array, and its answer is output name ->
    array; over HTTP both are JSON. A request that does not fit raises InputError (HTTP: 422) and does not
    disturb others. `handle.broadcast("update_params", weights)` sends new weights to all replicas while
    requests go on. A batch sees all the old weights or all the new ones. A second deployment of one small
    process, `<name>-weights`, keeps the newest weights, with which later replicas start.

    Args:
        policy: a file, or a loaded policy with its present weights.
        max_batch_size: most requests in one batch.
        batch_wait_timeout_s: seconds that the first request of a batch waits for others.
        name: name of the deployment.
        options: options of `serve.deployment`: `num_replicas`, `ray_actor_options`, `max_ongoing_requests`,
            ... If a full batch takes less than 5 ms here, a replica runs the policy in the event loop that
            receives its requests (Ray's RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD=0), which saves two
            changes of thread for each request. `env_vars` in `runtime_env` overrule this.

    Raises:
        MissingPackageError: Ray Serve is not installed.
        RowsMixError: rows influence each other, so one request would change the answer of another.
        BatchSizeError: the size or the time is invalid.
    """
    imported_ray("memojax.ray.deployment")
    serve: Any = importlib.import_module("ray.serve")

    most = checked_size(max_batch_size)
    if not batch_wait_timeout_s >= 0:
        raise BatchSizeError(
            f"batch_wait_timeout_s is a number of seconds, 0 or more, got {batch_wait_timeout_s!r}"
        )
    typed = model_of(policy)
    if mixing := typed.mixing_outputs():
        raise RowsMixError(
            f"rows influence each other in output {', '.join(map(repr, mixing))}, so one request would "
            "change the answer of another"
        )
    sizes = [1 << power for power in range((most - 1).bit_length())] + [most]
    # Weights are arguments, so an update compiles nothing.
    shared = with_plans(typed, sizes, weights="argument")
    options = {"max_ongoing_requests": 4 * most, "health_check_period_s": 10, **options}
    if _seconds(shared, most) < _QUICK_S:
        options["ray_actor_options"] = _in_one_loop(options.get("ray_actor_options") or {})
    identity = uuid.uuid4().hex
    kind = serve.deployment(name=name, **options)(_replica(most, sizes, batch_wait_timeout_s))
    keeper = serve.deployment(name=f"{name}-weights", ray_actor_options={"num_cpus": 0})(keeper_class())
    return kind.bind(pickle.dumps(shared), keeper.bind(identity), identity)


def _seconds(policy: InfererOfModel, size: int) -> float:
    """Seconds of the quickest of three calls with `size` rows."""
    rows = {spec.name: np.zeros(spec.rows(size), spec.dtype) for spec in policy.api.inputs}
    found: list[float] = []
    for _ in range(3):
        begun = time.perf_counter()
        policy.infer_arrays(rows)
        found.append(time.perf_counter() - begun)
    return min(found)


def _in_one_loop(actor_options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a replica that runs the policy in the loop of its requests, unless they say otherwise."""
    environment = actor_options.get("runtime_env") or {}
    if not isinstance(environment, Mapping):  # The path of a file.
        return dict(actor_options)
    variables = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", **(environment.get("env_vars") or {})}
    return {**actor_options, "runtime_env": {**environment, "env_vars": variables}}


def _replica(most: int, sizes: list[int], wait: float) -> type[Any]:
    serve: Any = importlib.import_module("ray.serve")

    batched: Any = serve.batch(max_batch_size=most, batch_wait_timeout_s=wait)

    class Replica:
        """A process that answers requests."""

        def __init__(self, policy: bytes, keeper: Any, identity: str):
            metrics: Any = importlib.import_module("ray.serve.metrics")

            # Not pinned: routers and clients run on these cores, too, and requests would wait behind them.
            with threads_for_assigned():
                self._policy = pickle.loads(policy)
                self._policy.preload(sizes)
            gc.freeze()  # Collections leave JAX's many objects alone; each full one would delay requests.
            self._weights = NewestWeights(self._policy, keeper, identity)
            buckets = [2.0**power for power in range(most.bit_length())]
            self._sizes = metrics.Histogram("memojax_batch_size", "requests in a batch", boundaries=buckets)
            self._padding = metrics.Counter("memojax_padded_rows", "rows computed only to fill a plan")
            self._compiles = metrics.Gauge("memojax_compiles", "plans that this replica compiled")
            self._compiles.set(compiles(self._policy))

        async def __call__(self, request: Any) -> Any:
            """Answer one agent; the request is input name -> array, or an HTTP request with that as JSON."""
            if not hasattr(request, "json"):  # Asked first, because Starlette's request is a mapping, too.
                return await self._run(self._checked(request))
            JSONResponse: Any = importlib.import_module("starlette.responses").JSONResponse

            try:
                state = self._checked(await request.json())
            except (ValueError, TypeError) as error:  # InputError and JSON's errors are ValueErrors.
                return JSONResponse({"error": str(error)}, status_code=422)
            answer = await self._run(state)
            return JSONResponse({key: value.tolist() for key, value in answer.items()})

        def _checked(self, state: Any) -> dict[str, np.ndarray]:
            if not isinstance(state, Mapping):
                raise InputError(f"a request is input name -> array, got {type(state).__name__}")
            return gather(self._policy.api.inputs, [0], [state])

        @batched
        async def _run(self, states: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
            rows = {key: np.concatenate([state[key] for state in states]) for key in states[0]}
            answers = self._policy.infer_arrays(rows)
            self._sizes.observe(len(states))
            if padded := sizes[bisect.bisect_left(sizes, len(states))] - len(states):
                self._padding.inc(padded)
            return [{key: value[row].copy() for key, value in answers.items()} for row in range(len(states))]

        async def update_params(self, source: Any) -> None:
            """Replace the weights while requests go on."""
            await self._weights.update(source)
            self._compiles.set(compiles(self._policy))

        async def check_health(self) -> None:
            """Take weights that this replica has missed, then answer a row of zeros.

            Serve asks before it sends the first request, and replaces a replica that fails.
            """
            await self._weights.follow()
            row = {spec.name: np.zeros(spec.rows(1), spec.dtype) for spec in self._policy.api.inputs}
            with forbid_compile():
                self._policy.infer_arrays(row)
            # Older Ray exports a gauge once for each time that it is set.
            self._compiles.set(compiles(self._policy))

        def stats(self) -> dict[str, Any]:
            """Process id, plans compiled here, plans from disk, batch sizes so far, padded rows."""
            info = self._policy.cache_info()
            return {
                "pid": os.getpid(),
                "compiles": compiles(self._policy),
                "disk_hits": info.disk_hits,
                "batch_sizes": self._policy.batch_sizes(),
                "padded_rows": info.padded_rows,
            }

    return Replica
