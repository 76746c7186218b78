"""The metric journal: each step once, in order, whatever was killed when."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoresume.loggers.base import Record
from autoresume.loggers.journal import Journal, read

shared = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journals")


def write(path: Path, steps: list[int]) -> list[Record]:
    journal = Journal(path)
    records = [journal.append(step, {"loss": step / 4}) for step in steps]
    journal.close()
    return records


def steps_of(path: Path, after: int = -1) -> list[int]:
    return [record.step for record in read(path, after)]


def spelled(record: Record) -> Any:
    """Equal for two records that are equal in every bit: NaN is NaN, True is not 1."""
    return record.step, record.time, [(key, type(value), repr(value)) for key, value in record.values.items()]


# -- appending and reading --------------------------------------------------------------------------------

values = st.dictionaries(
    st.text(max_size=5),
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    max_size=4,
)


@shared
@given(st.lists(values, max_size=5))
def test_what_is_appended_is_read(folder: Path, logged: list[dict[str, Any]]) -> None:
    """Names, numbers, truth values, strings and nothing come back with their types, also what JSON has no word for."""
    path = folder / "appended.jsonl"
    path.unlink(missing_ok=True)
    journal = Journal(path)
    records = [journal.append(step, one) for step, one in enumerate(logged)]
    journal.close()
    assert [spelled(record) for record in read(path)] == [spelled(record) for record in records]
    assert [dict(record.values).keys() for record in records] == [one.keys() for one in logged]


@pytest.mark.parametrize("word", ["nan", "inf", "-inf", "null", "true", ""])
def test_words_stay_words(path: Path, word: str) -> None:
    """A string is read as a string, also one that spells a number which is not finite."""
    journal = Journal(path)
    journal.append(1, {"text": word, "number": math.inf})
    journal.close()
    (found,) = read(path)
    assert found.values == {"text": word, "number": math.inf}


def of_numpy(kind: str, value: Any) -> Callable[[], Any]:
    return lambda: getattr(pytest.importorskip("numpy"), kind)(value)


def of_torch(value: Any) -> Callable[[], Any]:
    return lambda: pytest.importorskip("torch").tensor(value)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(of_numpy("float64", 0.5), 0.5, id="float64"),
        pytest.param(of_numpy("float64", math.nan), math.nan, id="float64 nan"),
        pytest.param(of_numpy("float64", -math.inf), -math.inf, id="float64 -inf"),
        pytest.param(of_numpy("float32", math.inf), math.inf, id="float32 inf"),
        pytest.param(of_numpy("int64", 3), 3, id="int64"),
        pytest.param(of_numpy("bool_", True), True, id="bool_"),
        pytest.param(of_numpy("array", [0.25]), 0.25, id="an array of one"),
        pytest.param(of_torch(2.5), 2.5, id="a tensor"),
        pytest.param(of_torch([[7]]), 7, id="a tensor of one element"),
        pytest.param(of_torch(math.nan), math.nan, id="a tensor of nan"),
    ],
)
def test_scalars_of_arrays_are_numbers(path: Path, make: Callable[[], Any], expected: Any) -> None:
    """What numpy and torch give for a number, finite or not, is logged and read as Python's number."""
    journal = Journal(path)
    appended = journal.append(1, {"value": make()})
    journal.close()
    (found,) = read(path)
    assert spelled(found) == spelled(appended) == (1, found.time, [("value", type(expected), repr(expected))])


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: [1], id="a list"),
        pytest.param(lambda: {"a": 1}, id="a dict"),
        pytest.param(object, id="an object"),
        pytest.param(lambda: 1j, id="a complex number"),
        pytest.param(of_numpy("array", [1.0, 2.0]), id="an array of two"),
        pytest.param(of_numpy("array", []), id="an empty array"),
        pytest.param(of_torch([1.0, 2.0]), id="a tensor of two"),
        pytest.param(of_torch([]), id="an empty tensor"),
    ],
)
def test_what_is_no_plain_value_is_refused(path: Path, make: Callable[[], Any]) -> None:
    """A TypeError that names the metric; and nothing of the call is written."""
    journal = Journal(path)
    with pytest.raises(TypeError, match="metric"):
        journal.append(1, {"fine": 1, "metric": make()})
    journal.append(2, {"fine": 2})
    journal.close()
    assert steps_of(path) == [2]


def test_reading_after_a_step(path: Path) -> None:
    """`after` gives what a logger lacks; step 0 is a step; several records may have one step."""
    write(path, [0, 0, 1, 1, 2, 5])
    assert steps_of(path) == [0, 0, 1, 1, 2, 5]
    assert steps_of(path, after=0) == [1, 1, 2, 5]
    assert steps_of(path, after=2) == [5]
    assert steps_of(path, after=9) == []


def test_a_journal_that_is_not_there(path: Path) -> None:
    """Nothing logged: nothing to read or to cut, and no file is made."""
    assert steps_of(path) == []
    assert Journal(path).truncate(10) is None
    assert not path.exists()


def test_flushed_lines_survive_the_process(path: Path) -> None:
    """After `flush`, another process reads every line, although the journal is still open."""
    journal = Journal(path)
    for step in range(3):
        journal.append(step, {"loss": 1.0})
    journal.flush()
    assert steps_of(path) == [0, 1, 2]
    journal.close()


def test_each_line_is_json(path: Path) -> None:
    """Any tool can read it: one JSON object a line, in strict JSON."""
    journal = Journal(path)
    journal.append(1, {"a\nb": math.nan, "c": "d\r\n\u2028\ud800"})
    journal.close()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line, parse_constant=refuse)["step"] for line in lines] == [1]


# -- cutting ----------------------------------------------------------------------------------------------


