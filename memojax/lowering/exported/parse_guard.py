"""Parse a serialized StableHLO program in a child process, because crafted bytes can crash the parser."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

_SECONDS = 60
_BYTES = 1 << 30
"""Memory limit of the child, on systems that have one."""

_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import chlo, stablehlo
program = sys.stdin.buffer.read()
context = ir.Context()
stablehlo.register_dialect(context)
chlo.register_dialect(context)
try:
    import resource
    with open("/proc/self/statm") as file:
        most = int(file.read().split()[0]) * resource.getpagesize() + int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, OSError, ValueError):
    pass
stablehlo.deserialize_portable_artifact(context, program)
print("parsed", flush=True)
"""


@functools.lru_cache(maxsize=256)
def parse_failure(program: bytes) -> str | None:
    """The reason why `program` cannot be parsed; None if it can."""
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD, json.dumps(sys.path), str(_BYTES)],
            input=program,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"its parser did not end within {_SECONDS} s"
    except (OSError, ValueError) as cause:
        return f"no child process could parse it: {cause}"
    if child.stdout.strip() == b"parsed" and child.returncode == 0:
        return None
    if child.returncode < 0:
        return f"its parser crashed (signal {-child.returncode})"
    lines = child.stderr.decode(errors="replace").strip().splitlines()
    last = lines[-1] if lines else "no reason was given"
    return next((line.strip() for line in lines if "error:" in line), last)[:300]
