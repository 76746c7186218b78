"""Loggers that fail, hang, come late, or can't take anything back: training never notices, and nothing is lost."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from autoresume.errors import UsageError
from autoresume.loggers import publisher
from autoresume.loggers.base import Record, RunInfo
from autoresume.loggers.journal import Journal
from autoresume.loggers.publisher import Publisher


class Tool:
    """Keeps what it is given, over all its openings; fails where it is told to."""

    handle = "the tool itself"

    def __init__(self, irrevocable: bool = False) -> None:
        self.irrevocable = irrevocable
        self.steps: list[int] = []
        self.ended: list[str] = []
        self.fails = 0
        self.opens = threading.Event()
        self.opens.set()
        self.told: RunInfo | None = None

    def open(self, run: RunInfo, resumed_step: int) -> tuple[int, Mapping[str, str]]:
        self.opens.wait(30)
        self._fail()
        self.told = run
        self.steps = [step for step in self.steps if step <= resumed_step]
        return (self.steps[-1] if self.steps else -1), {"id": "x"}

    def write(self, records: Sequence[Record]) -> None:
        self._fail()
        self.steps += [record.step for record in records]

    def flush(self) -> None: ...

    def close(self, how: str) -> None:
        self.ended.append(how)

    def _fail(self) -> None:
        if self.fails:
            self.fails -= 1
            raise ConnectionError("no route to host")


class Life:
    """A journal and its publisher, as rank 0 has them."""

    def __init__(self, folder: Path, step: int = 0, live: bool = False) -> None:
        self.folder = folder
        self.identities: dict[str, dict[str, str]] = {}
        self.journal = Journal(folder / "metrics.jsonl")
        self.journal.truncate(step)
        self.publisher = Publisher(["tool"], live)
        info = RunInfo("run", "name", folder, {}, origin="hotstart of another", config={"lr": 1})
        self.publisher.open(info, {}, {"tool": {"id": "parent"}}, step, lambda found: self.identities.update(found))

    def log(self, *steps: int) -> None:
        for step in steps:
            record = self.journal.append(step, {"loss": float(step)})
            self.journal.flush()
            self.publisher.put(record)

    def commit(self, step: int) -> None:
        manifest = self.folder / f"manifest-{step}"
        manifest.write_text("")
        self.publisher.saving(step, manifest)

    def close(self, how: str) -> None:
        self.journal.close()
        self.publisher.close(how)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Tool:
    made = Tool()
    monkeypatch.setattr(publisher, "make_logger", lambda name: made)
    monkeypatch.setattr(publisher, "_FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(publisher, "_LOOK_SECONDS", 0.01)
    return made


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_logger_that_fails_gets_everything_later(tool: Tool, tmp_path: Path) -> None:
    """Within the same life, when it is back: what was in its hands when it failed, and what came meanwhile; each once."""
    life = Life(tmp_path)
    life.log(1, 2, 3)
    until(lambda: tool.steps == [1, 2])  # step 3 may not be over
    tool.fails = 3
    life.log(4, 5, 6, 7)
    until(lambda: tool.steps == [1, 2, 3, 4, 5, 6])
    life.close("finished")
    assert tool.steps == [1, 2, 3, 4, 5, 6, 7]
    assert tool.ended == ["finished"]


def test_one_that_can_not_be_opened_is_fed_by_the_next_life(tool: Tool, tmp_path: Path) -> None:
    """It costs the end of this one a moment, and nothing is lost."""
    tool.fails = 10**9
    life = Life(tmp_path)
    life.log(1, 2, 3)
    life.close("interrupted")
    assert tool.steps == []
    tool.fails = 0
    again = Life(tmp_path, step=2)
    again.log(3, 4)
    again.close("finished")
    assert tool.steps == [1, 2, 3, 4]


def test_one_that_hangs_holds_nobody(tool: Tool, tmp_path: Path) -> None:
    """Neither the start, nor a step, nor the end waits for it."""
    tool.opens.clear()
    began = time.monotonic()
    life = Life(tmp_path)
    life.log(*range(1, 1000))
    life.journal.close()
    life.publisher.close("finished", patience_seconds=0.1)
    assert time.monotonic() - began < 20
    tool.opens.set()


def test_what_can_not_be_taken_back_waits_for_the_commit(tool: Tool, tmp_path: Path) -> None:
    """It gets what a committed checkpoint knows. Steps after the last commit of an interrupted life come from the next
    life, which trains them again; a finished one gives all. With publish=live nothing waits."""
    tool.irrevocable = True
    life = Life(tmp_path)
    life.log(1, 2, 3, 4, 5)
    life.commit(3)
    until(lambda: tool.steps == [1, 2, 3])
    life.log(6)
    life.close("interrupted")
    assert tool.steps == [1, 2, 3]
    again = Life(tmp_path, step=3)
    again.log(4, 5, 6, 7)
    again.close("finished")
    assert tool.steps == [1, 2, 3, 4, 5, 6, 7]
    live = Life(tmp_path, step=7, live=True)
    live.log(8, 9)
    until(lambda: tool.steps[-1] == 8)
    live.close("interrupted")
    assert tool.steps[-1] == 9


def test_what_a_logger_is_told(tool: Tool, tmp_path: Path) -> None:
    """Settings, origin and parent; its identity is remembered; its handle is to be had, and unknown names are listed."""
    life = Life(tmp_path)
    assert life.publisher.handle("tool") == "the tool itself"
    with pytest.raises(UsageError, match="it has tool"):
        life.publisher.handle("other")
    life.close("failed")
    assert tool.told is not None
    assert (tool.told.parent, tool.told.origin, tool.told.config) == (
        {"id": "parent"},
        "hotstart of another",
        {"lr": 1},
    )
    assert life.identities == {"tool": {"id": "x"}}
    assert tool.ended == ["failed"]


def test_the_logger_in_the_document_works(tmp_path: Path) -> None:
    """The adapter that docs/loggers.md shows cuts its file back, says what it holds, and takes what comes."""
    text = (Path(__file__).parents[2] / "docs" / "loggers.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class LinesLogger" in block]
    space: dict[str, Any] = {}
    exec(code, space)
    info = RunInfo("run", "name", tmp_path, {})
    made = space["LinesLogger"]()
    assert made.open(info, 0) == (-1, {})
    made.write([Record(step, 0.0, {"loss": 1.0}) for step in (1, 2, 3)])
    again = space["LinesLogger"]()
    assert again.open(info, 2)[0] == 2
    again.write([Record(3, 0.0, {"loss": 2.0})])
    assert [line.split()[0] for line in (tmp_path / "lines.txt").read_text().splitlines()] == ["1", "2", "3"]
