"""Names that people give to checkpoints: when they save them, or later.

Law: a tag that came with the save is one of the checkpoint's labels, and can't change. One that is given later is a
file of its own, so that the checkpoint stays as it is; a later tag of the same name moves it. What has a tag is never
deleted by retention.
"""

from __future__ import annotations

import json
import re

from autoresume.errors import CheckpointInvalid, UsageError
from autoresume.format import names
from autoresume.format.manifest import ManifestHead
from autoresume.format.names import CheckpointName
from autoresume.format.part import Labels
from autoresume.storage.base import Storage

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,99}", re.ASCII)
_TAKEN = re.compile(r"(latest|best(\..*)?|[EUS]\d+(_[EUS]\d+)*(-\d+)?|\d+)", re.ASCII)


def check_tag(tag: str) -> str:
    """`tag`, if it can be one. Raises UsageError."""
    if not _TAG.fullmatch(tag):
        raise UsageError(f"{tag!r} can't be a tag: give up to 100 letters, digits and . _ = + -, e.g. 'task-3'")
    if _TAKEN.fullmatch(tag):
        raise UsageError(f"{tag!r} can't be a tag: it selects a checkpoint by its place or its metrics already")
    return tag


def add_tag(storage: Storage, name: CheckpointName, tag: str) -> None:
    """Tag a committed checkpoint. Durable when it returns. Raises UsageError."""
    storage.write(names.tag_file(check_tag(tag)), json.dumps({"checkpoint": str(name)}).encode() + b"\n")


def remove_tag(storage: Storage, tag: str) -> bool:
    """Remove a tag that was given later; False if there is none."""
    there = storage.size(names.tag_file(check_tag(tag))) is not None
    storage.remove(names.tag_file(tag))
    return there


def given_tags(storage: Storage) -> dict[str, tuple[str, ...]]:
    """The tags that were given later, by the checkpoint's name."""
    found: dict[str, tuple[str, ...]] = {}
    for file in storage.list(names.TAGS):
        tag = file.removesuffix(".json")
        try:
            name = str(json.loads(storage.read(names.tag_file(check_tag(tag))))["checkpoint"])
        except (UsageError, CheckpointInvalid, OSError, ValueError, KeyError, TypeError):
            continue  # being written, or somebody else's
        found[name] = (*found.get(name, ()), tag)
    return found


def labels_of(head: ManifestHead, later: dict[str, tuple[str, ...]]) -> Labels:
    """What a checkpoint can be chosen by, with the tags that it was given later."""
    more = later.get(str(head.checkpoint), ())
    return Labels(head.labels.metrics, tuple(dict.fromkeys([*head.labels.tags, *more])))
