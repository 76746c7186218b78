"""Storage that forgets what was not synced, as a disk does when the power fails.

Law: a `ForgetfulStorage` works on real files, and keeps beside them what the disk is sure to hold: the
content that each file had when it was last synced, and the names that each folder had when it was last
synced, separately (a synced file whose folder was not synced has no name, and a name whose file was
not synced has no content). `freeze()` is the moment of the power failure; `Disk.rebuild` makes a
folder of what may be found afterwards. After LevelDB's FaultInjectionTestEnv.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autoresume.storage import LocalStorage

Inode = int
Names = dict[str, Inode]


class UnsyncedStorage(LocalStorage):
    """For tests in which nothing crashes: the same, without waiting for a disk."""

    def _sync_file(self, descriptor: int, path: Path) -> None:
        """Forgo it."""

    def _sync_folder(self, folder: Path) -> None:
        """Forgo it."""


class ForgetfulStorage(LocalStorage):
    """`root` and what it holds already count as durable. Close it, or use it in a `with`.

    `moment`, if set, is called with a name before each sync, since that is where losing power hurts.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        super().__init__(root)
        self.root.mkdir(parents=True, exist_ok=True)
        self.moment: Callable[[str], None] | None = None
        self._contents: dict[Inode, bytes] = {}
        self._names: dict[Inode, Names] = {}
        self._held: dict[Inode, int] = {}
        for folder, _, files in os.walk(self.root):
            for file in files:
                self._note_file(Path(folder, file))
            self._note_folder(Path(folder))

    def __enter__(self) -> ForgetfulStorage:
        return self

    def __exit__(self, *exception: object) -> None:
        while self._held:
            os.close(self._held.popitem()[1])

    def _sync_file(self, descriptor: int, path: Path) -> None:
        if self.moment is not None:
            self.moment("sync of a file")
        assert os.fstat(descriptor).st_ino == os.stat(path).st_ino
        self._note_file(path)

    def _sync_folder(self, folder: Path) -> None:
        if self.moment is not None:
            self.moment("sync of a folder")
        self._note_folder(folder)

    def freeze(self) -> Disk:
        """The power fails now. What the program does afterwards no longer matters to the disk."""
        live = {}
        for folder, _, _ in os.walk(self.root):
            live[self._hold(Path(folder))] = self._listed(Path(folder))
        cached = {}
        for inode, descriptor in self._held.items():
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                cached[inode] = _content(descriptor)
        return Disk(os.stat(self.root).st_ino, dict(self._contents), dict(self._names), cached, live)

    # -- what the disk is sure to hold ----------------------------------------------------------------

    def _note_file(self, path: Path) -> None:
        inode = self._hold(path)
        self._contents[inode] = _content(self._held[inode])

    def _note_folder(self, folder: Path) -> None:
        self._names[self._hold(folder)] = self._listed(folder)

    def _listed(self, folder: Path) -> Names:
        return {name: self._hold(folder / name) for name in sorted(os.listdir(folder))}

    def _hold(self, path: Path) -> Inode:
        """An inode that is held open is not given to another file when this one is deleted."""
        inode = os.lstat(path).st_ino
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return inode


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


@dataclass(frozen=True)
class Variant:
    """What becomes of what was not synced.

    names: "dropped" as if it had not happened; "kept"; "mixed", each name by chance, in no order.
    contents: "lost" back to what was synced, or empty; "kept"; "torn" half of it; "zeros" or "garbage" in its place.
    """

    names: str
    contents: str
    seed: int = 0

    def __str__(self) -> str:
        return f"names {self.names}, contents {self.contents}" + (f", seed {self.seed}" if self.seed else "")


VARIANTS = [
    Variant("dropped", "lost"),
    Variant("dropped", "kept"),
    Variant("kept", "lost"),
    Variant("kept", "torn"),
    Variant("kept", "kept"),
    Variant("mixed", "garbage", 1),
    Variant("mixed", "zeros", 2),
    Variant("mixed", "torn", 3),
]
STRICT = VARIANTS[0]


Outcome = dict[str, bytes | None]


def put(outcome: Outcome, target: Path) -> Path:
    """Make `target` a folder with what a power failure left."""
    target.mkdir(parents=True)
    for name, content in outcome.items():
        if content is None:
            (target / name).mkdir()
        else:
            (target / name).write_bytes(content)
    return target


@dataclass(frozen=True)
class Disk:
    """A disk at the moment of a power failure: what is sure to be on it, and what was only in memory."""

    root: Inode
    contents: dict[Inode, bytes]
    names: dict[Inode, Names]
    cached_contents: dict[Inode, bytes]
    cached_names: dict[Inode, Names]

    def outcome(self, variant: Variant) -> Outcome:
        """What may be found when the power is back: every name, with its content, or None for a folder."""
        chance = random.Random(variant.seed)
        found: Outcome = {}
        placed = {self.root}
        todo = [(self.root, "")]
        while todo:
            inode, folder = todo.pop(chance.randrange(len(todo)) if variant.names == "mixed" else 0)
            for name, child in self._names_after(inode, variant, chance):
                if not self._is_folder(child):
                    found[folder + name] = self._content_after(child, variant, chance)
                elif child not in placed:  # a folder has one name, also where its renaming was half done
                    placed.add(child)
                    found[folder + name] = None
                    todo.append((child, f"{folder}{name}/"))
        return found

    def rebuild(self, target: Path, variant: Variant) -> Path:
        """The same as files below `target`, which is made."""
        return put(self.outcome(variant), target)

    def _is_folder(self, inode: Inode) -> bool:
        return inode not in self.contents and inode not in self.cached_contents

    def _names_after(self, folder: Inode, variant: Variant, chance: random.Random) -> Iterator[tuple[str, Inode]]:
        synced, cached = self.names.get(folder, {}), self.cached_names.get(folder, {})
        names = sorted(synced.keys() | cached.keys())
        chance.shuffle(names)
        for name in names:
            if variant.names == "mixed":
                source = chance.choice([synced, cached])
            else:
                source = synced if variant.names == "dropped" else cached
            if name in source:
                yield name, source[name]

    def _content_after(self, file: Inode, variant: Variant, chance: random.Random) -> bytes:
        synced, cached = self.contents.get(file, b""), self.cached_contents[file]
        begin = len(synced) if cached.startswith(synced) else 0  # only what came after the sync is at stake
        rest = cached[begin:]
        if variant.contents == "lost" or not rest:
            return synced
        if variant.contents == "kept":
            return cached
        if variant.contents == "torn":
            return cached[: begin + len(rest) // 2]
        return cached[:begin] + (bytes(len(rest)) if variant.contents == "zeros" else chance.randbytes(len(rest)))
