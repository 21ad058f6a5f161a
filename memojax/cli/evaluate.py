"""`memojax evaluate`: plays episodes with policies, and reports returns, uncertainty and speed."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    ModelFile,
    ModelName,
    check_plot,
    checked_target,
    device_option,
    devices_option,
    find_model,
    json_option,
    loading_of,
    loading_options,
    pairs,
    places,
    recurrent_pairs,
)
from .sizes import BUCKETING, SIZES

if TYPE_CHECKING:
    from ..evaluation import Evaluation


@click.command("evaluate", short_help="Play episodes with one policy, or compare several.")
@click.argument("models", nargs=-1, metavar="[MODEL]...", type=ModelName())
@click.option("--env", metavar="ID", help="Gymnasium id, or module:id.  [default: the model's own]")
@click.option(
    "--episodes",
    type=click.IntRange(1),
    metavar="N",
    default=100,
    help="Number of episodes; number i has the seed --seed + i.  [default: 100]",
)
@click.option(
    "--num-envs", type=click.IntRange(1), metavar="N", help="Environments side by side.  [default: 16]"
)
@click.option(
    "--preload", type=SIZES, metavar="SIZES", help="Batch sizes to compile before the start, such as 1-8,16."
)
@click.option(
    "--bucketing",
    type=BUCKETING,
    metavar="exact|pow2|SIZES",
    help="Batch sizes that get a plan; others are padded.  [default: pow2, or exact if rows mix]",
)
@click.option(
    "--on-miss",
    type=click.Choice(["compile", "pad", "warn", "error"]),
    default="compile",
    help="Action of a batch size without a plan.  [default: compile, ahead where possible]",
)
@click.option("--cache-dir", metavar="DIR", help="Keep compiled plans in this folder for the next run.")
@click.option("--maxsize", type=click.IntRange(1), metavar="N", help="Most plans to keep.")
@click.option(
    "--seed", type=click.IntRange(0), metavar="S", default=0, help="Seed of the first episode.  [default: 0]"
)
@click.option("--stochastic", is_flag=True, help="Draw actions and noise instead of taking the best action.")
@click.option("--async", "asynchronous", is_flag=True, help="Step the environments in worker processes.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Worker processes for --async.  [default: one per core]",
)
@click.option("--max-steps", type=click.IntRange(1), metavar="N", help="End an episode after N steps.")
@click.option(
    "--observation",
    multiple=True,
    metavar="PART=INPUT",
    help="Part of the observation that feeds an input.",
)
@click.option("--action", metavar="OUTPUT", help="Output that gives the action.")
@click.option("--epsilon", metavar="INPUT", help="Input for noise.")
@click.option(
    "--recurrent",
    multiple=True,
    metavar="auto|IN:OUT,...",
    help="Hidden state: an input, and the output with its next value.  [default: auto]",
)
@click.option(
    "--vecnormalize",
    metavar="FILE",
    help="Normalize observations with statistics that SB3's VecNormalize saved.",
)
@click.option("--select", metavar="INDICES", help="Elements of the observation for the policy, such as 0,2.")
@click.option(
    "--scale-actions", is_flag=True, help="Stretch actions from [-1, 1] to the action space (SAC, TD3)."
)
@click.option("--no-clip", is_flag=True, help="Do not clip actions to the action space.")
@loading_options
@device_option
@devices_option
@click.option("--render", is_flag=True, help="Open a window that shows the first environment.")
@click.option("--video", metavar="DIR", help="Write videos of the first environment to this folder.")
@click.option(
    "--save",
    metavar="FILE.json|.csv",
    callback=checked_target,
    help="Write the results: .json for memojax.evaluation.load, .csv with a line per episode.",
)
@click.option("--plot", metavar="FILE.png", help="Draw the returns, and the time per call by batch size.")
@json_option
def command(
    models: tuple[str, ...], json_file: str | None, plot: str | None, save: str | None, **given: Any
) -> None:
    """Play episodes with one policy, or compare several on the same seeds.

    Environments run side by side. Each step is one call of the policy for all of them, so the batch shrinks
    as episodes end. A few batch sizes have an executable; others are padded. Without MODEL, the bundled
    acrobot_ppo plays Acrobot-v1.

    \b
    Examples:
      memojax evaluate
      memojax evaluate policy.onnx --env CartPole-v1 --episodes 500 --num-envs 64 --cache-dir plans
      memojax evaluate old.onnx new.onnx --env Pendulum-v1 --plot returns.png --json results.json
    """
    from .. import evaluation, policies
    from ..errors import MemojaxError
    from ..evaluation.files import check_suffix

    check_plot(plot)
    if save is not None:
        check_suffix(save)
    files = [find_model(name) for name in models or (policies.DEFAULT,)]
    transforms = _transforms(given)
    options = _options(given)
    loading = loading_of(given["dims"], given["constants"], given["batch_axis"])
    env_id = given["env"] or _common_env(files)
    done: list[Evaluation] = []
    failure: MemojaxError | KeyboardInterrupt | None = None
    for file, name in zip(files, _names(files), strict=True):
        try:
            done.append(_evaluate(file, name, env_id, given, loading, options, transforms))
        except (MemojaxError, KeyboardInterrupt) as error:
            failure = error
            partial = getattr(error, "partial", None)
            if partial is not None and partial.episodes:
                done.append(partial)
            break
        if done[-1].interrupted:
            break
    if save is not None and done:
        evaluation.save(done, save)
    _report(done, files, len(models) > 1, json_file, plot)
    if failure is not None:
        raise failure
    if done[-1].interrupted:
        click.get_current_context().exit(130)


def _evaluate(
    file: ModelFile,
    name: str,
    env_id: str | None,
    given: Mapping[str, Any],
    loading: Mapping[str, Any],
    options: Mapping[str, Any],
    transforms: Mapping[str, Any],
) -> Evaluation:
    from ..evaluation import SelectObs, evaluate
    from ..lowering.loading import typed_model

    own_env = file.card.get("env_id")
    seen = (
        file.card.get("observation_indices")
        if own_env == (env_id or own_env) and not given["select"]
        else None
    )
    selected = [SelectObs(seen)] if seen else []
    return evaluate(
        typed_model(file.path, **loading),
        env_id or own_env,
        name=name,
        progress=True,
        observation_transforms=[*selected, *transforms["observation"]],
        action_transforms=transforms["action"],
        **options,
    )


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "episodes": given["episodes"],
        "num_envs": given["num_envs"],
        "seed": given["seed"],
        "vectorization": "async" if given["asynchronous"] else "sync",
        "workers": given["workers"],
        "max_steps": given["max_steps"],
        "deterministic": not given["stochastic"],
        "observation": dict(pairs(given["observation"], "--observation")) or None,
        "action": given["action"],
        "epsilon": given["epsilon"],
        "recurrent": recurrent_pairs(given["recurrent"]) or None,
        "preload": given["preload"] or (),
        **{name: given[name] for name in ("bucketing", "on_miss", "cache_dir", "maxsize")},
        **places(given["device"], given["devices"]),
        "render": given["render"],
        "video": given["video"],
    }


def _transforms(given: Mapping[str, Any]) -> dict[str, Any]:
    from ..evaluation import ClipAction, NormalizeObs, ScaleAction, SelectObs

    observation: list[Any] = []
    if given["select"]:
        try:
            observation.append(SelectObs([int(index) for index in given["select"].split(",")]))
        except ValueError:
            raise click.UsageError(f"--select {given['select']!r}: write indices such as 0,2") from None
    if given["vecnormalize"]:
        observation.append(NormalizeObs.from_vecnormalize(given["vecnormalize"]))
    action: list[Any] | None = None
    if given["scale_actions"] or given["no_clip"]:
        action = [
            *([ScaleAction()] if given["scale_actions"] else []),
            *([] if given["no_clip"] else [ClipAction()]),
        ]
    return {"observation": observation, "action": action}


def _common_env(files: Sequence[ModelFile]) -> str | None:
    """The environment of the models' cards, if several models are to be compared."""
    named = {str(file.card["env_id"]) for file in files if file.card}
    if len(named) > 1:
        raise click.UsageError(
            f"the models were trained for {' and '.join(sorted(named))}: choose one environment with --env"
        )
    return named.pop() if named else None


