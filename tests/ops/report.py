"""The coverage numbers of the README, from the known failures and the registry; `python -m tests.ops.report` writes them there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from memojax.ops.coverage import coverage
from tests.ops import corpus

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- coverage -->\n", "<!-- /coverage -->"
LOWERINGS = ("ours", "delegated", "function body", "host", "no")
TITLES = ("written here", "by jaxonnxruntime", "by the spec's function body", "on the host", "not")
DOMAINS = {
    "": "`ai.onnx`",
    "ai.onnx.ml": "`ai.onnx.ml`",
    "ai.onnx.preview.training": "`ai.onnx.preview.training`",
    "com.microsoft": "`com.microsoft`",
}
OLDEST = 7
"""Op-versions that opset 7 has replaced are not counted."""


def cases_table() -> str:
    """ONNX's own cases by kind: how many pass."""
    rows = [f"| `{kind}` | {passed:,} | {total:,} |" for kind, (passed, total) in corpus.tally().items()]
    return "\n".join(["| ONNX's own cases | passed | of |", "|---|---:|---:|", *rows])


def operators_table() -> str:
    """Op-versions in force at opset 7 or later, by who lowers them."""
    counts: dict[str, Counter[str]] = {title: Counter() for title in DOMAINS.values()}
    for row in coverage():
        if row.domain not in DOMAINS:
            continue
        newer = [version.since for version in row.versions][1:]
        for version, next_since in zip(row.versions, [*newer, 1 << 30], strict=True):
            if row.domain or next_since > OLDEST:
                counts[DOMAINS[row.domain]][version.by] += 1
    rows = [f"| {title} | {sum(found.values())} | {' | '.join(str(found[by]) for by in LOWERINGS)} |" for title, found in counts.items()]
    return "\n".join([f"| op-versions | all | {' | '.join(TITLES)} |", "|---|---:" + "|---:" * len(LOWERINGS) + "|", *rows])


def block() -> str:
    """What stands between the markers."""
    return f"{cases_table()}\n\n{operators_table()}\n"


def main() -> None:
    before, rest = README.read_text().split(BEGIN)
    README.write_text(before + BEGIN + block() + END + rest.split(END)[1])
    print(block())


if __name__ == "__main__":
    main()
