"""Shows or films a policy: a window or Gymnasium's video recorder around the first environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

from ..errors import EvaluationError, MissingPackageError
from .envs import import_gymnasium, is_env, maker_of


@dataclass(frozen=True)
class Watching:
    """Whether to show or film the first environment; the keywords of `evaluate` describe each field."""

    render: bool = False
    video: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.render and self.video is not None:
            raise EvaluationError(
                "render= opens a window and video= needs images, but an environment can give only one of them"
            )

    @property
    def render_mode(self) -> str | None:
        """Gymnasium's render mode for the first environment; None without a watcher."""
        return "human" if self.render else None if self.video is None else "rgb_array"


def watched_maker(env: Any, watching: Watching, prefix: str) -> Callable[[], Any]:
    """A function that makes the environment to show or film.

    Args:
        env: see `maker_of`.
        watching: window or video.
        prefix: beginning of the video files' names.

    Raises:
        EvaluationError: `env` cannot be made with the render mode.
    """
    make = _maker_in_mode(env, str(watching.render_mode))
    if watching.video is None:
        return make
    folder = fspath(watching.video)
    return lambda: _filmed(make(), folder, prefix)


def _maker_in_mode(env: Any, mode: str) -> Callable[[], Any]:
    gymnasium = import_gymnasium()
    if isinstance(env, (str, gymnasium.envs.registration.EnvSpec)):
        make, _ = maker_of(env, render_mode=mode)
        return make

    def make_and_check() -> Any:
        made = env if is_env(env) else env()
        if made.render_mode != mode:
            raise EvaluationError(
                f"the environment has render_mode={made.render_mode!r}, but showing it needs {mode!r}: make "
                "it so, or pass its id"
            )
        return made

    return make_and_check


def _filmed(env: Any, folder: str, prefix: str) -> Any:
    gymnasium = import_gymnasium()
    try:
        return gymnasium.wrappers.RecordVideo(
            env, folder, episode_trigger=lambda _: True, name_prefix=prefix, disable_logger=True
        )
    except gymnasium.error.DependencyNotInstalled as cause:
        raise MissingPackageError("moviepy", "a video", "video") from cause
