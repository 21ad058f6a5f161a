"""Steps environments, in this process or spread over worker processes."""

from __future__ import annotations

import abc
import contextlib
import difflib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np

from ..errors import (
    EnvironmentFailedError,
    EvaluationError,
    MemojaxError,
    MissingPackageError,
    UnknownEnvironmentError,
    WorkerDiedError,
)
from ._worker import ask

Vectorization = Literal["sync", "async"]


class Outcome(NamedTuple):
    """The result of a reset (reward 0, not over) or a step; `mask` is the `info["action_mask"]`."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    mask: Any


class EnvPool(abc.ABC):
    """Equal environments, each in its own slot, that are reset and stepped on request."""

    name: str
    observation_space: Any
    action_space: Any

    @abc.abstractmethod
    def reset(self, seeds: Mapping[int, int]) -> Sequence[Any]:
        """Begin an episode in each slot, slot -> seed.

        Raises:
            EnvironmentFailedError: an environment raised; `error.slot` gives its slot.
            WorkerDiedError: a worker process died.
        """

    @abc.abstractmethod
    def step(self, actions: Mapping[int, Any]) -> Sequence[Any]:
        """Step each slot, slot -> action; raises like `reset`."""

    @abc.abstractmethod
    def seen(self, outcome: Any) -> Mapping[str, tuple[Any, Any]]:
        """Agent -> (observation, action mask), for the agents that act next; a single agent is called ""."""

    @abc.abstractmethod
    def rewards(self, outcome: Any) -> Mapping[str, float]:
        """Agent -> reward."""

    @abc.abstractmethod
    def joint(self, actions: Mapping[str, Any]) -> Any:
        """Actions by agent, in the form that `step` takes."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the environments that this pool opened."""


class SinglePool(EnvPool):
    """Environments with one agent each (abstract: the two kinds differ in where they step)."""

    def seen(self, outcome: Outcome) -> Mapping[str, tuple[Any, Any]]:
        return {"": (outcome.observation, outcome.mask)}

    def rewards(self, outcome: Outcome) -> Mapping[str, float]:
        return {"": outcome.reward}

    def joint(self, actions: Mapping[str, Any]) -> Any:
        return actions[""]


@final
class LocalPool(SinglePool):
    """Environments in this process."""

    name: str
    observation_space: Any
    action_space: Any

    def __init__(self, env: Any, size: int, first: Callable[[], Any] | None = None):
        """Make `size` of `env` (see `maker_of`), or use the one given; `first` makes the first one."""
        make, self.name = maker_of(env)
        self._owned = not is_env(env)
        self.envs: list[Any] = []
        try:
            for slot in range(size):
                self.envs.append(first() if first is not None and slot == 0 else make())
            self.observation_space, self.action_space = (
                self.envs[0].observation_space,
                self.envs[0].action_space,
            )
        except MemojaxError:
            self.close()
            raise
        except Exception as cause:
            self.close()
            raise _not_made(self.name, f"{type(cause).__name__}: {cause}") from cause

    def reset(self, seeds: Mapping[int, int]) -> list[Outcome]:
        return [self._ask(slot, "reset", seed) for slot, seed in seeds.items()]

    def step(self, actions: Mapping[int, Any]) -> list[Outcome]:
        return [self._ask(slot, "step", action) for slot, action in actions.items()]

    def close(self) -> None:
        for env in self.envs:
            with contextlib.suppress(Exception):
                if self._owned:
                    env.close()
                elif getattr(env, "recording", False):
                    env.stop_recording()  # Writes the video; the environment itself belongs to the caller.

    def _ask(self, slot: int, verb: str, value: Any) -> Outcome:
        try:
            return Outcome(*ask(self.envs[slot], verb, value))
        except Exception as cause:
            raise failed(self.name, slot, verb, f"{type(cause).__name__}: {cause}") from cause


