"""Boxes of tensors: (offset, size) in elements, and what of them lies in each other.

Law: pure; C order; a box without elements overlaps only with itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""(offset, size)"""


def span_of(box: Box, outer: Box) -> tuple[int, int]:
    """Where `box`, which lies inside of `outer`, begins in its elements, and how far it reaches to its last one."""
    first = last = 0
    for stride, offset, begin, size in zip(strides_of(outer[1]), box[0], outer[0], box[1]):
        first += (offset - begin) * stride
        last += (offset - begin + size - 1) * stride
    return first, last - first + 1


def strides_of(size: Sequence[int]) -> list[int]:
    """Of a dense tensor in C order."""
    strides, stride = [], 1
    for one in reversed(size):
        strides.append(stride)
        stride *= one
    return strides[::-1]


def slices_of(box: Box, outer: Box) -> tuple[slice, ...]:
    return tuple(slice(o - b, o - b + s) for o, b, s in zip(box[0], outer[0], box[1]))


def overlap_of(one: Box, other: Box) -> Box | None:
    offset = tuple(max(a, b) for a, b in zip(one[0], other[0]))
    end = tuple(min(a + s, b + t) for a, s, b, t in zip(one[0], one[1], other[0], other[1]))
    size = tuple(e - o for e, o in zip(end, offset))
    if any(s <= 0 for s in size):
        # A tensor without elements is covered by its own chunk.
        return (offset, size) if one == other else None
    return offset, size


def covered_elements(box: Box, boxes: Sequence[Box]) -> int:
    """How many elements of `box` lie in at least one of `boxes`, which lie inside of it."""
    if len(boxes) < 2:
        return sum(elements_of(size) for _, size in boxes)
    if all(size[1:] == box[1][1:] for _, size in boxes):
        # Rows, as nearly always: a sweep instead of a map of every element.
        rows, end = 0, 0
        for begin, count in sorted((offset[0], size[0]) for offset, size in boxes):
            rows += max(0, begin + count - max(begin, end))
            end = max(end, begin + count)
        return rows * elements_of(box[1][1:])
    seen = torch.zeros(box[1], dtype=torch.bool)
    for offset, size in boxes:
        seen[tuple(slice(o - b, o - b + s) for o, b, s in zip(offset, box[0], size))] = True
    return int(seen.sum())


def elements_of(size: Sequence[int]) -> int:
    count = 1
    for one in size:
        count *= one
    return count
