"""Which code a run was started with: its revision, what was changed since, and the script itself.

Law: says what it finds, and never fails: no git, no repository and no script are findings too.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoresume.errors import UsageError
from autoresume.format.digest import digest

_GIT_SECONDS = 10.0
_CODE = tuple(f":(top)*.{kind}" for kind in ("py", "yaml", "yml", "json", "toml"))
_MOST_BYTES = 64 * 1024 * 1024


def fingerprint(script: Path) -> dict[str, Any]:
    """revision (None outside of a repository), changes (a digest of what is not committed, None if nothing), script."""
    found: dict[str, Any] = {"revision": None, "changes": None, "script": None}
    with contextlib.suppress(OSError):
        found["script"] = digest(script.read_bytes())
    revision = _git(script.parent, "rev-parse", "HEAD")
    if revision is not None:
        found["revision"] = revision.strip()
        changed = (_git(script.parent, "diff", "HEAD", "--", *_CODE) or "").encode()
        found["changes"] = digest(changed) if changed.strip() else None
    return found


def difference(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str | None:
    """What is another code than before, in words; None if it is the same, or nobody knows."""
    if not before:
        return None
    said = []
    if before.get("script") and now["script"] and before["script"] != now["script"]:
        said.append("the script has changed")
    if before.get("revision") != now["revision"] and before.get("revision") and now["revision"]:
        said.append(f"the revision is {now['revision'][:10]}, and was {before['revision'][:10]}")
    elif before.get("changes") != now["changes"] and now["revision"]:
        said.append("uncommitted changes are other ones than before")
    return ", ".join(said) or None


def snapshot(script: Path, target: Path) -> Path:
    """Copy the code that `script` belongs to below `target`; the copy of the script.

    In a git repository: its files that are not ignored, as they are now. Else: the Python files beside the script
    and below. Neither what lies beside `target`: earlier copies. Raises UsageError if that is more than 64 MiB.
    """
    root_text = _git(script.parent, "rev-parse", "--show-toplevel")
    if root_text is not None:
        root = Path(root_text.strip())
        listed = _git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z") or ""
        files = [root / name for name in listed.split("\0") if name]
    else:
        root = script.parent.resolve()
        found = (path.relative_to(root) for path in root.rglob("*.py"))
        files = [root / path for path in sorted(found) if not any(part.startswith(".") for part in path.parts)]
    files = [file for file in files if file.is_file() and target.parent.resolve() not in file.resolve().parents]
    files = list(dict.fromkeys([*files, root / script.resolve().relative_to(root.resolve())]))
    size = sum(file.stat().st_size for file in files)
    if size > _MOST_BYTES:
        largest = max(files, key=lambda file: file.stat().st_size)
        raise UsageError(
            f"the code below {root} has {size / 1e6:.0f} MB, e.g. {largest.relative_to(root)}: more than a snapshot "
            "takes. Have git ignore what is no code, or submit without --snapshot-code"
        )
    for file in files:
        copy = target / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy)
    return target / script.resolve().relative_to(root.resolve())


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],  # noqa: S607  (the user's git)
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
