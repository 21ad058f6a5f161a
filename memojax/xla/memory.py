"""Whether a batch size fits the memory there is, asked before XLA allocates: a CPU client that runs out ends the process."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax

_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: jax.Device) -> int | None:
    """Bytes that a device could still allocate; None where nobody says."""
    if device.platform != "cpu":
        stats: dict[str, Any] = device.memory_stats() or {}
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None
    found = [value for value in (_free_of_machine(), _free_of_container()) if value is not None]
    return min(found, default=None)


def bytes_per_row(compiled: Any, size: int) -> float:
    """What an executable for `size` rows says it needs for outputs and temporaries, for each row; 0 where it says nothing."""
    try:
        analysis = compiled.memory_analysis()
        return (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / size
    except Exception:  # not every backend has it, and those that have not raise as they like
        return 0.0


def readable(count: float) -> str:
    """`count` bytes for people."""
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
