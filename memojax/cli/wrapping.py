"""`--recurrent` and `--with-epsilon`: wrappers that feed hidden state and noise."""

from __future__ import annotations

from typing import Any

import click

from .options import Command, recurrent_pairs


def wrapping_options(command: Command) -> Command:
    """`--recurrent` and `--with-epsilon`, for `wrapped`."""
    for option in (
        click.option("-w", "--with-epsilon", metavar="KEY", help="Feed this input with normal noise."),
        click.option(
            "-r",
            "--recurrent",
            metavar="auto|IN:OUT,...",
            help="Keep hidden state by agent.",
        ),
    ):
        command = option(command)
    return command


def wrapped(inferer: Any, recurrent: str | None, epsilon: str | None, seed: int) -> Any:
    """`inferer` in the wrappers that the options name.

    Raises:
        click.UsageError: `recurrent` is neither "auto" nor pairs.
        UnknownInputError, IncompatibleModelError: a wrapper does not fit the model.
    """
    from ..wrapper.epsilon import EpsilonInjector, HighQualityNoiseGenerator
    from ..wrapper.recurrent import RecurrentInfo, RecurrentTracker

    if epsilon:
        inferer = EpsilonInjector(inferer, epsilon, HighQualityNoiseGenerator(seed))
    if not recurrent:
        return inferer
    named = recurrent_pairs([recurrent])
    return (
        RecurrentTracker.wrap(inferer)
        if named is None
        else RecurrentTracker(inferer, [RecurrentInfo(*pair) for pair in named])
    )
