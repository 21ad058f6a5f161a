"""Episodes on Ray are those of one process: for any number of actors, and when one of them is killed."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memojax
import memojax.ray
from memojax.errors import EvaluationError, WorkerDiedError

pytest.importorskip("ray")
gymnasium = pytest.importorskip("gymnasium")


class DiesOnce(gymnasium.Wrapper):
    """Kills its process in the episode with seed 7, if the file `mark` exists, and removes the file."""

    def __init__(self, mark: Path):
        super().__init__(gymnasium.make("Pendulum-v1"))
        self.mark = mark

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed == 7 and self.mark.exists():
            self.mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reset(seed=seed, options=options)


def here(env: Any, deterministic: bool, episodes: int = 10) -> memojax.Evaluation:
    return memojax.evaluate(
        memojax.policies.bundled("pendulum_ppo"),
        env,
        episodes=episodes,
        num_envs=4,
        bucketing=[4],
        deterministic=deterministic,
        max_steps=30,
    )


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("actors", [1, 2, 4])
def test_numbers_do_not_depend_on_the_number_of_actors(ray: Any, actors: int, deterministic: bool) -> None:
    found = memojax.ray.evaluate(
        "pendulum_ppo",
        "Pendulum-v1",
        episodes=10,
        num_envs=4,
        actors=actors,
        num_cpus=0.5,  # four fit into the tests' Ray
        deterministic=deterministic,
        max_steps=30,
    )
    expected = here("Pendulum-v1", deterministic)
    np.testing.assert_array_equal(found.returns, expected.returns)
    assert found.seeds.tolist() == list(range(10))
    assert [episode.index for episode in found.episodes] == list(range(10))
    assert (found.asked, found.interrupted) == (10, False)


def test_a_killed_actor_is_replaced_and_its_episodes_are_played_again(ray: Any, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    make = functools.partial(DiesOnce, mark)
    found = memojax.ray.evaluate(
        "pendulum_ppo", make, episodes=10, num_envs=4, actors=2, max_steps=30, name="pendulum_ppo"
    )
    assert not mark.exists()
    np.testing.assert_array_equal(found.returns, here("Pendulum-v1", True).returns)


def test_too_many_lost_actors_raise_with_the_partial_result(ray: Any, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    make = functools.partial(DiesOnce, mark)
    with pytest.raises(WorkerDiedError, match="max_restarts") as caught:
        memojax.ray.evaluate(
            "pendulum_ppo", make, episodes=10, num_envs=4, actors=1, max_steps=5, max_restarts=0
        )
    assert caught.value.partial.interrupted
    assert len(caught.value.partial.episodes) < 10


def test_an_actor_compiles_nothing(ray: Any) -> None:
    found = memojax.ray.evaluate("pendulum_ppo", "Pendulum-v1", episodes=4, num_envs=4, actors=1, max_steps=3)
    assert found.compile_seconds == 0


def test_ctrl_c_gives_the_parts_that_are_done(ray: Any) -> None:
    def stop(episode: Any) -> None:
        raise KeyboardInterrupt

    found = memojax.ray.evaluate(
        "pendulum_ppo", "Pendulum-v1", episodes=8, num_envs=2, actors=1, max_steps=3, on_episode=stop
    )
    assert found.interrupted
    assert len(found.episodes) == 2


class Interrupts:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_within_a_destructor_ends_the_evaluation_too(ray: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    found = memojax.ray.evaluate(
        "pendulum_ppo",
        "Pendulum-v1",
        episodes=8,
        num_envs=2,
        actors=1,
        max_steps=3,
        on_episode=lambda episode: Interrupts() and None,
    )
    assert found.interrupted
    assert len(found.episodes) == 2
    assert signal.getsignal(signal.SIGINT) is before


DRIVER = """
import os
import sys
import ray
import memojax.ray

ray.init(address=sys.argv[1], log_to_driver=False)
found = memojax.ray.evaluate(
    "pendulum_ppo", "Pendulum-v1", episodes=4000, num_envs=2, actors=1, num_cpus=0.5,
    on_episode=lambda episode: os.write(1, b"episode\\n"), progress=True,
)
print("end", found.interrupted, len(found.episodes), found.asked, flush=True)
"""


def test_a_signal_to_the_driver_ends_with_the_parts_that_are_done(ray: Any) -> None:
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", DRIVER, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "episode\n"
        driver.send_signal(signal.SIGINT)
        printed, errors = driver.communicate(timeout=60)
    assert driver.returncode == 0, errors
    end, interrupted, done, asked = printed.splitlines()[-1].split()
    assert (end, interrupted, asked) == ("end", "True", "4000")
    assert 0 < int(done) < 4000


@pytest.mark.parametrize("option", [{"bucketing": "pow2"}, {"render": True}])
def test_options_that_make_no_sense_here_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(EvaluationError, match="cannot be chosen on Ray"):
        memojax.ray.evaluate("pendulum_ppo", "Pendulum-v1", **option)
