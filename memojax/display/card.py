"""`Card`: facts about an inferer that take no computation, as text and as HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Protocol

from ..model.signature import ModelApi, TensorSpec
from ..plans.plan import Plan, PlanInfo

MOST_PLANS = 24
"""Rows that a plan table may have; if there are more plans, it shows those with most calls."""

_LONGEST = 80
_BAR = 16


class Shown(Protocol):
    """An object with a card."""

    def _card(self) -> Card:
        """Collect existing facts; compile and run nothing."""
        ...


@dataclass(frozen=True)
class PlanRow:
    """A plan, and the kind of batches that it runs: "NumPy", or the device of `jax.Array`s."""

    info: PlanInfo
    batches: str = "NumPy"


@dataclass(frozen=True)
class Card:
    """The content of an inferer's view.

    Attributes:
        title: class of the inferer, and name of its model.
        facts: pairs of name and value.
        api: inputs and outputs that callers see.
        plans: the plans to list, by size.
        hidden: the number of plans that are left out.
        warnings: facts that may surprise.
        inner: cards of wrapped inferers.
    """

    title: str
    facts: Sequence[tuple[str, str]] = ()
    api: ModelApi | None = None
    plans: Sequence[PlanRow] | None = None
    hidden: int = 0
    warnings: Sequence[str] = ()
    inner: Sequence[Card] = field(default=())

    def text(self) -> str:
        """Lines for a terminal, without colours."""
        blocks = [_plain(self.title)]
        facts = [*_tensors(self.api), *self.facts]
        width = max((len(name) for name, _ in facts), default=0)
        blocks += [f"  {name:<{width}}  {_plain(value)}" for name, value in facts]
        if self.plans is not None:
            blocks += [f"  {line}".rstrip() for line in self._plan_lines()]
        blocks += [f"  ! {_plain(warning)}" for warning in self.warnings]
        for card in self.inner:
            blocks += [f"  {line}" for line in card.text().splitlines()]
        return "\n".join(blocks)

    def html(self) -> str:
        """A `<div>` for a notebook, in the colours of the page."""
        facts = "".join(
            f"<tr>{_cell(name, _QUIET)}{_cell(value)}</tr>"
            for name, value in (*_tensors(self.api), *self.facts)
        )
        parts = [
            f"<strong>{escape(_plain(self.title))}</strong>",
            f'<table style="margin: 0.3em 0">{facts}</table>' if facts else "",
        ]
        if self.plans:
            parts.append(self._plan_table())
        elif self.plans is not None:
            parts.append(f'<div style="{_QUIET}">{_NO_PLANS}</div>')
        parts += [f"<div>&#9888; {escape(_plain(warning))}</div>" for warning in self.warnings]
        parts += [f'<div style="{_NESTED}">{card.html()}</div>' for card in self.inner]
        return f"<div>{''.join(parts)}</div>"

    def _columns(self) -> list[tuple[str, Callable[[PlanRow], str]]]:
        """(heading, text for a row) of the columns; a column needs a value for at least one plan."""
        plans = self.plans or ()
        columns: list[tuple[str, Callable[[PlanRow], str]]] = [
            ("size", lambda row: str(row.info.size)),
            ("compile ms", lambda row: f"{row.info.compile_ms:,.0f}"),
            ("calls", lambda row: f"{row.info.calls:,}"),
            ("median us", lambda row: "-" if row.info.median_us is None else f"{row.info.median_us:,.1f}"),
        ]
        if any(row.info.bytes is not None for row in plans):
            columns.append(("bytes", lambda row: "-" if row.info.bytes is None else f"{row.info.bytes:,}"))
        if any(row.info.candidate != "default" for row in plans):
            columns.append(("candidate", lambda row: row.info.candidate))
        if any(row.batches != "NumPy" for row in plans):
            columns.append(("batches", lambda row: row.batches))
        return columns

    def _shares(self) -> list[float]:
        """Time of a call of each plan, relative to the slowest plan; 0 if it was never timed."""
        times = [row.info.median_us or 0.0 for row in self.plans or ()]
        slowest = max(times, default=0.0) or 1.0
        return [time / slowest for time in times]

    def _plan_lines(self) -> list[str]:
        if not self.plans:
            return [_NO_PLANS]
        columns = self._columns()
        cells = [[name for name, _ in columns]] + [
            [_plain(show(row)) for _, show in columns] for row in self.plans
        ]
        widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
        bars = ["", *("▇" * max(round(share * _BAR), share > 0) for share in self._shares())]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths)) + f"  {bar}"
            for row, bar in zip(cells, bars)
        ]
        return lines + ([self._more()] if self.hidden else [])

    def _plan_table(self) -> str:
        columns = self._columns()
        rows = []
        for row, share in zip(self.plans or (), self._shares()):
            bar = f'<div style="width: {share * 8:.2f}em; {_BAR_STYLE}"></div>'
            cells = "".join(_cell(show(row), "text-align: right") for _, show in columns)
            rows.append(f'<tr>{cells}<td style="text-align: left">{bar}</td></tr>')
        head = "".join(f'<th style="text-align: right">{escape(name)}</th>' for name, _ in columns)
        more = f'<div style="{_QUIET}">{self._more()}</div>' if self.hidden else ""
        table = f"<thead><tr>{head}<th></th></tr></thead><tbody>{''.join(rows)}</tbody>"
        return f'<table style="margin: 0.3em 0">{table}</table>{more}'

    def _more(self) -> str:
        return f"and {self.hidden} more with fewer calls: see plans()"


def card_of(inferer: Any) -> Card:
    """The card of an inferer; if it defines none, a card with its class, inputs and outputs."""
    return inferer._card() if hasattr(inferer, "_card") else Card(type(inferer).__name__, api=inferer.raw_api)


def text_of(shown: Shown) -> str:
    """The card of `shown` as text; it never raises, since debuggers call `__repr__` on half-made objects."""
    try:
        return shown._card().text()
    except Exception as cause:
        return (
            f"<{type(shown).__qualname__} at {id(shown):#x}, which cannot be shown: {type(cause).__name__}>"
        )


def html_of(shown: Shown) -> str:
    """The card of `shown` as HTML; it never raises."""
    try:
        return shown._card().html()
    except Exception:
        return f"<pre>{escape(text_of(shown))}</pre>"


def busiest(plans: Sequence[tuple[Plan, str]]) -> tuple[list[PlanRow], int]:
    """Rows for the plans with most calls, in the given order, and the number of plans left out."""
    kept = plans
    if len(plans) > MOST_PLANS:
        chosen = {id(plan) for plan, _ in sorted(plans, key=lambda pair: -pair[0].calls)[:MOST_PLANS]}
        kept = [pair for pair in plans if id(pair[0]) in chosen]
    return [PlanRow(plan.info(), batches) for plan, batches in kept], len(plans) - len(kept)


_QUIET = "opacity: 0.65; text-align: left"
_BAR_STYLE = "height: 0.7em; background: currentColor; opacity: 0.45"
_NESTED = "margin: 0.3em 0 0 0.4em; padding-left: 0.8em; border-left: 1px solid currentColor"
_NO_PLANS = "no plans yet: the first call of a batch size compiles one"


def _tensors(api: ModelApi | None) -> list[tuple[str, str]]:
    if api is None:
        return []
    width = max((len(_plain(spec.name)) for spec in (*api.inputs, *api.outputs)), default=0)
    return [
        (side, _tensor(spec, width))
        for side, specs in (("input", api.inputs), ("output", api.outputs))
        for spec in specs
    ]


def _tensor(spec: TensorSpec, width: int) -> str:
    return f"{_plain(spec.name):<{width}}  {spec.dtype}[{', '.join(map(str, ('n', *spec.shape)))}]"


def _cell(text: str, style: str = "text-align: left") -> str:
    return f'<td style="{style}">{escape(_plain(text))}</td>'


def _plain(text: Any) -> str:
    """`text` shortened to one line, without control characters: names come from untrusted files."""
    safe = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(text))
    return safe if len(safe) <= _LONGEST * 3 else safe[: _LONGEST * 3 - 3] + "..."
