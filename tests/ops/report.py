"""The tables of docs/operators.md; `python -m tests.ops.report` writes them from failures and registry."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx

from memojax.ops.coverage import coverage
from tests.ops import corpus

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"
BEGIN, END = "<!-- coverage -->\n", "<!-- /coverage -->"
LOWERINGS = ("ours", "delegated", "function body", "host", "no")
TITLES = ("written here", "by jaxonnxruntime", "by the spec's function body", "on the host", "not")
DOMAINS = ("", "ai.onnx.ml", "ai.onnx.preview.training", "com.microsoft")
OLDEST = 7
"""The oldest opset in the tables; op-versions that it has replaced are left out."""

LOWERED_BY = {
    "ours": "memojax",
    "delegated": "jaxonnxruntime",
    "function body": "the spec's function body",
    "host": "the host",
    "no": "-",
}


def cases_table() -> str:
    """Table of ONNX's own cases by kind, with the numbers of cases that pass."""
    rows = [f"| `{kind}` | {passed:,} | {total:,} |" for kind, (passed, total) in corpus.tally().items()]
    return "\n".join([f"| ONNX {onnx.__version__}'s own cases | passed | of |", "|---|---:|---:|", *rows])


def operators_table() -> str:
    """Table of op-versions at opset 7 or later, by how they are lowered."""
    counts = {domain: Counter[str]() for domain in DOMAINS}
    for row in coverage():
        for version, until in zip(
            row.versions, [*(newer.since for newer in row.versions[1:]), 1 << 30], strict=True
        ):
            if row.domain in DOMAINS and (row.domain or until > OLDEST):
                counts[row.domain][version.by] += 1
    rows = [
        f"| `{name or 'ai.onnx'}` | {found.total()} | {' | '.join(str(found[by]) for by in LOWERINGS)} |"
        for name, found in counts.items()
    ]
    return "\n".join(
        [f"| op-versions | all | {' | '.join(TITLES)} |", "|---|---:" + "|---:" * len(LOWERINGS) + "|", *rows]
    )


def listing() -> str:
    """Table of all operators, with their versions and how these are lowered."""
    lines = ["| operator | versions | lowered by | why not |", "|---|---|---|---|"]
    for row in coverage():
        for by, reason, versions in row.groups():
            lines.append(f"| {row.name} | {', '.join(map(str, versions))} | {LOWERED_BY[by]} | {reason} |")
    return "\n".join(lines)


def block() -> str:
    """The table between its markers."""
    return f"{cases_table()}\n\n{operators_table()}\n\n{listing()}\n"


def written() -> str:
    """The table as the page has it now."""
    return PAGE.read_text().split(BEGIN)[1].split(END)[0]


def main() -> None:
    PAGE.write_text(PAGE.read_text().replace(BEGIN + written() + END, BEGIN + block() + END))
    print(block())


if __name__ == "__main__":
    main()
