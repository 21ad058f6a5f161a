"""Hostile and broken files give an answer or a typed error, in bounded time and memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import memojax
from memojax.errors import LimitError, LoweringError, MissingPackageError, ModelLoadError, TripCountError
from memojax.model import load_model
from memojax.ops import regex
from memojax.xla import limits
from tests.system import hostile, odd_models
from tests.system.doors import DOORS
from tests.system.guard import Guard

X = np.array([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]], np.float32)
EVERYWHERE = (
    "laughs",
    "fill_near_limit",
    "endless",
    "regex_nested",
    "control_characters",
    "not_utf8",
    "concat_near_limit",
)
"""Kinds that go through every door; the others go through one door each."""


@pytest.fixture(scope="module")
def guard() -> Iterator[Guard]:
    with Guard() as guard:
        yield guard


def _through() -> list[tuple[str, str]]:
    doors = list(DOORS)
    turns = [(name, doors[index % len(doors)]) for index, name in enumerate(hostile.KINDS)]
    return list(dict.fromkeys([*turns, *((name, door) for name in EVERYWHERE for door in doors)]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "door"), _through())
def test_a_hostile_file_gives_an_answer_or_a_typed_error(
    name: str, door: str, guard: Guard, tmp_path: Path
) -> None:
    outcome = guard.outcome(hostile.write(name, tmp_path), door)
    assert not outcome.bad, str(outcome)


@pytest.mark.parametrize(
    "name", ["laughs", "sparse_huge", "fill_near_limit", "concat_doubling", "function_calls_itself"]
)
def test_a_limit_error_names_its_variable(name: str, tmp_path: Path) -> None:
    with pytest.raises(LimitError, match=r"environment variable MEMOJAX_MAX_\w+"):
        memojax.TypedModel.from_model(hostile.write(name, tmp_path))


def test_the_environment_raises_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    file = odd_models.laughs(8).SerializeToString()
    monkeypatch.setenv(limits.NODES.variable, "100")
    with pytest.raises(LimitError, match="100 are allowed"):
        load_model(file)
    monkeypatch.setenv(limits.NODES.variable, "100_000")
    assert len(load_model(file).graph.nodes) == 128
    monkeypatch.setenv(limits.NODES.variable, "many")
    with pytest.raises(memojax.errors.InputError, match="expected a whole number"):
        load_model(file)


def test_a_loop_stops_at_its_limit_and_says_so() -> None:
    file = odd_models.endless(None).SerializeToString()
    with pytest.raises(TripCountError, match="max_trip_count="):
        memojax.run(file, {"x": X}, max_trip_count=10)
    assert np.isnan(memojax.load(file).infer_arrays({"x": X})["y"]).all(), (
        "an executable cannot raise: it answers NaN"
    )


def test_a_loop_below_its_limit_is_right() -> None:
    step = odd_models.body(
        [
            odd_models.node("Add", ["s", "one"], ["t"]),
            odd_models.node("ReduceMax", ["t"], ["m"], keepdims=0),
            odd_models.node("Less", ["m", "high"], ["g"]),
        ],
        [("i", odd_models.INT64, []), ("c", odd_models.BOOL, []), ("s", odd_models.FLOAT, ["n", 4])],
        ["g", "t"],
    )
    file = odd_models.model(
        [odd_models.node("Loop", ["", "", "x"], ["y"], body=step)], one=np.float32(1), high=np.float32(20)
    )
    np.testing.assert_array_equal(memojax.run(file, {"x": X}, max_trip_count=16)["y"], X + 16)
    with pytest.raises(TripCountError):
        memojax.run(file, {"x": X}, max_trip_count=14)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("[a-z]+", "abc", True),
        ("(ab)?c", "abx", False),
        ("[0-9]{3}-[0-9]{4}", "123-4567", True),
        (r"\w+@\w+", "a@b", True),
    ],
)
def test_plain_patterns_need_no_other_engine(
    pattern: str, text: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regex, "_re2", lambda: None)
    assert regex.full_match(pattern)(text) is expected


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(a*)*b", "a*a*a*a*a*a*b", "(?=a)a", r"(a)\1"])
def test_patterns_that_may_take_long_are_refused(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regex, "_re2", lambda: None)
    with pytest.raises(MissingPackageError, match=r"memojax\[regex\]"):
        regex.full_match(pattern)("a" * 50)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("[[:alpha:]]+", "abc"),
        ("a{,3}", "aa"),
        ("a$\n", "a\n"),
        (r"a\s", "a\v"),
        ("(?i)é", "É"),
        ("(?m)^a", "a"),
        ("(?x)a b", "ab"),
        (r"a\Z", "a"),
        ("(?i:a)b", "Ab"),
        ("a++", "aa"),
    ],
)
def test_patterns_that_python_reads_otherwise_are_refused(
    pattern: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regex, "_re2", lambda: None)
    with pytest.raises(MissingPackageError, match=r"memojax\[regex\]"):
        regex.full_match(pattern)(text)


PLAIN = [
    (pattern, text)
    for pattern in (
        r"\w+",
        r"\d+",
        "a.c",
        "[^a]+",
        "(?i)abc",
        "(?s)a.c",
        "a|bc|",
        "(ab)*",
        "a?b",
        r"\bé",
        "^a$",
    )
    for text in ("", "é", "abc", "ABC", "a\nc", "٣", "3", "ab", "a", "b")
]


@pytest.mark.parametrize("pattern", sorted({pattern for pattern, _ in PLAIN}))
def test_both_engines_give_the_same_answers(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("re2", reason="google-re2 is not installed")
    texts = [text for own, text in PLAIN if own == pattern]
    linear = [regex.full_match(pattern)(text) for text in texts]
    monkeypatch.setattr(regex, "_re2", lambda: None)
    plain = []
    for text, wanted in zip(texts, linear, strict=True):
        try:
            plain.append(regex.full_match(pattern)(text))
        except MissingPackageError:
            plain.append(wanted)
    assert plain == linear


def test_digits_and_letters_are_those_of_re2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regex, "_re2", lambda: None)
    assert not regex.full_match(r"\w")("é")
    assert not regex.full_match(r"\d")("٣")


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(a*)*b", "a*a*a*a*a*a*b", "(.*)(.*)(.*)b"])
def test_re2_matches_every_pattern_in_linear_time(pattern: str) -> None:
    pytest.importorskip("re2", reason="google-re2 is not installed")
    match = regex.full_match(pattern)
    assert not match("a" * 100_000)
    assert match("a" * 1000 + "b")
    assert not match("a\udc80"), "RE2 matches no byte that is not UTF-8"


@pytest.mark.parametrize("pattern", ["(a", "(?=a)a", r"(a)\1", "a\udc80", "((((a?){20}){20}){20}){20}"])
def test_re2_refuses_what_is_no_pattern(pattern: str) -> None:
    pytest.importorskip("re2", reason="google-re2 is not installed")
    with pytest.raises(LoweringError, match="not a regular expression of RE2: [^b]"):
        regex.full_match(pattern)


def test_messages_are_short_and_printable() -> None:
    for name in ("long_names", "control_characters_unknown", "operator_not_utf8"):
        made = hostile.KINDS[name]()
        with pytest.raises(memojax.errors.MemojaxError) as failure:
            memojax.load(made if isinstance(made, bytes) else made.SerializeToString())
        text = str(failure.value)
        assert len(text) <= 2000
        assert text.replace("\n", "").isprintable()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_file_that_is_not_regular_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    for path, what in ((pipe, "a pipe"), (tmp_path, "a folder"), (Path("/dev/null"), "a device")):
        for load in (memojax.load, memojax.to_jax, lambda source: memojax.run(source, {})):
            with pytest.raises(ModelLoadError, match=what):
                load(path)


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memojax.model import files

    path = tmp_path / "model.onnx"
    path.write_bytes(odd_models.model(odd_models.LINEAR, w=np.eye(4, dtype=np.float32)).SerializeToString())
    unchanged = files.OpenFile.check_unchanged

    def meanwhile(self: files.OpenFile) -> None:
        with path.open("ab") as file:
            file.write(b"more")
        unchanged(self)

    monkeypatch.setattr(files.OpenFile, "check_unchanged", meanwhile)
    with pytest.raises(ModelLoadError, match="changed while it was read"):
        memojax.load(path)
