"""`import memojax` is a guest: it starts no backend and no thread, and changes no setting."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import json, logging, sys, threading, warnings
import jax, numpy
from jax._src import xla_bridge
before = dict(jax.config.values)
filters, level, errors = list(warnings.filters), logging.getLogger().level, numpy.geterr()
import memojax
heavy = "torch onnxruntime gymnasium matplotlib rich click tensorflow flax"
[getattr(memojax, name) for name in memojax.__all__]  # each name is imported when it is first used
print(json.dumps({
    "config": [name for name, value in jax.config.values.items() if before.get(name) != value],
    "backend": xla_bridge.backends_are_initialized(),
    "client": memojax.xla.cpu_client.client_exists(),
    "threads": [thread.name for thread in threading.enumerate()],
    "warnings": filters != list(warnings.filters),
    "logging": level != logging.getLogger().level,
    "numpy": errors != numpy.geterr(),
    "heavy": [name for name in heavy.split() if name in sys.modules],
}))
"""


def test_import_starts_nothing_and_changes_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(done.stdout) == {
        "config": [],
        "backend": False,
        "client": False,
        "threads": ["MainThread"],
        "warnings": False,
        "logging": False,
        "numpy": False,
        "heavy": [],
    }
