"""Digests: which bytes they cover, and that the algorithm is the one that the format names."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresume.format.digest import BLOCK_BYTES, blocks, canonical, digest, seal_blocks


def test_known_digests() -> None:
    """xxh3-128 with seed 0, big-endian hexadecimal, as published: changing it would orphan every checkpoint."""
    assert digest(b"") == "99aa06d3014798d86001c324468d497f"
    assert digest(b"autoresume") == digest(memoryview(bytearray(b"autoresume")))
    assert len(digest(b"autoresume")) == 32
    assert BLOCK_BYTES == 8 * 1024 * 1024


@given(st.integers(0, 1000), st.integers(1, 100))
def test_blocks_cover_each_byte_once(size: int, block_bytes: int) -> None:
    """The blocks of a file follow each other without a gap, all but the last of full size."""
    found = list(blocks(size, block_bytes))
    assert [byte for begin, end in found for byte in range(begin, end)] == list(range(size))
    assert all(end - begin == block_bytes for begin, end in found[:-1])


@given(st.binary(max_size=100), st.integers(1, 40), st.data())
def test_a_changed_byte_changes_its_block_only(content: bytes, block_bytes: int, data: st.DataObject) -> None:
    """A flipped bit is seen in the digest of its own block, and in no other."""
    before = seal_blocks(memoryview(content), block_bytes)
    assert len(before) == -(-len(content) // block_bytes)
    if not content:
        return
    at = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    after = seal_blocks(memoryview(changed), block_bytes)
    assert [index for index, (a, b) in enumerate(zip(before, after)) if a != b] == [at // block_bytes]


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False), max_size=5))
def test_canonical_keeps_the_order(value: dict[str, int | float]) -> None:
    """Equal values in equal order are equal bytes, and the order of a dictionary comes back: it is state."""
    data = canonical(value)
    assert canonical(dict(value)) == data
    assert list(json.loads(data).items()) == list(value.items())
    assert data.isascii()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_canonical_is_json(value: float) -> None:
    """What JSON has no word for is refused, not written as something that other readers reject."""
    with pytest.raises(ValueError):
        canonical({"value": value})
