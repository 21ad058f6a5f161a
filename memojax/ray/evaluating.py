"""`evaluate` on Ray: the episodes of one process, played by several actors."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._argument_checks import as_count
from .._types import Source
from ..errors import EvaluationError, IncompatibleModelError, RowsMixError, WorkerDiedError
from ..evaluation.api import DEFAULT_ENVS
from ..evaluation.api import evaluate as evaluate_here
from ..evaluation.envs import is_env
from ..evaluation.merging import merge
from ..evaluation.options import check_names
from ..evaluation.planning import Planning
from ..evaluation.progress import progress_bar
from ..evaluation.result import Episode, Evaluation
from ..evaluation.watching import Watching
from ..inferer.of_model import InfererOfModel
from ..lowering.typed_model import TypedModel
from .shared import imported_ray, model_of, pin_assigned, with_plans

log: logging.Logger = logging.getLogger("memojax")

_SHARES = 4
"""Parts per actor: more parts balance the load better, and a lost actor loses less."""


@dataclass(frozen=True)
class _Part:
    """Episodes that one actor plays in one call."""

    first: int
    count: int


def evaluate(
    policy: InfererOfModel | TypedModel | Source,
    env: Any = None,
    *,
    episodes: int = 100,
    actors: int = 2,
    num_cpus: float = 1,
    num_gpus: float = 0,
    num_envs: int | None = None,
    seed: int = 0,
    deterministic: bool = True,
    max_restarts: int = 3,
    progress: bool = False,
    on_episode: Callable[[Episode], None] | None = None,
    **options: Any,
) -> Evaluation:
    """Play the episodes of `memojax.evaluate` in several Ray actors; their number does not change the result.

    Episode `i` is reset with `seed + i`. If `deterministic` is False, its policy draws from its own stream,
    which starts from this seed. All calls, on every actor, run on one plan for `num_envs` rows, and smaller
    batches are padded. The returns equal those of `memojax.evaluate(..., num_envs=num_envs,
    bucketing=[num_envs])` in one process. A lost actor is replaced, and its part is played again.

    Args:
        policy: a file, or a loaded policy with its present weights.
        env: as for `memojax.evaluate`; Ray pickles a function that makes an environment.
        episodes: number of episodes.
        actors: number of actors; never more than parts of the work.
        num_cpus: cores that Ray reserves for each actor. An actor with whole cores is pinned to as many.
        num_gpus: accelerators that Ray reserves for each actor.
        num_envs: environments side by side in each actor. By default 16, or the number of episodes if that is
            smaller, or one if rows mix.
        seed: seed of the first episode.
        deterministic: take the best action, and feed zeros as noise.
        max_restarts: number of actors that may be lost in total.
        progress: whether to show a bar.
        on_episode: called with each finished `Episode`, part by part.
        **options: the keywords of `memojax.evaluate`, without those for plans and videos.

    Returns:
        The result, with wall-clock `seconds`. After Ctrl-C it has the finished parts.

    Raises:
        MissingPackageError: Ray is not installed.
        IncompatibleModelError: the model itself draws random numbers, in the order of its calls.
        RowsMixError: num_envs > 1 and rows influence each other, so an episode would depend on others.
        WorkerDiedError: more than `max_restarts` actors were lost.
        EvaluationError: as for `memojax.evaluate`; `error.partial` has the finished parts.
    """
    ray = imported_ray("memojax.ray.evaluate")
    count, most = as_count("episodes", episodes, EvaluationError), as_count("actors", actors, EvaluationError)
    _check_options(options, env)
    typed = model_of(policy)
    env = typed.metadata.get("env_id") if env is None else env
    if env is None:
        raise EvaluationError(
            "no environment is given, and the model's metadata names none (`env_id`): pass env="
        )
    width = _width(typed, count, num_envs)
    parts = _parts(count, most, width)
    shared = with_plans(
        typed, [width], compile_here=not num_gpus, device="gpu" if num_gpus else None, seed=seed
    )
    call = {**options, "deterministic": deterministic}
    blank = _blank(typed, env, count, width, deterministic, options)
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    kind = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus)(_Actor)
    # The policy travels as bytes, because an actor must pin its cores before XLA starts.
    inputs = ray.put((pickle.dumps(shared), _spec_of(env), width, seed, call))
    crew = _Crew(ray, lambda: kind.remote(inputs), parts, max_restarts)
    bar = progress_bar(f"{blank.model} on {blank.env_id}", count) if progress else contextlib.nullcontext()
    started = time.perf_counter()
    done: list[Evaluation] = []

    def so_far(interrupted: bool) -> Evaluation:
        seconds = time.perf_counter() - started
        merged = merge(done) if done else blank
        merged = replace(merged, asked=count, num_envs=width, seconds=seconds, interrupted=interrupted)
        begin = [replace(episode, index=episode.seed - seed) for episode in merged.episodes]
        return replace(merged, episodes=tuple(begin))

    try:
        with bar as report, _interrupts() as interrupted:
            for result in crew.results(min(most, len(parts))):
                done.append(result)
                for episode in result.episodes if on_episode else ():
                    on_episode(replace(episode, index=episode.seed - seed))  # pyright: ignore[reportOptionalCall]
                if report is not None:
                    now = so_far(interrupted=True)
                    report(len(now.episodes), now.mean_return, now.standard_error, width)
                if interrupted():
                    break
    except KeyboardInterrupt:
        return so_far(interrupted=True)
    except EvaluationError as failure:
        if failure.partial is not None:
            done.append(failure.partial)
        failure.partial = so_far(interrupted=True)
        raise
    finally:
        crew.dismiss()
    return so_far(interrupted=sum(len(result.episodes) for result in done) < count)


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C came, which its KeyboardInterrupt may not.

    Python drops an exception that falls into a destructor or a callback, and Ray's client has both.
    """
    before, came = signal.getsignal(signal.SIGINT), False
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: False
        return

    def note(number: int, frame: Any) -> Any:
        nonlocal came
        came = True  # no threading.Event: a second signal would wait for its lock
        return before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)


