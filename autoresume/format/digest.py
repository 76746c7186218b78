"""Digests: xxh3-128, over whole small files and over fixed blocks of large ones.

Law: a digest here finds accidents (torn, truncated, flipped), not attackers. Blocks let many
threads hash and verify one file in parallel, and name the damaged range.
xxh3 was chosen by measurement: several times the speed of a disk on one core, releases the GIL.

A *seal* is the digest of what a checkpoint consists of. With a signing key (AUTORESUME_SIGNING_KEY names a file) it
is HMAC-SHA-256 with that key instead, cut to 128 bits (RFC 2104, RFC 4868): whoever does not have the key can't make
one, so that nothing that he changed is restored. docs/security.md says what that protects from.
"""

from __future__ import annotations

import functools
import hmac
import json
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Any

import xxhash

from autoresume.errors import UsageError

NAME = "xxh3-128"
BLOCK_BYTES = 8 * 1024 * 1024


def digest(data: bytes | bytearray | memoryview) -> str:
    """32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


KEY_VARIABLE = "AUTORESUME_SIGNING_KEY"
_LEAST_KEY, _MOST_KEY = 16, 64


@functools.lru_cache(maxsize=1)
def signing_key(file: str | None = None) -> bytes | None:
    """The key in the file that AUTORESUME_SIGNING_KEY names; None if it names none. Raises UsageError."""
    file = os.environ.get(KEY_VARIABLE) if file is None else file
    if not file:
        return None
    try:
        with open(file, "rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            key = opened.read().strip()
    except OSError as error:
        raise UsageError(f"{KEY_VARIABLE} names {file}, which can't be read: {error.strerror or error}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise UsageError(
            f"{KEY_VARIABLE}: others may read or change {file}, so that it signs nothing: chmod 600 {file}"
        )
    if not _LEAST_KEY <= len(key) <= _MOST_KEY:
        raise UsageError(
            f"{KEY_VARIABLE}: {file} has {len(key)} bytes; a key has {_LEAST_KEY} to {_MOST_KEY}. Make one with: "
            f"(umask 077; openssl rand -hex 32 > {file})"
        )
    return key


def _hasher() -> Any:
    key = signing_key()
    return xxhash.xxh3_128() if key is None else hmac.new(key, digestmod="sha256")


def seal(data: bytes | bytearray | memoryview) -> str:
    """32 hexadecimal digits, that only who has the key can make, if there is one."""
    if signing_key() is None:
        return digest(data)
    hasher = _hasher()
    hasher.update(data)
    return str(hasher.hexdigest())[:32]


def seal_of(pieces: Iterable[memoryview]) -> str:
    """The seal of all pieces together."""
    hasher = _hasher()
    for piece in pieces:
        hasher.update(piece)
    return str(hasher.hexdigest())[:32]


def why_invalid(data: bytes, told: str) -> str:
    """Why the seal of something is not what it should be, as far as that can be said."""
    if signing_key() is None:
        return f"it is damaged, or signed with a key ({KEY_VARIABLE})"
    return "it is not signed" if digest(data) == told else "it is damaged, or signed with another key"


def blocks(size: int, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
    """(begin, end) of each block of a file of `size` bytes."""
    for begin in range(0, size, block_bytes):
        yield begin, min(begin + block_bytes, size)


def seal_blocks(data: memoryview, block_bytes: int = BLOCK_BYTES) -> tuple[str, ...]:
    """The seal of each block of `data`, in order."""
    return tuple(seal(data[begin:end]) for begin, end in blocks(len(data), block_bytes))


def canonical(value: Any) -> bytes:
    """JSON with one spelling for each value: what two ranks write of the same value is equal.

    Keys keep their order, since the order of a dict is part of the state that it belongs to.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