def _names(files: Sequence[ModelFile]) -> list[str]:
    """File names made unique: with the distinguishing folder, or a number for the same file."""
    names: list[str] = []
    for file in files:
        alike = [other.path.resolve() for other in files if other.name == file.name]
        if len(set(alike)) > 1:
            folder = Path(os.path.commonpath([path.parent for path in alike]))
            names.append(str(file.path.resolve().relative_to(folder).with_suffix("")))
        else:
            names.append(file.name)
    return [
        name if names.count(name) == 1 else f"{name} ({names[: index + 1].count(name)})"
        for index, name in enumerate(names)
    ]


def _report(
    done: Sequence[Evaluation],
    files: Sequence[ModelFile],
    comparing: bool,
    json_file: str | None,
    plot: str | None,
) -> None:
    from ..evaluation import compare
    from .output import show, write_json

    if not done:
        return
    shared = [other for other in done[1:] if set(other.seeds) & set(done[0].seeds)]
    comparisons = [compare(done[0], other) for other in shared]
    if json_file:
        write_json(
            json_file,
            {
                "evaluations": [one.to_dict() for one in done],
                "comparisons": [one.to_dict() for one in comparisons],
            },
        )
    if json_file != "-":
        items = _comparison(done, comparisons) if comparing else _single(done[0], files[0].card)
        show(*items)
    if plot:
        from .. import evaluation

        evaluation.plot(done, plot)
        if json_file != "-":
            click.echo(f"\ndrawn: {plot}")