@final
class WorkerPool(SinglePool):
    """Environments spread over worker processes, which run at the same time.

    The workers are fresh interpreters, not forks, and import neither JAX nor the caller's main script.
    """

    name: str
    observation_space: Any
    action_space: Any

    def __init__(self, env: Any, size: int, workers: int | None = None):
        """Start `workers` processes (by default one per core) with `size` environments in total."""
        if is_env(env):
            raise EvaluationError(
                "an environment object cannot be sent to worker processes: pass its id, or a function that "
                "makes one"
            )
        make, self.name = maker_of(env)
        import cloudpickle

        count = max(1, min(size, workers or os.cpu_count() or 1))
        self._workers = [_Worker(index) for index in range(count)]
        try:
            factory = cloudpickle.dumps(make)
            for index, worker in enumerate(self._workers):
                worker.send(("make", sys.path, factory, len(range(index, size, count))))
            answers = [worker.receive() for worker in self._workers]
        except BaseException:
            self.close()
            raise
        if failed := [what for ok, what in answers if not ok]:
            self.close()
            raise _not_made(self.name, _quoted("in a worker process", failed[0][1]))
        self.observation_space, self.action_space = pickle.loads(answers[0][1])

    def reset(self, seeds: Mapping[int, int]) -> list[Outcome]:
        return self._ask("reset", seeds)

    def step(self, actions: Mapping[int, Any]) -> list[Outcome]:
        return self._ask("step", actions)

    def close(self) -> None:
        for worker in self._workers:
            worker.hang_up()
        for worker in self._workers:
            worker.wait()

    def _ask(self, verb: str, values: Mapping[int, Any]) -> list[Outcome]:
        count = len(self._workers)
        asked: dict[int, list[int]] = {}
        for slot in values:
            asked.setdefault(slot % count, []).append(slot)
        for index, slots in asked.items():
            self._workers[index].send((verb, [(slot // count, values[slot]) for slot in slots]))
        outcomes: dict[int, Outcome] = {}
        failures: list[EnvironmentFailedError] = []
        for index, slots in asked.items():
            ok, answer = self._workers[index].receive()
            if ok:
                outcomes.update(zip(slots, (Outcome(*one) for one in answer), strict=True))
            else:
                failures.append(
                    failed(self.name, slots[answer[0]], verb, _quoted(f"in worker {index}", answer[1]))
                )
        if failures:
            raise failures[0]
        return [outcomes[slot] for slot in values]


class _Worker:
    """A process that runs `_worker.py`; messages are pickles over its standard input and output."""

    def __init__(self, index: int):
        self.index = index
        script = Path(__file__).with_name("_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(message, self._process.stdin, protocol=5)
            self._process.stdin.flush()
        except (BrokenPipeError, OSError) as cause:
            raise self._dead() from cause

    def receive(self) -> Any:
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as cause:
            raise self._dead() from cause

    def hang_up(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def wait(self) -> None:
        try:
            self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _dead(self) -> WorkerDiedError:
        try:
            code: int | None = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            code = None
        how = (
            "closed its pipe"
            if code is None
            else f"was killed by signal {-code}"
            if code < 0
            else f"exited with code {code}"
        )
        return WorkerDiedError(
            f"worker {self.index} (process {self._process.pid}) {how} without an answer, and its "
            "environments are lost: look at its stderr output and at the machine's memory, or run with "
            "vectorization='sync' to see the error itself"
        )


def maker_of(env: Any, render_mode: str | None = None) -> tuple[Callable[[], Any], str]:
    """A function that makes an environment, and a name for it.

    Args:
        env: a Gymnasium id ("CartPole-v1", "module:Id-v0"), an `EnvSpec`, a function without arguments, or
            one environment.
        render_mode: Gymnasium's render mode, for an id or an `EnvSpec`.

    Raises:
        MissingPackageError: Gymnasium is not installed.
        UnknownEnvironmentError: the id is not registered, or its packages are missing.
        EvaluationError: `env` is something else, or a vector environment, whose episodes cannot be dealt out
            one by one.
    """
    gymnasium = import_gymnasium()
    if isinstance(env, gymnasium.vector.VectorEnv) or _is_vec_env(env):
        raise EvaluationError(
            "a vector environment restarts its episodes by itself, but evaluate must seed and start each: "
            "pass its id, or a function that makes one environment; num_envs= and vectorization= set the "
            "number and the processes"
        )
    if isinstance(env, gymnasium.Env):
        return lambda: env, env.spec.id if env.spec else type(env.unwrapped).__name__
    if is_parallel(env):
        return lambda: env, type(env).__name__
    if isinstance(env, str):
        env = _spec_of(env, gymnasium)
    if isinstance(env, gymnasium.envs.registration.EnvSpec):
        spec = env
        mode: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}

        # Sent to workers by value: a reference to memojax would import JAX there.
        def make() -> Any:
            import gymnasium

            return gymnasium.make(spec, disable_env_checker=True, **mode)

        return make, spec.id
    if callable(env):
        return env, getattr(env, "__name__", type(env).__name__)
    raise EvaluationError(
        "an environment is a Gymnasium id, an EnvSpec, an environment, or a function that makes one, not "
        f"{env!r}"
    )


def import_gymnasium() -> Any:
    """Gymnasium, imported only when an evaluation runs.

    Raises:
        MissingPackageError: Gymnasium is not installed.
    """
    try:
        import gymnasium
    except ImportError as cause:
        raise MissingPackageError("gymnasium", "an evaluation", "rl") from cause
    return gymnasium


def _spec_of(env_id: str, gymnasium: Any) -> Any:
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            __import__(module)
        return gymnasium.spec(name)
    except ImportError as cause:
        raise UnknownEnvironmentError(
            f"environment {env_id!r}: no module {module!r} to register it: {cause}"
        ) from cause
    except gymnasium.error.Error as cause:
        known = sorted(gymnasium.registry)
        close = _closest(name, known)
        hint = (
            f"did you mean {' or '.join(map(repr, close))}?"
            if close
            else "is the package that registers it installed and imported?"
        )
        raise UnknownEnvironmentError(
            f"no environment is called {env_id!r}: {hint} (module:id imports a module first)"
        ) from cause


def _closest(name: str, known: Sequence[str]) -> list[str]:
    """The newest version of the same name if there is one, else similar names."""
    base = name.partition("-v")[0].casefold()
    same = [other for other in known if other.partition("-v")[0].casefold() == base]
    lower = {other.casefold(): other for other in known}
    return same[-1:] or [lower[match] for match in difflib.get_close_matches(name.casefold(), lower, 2)]


def is_env(env: Any) -> bool:
    """Whether `env` is one environment: Gymnasium's, or a parallel one with PettingZoo's attributes."""
    if isinstance(env, str):  # Answered without Gymnasium, which is then imported while a plan compiles.
        return False
    return isinstance(env, import_gymnasium().Env) or is_parallel(env)


def _is_vec_env(env: Any) -> bool:
    """Whether `env` looks like one of Stable-Baselines3's vector environments, which are not Gymnasium's."""
    return not isinstance(env, type) and all(hasattr(env, name) for name in ("num_envs", "step_async"))


def is_parallel(env: Any) -> bool:
    """Whether `env` is one of PettingZoo's parallel environments."""
    return hasattr(env, "possible_agents") and not hasattr(env, "agent_iter") and not isinstance(env, type)


def _not_made(name: str, what: str) -> EvaluationError:
    if "DependencyNotInstalled" in what.partition("\n")[0]:
        return UnknownEnvironmentError(
            f"environment {name!r} needs a package that is missing: {what.partition(': ')[2]}"
        )
    return EnvironmentFailedError(f"{name} could not be made: {what}")


def _quoted(where: str, trace: str) -> str:
    """A traceback of another process, with its last line first."""
    return f"{trace.rstrip().rpartition(chr(10))[2]}\n({where})\n{trace.rstrip()}"


def failed(name: str, slot: int, verb: str, what: str) -> EnvironmentFailedError:
    """The error of an environment that raised."""
    return EnvironmentFailedError(f"{name} raised in {verb}: {what}", slot)


def as_actions(rows: np.ndarray) -> list[Any]:
    """Rows of actions in the form that environments take: ints, or NumPy arrays."""
    if rows.ndim > 1:
        return list(rows)
    return rows.tolist() if rows.dtype.kind in "iu" else list(map(np.asarray, rows))
