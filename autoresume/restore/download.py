"""Files from elsewhere, downloaded once.

Law: what lies under its name is whole and durable, and has the digest that was asked for; what is being downloaded has
another name, and is gone on with after an interruption. No torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import logging
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autoresume.errors import CheckpointInvalid, StorageFull, UsageError
from autoresume.format import names
from autoresume.format.digest import digest
from autoresume.restore.origins import Origin, find_origin
from autoresume.storage.local import LocalStorage

log = logging.getLogger("autoresume")

_BLOCK_BYTES = 4 * 1024 * 1024
_HEADROOM_BYTES = 256 * 1024 * 1024
_ATTEMPTS = 5
"""Without a byte of progress in between."""
_PATIENCE_SECONDS = 60
_RECORD = "source.json"
_EXTRAS = {
    "s3": "autoresume-hpc[s3]",
    "hf": "huggingface_hub",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
}


def download_origin(origin: Origin, folder: Path) -> Origin:
    """`origin` as it is, or, of a URL, what lies in `folder` now. Raises as `download`."""
    if origin.url is None:
        return origin
    path = download(origin.url, folder / names.SOURCES)
    return replace(find_origin(str(path), path.parent), description=origin.description)


def download(url: str, folder: Path, sha256: str | None = None) -> Path:
    """Download `url` into a folder of its own below `folder`, unless it is there already; where it lies.

    `sha256` (also as "#sha256=..." behind the URL) is what the content must have. A URL of a folder (s3, hf) gives a
    folder. Durable when it returns. Raises UsageError (no such thing, no such protocol), CheckpointInvalid (other bytes
    than expected), StorageFull.
    """
    url, _, fragment = url.partition("#")
    if fragment.startswith("sha256="):
        sha256 = fragment.removeprefix("sha256=")
    sha256 = sha256.lower() if sha256 else None
    place = folder / digest(url.encode())[:12]
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        return _fetch(url, place, sha256)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One process at a time."""
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(url: str, place: Path, sha256: str | None) -> Path:
    record = _record(place)
    if record is not None and (sha256 is None or record.get("sha256") == sha256):
        return place / str(record["name"])
    source = _Http(url) if urlsplit(url).scheme in ("http", "https") else _Filesystem(url)
    files = source.files()
    total = sum(size or 0 for _, size in files)
    have = sum(path.stat().st_size for path in place.rglob("*.part"))
    free = shutil.disk_usage(place).free
    if free < total - have + _HEADROOM_BYTES:
        raise StorageFull(
            f"{url} has {total / 1e9:.2f} GB, and only {free / 1e9:.2f} GB are free at {place}; nothing was "
            "downloaded. Free some space, or choose another run directory"
        )
    name = source.name
    folder = name if source.is_folder else "."
    storage, found = LocalStorage(place), hashlib.sha256()
    for file, size in files:
        target = file if folder == "." else f"{folder}/{file}"
        if storage.size(target) is None:
            _download(source, file, size, storage, target)
        _hash(storage.path(target), found)
    if sha256 is not None and found.hexdigest() != sha256:
        shutil.rmtree(storage.path(name)) if source.is_folder else storage.remove(name)
        raise CheckpointInvalid(
            f"{url} has the SHA-256 {found.hexdigest()}, and not {sha256}: it is another file than was meant, or was "
            "changed on its way. It was deleted"
        )
    value = {"url": url, "name": name, "sha256": found.hexdigest()}
    storage.write(_RECORD, json.dumps(value, indent=1).encode() + b"\n")
    return place / name


