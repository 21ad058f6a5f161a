"""The plan folder when the disk is full, read-only or somebody else's, and when writers die, race or lie."""

from __future__ import annotations

import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import memojax
from memojax.errors import CacheFolderError, InputError
from memojax.plans import cache_key as keys
from memojax.plans import disk_cache as disk
from memojax.plans.cache_key import cache_key
from memojax.plans.disk_cache import DiskCache, bytes_of, disk_cache
from memojax.plans.tuning_log import NAME, Choices

KEY = {"model": "abc", "size": 3, "name": "policy.onnx"}
POLICY = memojax.policies.bundled("acrobot_ppo")
OBS = np.ones((2, 6), np.float32)
posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")


def in_process(code: str, *arguments: object, wait: bool = True) -> subprocess.Popen[str]:
    """Run Python code in another process, with `cache`, a `DiskCache` of the first argument, and `KEY`."""
    head = f"""
        import os, signal, sys, time
        from memojax.plans import disk_cache
        cache, KEY = disk_cache.DiskCache(sys.argv[1]), {KEY!r}
    """
    text = textwrap.dedent(head) + textwrap.dedent(code)
    process = subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if wait:
        process.wait(60)
    return process


def test_a_full_disk_warns_once_and_leaves_no_half_entry(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path)
    cache.put(KEY, b"small")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (20_000, before[1])
    )  # As on a full disk, a write stops in the middle.
    try:
        for _ in range(2):
            cache.put({**KEY, "size": 4}, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caplog.text.count("cannot be used") == 1
    assert len(list(tmp_path.iterdir())) == 1
    fresh = DiskCache(tmp_path)
    assert fresh.get(KEY) == b"small"
    assert fresh.get({**KEY, "size": 4}) is None


@posix
def test_a_read_only_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    DiskCache(tmp_path).put(KEY, b"there")
    tmp_path.chmod(0o500)
    if os.geteuid() == 0:  # Modes do not bind root.

        def refused(**options: object) -> None:
            raise PermissionError(13, "Permission denied", str(tmp_path))

        monkeypatch.setattr("memojax.plans.disk_cache.tempfile.mkstemp", refused)
    cache = DiskCache(tmp_path)
    try:
        assert cache.get(KEY) == b"there"
        cache.put({**KEY, "size": 4}, b"more")
        assert "cannot be used" in caplog.text
        assert DiskCache(tmp_path).get(KEY) == b"there"
    finally:
        tmp_path.chmod(0o700)


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    killed = """
        real = os.replace
        def replace(*names):
            if {when} == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            real(*names)
            os.kill(os.getpid(), signal.SIGKILL)
        disk_cache.os.replace = replace
        cache.put(KEY, b"x" * 100_000)
    """
    assert in_process(killed.replace("{when}", "'before'"), tmp_path).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".tmp"
    (tmp_path / "notes.tmp").write_text("another program's")
    cache = DiskCache(tmp_path)
    assert cache.get(KEY) is None
    cache.put({**KEY, "size": 4}, b"y")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".plan", ".tmp"]
    assert (tmp_path / "notes.tmp").exists()
    assert in_process(killed.replace("{when}", "'after'"), tmp_path).returncode == -signal.SIGKILL
    assert cache.get(KEY) == b"x" * 100_000


@pytest.mark.slow
def test_an_unfinished_file_of_a_living_writer_stays(tmp_path: Path) -> None:
    slow = """
        real = os.replace
        def replace(*names):
            print("ready", flush=True)
            sys.stdin.readline() if False else time.sleep(2)
            real(*names)
        disk_cache.os.replace = replace
        cache.put(KEY, b"slow")
    """
    writer = in_process(slow, tmp_path, wait=False)
    assert writer.stdout is not None
    assert writer.stdout.readline().strip() == "ready"
    DiskCache(tmp_path).put({**KEY, "size": 4}, b"other")
    assert list(tmp_path.glob("*.tmp"))
    assert writer.wait(60) == 0
    assert DiskCache(tmp_path).get(KEY) == b"slow"


