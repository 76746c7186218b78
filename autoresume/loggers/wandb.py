"""Weights & Biases: one run of it, online or offline, over all incarnations.

Law: its history can't be taken back, so it gets only what a committed checkpoint knows (`irrevocable`), and what it
holds is asked for before anything is sent: of the server, or of the files in `<run>/wandb`. Steps are a column of our
own, `step`, which is every chart's axis: its internal counter is left to whoever logs beside us. Nothing is ever asked
of the user: without a key it is offline, and `wandb sync` sends it later.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from autoresume.loggers.base import Record, RunInfo, by_step

STEP = "step"
_PREEMPTED = 75
_ORPHAN_SECONDS = 30.0
_FRAGMENT = struct.Struct("<IHB")
_HEADER_BYTES, _BLOCK_BYTES = 7, 32768
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class WandbLogger:
    """`handle` is wandb's Run. Where to: WANDB_PROJECT, WANDB_ENTITY and wandb's other variables."""

    irrevocable = True

    def __init__(self) -> None:
        import wandb

        self._wandb: Any = wandb
        self.handle: Any = None
        self._first_row: int | None = None

    def open(self, run: RunInfo, resumed_step: int) -> tuple[int, Mapping[str, str]]:
        await_orphans()
        offline = self._is_offline()
        folder = run.folder / "wandb"
        identifier = run.identity.get("id") or run.run_id
        config = {**run.config, "autoresume.run_id": run.run_id, "autoresume.run_dir": str(run.folder.absolute())}
        if run.origin:
            config["autoresume.origin"] = run.origin
        if run.parent:
            config["autoresume.parent"] = run.parent.get("path") or run.parent.get("id")
        self.handle = self._wandb.init(
            id=identifier,
            resume=None if offline else "allow",
            mode="offline" if offline else os.environ.get("WANDB_MODE", "online"),
            project=run.identity.get("project") or os.environ.get("WANDB_PROJECT"),
            entity=run.identity.get("entity") or os.environ.get("WANDB_ENTITY"),
            name=os.environ.get("WANDB_NAME", run.name),
            notes=run.origin or None,
            dir=str(run.folder),
            config=config,
            reinit="create_new",
            settings=self._wandb.Settings(init_timeout=60, silent=True, console="off"),
        )
        self.handle.define_metric(STEP)
        self.handle.define_metric("*", step_metric=STEP)
        if offline:
            held = last_step(folder, identifier)
            self._first_row = held + 1 if held >= 0 else None
        else:
            held = int(self.handle.summary.get(STEP, -1))
        found = {"id": identifier, "project": self.handle.project or "", "entity": self.handle.entity or ""}
        found["path"] = "/".join((found["entity"], found["project"], identifier)).lstrip("/")
        return min(held, resumed_step), {**found, "url": self.handle.url or ""}

    def _is_offline(self) -> bool:
        mode = os.environ.get("WANDB_MODE")
        if mode is not None:
            return mode != "online"
        return not (os.environ.get("WANDB_API_KEY") or self._wandb.api.api_key)

    def write(self, records: Sequence[Record]) -> None:
        for record in by_step(records):
            row = {name: value for name, value in record.values.items() if value is not None}
            # A file of an earlier life ends at some row; a later file has to go on behind it, to be sent as one run.
            first, self._first_row = self._first_row, None
            self.handle.log({STEP: record.step, **row}, step=first, commit=True)

    def flush(self) -> None: ...

    def close(self, how: str) -> None:
        if how == "interrupted":
            self.handle.mark_preempting()
        code = {"finished": 0, "interrupted": _PREEMPTED}.get(how, 1)
        self.handle.finish(exit_code=code)


def await_orphans() -> None:
    """Until wandb's own processes are gone, which outlive ranks that were killed by a moment, and still write."""
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while any(map(_is_orphan, psutil.process_iter(["cmdline"]))) and time.monotonic() < deadline:
        time.sleep(0.05)


def _is_orphan(process: psutil.Process) -> bool:
    """A writer (`wandb-core ... --pid N`) whose process N is gone. The dead have no command line."""
    words = process.info["cmdline"] or []
    if not words or Path(words[0]).name != "wandb-core" or "--pid" not in words[:-1]:
        return False
    owner = words[words.index("--pid") + 1]
    return owner.isdigit() and not psutil.pid_exists(int(owner))


def last_step(folder: Path, identifier: str) -> int:
    """The last step that the offline files of a run hold; -1 for none."""
    return max((step for path in folder.glob(f"*-{identifier}/*.wandb") for step in steps_in(path)), default=-1)


def steps_in(path: Path) -> list[int]:
    """The steps of all rows of a file, in order. A torn end is no row."""
    found = [row[STEP] for row in rows_in(path) if STEP in row]
    return [int(float(step)) for step in found]


def rows_in(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a file, each column as JSON. A torn end is no row."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        try:
            record.ParseFromString(data)
        except DecodeError:
            return
        if record.WhichOneof("record_type") == "history":
            yield {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}


def _records(data: bytes) -> Iterator[bytes]:
    """What a file of wandb holds: a header, then records in LevelDB's log format, blocks of 32 KiB of fragments with a
    checksum (4 bytes), a length (2) and a kind (1): whole, first, middle, last."""
    position, parts = _HEADER_BYTES, b""
    while position + _FRAGMENT.size <= len(data):
        left = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left < _FRAGMENT.size:
            position += left
            continue
        _, length, kind = _FRAGMENT.unpack_from(data, position)
        body = data[position + _FRAGMENT.size : position + _FRAGMENT.size + length]
        if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or len(body) < length:
            return
        position += _FRAGMENT.size + length
        parts = body if kind in (_WHOLE, _FIRST) else parts + body
        if kind in (_WHOLE, _LAST):
            yield parts
