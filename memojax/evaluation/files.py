"""Stores evaluations in files: JSON, which `load` reads, or CSV with a line per episode."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from ..plans.plan import PlanInfo
from .result import Episode, Evaluation

SUFFIXES = (".json", ".csv")


def check_suffix(path: str | PathLike[str]) -> None:
    """Check that the suffix of `path` names a format for evaluations.

    Raises:
        EvaluationError: it does not.
    """
    if Path(path).suffix.casefold() not in SUFFIXES:
        raise EvaluationError(f"{path}: evaluations are written as {' or '.join(SUFFIXES)}")


def save(evaluations: Evaluation | Iterable[Evaluation], path: str | PathLike[str]) -> None:
    """Write evaluations: `.json` for `load`, or `.csv` with a line per episode.

    Raises:
        EvaluationError: the suffix is unknown, or the file cannot be written.
    """
    check_suffix(path)
    several = [evaluations] if isinstance(evaluations, Evaluation) else list(evaluations)
    target = Path(path)
    try:
        if target.suffix.casefold() == ".csv":
            _write_csv(several, target)
        else:
            data = {"evaluations": [_plain(one.to_dict()) for one in several]}
            target.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as cause:
        raise EvaluationError(f"{path}: cannot be written: {cause.strerror or cause}") from cause


def load(path: str | PathLike[str]) -> list[Evaluation]:
    """Evaluations that `save`, `--save` or `--json` wrote.

    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "result.json"
    >>> result = memojax.evaluate(memojax.policies.bundled("acrobot_ppo"), episodes=2, max_steps=9)
    >>> memojax.evaluation.save(result, target)
    >>> (again,) = memojax.evaluation.load(target)
    >>> again.to_dict() == result.to_dict()
    True

    Raises:
        EvaluationError: the file cannot be read, or holds no evaluations.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        return [_evaluation(one) for one in data["evaluations"]]
    except OSError as cause:
        raise EvaluationError(f"{path}: cannot be read: {cause.strerror or cause}") from cause
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise EvaluationError(
            f"{path}: no evaluations as --save FILE.json writes them: {type(cause).__name__}: {cause}"
        ) from cause


def _evaluation(data: Mapping[str, Any]) -> Evaluation:
    """The inverse of `Evaluation.to_dict`."""
    columns = (data[name] for name in ("indices", "seeds", "returns", "lengths", "truncated"))
    agents = data.get("agent_returns") or [{}] * len(data["seeds"])
    episodes = tuple(
        Episode(index, seed, _number(total), length, truncated, dict(by_agent))
        for (index, seed, total, length, truncated), by_agent in zip(
            zip(*columns, strict=True), agents, strict=True
        )
    )
    same = {field.name: data[field.name] for field in dataclasses.fields(Evaluation) if field.name in data}
    tuples = ("feeds", "observation_transforms", "action_transforms", "advice")
    return Evaluation(
        **{
            **same,
            **{name: tuple(data[name]) for name in tuples},
            "episodes": episodes,
            "asked": data["episodes_asked"],
            "batch_sizes": {int(size): count for size, count in data["batch_sizes"].items()},
            "call_us": {int(size): value for size, value in data["call_us"].items()},
            "plans": [PlanInfo(**plan) for plan in data["plans"]],
        }
    )


def _write_csv(evaluations: Sequence[Evaluation], target: Path) -> None:
    rows = [row for one in evaluations for row in one.rows()]
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def _plain(value: Any) -> Any:
    """`value` for JSON, which has no NaN: null stands for it, as in the output of `--json`."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def _number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)
