"""Share of public names whose types pyright knows; `python -m tests.type_completeness` fails below the least
share.

Operators are left out: an operator is a function of arrays whose signature is its ONNX spec, and nobody calls
it directly.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

LEAST = 0.97
WHOLE = ("memojax.load", "memojax.to_jax", "memojax.evaluate")
"""Functions that every user calls: their types are known without exception."""


def main() -> None:
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    command += ["--verifytypes", "memojax", "--ignoreexternal", "--outputjson"]
    # Pyright verifies a package that it finds by the path, with its py.typed, not the folder that it runs in.
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    symbols = [
        symbol
        for symbol in report["typeCompleteness"]["symbols"]
        if symbol["isExported"] and not symbol["name"].startswith("memojax.ops.")
    ]
    unknown = [symbol for symbol in symbols if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]]
    for symbol in unknown:
        reasons = [said["message"] for said in symbol["diagnostics"] if "docstring" not in said["message"]]
        print(f"{symbol['name']}: {'; '.join(reasons) or 'a part of it is not known'}")
    share = 1 - len(unknown) / len(symbols)
    print(f"{share:.1%} of {len(symbols)} public names have known types, at least {LEAST:.0%} is wanted")
    missing = {symbol["name"] for symbol in unknown} & set(WHOLE)
    if missing or share < LEAST:
        raise SystemExit(
            f"annotate what is listed above{': ' + ', '.join(sorted(missing)) if missing else ''}"
        )


if __name__ == "__main__":
    main()
