"""Runs several processes' storage operations in every order that a few context switches can make.

Law: an actor is real code in a thread of its own; it stops before each operation on the storage until the scheduler lets
it go on, so that one run is decided by its schedule alone. After CHESS (Musuvathi and Qadeer 2007, iterative context
bounding): most faults of protocols need very few preemptions, and all runs with so many are tried.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PATIENCE_SECONDS = 30.0


class Crashed(BaseException):
    """The actor's process was killed before its next operation."""


class Opened:
    """A file of it, as it was when it was opened."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def fill(self, begin: int, end: int, targets: object = (), through_cache: bool = False) -> Iterator[memoryview]:
        yield self._data[begin:end]

    def close(self) -> None:
        """Nothing is open."""


class Memory:
    """A storage in memory; each verb is atomic. `before` is called ahead of each, `look` after each that changes it."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.before: Callable[[str], None] = lambda verb: None
        self.look: Callable[[], None] = lambda: None

    def list(self, folder: str) -> list[str]:
        self.before("list")
        inside = f"{folder}/"
        return sorted({name[len(inside) :].partition("/")[0] for name in self.files if name.startswith(inside)})

    def size(self, name: str) -> int | None:
        self.before("size")
        return len(self.files[name]) if name in self.files else None

    def read(self, name: str, into: memoryview | None = None, offset: int = 0) -> bytes:
        self.before("read")
        if name not in self.files:
            raise FileNotFoundError(name)
        if into is None:
            return self.files[name]
        into[:] = self.files[name][offset : offset + len(into)]
        return b""

    def reader(self, name: str) -> Opened:
        self.before("open")
        if name not in self.files:
            raise FileNotFoundError(name)
        return Opened(self.files[name])

    def write(self, name: str, data: bytes | memoryview) -> None:
        self.before(f"write {name}")
        self.files[name] = bytes(data)
        self.look()

    def add(self, name: str, data: bytes | memoryview) -> None:
        self.before(f"add {name}")
        if not any(file.startswith(f"{name.rpartition('/')[0]}/") for file in self.files):
            raise FileNotFoundError(name)
        self.files[name] = bytes(data)
        self.look()

    def create(self, name: str, data: bytes) -> bool:
        self.before(f"create {name}")
        if name in self.files:
            return False
        self.files[name] = bytes(data)
        self.look()
        return True

    def sync(self, name: str) -> None:
        """There is nothing behind this memory."""

    def link(self, name: str, new: str, or_copy: bool = True) -> None:
        self.before(f"link {name}")
        if name not in self.files:
            raise FileNotFoundError(name)
        self.files[new] = self.files[name]
        self.look()

    def move(self, folder: str, new: str) -> None:
        self.before(f"move {folder}")
        for name in [name for name in self.files if name == folder or name.startswith(f"{folder}/")]:
            self.files[new + name[len(folder) :]] = self.files.pop(name)
        self.look()

    def remove(self, name: str) -> None:
        # As a folder is removed on a disk: it is renamed first, so that nobody sees a half of it.
        self.before(f"remove {name}")
        for file in [file for file in self.files if file == name or file.startswith(f"{name}/")]:
            del self.files[file]
        self.look()

    def free_bytes(self) -> int | None:
        return None


