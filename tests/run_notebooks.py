"""Execute notebooks: `python -m tests.run_notebooks [--write] FILE...`; `--write` keeps the output.

An error in a cell is a failure.

A notebook is skipped, with a message, if packages that its metadata name are not installed
(`"memojax": {"needs": [...]}`).
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    failed = 0
    for path in options.files:
        notebook = nbformat.read(path, as_version=4)
        needs = notebook.metadata.get("memojax", {}).get("needs", [])
        if absent := [package for package in needs if importlib.util.find_spec(package) is None]:
            print(f"skip {path}: it needs {', '.join(absent)}")
            continue
        started = time.perf_counter()
        client = NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
        )
        try:
            client.execute()
        except CellExecutionError as error:
            failed += 1
            print(f"FAIL {path}: {error}")
            continue
        print(f"ok   {path} ({time.perf_counter() - started:.0f} s)")
        if options.write:
            for cell in notebook.cells:
                cell.metadata.pop("execution", None)
            nbformat.write(notebook, path)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
