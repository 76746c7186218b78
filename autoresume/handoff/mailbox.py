"""Messages between a rank and its node daemon: small JSON files with atomic renames.

Law: a message is there whole or not at all; `ls` is the debugger. Nothing here is durable: the
folder lies in memory, and is gone with the node. A message is named by what it says, so sending it
again replaces it; whoever has acted on it removes it.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

from autoresume.errors import UsageError
from autoresume.format.names import is_temporary, temporary

NODE_FOLDER_VARIABLE = "AUTORESUME_NODE_FOLDER"
"""Set by the daemon for its ranks."""
STACKS_FILE = "stacks"
"""Before a dash and the local rank: where a rank writes its stacks when it is asked to."""


class Mailbox:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def send(self, name: str, message: dict[str, Any]) -> None:
        target = self.folder / f"{name}.json"
        temp = Path(temporary(str(target), secrets.token_hex(4)))
        temp.write_text(json.dumps(message))
        os.rename(temp, target)

    def receive(self, name: str) -> dict[str, Any] | None:
        """The message, or None. It stays until it is removed."""
        try:
            value = json.loads((self.folder / f"{name}.json").read_text())
        except FileNotFoundError:
            return None
        return value if isinstance(value, dict) else None

    def waiting(self, name: str) -> bool:
        return os.path.exists(self.folder / f"{name}.json")

    def names(self, prefix: str = "") -> list[str]:
        """Names of all messages that begin with `prefix`, oldest first."""
        found = []
        for entry in os.scandir(self.folder):
            if entry.name.startswith(prefix) and entry.name.endswith(".json") and not is_temporary(entry.name):
                try:
                    found.append((entry.stat().st_mtime_ns, entry.name[: -len(".json")]))
                except FileNotFoundError:
                    continue
        return [name for _, name in sorted(found)]

    def remove(self, name: str) -> None:
        (self.folder / f"{name}.json").unlink(missing_ok=True)


def memory_parent() -> Path:
    """Where the machine keeps files in memory, if it has such a place."""
    return Path(os.environ.get("AUTORESUME_MEMORY", "/dev/shm"))  # noqa: S108  (what is made there is private)


def memory_root() -> Path:
    """This user's folder in memory, mode 0700: on tmpfs where the machine has one. Raises UsageError."""
    parent = memory_parent()
    if not os.access(parent, os.W_OK | os.X_OK):
        parent = Path(tempfile.gettempdir())
    root = parent / f"autoresume-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    stats = root.lstat()
    if stats.st_uid != os.getuid() or stats.st_mode & 0o077 or root.is_symlink():
        raise UsageError(
            f"{root} is not this user's private folder: somebody else made it, or others may look into it. Snapshots "
            "are not put there. Remove it, or set AUTORESUME_MEMORY to another folder in memory"
        )
    return root
