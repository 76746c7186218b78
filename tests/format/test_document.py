"""docs/format.md is true: its examples are made again and compared, byte for byte.

To write them anew after a change of the format: `python tests/format/test_document.py`.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.persist import Snapshot, persist
from autoresume.format import names, tree
from autoresume.format.digest import canonical, digest
from autoresume.format.manifest import Manifest
from autoresume.format.names import CheckpointName
from autoresume.format.part import Chunk, Part, Replicas, chunks_json
from autoresume.format.tensorfile import Entry, lay_out
from autoresume.loggers import journal
from autoresume.storage import LocalStorage

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
NAME = CheckpointName(step=2, incarnation=1, epoch=0, samples=16)

VALUES = [
    (1, 2.5),
    {0: "a", "$": None},
    [float("inf"), -float("inf"), float("nan"), -0.0],
    b"x",
    0.1 + 2j,
    range(0, 9, 2),
    {1, 2},
    deque([1], maxlen=3),
    Counter({"a": 2}),
    defaultdict(list, {"a": [1]}),
    Path("data/train"),
]


def write_run(folder: Path) -> None:
    """The run of the worked example, by the code that writes every run."""
    storage = LocalStorage(folder)
    for rank in range(2):
        half, own = numpy.arange(2, dtype="<f4") + 2 * rank, bytes([7, rank])
        entries = [Entry(f"model/w[{2 * rank}:{2 * rank + 2}]", "float32", (2,)), Entry("rng/state", "uint8", (2,))]
        layout = lay_out(entries, {"format": "pt"})
        begins = layout.begins
        chunks = (
            Chunk("model/w", "float32", (4,), (2 * rank,), (2,), True, begins[0]),
            Chunk("rng/state", "uint8", (2,), (0,), (2,), False, begins[1]),
        )
        assert [chunk.name for chunk in chunks] == [entry.name for entry in layout.entries]
        state = {
            "model": {"w": {"$": "tensor", "key": "model/w"}},
            "rng": {"state": {"$": "tensor", "key": "rng/state"}},
            "state": tree.encode({"betas": (0.9, 0.999)}, lambda key, value: None, "state"),
        }
        image = memoryview(bytearray(layout.header + half.tobytes() + own))
        about = {"step": 2}
        snapshot = Snapshot("5f1e", NAME, rank, 2, 1700000000.5, image, chunks_json(chunks), canonical(state), about)
        snapshot = replace(snapshot, replicas=Replicas(digest(b"model/w"), 0, digest(b"0.0, 1.0, 2.0, 3.0")))
        persist(storage, snapshot, lambda: None)
    assert commit_if_complete(storage, NAME, lambda: None) is not None


def files(folder: Path) -> str:
    return "\n".join(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))


def shard(folder: Path) -> str:
    data = (folder / NAME.shard(1)).read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    header = data[8:size].rstrip(b" ")
    lines = [f"bytes 0 to 7         {data[:8].hex(' ')}", f"bytes 8 to {7 + len(header):<10}{header.decode()}"]
    lines.append(f"bytes {8 + len(header)} to {size - 1:<8}{size - 8 - len(header)} spaces")
    lines.append(f"bytes {size} to {size + 7}   {data[size : size + 8].hex(' ')}    2.0 and 3.0")
    lines.append(f"bytes {size + 8} to {len(data) - 1}   {data[size + 8 :].hex(' ')}")
    return "\n".join(lines)


def one_key_a_line(data: bytes) -> str:
    rows = [f" {canonical(key).decode()}:{canonical(value).decode()}" for key, value in json.loads(data).items()]
    return "{\n" + ",\n".join(rows) + "\n}"


def journal_line(folder: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.time, "time", lambda: 1700000000.25)
        written = journal.Journal(folder / names.JOURNAL)
        written.append(2, {"loss": 0.5, "learning_rate": float("nan"), "phase": "warm-up"})
        written.close()
    return (folder / names.JOURNAL).read_text().rstrip("\n")


def tagged(_: Path) -> str:
    rows = [(repr(value), canonical(tree.encode(value, lambda key, item: None)).decode()) for value in VALUES]
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"{left:<{width}}    {right}" for left, right in rows)


EXAMPLES: dict[str, Callable[[Path], str]] = {
    "tree": tagged,
    "files": files,
    "shard": shard,
    "part": lambda folder: one_key_a_line((folder / NAME.part(1)).read_bytes()),
    "manifest": lambda folder: one_key_a_line((folder / NAME.manifest).read_bytes()),
    "journal": journal_line,
}


def block(name: str) -> re.Pattern[str]:
    """The code block that follows the marker of an example: before it, its content, after it."""
    return re.compile(rf"(<!-- example: {name} -->\n```\w+\n)(.*?)(```\n)", re.DOTALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("document")
    write_run(folder)
    return folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_document_shows_what_is_written(run: Path, name: str) -> None:
    """Each example of the document is what the code writes today."""
    (found,) = block(name).findall(DOCUMENT.read_text())
    assert found[1].rstrip("\n") == EXAMPLES[name](run)


def test_all_examples_are_compared() -> None:
    """No example stands in the document that nobody makes again."""
    assert re.findall(r"<!-- example: (\w+) -->", DOCUMENT.read_text()) == list(EXAMPLES)


@pytest.mark.parametrize(
    ("name", "file", "kind"), [("part", NAME.part(1), Part), ("manifest", NAME.manifest, Manifest)]
)
def test_the_document_s_json_is_the_file(run: Path, name: str, file: str, kind: Any) -> None:
    """Without the line breaks and the spaces behind them, the shown JSON is the file, and can be read as one."""
    (found,) = block(name).findall(DOCUMENT.read_text())
    data = re.sub(r"\n ?", "", found[1]).encode()
    assert data == (run / file).read_bytes()
    assert kind.from_bytes(data).to_bytes() == data


def test_the_document_s_table_has_every_key_of_a_part(run: Path) -> None:
    """The table of a part names its keys, in the file's order."""
    text = DOCUMENT.read_text()
    table = text[text.index("**Part**") : text.index("A chunk is the box")]
    listed = [word for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for word in re.findall(r"`(\w+)`", row)]
    assert ["format_version", *listed] == list(json.loads((run / NAME.part(1)).read_bytes()))


def test_the_document_s_tree_decodes() -> None:
    """The right side of each line of the tree's table is the left side's value again."""
    (found,) = block("tree").findall(DOCUMENT.read_text())
    lines = found[1].splitlines()
    assert len(lines) == len(VALUES)
    for line, value in zip(lines, VALUES):
        text = line[len(repr(value)) :].strip()
        assert repr(tree.decode(json.loads(text), lambda tagged: None)) == repr(value)


def test_the_document_is_short() -> None:
    """A format that needs more than about 200 lines to describe is too complicated."""
    assert len(DOCUMENT.read_text().splitlines()) <= 224


if __name__ == "__main__":
    text = DOCUMENT.read_text()
    with tempfile.TemporaryDirectory() as temporary:
        write_run(Path(temporary))
        for name, make in EXAMPLES.items():
            made = make(Path(temporary))
            text = block(name).sub(lambda match, made=made: f"{match[1]}{made}\n{match[3]}", text)
    DOCUMENT.write_text(text)