@posix
def test_a_file_that_its_writer_is_about_to_lock_is_no_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = disk._lock

    def late(handle: int) -> None:
        monkeypatch.setattr(disk, "_lock", lock)
        disk.remove_leftovers(tmp_path)  # as another process may do at this moment, each time
        monkeypatch.setattr(disk, "_lock", late)
        lock(handle)

    monkeypatch.setattr(disk, "_lock", late)
    DiskCache(tmp_path).put(KEY, b"whole")
    monkeypatch.setattr(disk, "_lock", lock)
    assert DiskCache(tmp_path).get(KEY) == b"whole"
    assert not list(tmp_path.glob("*.tmp"))
    (tmp_path / "memojax-old.tmp").touch()
    os.utime(tmp_path / "memojax-old.tmp", (0, 0))
    disk.remove_leftovers(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.slow
def test_two_writers_and_a_reader_see_whole_entries(tmp_path: Path) -> None:
    write = """
        end = time.monotonic() + 2
        while time.monotonic() < end:
            fresh = disk_cache.DiskCache(sys.argv[1])
            fresh.put(KEY, sys.argv[2].encode() * 50_000)
            assert fresh._usable
    """
    writers = [in_process(write, tmp_path, letter, wait=False) for letter in "ab"]
    cache, seen = DiskCache(tmp_path), set()
    while any(writer.poll() is None for writer in writers):
        seen.add(cache.get(KEY))
    said = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], said
    assert seen <= {None, b"a" * 50_000, b"b" * 50_000}
    assert cache.get(KEY) is not None
    assert not list(tmp_path.glob("*.tmp"))