class Late:
    """A node's view of a Memory, as clients of NFS have it: what it has once looked up, found or missing, and what it has
    once listed, it does not look up again until `expire`. It sees its own changes; contents are those of now, and a name
    is created for all nodes or for none."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.create, self.sync, self.free_bytes = memory.create, memory.sync, memory.free_bytes
        self._sizes: dict[str, int | None] = {}
        self._listings: dict[str, list[str]] = {}

    def expire(self) -> None:
        """See what there is."""
        self._sizes.clear()
        self._listings.clear()

    def look_around(self, folders: Sequence[str], files: Sequence[str]) -> None:
        """What another process on this node has looked up."""
        for folder in folders:
            self.list(folder)
        for file in files:
            self.size(file)

    def list(self, folder: str) -> list[str]:
        if folder not in self._listings:
            self._listings[folder] = self.memory.list(folder)
        return self._listings[folder]

    def size(self, name: str) -> int | None:
        if name not in self._sizes:
            self._sizes[name] = self.memory.size(name)
        return self._sizes[name]

    def read(self, name: str, into: memoryview | None = None, offset: int = 0) -> bytes:
        if self.size(name) is None:
            raise FileNotFoundError(name)
        return self.memory.read(name, into, offset)

    def reader(self, name: str) -> Opened:
        if self.size(name) is None:
            raise FileNotFoundError(name)
        return self.memory.reader(name)

    def write(self, name: str, data: bytes | memoryview) -> None:
        self.memory.write(name, data)
        self._changed(name)

    def add(self, name: str, data: bytes | memoryview) -> None:
        self.memory.add(name, data)
        self._changed(name)

    def link(self, name: str, new: str, or_copy: bool = True) -> None:
        self.memory.link(name, new, or_copy)
        self._changed(new)

    def move(self, folder: str, new: str) -> None:
        self.memory.move(folder, new)
        self._changed(folder, new)

    def remove(self, name: str) -> None:
        self.memory.remove(name)
        self._changed(name)

    def _changed(self, *names: str) -> None:
        """By this node: it knows of these names, and of the folders that they lie in, what there is."""
        for name in names:
            for cached in (self._sizes, self._listings):
                for key in [key for key in cached if key == name or key.startswith(f"{name}/")]:
                    del cached[key]  # type: ignore[attr-defined]
            while name:
                name = name.rpartition("/")[0]
                self._listings.pop(name, None)


@dataclass(frozen=True)
class Schedule:
    """`order` of the actors while nobody is preempted; `switches` are (operation, actor to go on with); `crash` is
    (operation, actor): the actor that is about to make that operation, counted over all, is killed."""

    order: tuple[int, ...]
    switches: tuple[tuple[int, int], ...] = ()
    crash: int | None = None


class Run:
    """One run of the actors under a schedule. `trace` tells which actor made which operation."""

    def __init__(self, storage: Memory, actors: Sequence[Callable[[], None]], schedule: Schedule) -> None:
        self.schedule = schedule
        self.trace: list[tuple[int, str]] = []
        self.errors: dict[int, BaseException] = {}
        self._alive = set(range(len(actors)))
        self._turns = [threading.Semaphore(0) for _ in actors]
        self._back = threading.Semaphore(0)
        self._current = -1
        self._own: dict[int, int] = {}
        storage.before = self._pause
        self._threads = [threading.Thread(target=self._act, args=(n, actor)) for n, actor in enumerate(actors)]
        for thread in self._threads:
            thread.start()
        self._schedule()
        for thread in self._threads:
            thread.join()
        storage.before = lambda verb: None

    def _act(self, number: int, actor: Callable[[], None]) -> None:
        self._own[threading.get_ident()] = number
        self._wait(self._turns[number])
        try:
            actor()
        except Crashed:
            pass
        except BaseException as error:
            self.errors[number] = error
        self._alive.discard(number)
        self._back.release()

    def _pause(self, verb: str) -> None:
        """Before an operation: give the scheduler its turn."""
        number = self._own[threading.get_ident()]
        self._back.release()
        self._wait(self._turns[number])
        if self.schedule.crash == len(self.trace):
            self.trace.append((number, f"killed before {verb}"))
            raise Crashed
        self.trace.append((number, verb))

    def _schedule(self) -> None:
        switches = dict(self.schedule.switches)
        current = self.schedule.order[0]
        while self._alive:
            wanted = switches.get(len(self.trace))
            if wanted in self._alive:
                current = wanted  # type: ignore[assignment]
            if current not in self._alive:
                current = next(actor for actor in self.schedule.order if actor in self._alive)
            self._turns[current].release()
            self._wait(self._back)

    @staticmethod
    def _wait(turn: threading.Semaphore) -> None:
        assert turn.acquire(timeout=PATIENCE_SECONDS), (
            "an actor waits for something that is no operation on the storage"
        )


def schedules(lengths: Mapping[tuple[int, ...], int], actors: int, preemptions: int, crash: bool) -> Iterator[Schedule]:
    """All with up to so many preemptions; `lengths` are the operations of each order. With `crash`, and one crash."""
    for order, length in lengths.items():
        for count in range(preemptions + 1):
            for places in itertools.combinations(range(1, length), count):
                for targets in itertools.product(range(actors), repeat=count):
                    # A switch to whoever goes on anyway is none.
                    if any(one == other for one, other in itertools.pairwise((order[0], *targets))):
                        continue
                    switches = tuple(zip(places, targets))
                    for at in range(length) if crash else [None]:
                        yield Schedule(order, switches, at)


class Inline:
    """A ThreadPoolExecutor whose work is done at once, by the caller: an actor's operations have one order."""

    def __init__(self, *arguments: Any) -> None:
        """There is nothing to set up."""

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is left to wait for."""

    map = staticmethod(map)

    def shutdown(self, **how: bool) -> None:
        """Nothing is left to wait for."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        value = function(*arguments)
        return type("Done", (), {"result": staticmethod(lambda: value)})