def _single(done: Evaluation, card: Mapping[str, Any]) -> list[Any]:
    from .output import facts, number, table

    lengths = done.lengths
    about = [
        ("return", f"{_mean(done)}   (95 % interval {_between(done, done.confidence_interval())})"),
        (
            "interquartile mean",
            f"{_return(done, done.interquartile_mean)}   "
            f"(95 % bootstrapped {_between(done, done.interquartile_interval())})",
        ),
        (
            "episode length",
            f"{number(done.mean_length)}"
            + (f"   ({lengths.min()} to {lengths.max()})" if len(lengths) else ""),
        ),
        ("steps per second", _speed(done)),
    ]
    if "mean_return" in card and card.get("env_id") == done.env_id:
        from ..evaluation.statistics import plus_minus

        recorded = plus_minus(card["mean_return"], card.get("standard_error", float("nan")))
        about.append(
            ("recorded return", f"{recorded}   ({card.get('episodes', '?')} episodes after training)")
        )
    about.append(("policy", f"{', '.join(done.feeds)}; action: {done.action}"))
    about += [(side, ", ".join(steps)) for side, steps in done.transforms()]
    about += [(f"metadata {key}", value[:120]) for key, value in done.metadata.items()]
    rows = [
        (plan.size, number(plan.compile_ms), plan.calls, *_call(done, plan))
        for plan in sorted(done.plans, key=lambda plan: -plan.size)
        if plan.calls or plan.size in done.batch_sizes
    ]
    idle = [str(plan.size) for plan in done.plans if not plan.calls and plan.size not in done.batch_sizes]
    items: list[Any] = [_title(done), facts(about)]
    if rows:
        items.append(
            table(["batch size", "compile ms", "calls", "median call us", "us per agent"], rows, left=0)
        )
        count = f"{len(done.plans)} plan{'s' if len(done.plans) != 1 else ''}"
        padding = f"; {done.padded_rows:,} rows of padding" if done.padded_rows else ""
        unused = f"; not used: {', '.join(idle)}" if idle else ""
        items.append(f"[dim]{count}, one executable per batch size{padding}{unused}[/]")
    return items