class Trap:
    """It leaves a file behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_foreign_entry_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    folder, sprung = tmp_path / "plans", tmp_path / "sprung"
    inferer = memojax.load(POLICY, cache_dir=folder)
    compiler = inferer._engine._compiler
    key = inferer._engine._key(compiler, 2, compiler.default)
    monkeypatch.setenv(keys.ENVIRONMENT, str(tmp_path / "theirs.key"))
    DiskCache(folder).put(key, pickle.dumps(Trap(sprung)))
    (theirs,) = folder.iterdir()
    monkeypatch.undo()
    # Under the name of this user's entry, and under its own.
    mine = DiskCache(folder)
    (folder / f"{mine._signer().name(key).hex()}.plan").write_bytes(theirs.read_bytes())
    answer = inferer.infer_arrays({"obs": OBS})["logits"]
    assert not sprung.exists()
    assert "damaged or foreign" in caplog.text
    assert theirs.exists()
    again = memojax.load(POLICY, preload=[2], cache_dir=folder)
    assert again.cache_info().disk_hits == 1
    np.testing.assert_array_equal(again.infer_arrays({"obs": OBS})["logits"], answer)


def test_an_entry_that_was_loaded_and_stored_again_loads_again(tmp_path: Path) -> None:
    memojax.load(POLICY, preload=[2], cache_dir=tmp_path)
    inferer = memojax.load(POLICY, preload=[2], cache_dir=tmp_path)
    assert inferer.cache_info().disk_hits == 1
    engine, plan = inferer._engine, inferer._cache.peek(2)
    assert plan is not None
    key = engine._key(engine._compiler, 2, engine._compiler.default)
    before = DiskCache(tmp_path).get(key)
    engine._write(plan, key)
    engine._write(plan, {**key, "size": 7})
    assert DiskCache(tmp_path).get(key) == DiskCache(tmp_path).get({**key, "size": 7}) == before
    code = f"""
        import memojax, numpy
        inferer = memojax.load({str(POLICY)!r}, preload=[2], cache_dir=sys.argv[1])
        assert inferer.cache_info().disk_hits == 1
        print(inferer.infer_arrays({{"obs": numpy.ones((2, 6), "f")}})["logits"].tolist())
    """
    process = in_process(code, tmp_path)
    assert process.returncode == 0, process.stderr and process.stderr.read()
    assert process.stdout is not None
    assert eval(process.stdout.read()) == inferer.infer_arrays({"obs": OBS})["logits"].tolist()


@posix
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, mode: int, monkeypatch) -> None:
    folder = tmp_path / "plans"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(CacheFolderError, match=r"others can write to .*chmod 700 .*MEMOJAX_CACHE_SHARED=1"):
        memojax.load(POLICY, cache_dir=folder)
    monkeypatch.setenv("MEMOJAX_CACHE_SHARED", "1")
    memojax.load(POLICY, preload=[2], cache_dir=folder)
    assert memojax.load(POLICY, preload=[2], cache_dir=folder).cache_info().disk_hits == 1


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "plans"
    folder.mkdir(mode=0o755)
    os.chown(folder, 4242, 4242)
    with pytest.raises(CacheFolderError, match=r"belongs to user 4242.*MEMOJAX_CACHE_SHARED=1"):
        disk_cache(folder)
    assert disk_cache(folder, shared=True) is not None


@posix
def test_a_folder_opened_to_others_later_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path)
    cache.put(KEY, b"one")
    tmp_path.chmod(0o777)
    assert cache.get(KEY) is None
    assert "others can write" in caplog.text


@posix
def test_the_key_is_the_owners_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    path = tmp_path / "made" / "cache.key"
    made = cache_key(path)
    assert len(made) == 32
    assert made == cache_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["cache.key"]
    path.chmod(0o644)
    with pytest.raises(OSError, match="chmod 600"):
        cache_key(path)
    monkeypatch.setenv(keys.ENVIRONMENT, str(path))
    cache = DiskCache(tmp_path / "plans")
    cache.put(KEY, b"one")
    assert cache.get(KEY) is None
    assert caplog.text.count("chmod 600") == 1
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(OSError, match="5 bytes"):
        cache_key(path)


@pytest.mark.slow
def test_processes_that_race_for_the_key_get_the_same_one(tmp_path: Path) -> None:
    code = """
        from pathlib import Path
        from memojax.plans.cache_key import cache_key
        time.sleep(max(0.0, float(sys.argv[2]) - time.time()))
        print(cache_key(Path(sys.argv[1], "cache.key")).hex())
    """
    start = time.time() + 3
    processes = [in_process(code, tmp_path, start, wait=False) for _ in range(4)]
    found = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert len(found) == 1
    assert len(found.pop()) == 64


def test_a_user_without_a_home_has_plans_in_memory_only(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setenv(keys.ENVIRONMENT, "/proc/no/such/folder/cache.key")
    inferer = memojax.load(POLICY, preload=[2], cache_dir=tmp_path)
    assert inferer.infer_arrays({"obs": OBS})["logits"].shape == (2, 3)
    assert caplog.text.count("in memory only") == 1
    assert not list(tmp_path.iterdir())


def test_the_size_limit_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMOJAX_CACHE_SIZE", "100K")
    cache = disk_cache(tmp_path)
    assert cache is not None
    for size in range(4):
        cache.put({**KEY, "size": size}, bytes(40_000))
        entry = next(one for one in cache.entries() if one.size == size)
        os.utime(entry.path, (size, size))
    assert cache.get({**KEY, "size": 2}) is not None  # It was used, so the other one is removed next.
    cache.put({**KEY, "size": 5}, bytes(40_000))
    assert sorted(filter(None, (entry.size for entry in cache.entries()))) == [2, 5]
    cache.put({**KEY, "size": 6}, bytes(200_000))
    assert sorted(filter(None, (entry.size for entry in cache.entries()))) == [2, 5]
    monkeypatch.setenv("MEMOJAX_CACHE_SIZE", "a lot")
    with pytest.raises(InputError, match="MEMOJAX_CACHE_SIZE is 'a lot', expected bytes or a size"):
        disk_cache(tmp_path)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1000", 1000), ("2k", 2048), ("1.5 MiB", 3 << 19), ("2GB", 2 << 30), ("1T", 1 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["-1", "1X", "", "1e9", "9" * 400, "inf"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(InputError):
        bytes_of(text)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a": ' * 100_000,
        b'{"pad": "' + b"x" * (5 << 20) + b'"}',
        b"\xff\xfe",
        b'{"k": {"candidate": "default", "gain": 1e999}}',
        b'{"k": {"candidate": "default", "gain": ' + b"9" * 4000 + b"}}",
        b"null",
        b"",
    ],
    ids=["deep list", "deep object", "huge", "no text", "infinite", "huge number", "null", "empty"],
)
def test_choices_that_are_deep_huge_or_none_are_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    choices = Choices(tmp_path)
    choices_key = {"name": "policy.onnx", "size": 3}
    assert choices.get(choices_key) is None
    assert choices.labels() == []
    choices.put(choices_key, "default", 1.5)
    assert choices.get(choices_key) == ("default", 1.5)


@posix
def test_pipes_and_links_in_the_folder_hold_nothing_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path)
    path = tmp_path / f"{cache._signer().name(KEY).hex()}.plan"
    os.mkfifo(path)
    os.mkfifo(tmp_path / NAME)
    with caplog.at_level(logging.WARNING):
        assert cache.get(KEY) is None
        assert Choices(tmp_path).get(KEY) is None
    path.unlink()
    path.symlink_to("/dev/zero")
    assert cache.get(KEY) is None
