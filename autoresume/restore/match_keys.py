"""Which stored key belongs to which live one.

Law: pure. Keys that say the same but for what wrappers write in front of names are the same. Beyond that at most one
prefix is put on or taken off, if that makes names match that else don't, and it is told. What is left over is told.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Shape = tuple[int, ...]

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""torch.compile, FSDP, activation checkpoints: anywhere in a name."""
_PARALLEL = "module."
"""DDP, DataParallel and averaged models: in front of every name."""
_NO_WEIGHTS = ("n_averaged",)
"""What an averaged model counts beside its weights."""


@dataclass(frozen=True)
class Matching:
    """`pairs` are stored key -> live key, of equal shape."""

    pairs: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    """Live keys that nothing stored belongs to."""
    unused: tuple[str, ...] = ()
    """Stored keys that nothing live belongs to."""
    misfits: tuple[tuple[str, Shape, Shape], ...] = ()
    """(live key, the stored shape, the live shape) where these differ."""
    notes: tuple[str, ...] = ()
    """What was done to the names, beyond what wrappers need."""


def match_keys(
    stored: Mapping[str, Shape],
    live: Mapping[str, Shape],
    rename: Mapping[str, str] | None = None,
    remove: Sequence[str] = (),
    fresh: Sequence[str] = (),
) -> Matching:
    """Match keys by name.

    `rename` has regular expressions of stored keys and their replacements, applied in order; `remove` has those of
    stored keys that are left out; `fresh` has patterns (as in a shell) of live keys that stay as they are, whether
    something stored belongs to them or not.
    """
    here = {_plain(key, live): key for key in live if _plain(key, live) not in _NO_WEIGHTS}
    stays = {name for name, key in here.items() if any(fnmatch.fnmatchcase(key, pattern) for pattern in fresh)}
    there: dict[str, str] = {}
    for key in stored:
        name = _plain(key, stored)
        if name in _NO_WEIGHTS or any(re.search(pattern, name) or re.search(pattern, key) for pattern in remove):
            continue
        for pattern, replacement in (rename or {}).items():
            name = re.sub(pattern, replacement, name)
        there[name] = key
    there, notes = _moved(there, here)
    wanted = {name: key for name, key in here.items() if name not in stays}
    there = {name: key for name, key in there.items() if name not in stays}
    common = [name for name in there if name in wanted]
    fits = [name for name in common if stored[there[name]] == live[wanted[name]]]
    return Matching(
        pairs={there[name]: wanted[name] for name in fits},
        missing=tuple(key for name, key in wanted.items() if name not in there),
        unused=tuple(key for name, key in there.items() if name not in wanted),
        misfits=tuple(
            (wanted[name], stored[there[name]], live[wanted[name]]) for name in common if name not in set(fits)
        ),
        notes=notes,
    )


def _plain(key: str, keys: Iterable[str]) -> str:
    """A key without what wrappers put into it."""
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    name = ".".join(parts)
    if name.startswith(_PARALLEL) and all(
        other.startswith(_PARALLEL) or other in _NO_WEIGHTS or other.split(".")[0] in _WRAPPERS for other in keys
    ):
        name = name.removeprefix(_PARALLEL)
    return name


def _moved(there: dict[str, str], here: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The stored names with one prefix put on or taken off, if more of them match so."""
    known = set(here)
    as_they_are = len(known.intersection(there))
    best, prefix, found = as_they_are, None, there
    for sign, candidate in _candidates(there, here):
        if sign == "-":
            moved = {name.removeprefix(candidate): key for name, key in there.items() if name.startswith(candidate)}
            moved |= {name: key for name, key in there.items() if not name.startswith(candidate) and name not in moved}
        else:
            moved = {candidate + name: key for name, key in there.items()}
        count = len(known.intersection(moved))
        if count > best:
            best, prefix, found = count, (sign, candidate), moved
    if prefix is None:
        return there, ()
    sign, candidate = prefix
    words = "the stored names have lost the prefix" if sign == "-" else "the stored names were given the prefix"
    return found, (f"{words} {candidate!r}: {best} names match so, and {as_they_are} as they were",)


def _candidates(there: Iterable[str], here: Iterable[str]) -> list[tuple[str, str]]:
    """Prefixes that may be too many in the stored names, or in the live ones; the commonest first."""
    found: list[tuple[str, str]] = []
    for sign, names in (("-", list(there)), ("+", list(here))):
        counts: Counter[str] = Counter()
        for name in names:
            parts = name.split(".")
            counts.update({".".join(parts[:depth]) + "." for depth in range(1, min(len(parts), 4))})
        found += [(sign, prefix) for prefix, _ in counts.most_common(8)]
    return found