def _record(place: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((place / _RECORD).read_bytes())
        return found if (place / str(found["name"])).exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _download(source: _Http | _Filesystem, file: str, size: int | None, storage: LocalStorage, target: str) -> None:
    """Into a name of its own first, from where an earlier attempt ended."""
    part = storage.path(f"{target}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    attempts, had = 0, -1
    while True:
        have = part.stat().st_size if part.exists() else 0
        attempts = 0 if have > had else attempts + 1
        had = max(have, had)
        if size is not None and have >= size:
            break
        try:
            if source.pour(file, part, have) and size is None:
                break
        except (http.client.HTTPException, urllib.error.URLError, OSError) as error:
            if isinstance(error, (urllib.error.HTTPError, FileNotFoundError)) or attempts >= _ATTEMPTS:
                raise UsageError(f"{source.url} can't be downloaded: {error}. What is there stays at {part}") from error
            log.warning("%s: %s; going on at byte %d", source.url, error, part.stat().st_size if part.exists() else 0)
    found = part.stat().st_size
    if size is not None and found != size:
        part.unlink()
        raise CheckpointInvalid(f"{source.url}: {file} should have {size} bytes, and has {found}; it was deleted")
    storage.sync(f"{target}.part")
    storage.move(f"{target}.part", target)


def _hash(path: Path, into: Any) -> None:
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            into.update(block)


class _Http:
    """One file of a web server. Servers that know no ranges are read from the beginning."""

    is_folder = False

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = Path(urlsplit(url).path).name or "download"

    def files(self) -> list[tuple[str, int | None]]:
        try:
            with self._open({"Accept-Encoding": "identity"}, "HEAD") as answer:
                return [(self.name, _length(answer))]
        except urllib.error.HTTPError as error:
            if error.code in (403, 405, 501):  # a server that gives files, and no answers about them
                return [(self.name, None)]
            raise UsageError(f"{self.url} can't be downloaded: {error}. Check the URL, and who may read it") from error
        except (urllib.error.URLError, OSError) as error:
            raise UsageError(f"{self.url} can't be reached: {error}") from error

    def _open(self, headers: dict[str, str], method: str = "GET") -> Any:
        request = urllib.request.Request(self.url, headers=headers, method=method)  # noqa: S310 (http and https only)
        return urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS)  # noqa: S310

    def pour(self, file: str, part: Path, have: int) -> bool:
        """Append what is missing; True if the answer was whole, by its own word."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with self._open(headers) as answer, open(part, "ab" if answer.status == 206 else "wb") as out:
            expected, got = _length(answer), 0
            while block := answer.read(_BLOCK_BYTES):
                out.write(block)
                got += len(block)
            if expected is not None and got < expected:
                raise http.client.IncompleteRead(b"", expected - got)
        return True


def _length(answer: Any) -> int | None:
    text = answer.headers.get("Content-Length")
    return int(text) if text and text.isdigit() else None


class _Filesystem:
    """A file or a folder of an object store, or whatever else fsspec knows."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        scheme = urlsplit(url).scheme
        try:
            self._system, self._path = fsspec.core.url_to_fs(url)
        except ImportError as error:
            package = _EXTRAS.get(scheme, f"fsspec's package for {scheme}")
            raise UsageError(f"{url} needs {package}: pip install '{package}' ({error})") from error
        except ValueError as error:
            known = ", ".join(sorted(fsspec.available_protocols())[:40])
            raise UsageError(f"{scheme}:// is no protocol that is known here ({error}); known are {known}") from error
        self.name = self._path.rstrip("/").rsplit("/", 1)[-1]
        try:
            self.is_folder = bool(self._system.isdir(self._path))
        except Exception as error:  # each file system has errors of its own
            raise UsageError(f"{url} can't be reached: {type(error).__name__}: {error}") from error

    def files(self) -> list[tuple[str, int | None]]:
        try:
            if self.is_folder:
                found = self._system.find(self._path, detail=True)
                root = self._path.rstrip("/") + "/"
                return [(path.removeprefix(root), one.get("size")) for path, one in sorted(found.items())]
            return [(self.name, self._system.info(self._path).get("size"))]
        except FileNotFoundError as error:
            raise UsageError(f"there is no {self.url}") from error
        except Exception as error:  # as above
            raise UsageError(f"{self.url} can't be read: {type(error).__name__}: {error}") from error

    def pour(self, file: str, part: Path, have: int) -> bool:
        path = f"{self._path.rstrip('/')}/{file}" if self.is_folder else self._path
        with self._system.open(path, "rb") as source, open(part, "ab") as out:
            source.seek(have)
            while block := source.read(_BLOCK_BYTES):
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
        return True