class _Actor:
    """A process that plays parts of an evaluation."""

    def __init__(self, inputs: Any):
        pin_assigned()
        policy, self._env, self._width, self._seed, self._options = inputs
        self._policy = pickle.loads(policy)
        self._policy.preload([self._width])

    def play(self, first: int, count: int) -> Evaluation:
        """Episodes `first` to `first + count`."""
        return evaluate_here(
            self._policy,
            self._env,
            episodes=count,
            num_envs=min(self._width, count),
            seed=self._seed + first,
            **self._options,
        )


class _Crew:
    """Actors at work: each plays one part at a time, and a lost actor is replaced."""

    def __init__(self, ray: Any, hire: Callable[[], Any], parts: Sequence[_Part], max_restarts: int):
        self._ray, self._hire = ray, hire
        self._waiting = deque(parts)
        self._restarts = max_restarts
        self._busy: dict[Any, tuple[Any, _Part]] = {}

    def results(self, actors: int) -> Any:
        """Results of the parts, in the order in which they finish.

        Raises:
            WorkerDiedError: too many actors were lost. Errors of a part pass through.
        """
        for _ in range(actors):
            self._give(self._hire())
        while self._busy:
            ready, _ = self._ray.wait(list(self._busy))
            actor, part = self._busy.pop(ready[0])
            try:
                result = self._ray.get(ready[0])
            except self._ray.exceptions.RayActorError as lost:
                self._lost(part, lost)
            except self._ray.exceptions.RayTaskError as failure:
                raise failure.cause from failure
            else:
                self._give(actor)
                yield result

    def _give(self, actor: Any) -> None:
        if not self._waiting:
            self._ray.kill(actor)
            return
        part = self._waiting.popleft()
        self._busy[actor.play.remote(part.first, part.count)] = actor, part

    def _lost(self, part: _Part, lost: Exception) -> None:
        cause = getattr(lost, "cause", None)
        if self._restarts == 0:
            raise WorkerDiedError(
                f"an actor was lost while it played episodes {part.first} to "
                f"{part.first + part.count - 1}, and max_restarts is used up: {cause or lost}"
            ) from lost
        self._restarts -= 1
        reason = str(lost).partition("\n")[0]  # Ray adds a page of text.
        log.warning("an actor was lost, so episodes from %d on are played again (%s)", part.first, reason)
        self._waiting.appendleft(part)
        self._give(self._hire())

    def dismiss(self) -> None:
        """End all actors."""
        for actor, _ in self._busy.values():
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        self._busy.clear()


def _parts(episodes: int, actors: int, width: int) -> list[_Part]:
    even = -(-episodes // actors)
    size = max(1, min(even, max(width, -(-episodes // (_SHARES * actors)))))
    return [_Part(first, min(size, episodes - first)) for first in range(0, episodes, size)]


def _width(typed: TypedModel, episodes: int, num_envs: int | None) -> int:
    if typed.random:
        raise IncompatibleModelError(
            f"{typed.name or 'this model'} itself draws random numbers, in the order of its calls, so its "
            "episodes would depend on the actors: call memojax.evaluate, or export the noise as an input"
        )
    wanted = None if num_envs is None else as_count("num_envs", num_envs, EvaluationError)
    mixing = typed.mixing_outputs()
    if mixing and wanted not in (None, 1):
        raise RowsMixError(
            f"num_envs={wanted}, but rows influence each other in output {', '.join(map(repr, mixing))}, "
            "so an episode would depend on others in its batch: leave num_envs out, which plays one at a "
            "time"
        )
    return 1 if mixing else min(episodes, wanted or DEFAULT_ENVS)


def _check_options(options: dict[str, Any], env: Any) -> None:
    check_names(options)
    ours = {field.name for kind in (Planning, Watching) for field in dataclasses.fields(kind)}
    if given := [f"{name}=" for name in options if name in ours]:
        raise EvaluationError(
            f"{', '.join(given)} cannot be chosen on Ray: each actor runs on one plan for num_envs rows, "
            "which travels to it, and shows nothing"
        )
    if is_env(env):
        raise EvaluationError(
            "env= is a single environment, but each actor needs its own: pass its id, or a function"
        )


def _spec_of(env: Any) -> Any:
    """The registration of an id, which actors lack; an unknown id passes through, and actors refuse it."""
    if isinstance(env, str):
        with contextlib.suppress(Exception):
            import gymnasium

            return gymnasium.spec(env)
    return env


def _blank(
    typed: TypedModel, env: Any, episodes: int, width: int, deterministic: bool, options: dict[str, Any]
) -> Evaluation:
    """The result before the first part is finished."""
    return Evaluation(
        model=options.get("name") or typed.name.rsplit("/", 1)[-1].removesuffix(".onnx") or "policy",
        env_id=env if isinstance(env, str) else getattr(env, "id", getattr(env, "__name__", "environment")),
        episodes=(),
        asked=episodes,
        num_envs=width,
        deterministic=deterministic,
        steps=0,
        seconds=float(np.nan),
        policy_seconds=0.0,
        compile_seconds=0.0,
        batch_sizes={},
        call_us={},
        plans=[],
    )
