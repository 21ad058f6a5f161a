"""The folder of compiled plans: whole entries or none, nothing foreign, never an error in the loop."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

import pytest

from memojax.plans.disk_cache import DiskCache, disk_cache, environment_key

KEY = {"model": "abc", "size": 3, "name": "policy.onnx"}


def only(cache: DiskCache) -> Path:
    (entry,) = cache.entries()
    return entry.path


def test_stores_and_finds_by_the_whole_key(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "made" / "when needed")
    assert cache.get(KEY) is None
    assert cache.entries() == []
    cache.put(KEY, b"payload")
    assert cache.get(KEY) == b"payload"
    assert DiskCache(cache.folder).get(dict(reversed(KEY.items()))) == b"payload"
    assert cache.get({**KEY, "size": 4}) is None
    assert cache.entries()[0].description == "policy.onnx x 3"
    assert cache.clear() == 1
    assert cache.get(KEY) is None


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-20], lambda b: b[:10], lambda b: b"", lambda b: b[:80] + bytes([b[80] ^ 1]) + b[81:]],
)
def test_a_damaged_entry_is_removed_with_a_warning(
    tmp_path: Path, damage, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path)
    cache.put(KEY, b"payload" * 10)
    path = only(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(KEY) is None
    assert "damaged" in caplog.text
    assert not path.exists()


def test_an_entry_under_another_name_is_foreign(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    cache.put(KEY, b"payload")
    stolen = only(cache)
    cache.put({**KEY, "size": 4}, b"other")
    other = next(entry.path for entry in cache.entries() if entry.path != stolen)
    os.replace(stolen, other)
    assert cache.get({**KEY, "size": 4}) is None


def test_an_unwritable_folder_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    cache = DiskCache(blocked / "cache")
    with caplog.at_level(logging.WARNING):
        cache.put(KEY, b"payload")
        cache.put(KEY, b"payload")
    assert caplog.text.count("cannot be used") == 1
    assert cache.get(KEY) is None


def test_the_least_recently_used_entries_are_removed_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=3500)
    for size in range(3):
        cache.put({**KEY, "size": size}, bytes(1000))
        os.utime(next(e.path for e in cache.entries() if e.description.endswith(f" {size}")), (size, size))
    assert cache.get({**KEY, "size": 0}) is not None
    cache.put({**KEY, "size": 3}, bytes(1000))
    assert cache.get({**KEY, "size": 0}) is not None
    assert cache.get({**KEY, "size": 1}) is None


def test_concurrent_writers_and_readers_see_whole_entries(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop = time.monotonic() + 0.5
    seen: set[bytes | None] = set()

    def work(letter: bytes) -> None:
        cache = DiskCache(tmp_path)
        while time.monotonic() < stop:
            cache.put(KEY, letter * 100_000)
            seen.add(cache.get(KEY))

    threads = [threading.Thread(target=work, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen <= {b"a" * 100_000, b"b" * 100_000, b"c" * 100_000}
    assert "damaged" not in caplog.text
    assert not list(tmp_path.glob("*.tmp"))


def test_opt_in_by_argument_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMOJAX_CACHE_DIR", raising=False)
    assert disk_cache(None) is None
    monkeypatch.setenv("MEMOJAX_CACHE_DIR", str(tmp_path / "env"))
    found = disk_cache(None)
    assert found is not None
    assert found.folder == tmp_path / "env"
    chosen = disk_cache(tmp_path)
    assert chosen is not None
    assert chosen.folder == tmp_path
    assert {"jaxlib", "cpu", "flags"} <= environment_key().keys()
