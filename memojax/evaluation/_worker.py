"""A worker process of an asynchronous evaluation, run as a script: it imports neither memojax nor JAX.

Messages are pickles over standard input and output: ("make", sys.path, factory, count), ("reset", [(index,
seed)]), ("step", [(index, action)]). An answer is (True, result) or (False, (position, traceback)).
"""

import os
import pickle
import signal
import sys
import traceback
from typing import Any


def main() -> None:
    """Answer until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides.
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # An environment may print, which must not mix with the answers.
    envs: list[Any] = []
    while True:
        try:
            verb, *arguments = pickle.load(requests)
        except EOFError:
            break
        try:
            answer = True, _make(envs, *arguments) if verb == "make" else _run(envs, verb, *arguments)
        except _Failed as failure:
            answer = False, failure.args
        except Exception:
            answer = False, (0, traceback.format_exc(limit=-4))
        answers.write(pickle.dumps(answer, protocol=5))
        answers.flush()
    for env in envs:
        env.close()


class _Failed(Exception):
    """An environment's failure: its position in the request, and the traceback."""


def _make(envs: list[Any], path: list[str], factory: bytes, count: int) -> bytes:
    sys.path[:] = path
    make = pickle.loads(factory)
    envs.extend(make() for _ in range(count))
    return pickle.dumps((envs[0].observation_space, envs[0].action_space), protocol=5)


def _run(envs: list[Any], verb: str, requests: list[tuple[int, Any]]) -> list[Any]:
    outcomes = []
    for position, (index, value) in enumerate(requests):
        try:
            outcomes.append(ask(envs[index], verb, value))
        except Exception:
            raise _Failed(position, traceback.format_exc(limit=-4)) from None
    return outcomes


def ask(env: Any, verb: str, value: Any) -> tuple[Any, float, bool, bool, Any]:
    """Reset `env` with a seed, or step it with an action.

    Returns observation, reward, terminated, truncated, action mask.

    Raises:
        ValueError: the environment does not follow Gymnasium's API. The environment's own errors pass
            through.
    """
    if verb == "reset":
        observation, info = _values("reset", env.reset(seed=value), "observation, info")
        return observation, 0.0, False, False, _mask(info)
    answer = _values("step", env.step(value), "observation, reward, terminated, truncated, info")
    observation, reward, terminated, truncated, info = answer
    return observation, check_reward(reward), bool(terminated), bool(truncated), _mask(info)


def check_reward(reward: Any) -> float:
    """`reward` as a float.

    Raises:
        ValueError: the reward is NaN.
    """
    if (number := float(reward)) != number:
        raise ValueError("step gave the reward NaN, which would make the return NaN")
    return number


def _values(verb: str, answer: Any, expected: str) -> Any:
    several = isinstance(answer, (tuple, list))
    if not several or len(answer) != expected.count(",") + 1:
        given = f"{len(answer)} values" if several else f"one {type(answer).__name__}"
        raise ValueError(f"{verb} gave {given}, expected {expected} (Gymnasium's API)")
    return answer


def _mask(info: Any) -> Any:
    if not hasattr(info, "get"):
        raise ValueError(
            f"the info of this step is a {type(info).__name__}, expected a dictionary (Gymnasium's API)"
        )
    return info.get("action_mask")


if __name__ == "__main__":
    main()
