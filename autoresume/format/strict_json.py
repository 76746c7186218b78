"""JSON of ours, read without trust: what is not as its document says is a CheckpointInvalid that names it."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from autoresume.errors import CheckpointInvalid
from autoresume.format import names
from autoresume.format.names import FORMAT_VERSION, CheckpointName

T = TypeVar("T")


def beginning_of(data: bytes, rest: bytes, what: str) -> bytes:
    """The JSON object `data` up to the key that `rest` begins with. Quotes inside of strings are escaped, and the
    values before that key hold no such list: it is found nowhere else."""
    end = data.find(rest)
    if end < 0:
        raise CheckpointInvalid(f"the {what} is malformed: it has no {rest.decode()}")
    return data[:end] + b"}"


def load_object(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointInvalid(f"the {what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointInvalid(f"the {what} is not a JSON object")
    version = value.get("format_version")
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        hint = "; it was written by a newer autoresume: upgrade to read it" if newer else ""
        raise CheckpointInvalid(f"the {what} has format version {version!r}, this is {FORMAT_VERSION}{hint}")
    return value


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def get(value: dict[str, Any], key: str, kind: type[T]) -> T:
    found = value.get(key)
    if not isinstance(found, kind):
        raise CheckpointInvalid(f"{key!r} is {type(found).__name__}, not {kind.__name__}")
    return found


def count_of(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise CheckpointInvalid(f"{value!r} is not a count")
    return value


def sizes_of(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise CheckpointInvalid(f"{value!r} is not a list of sizes")
    for item in value:
        if type(item) is not int or not 0 <= item < 2**62:
            raise CheckpointInvalid(f"{item!r} is not a count")
    return tuple(value)


def inside_name(name: Any) -> str:
    if not isinstance(name, str) or not names.is_inside(name):
        raise CheckpointInvalid(f"{name!r} is not a file inside the checkpoint")
    return name


def checkpoint_name(text: str) -> CheckpointName:
    name = CheckpointName.parse(text)
    if name is None:
        raise CheckpointInvalid(f"{text!r} is not a checkpoint's name")
    return name
