from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray() -> Iterator[object]:
    """One small Ray on this machine for all tests."""
    ray = pytest.importorskip("ray")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
        _system_config={"metrics_report_interval_ms": 500},
    )
    yield ray
    ray.shutdown()
