"""Coverage-guided fuzzing of everything that reads what somebody else may have written (atheris, libFuzzer).

python -m tests.fuzz.fuzz TARGET [libFuzzer's options] [CORPUS]: changes the corpus at random, keeps what reaches new code,
and stops at the first input for which a reader raises another error than its own, hangs, takes 2 GB, or reads back something
that it would write otherwise. The input is left in crash-*.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["autoresume.format", "autoresume.checkpoint", "autoresume.loggers.journal"]):
    from autoresume.checkpoint.incarnation import Incarnation
    from autoresume.errors import CheckpointInvalid
    from autoresume.format import tree
    from autoresume.format.digest import seal
    from autoresume.format.manifest import Manifest, ManifestHead
    from autoresume.format.names import CheckpointName, is_inside
    from autoresume.format.part import Part, PartHead
    from autoresume.loggers import journal

MEMORY = Path("/dev/shm")
FILE = MEMORY / f"autoresume-fuzz-{os.getpid()}"


def manifest(data: bytes) -> None:
    """With its digest made right: what is behind that is reached. What is read is written in the same way."""
    with contextlib.suppress(CheckpointInvalid):
        ManifestHead.from_bytes(data)
    body = data.rstrip(b"}")
    sealed = body + b',"digest":"%b"}' % seal(body + b"}").encode()
    with contextlib.suppress(CheckpointInvalid):
        ManifestHead.from_bytes(sealed)
    with contextlib.suppress(CheckpointInvalid):
        found = Manifest.from_bytes(sealed)
        assert found.to_bytes() == sealed
        assert all(is_inside(file) for entry in found.parts for file, _ in entry.files)


def part(data: bytes) -> None:
    with contextlib.suppress(CheckpointInvalid):
        PartHead.from_bytes(data)
    with contextlib.suppress(CheckpointInvalid):
        found = Part.from_bytes(data)
        assert Part.from_bytes(found.to_bytes()) == found
        assert all(is_inside(file.name) for _, file in found.tensor_files)


def state_tree(data: bytes) -> None:
    def leaf(tagged: dict[str, Any]) -> Any:
        raise ValueError(f"unknown {tagged!r}")

    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    with contextlib.suppress(CheckpointInvalid):
        tree.decode(value, leaf)


def incarnation(data: bytes) -> None:
    with contextlib.suppress(CheckpointInvalid):
        Incarnation.from_bytes(data)


def metrics(data: bytes) -> None:
    """Cut back and read again: each step once more, in order."""
    FILE.write_bytes(data)
    opened = journal.Journal(FILE)
    opened.truncate(5)
    kept = list(journal.read(FILE))
    opened.append(6, {"loss": 1.0})
    opened.close()
    assert [record.step for record in journal.read(FILE)] == [*(record.step for record in kept), 6]
    assert all(record.step <= 5 for record in kept)


def name(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    found = CheckpointName.parse(text)
    assert found is None or str(found) == text


FORBIDDEN = ("open", "exec", "compile", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.remove", "os.rename")
FORBIDDEN += ("subprocess.Popen", "socket.connect", "socket.bind", "ctypes.dlopen", "shutil.rmtree")
WATCH: list[str] = []
watching = False


def audit(event: str, _: Any) -> None:
    if watching and event in FORBIDDEN:
        WATCH.append(event)


def pickled(data: bytes) -> None:
    """Somebody else's pickle makes tensors and plain values, or an error; it opens, runs and reaches nothing."""
    global watching
    from autoresume.restore.torch_file import RestrictedUnpickler

    for codec in ("raw-unicode-escape", "unicode-escape", "ascii", "latin-1", "utf-8"):
        "".encode(codec)  # Python reads its own codecs from files, once
    unpickler = RestrictedUnpickler(io.BytesIO(data))
    unpickler.persistent_load = lambda identity: None
    WATCH.clear()
    watching = True
    try:
        unpickler.load()
    except Exception:
        pass
    finally:
        watching = False
    assert not WATCH, WATCH


TARGETS: dict[str, Callable[[bytes], None]] = {
    "manifest": manifest,
    "part": part,
    "tree": state_tree,
    "incarnation": incarnation,
    "metrics": metrics,
    "name": name,
    "pickle": pickled,
}


def main() -> None:
    target, options = TARGETS[sys.argv[1]], sys.argv[2:]
    if target is pickled:
        with atheris.instrument_imports(include=["autoresume.restore.torch_file"]):
            import autoresume.restore.torch_file  # noqa: F401
        sys.addaudithook(audit)
    limits = ["-timeout=10", "-rss_limit_mb=2048", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *limits, *options], target)
    try:
        atheris.Fuzz()
    finally:
        FILE.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
