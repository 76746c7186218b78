"""A disk that becomes full at any byte of a save: what is committed is whole, and nothing else stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autoresume.checkpoint import incarnation
from autoresume.checkpoint import persist as persisting
from autoresume.checkpoint.commit import commit_if_complete
from autoresume.checkpoint.committed import prune_after_commit
from autoresume.checkpoint.discover import complete_commits, list_checkpoints
from autoresume.checkpoint.persist import persist
from autoresume.checkpoint.sidefiles import copy_into
from autoresume.checkpoint.verify import verify
from autoresume.errors import StorageFailed, StorageFull
from autoresume.format import names
from autoresume.format.names import CheckpointName
from autoresume.handoff.mailbox import Mailbox
from autoresume.ranks.agreement import Ranks
from autoresume.snapshot.saver import Saver
from autoresume.snapshot.sinks import DaemonSink, ThreadSink
from autoresume.storage import LocalStorage
from tests.checkpoint import lives
from tests.faults import disks

IMAGE_BYTES = 30_000
LARGE = 5 * disks.MIB
"""Written past the page cache."""


@pytest.fixture(autouse=True)
def others_take_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if they did it after we had looked how much there is."""
    monkeypatch.setattr(persisting, "_HEADROOM", -(2**40))


def free() -> None:
    """A guard that lets everything pass."""


def save(storage: LocalStorage, name: CheckpointName, image_bytes: int) -> None:
    for rank in range(lives.WORLD_SIZE):
        persist(storage, lives.snapshot(name, rank, image_bytes), free)
        if commit_if_complete(storage, name, free) is not None:
            prune_after_commit(storage, name, lives.KEEP, free, True)


def save_or_say(storage: LocalStorage, name: CheckpointName) -> str | None:
    try:
        save(storage, name, IMAGE_BYTES)
    except StorageFull as error:
        return str(error)
    return None


def temporaries(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if names.is_temporary(path.name)]


@pytest.mark.parametrize("kind", [disks.tmpfs, disks.ext4])
def test_full_at_any_byte(kind, tmp_path: Path) -> None:
    """However much room is left when a save begins: it is committed and whole, or StorageFull and no trace of it.

    The older ones stay whole in either case, and the next save after space was freed is committed.
    """
    with kind(tmp_path / "disk", 4) as folder:
        storage = LocalStorage(folder / "run")
        step, full, whole = 10, 0, 0
        save(storage, lives.name_of(step, 1), IMAGE_BYTES)
        for leave in range(0, 140_000, 4_000):
            disks.fill(folder, leave)
            step += 10
            name = lives.name_of(step, 1)
            said = save_or_say(storage, name)
            if said is None:
                whole += 1
            else:
                full += 1
                assert f"{lives.name_of(step - 10, 1)} stays the last good checkpoint. Free some space" in said
                if storage.size(name.part(0)) is None or storage.size(name.part(1)) is None:
                    assert storage.list(name.parts) in ([], [Path(name.part(0)).name])
                    assert temporaries(folder) == []
            disks.empty(folder)
            # Written whole, but the manifest had no room: a resume would complete it.
            complete_commits(storage, free)
            committed = [one for one in list_checkpoints(storage) if storage.size(one.manifest) is not None]
            assert [verify(storage, one) for one in committed] == [None] * len(committed)
            step += 10
            save(storage, lives.name_of(step, 1), IMAGE_BYTES)
            assert [one for one in list_checkpoints(storage) if storage.size(one.manifest) is None] == []
            assert len(list_checkpoints(storage)) == lives.KEEP.last
            assert temporaries(folder) == []
        assert full > 5
        assert whole > 5


def test_full_in_a_large_file(tmp_path: Path) -> None:
    """The same for files that are written directly: before, in, and after the blocks of both ranks."""
    with disks.ext4(tmp_path / "disk", 48) as folder:
        storage = LocalStorage(folder / "run")
        save(storage, lives.name_of(10, 1), LARGE)
        for number, leave in enumerate((0, 100_000, LARGE - 4096, LARGE + 2000, LARGE + 200_000, 2 * LARGE), 2):
            disks.fill(folder, leave)
            name = lives.name_of(10 * number, 1)
            with pytest.raises(StorageFull, match="No space left"):
                save(storage, name, LARGE)
            assert temporaries(folder) == []
            assert verify(storage, lives.name_of(10, 1)) is None
            disks.empty(folder)
        assert len(list_checkpoints(storage)) <= 2
        save(storage, lives.name_of(100, 1), LARGE)
        assert list_checkpoints(storage) == [lives.name_of(100, 1), lives.name_of(10, 1)]


def test_side_files_on_a_disk_that_fails(tmp_path: Path) -> None:
    """Enclosing them at the step boundary raises nothing; the checkpoint that would lack them is not written."""
    with disks.ext4(tmp_path / "disk", 16) as folder:
        storage = LocalStorage(folder / "run")
        name = lives.name_of(10, 1)
        storage.write(lives.BEST, b"best")
        disks.read_only(folder)
        files = copy_into(storage, name)
        assert files == (lives.BEST,)
        disks.mount_again(folder)
        with pytest.raises(StorageFailed, match=f"{lives.BEST} of {name} is gone"):
            persist(storage, lives.snapshot(name, 0, files=files), free)
        assert list_checkpoints(storage) == []


def test_memory_that_is_full(tmp_path: Path) -> None:
    """A snapshot that can't be handed to the daemon, since the node's memory is full, is persisted by the rank."""
    with disks.tmpfs(tmp_path / "memory", 1) as memory:
        storage = LocalStorage(tmp_path / "run")
        pid, started = incarnation.this_process()
        daemon = DaemonSink(Mailbox(memory), storage.root, (pid, started), incarnation.process_lives)
        saver = Saver("a-run", Ranks(), daemon, memory, lambda: ThreadSink(storage, lives.KEEP, free))
        model = torch.nn.Linear(30, 30)
        saver.save(lives.name_of(10, 1), {"model": model}, frozenset(), {})
        (sealed,) = Mailbox(memory).names("sealed-")
        Mailbox(memory).remove(sealed)  # as if it were persisted
        disks.fill(memory)
        saver.save(lives.name_of(20, 1), {"model": model}, frozenset(), {})
        saver.close()
        assert list_checkpoints(storage) == [lives.name_of(20, 1)]
        assert verify(storage, lives.name_of(20, 1)) is None
        assert list(memory.glob("arena-*")) == []