def _comparison(done: Sequence[Evaluation], comparisons: Sequence[Any]) -> list[Any]:
    from rich.markup import escape

    from .output import number, table

    by_name = {one.other: one for one in comparisons}
    rows = []
    for one in done:
        difference = _difference(by_name[one.model]) if one.model in by_name else "-"
        quality = (
            one.model,
            _mean(one),
            _between(one, one.confidence_interval()),
            difference,
            number(one.mean_length),
        )
        rows.append((*quality, number(one.steps_per_second, 0), len(one.plans), number(one.compile_seconds)))
    baseline = done[0].model
    columns = [
        "model",
        "return",
        "95 % interval",
        f"minus {baseline}",
        "length",
        "steps/s",
        "plans",
        "compile s",
    ]
    items: list[Any] = [_title(done[0], several=True), table(columns, rows)]
    for one in done:
        items += [escape(f"{one.model}: {side}: {', '.join(steps)}") for side, steps in one.transforms()]
    if comparisons:
        items.append("[dim]differences are paired by seed; * where the 95 % interval leaves out 0[/]")
    if done[-1].interrupted:
        items.append(
            f"[yellow]interrupted: {done[-1].model} has {len(done[-1].episodes)} of {done[-1].asked} "
            "episodes[/]"
        )
    return items


def _difference(one: Any) -> str:
    from ..evaluation.statistics import plus_minus

    return f"{plus_minus(one.difference, one.standard_error)}{' *' if one.significant else ''}"


def _title(done: Evaluation, several: bool = False) -> str:
    from rich.markup import escape

    how = "deterministic" if done.deterministic else "stochastic"
    first = int(done.seeds[0]) if len(done.seeds) else 0
    count = (
        f"{len(done.episodes)} episodes"
        if not done.interrupted or several
        else f"{len(done.episodes)} of {done.asked} episodes"
    )
    stopped = (
        " [yellow](stopped: short episodes end first, so the mean may be off)[/]"
        if done.interrupted and not several
        else ""
    )
    name = "" if several else f"{escape(done.model)} on "
    rest = f"{count}, {done.num_envs} side by side, {how}, seeds from {first}{stopped}"
    return f"[bold]{name}{escape(done.env_id)}[/]: {rest}"


def _mean(done: Evaluation) -> str:
    from ..evaluation.statistics import plus_minus

    return plus_minus(done.mean_return, done.standard_error)


def _between(done: Evaluation, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{_return(done, low)} to {_return(done, high)}"


def _return(done: Evaluation, value: float) -> str:
    """A return with as many digits as the mean has; a dash for NaN."""
    from ..evaluation.statistics import decimals

    return "-" if math.isnan(value) else f"{value:.{decimals(done.standard_error)}f}"


def _speed(done: Evaluation) -> str:
    parts = [
        f"{done.policy_seconds:.1f} s in the policy",
        f"{done.environment_seconds:.1f} s in the environment",
    ]
    plans = f"; plans took {done.compile_seconds:.1f} s" if done.compile_seconds else ""
    about = f"{done.steps:,} steps in {done.seconds:.1f} s: {', '.join(parts)}{plans}"
    return f"{done.steps_per_second:,.0f}   ({about})"


def _call(done: Evaluation, plan: Any) -> tuple[str, str]:
    """Microseconds per call of a plan and per agent, over the batch sizes that it served."""
    from .output import number

    served = [size for size in done.call_us if done.plan_size(size) == plan.size]
    calls = sum(done.batch_sizes[size] for size in served)
    total = sum(done.call_us[size] * done.batch_sizes[size] for size in served)
    agents = sum(size * done.batch_sizes[size] for size in served)
    return number(total / calls if calls else None), number(total / agents if agents else None)
