"""Free memory, read before XLA allocates: a CPU client that runs out of memory ends the process."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax

from .limits import MEMORY, counting_rows, for_rows

_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: jax.Device) -> int | None:
    """Bytes that a device can still allocate; None if unknown."""
    if device.platform != "cpu":
        stats: dict[str, Any] = device.memory_stats() or {}
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None
    found = [value for value in (_free_of_machine(), _free_of_container()) if value is not None]
    return min(found, default=None)


def bytes_per_row(compiled: Any, size: int) -> float:
    """Bytes of outputs and temporaries for each row, by the report of an executable for `size` rows.

    0 if the executable reports nothing.
    """
    try:
        analysis = compiled.memory_analysis()
        return (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / size
    except Exception:  # backends without this analysis raise various errors
        return 0.0


def check_memory(compiled: Any, rows: int) -> None:
    """Check that an executable made of a file needs no more memory to run than a file may use.

    Raises:
        LimitError: it needs more.
    """
    with counting_rows(rows):
        MEMORY.check(int(bytes_per_row(compiled, 1)), f"this model, run on {rows} row(s),", for_rows(MEMORY))


def readable(count: float) -> str:
    """`count` bytes as text, such as "1.5 MiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.3g} {unit}"


def _free_of_machine() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _free_of_container() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        limit = (_CGROUP / "memory.max").read_text().strip()
        return None if limit == "max" else int(limit) - int((_CGROUP / "memory.current").read_text())
    return None