@shared
@given(st.lists(st.integers(0, 30), max_size=12).map(sorted), st.integers(-1, 31))
def test_cutting_forgets_what_came_after(folder: Path, steps: list[int], step: int) -> None:
    """Everything up to the step stays as it was, everything after it is gone, and the last step is told."""
    path = folder / "cut.jsonl"
    path.unlink(missing_ok=True)
    records = write(path, steps)
    assert Journal(path).truncate(step) == (max(steps) if steps else None)
    kept = [spelled(record) for record in records if record.step <= step]
    assert [spelled(record) for record in read(path)] == kept
    size = path.stat().st_size if path.exists() else 0
    assert Journal(path).truncate(step) == (max((one for one in steps if one <= step), default=None))
    assert (path.stat().st_size if path.exists() else 0) == size


@shared
@given(
    count=st.integers(1, 6),
    whole=st.integers(0, 5),
    torn=st.integers(0, 60),
    garbage=st.sampled_from([b"", b"\0" * 20, b'{"step":', b"\xff\xfe"]),
    restored=st.integers(-1, 5),
)
def test_a_torn_end_is_no_line(folder: Path, count: int, whole: int, torn: int, garbage: bytes, restored: int) -> None:
    """Cut off at any byte, with or without garbage behind it: the whole lines are read, the torn one is not.

    After a cut the next line is a line of its own.
    """
    path = folder / "torn.jsonl"
    path.unlink(missing_ok=True)
    records = write(path, list(range(count)))
    whole = min(whole, count - 1)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:whole]) + lines[whole][: min(torn, len(lines[whole]) - 1)] + garbage)
    assert [spelled(record) for record in read(path)] == [spelled(record) for record in records[:whole]]
    restored = min(restored, whole - 1)
    assert Journal(path).truncate(restored) == (whole - 1 if whole else None)
    write(path, [restored + 1])
    assert steps_of(path) == list(range(restored + 2))


@shared
@given(st.binary(max_size=40), st.booleans())
def test_any_bytes_are_read_or_not(folder: Path, garbage: bytes, ended: bool) -> None:
    """Garbage after good lines ends the journal; reading and cutting never fail."""
    path = folder / "garbage.jsonl"
    path.unlink(missing_ok=True)
    write(path, [1, 2])
    with open(path, "ab") as file:
        file.write(garbage + (b"\n" if ended else b""))
    assert steps_of(path)[:2] == [1, 2]
    Journal(path).truncate(1)
    assert steps_of(path) == [1]


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"null",
        b"{}",
        b'{"step":"x","time":1.0,"values":{}}',
        b'{"step":1,"time":1.0,"values":[]}',
        b'{"step":1e999,"time":1.0,"values":{}}',
        b'{"step":null,"time":1.0,"values":{}}',
        b"[" * 100_000,
    ],
    ids=lambda line: line[:40].decode(),
)
def test_a_line_of_another_form_ends_the_journal(path: Path, line: bytes) -> None:
    """What no `append` wrote is not believed, and nothing behind it: it goes with the next cut."""
    write(path, [1])
    good = path.read_bytes()
    path.write_bytes(good + line + b"\n" + good)
    assert steps_of(path) == [1]
    assert Journal(path).truncate(5) == 1
    assert path.read_bytes() == good


def test_an_open_journal_goes_on_after_a_cut(path: Path) -> None:
    """Cutting and appending with one Journal: what is appended follows what was kept."""
    write(path, [1, 2, 3])
    journal = Journal(path)
    journal.truncate(2)
    journal.append(3, {"loss": 0.5})
    journal.flush()
    journal.truncate(2)
    journal.append(3, {"loss": 0.25})
    journal.close()
    assert [dict(record.values) for record in read(path)] == [{"loss": 0.25}, {"loss": 0.5}, {"loss": 0.25}]


lives = st.lists(
    st.tuples(st.integers(0, 15), st.integers(0, 15), st.integers(0, 300), st.booleans()), min_size=1, max_size=6
)


@shared
@given(lives, st.integers(1, 4))
def test_each_step_exactly_once_after_any_kills(
    folder: Path, lives: list[tuple[int, int, int, bool]], every: int
) -> None:
    """A run that is killed at any step, any number of times, with any part of its last lines on disk.

    Each life begins at its last checkpoint, which made the journal durable until then, and cuts it back.
    In the end every step is there exactly once, in order, with the value that the last life gave it.
    """
    path = folder / "lives.jsonl"
    path.unlink(missing_ok=True)
    saved = saved_bytes = 0
    for number, (steps, unsaved, lost, rolled_back) in enumerate([*lives, (20, 0, 0, False)]):
        begin = saved
        journal = Journal(path)
        journal.truncate(begin)
        for step in range(begin + 1, begin + steps + unsaved + 1):
            journal.append(step, {"life": number})
            if step <= begin + steps and step % every == 0:
                journal.flush()
                saved, saved_bytes = step, path.stat().st_size  # a checkpoint makes it durable until here
        journal.close()
        if path.exists() and number < len(lives):
            content = path.read_bytes()
            path.write_bytes(content[: max(saved_bytes, len(content) - lost)])
        if rolled_back:
            saved = saved // 2  # the newest checkpoint turned out to be damaged
            saved_bytes = (
                0
                if not path.exists()
                else sum(len(line) for line in path.read_bytes().splitlines(keepends=True)[:saved])
            )
    records = list(read(path))
    assert [record.step for record in records] == list(range(1, begin + 21))
    lives_seen = [record.values["life"] for record in records]
    assert lives_seen == sorted(lives_seen)
    assert lives_seen[begin:] == [len(lives)] * 20
