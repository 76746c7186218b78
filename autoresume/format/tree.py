"""Python values as JSON and back, exactly, without pickle.

Law: `decode(encode(x)) == x` with the same types, or `encode` raises a StateError that names the
key. Nothing is ever guessed, no code is run when decoding. JSON's own types stand for themselves;
everything else is an object with the key "$", which names its type:

    (1, 2)            {"$": "tuple", "items": [1, 2]}
    {0: "a"}          {"$": "dict", "items": [[0, "a"]]}
    inf               {"$": "float", "value": "inf"}
    b"x"              {"$": "bytes", "base64": "eA=="}

Types that this floor may not know (tensors, arrays, dtypes) are the caller's: it gives a `leaf`
function each way.
"""

from __future__ import annotations

import base64
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoresume.errors import CheckpointInvalid, StateError

Encode = Callable[[str, Any], "dict[str, Any] | None"]
"""leaf(key, value): an object with "$", or None if the value is not one of its types."""
Decode = Callable[[dict[str, Any]], Any]
"""The inverse: the value of an object with "$"."""

TAG = "$"
_DECIMAL_BITS = 4096
_FACTORIES: dict[str, Any] = {"list": list, "dict": dict, "set": set, "int": int, "float": float, "str": str}


def join(path: str, key: object) -> str:
    """A key below `path`. "/" and "~" in keys are escaped as in JSON pointers, so paths are unique."""
    text = str(key).replace("~", "~0").replace("/", "~1")
    return f"{path}/{text}" if path else text


def encode(value: Any, leaf: Encode, path: str = "") -> Any:
    """`value` as JSON-ready objects. Raises StateError with the key of the first leaf that can't be."""
    try:
        return _encode(value, leaf, path, set())
    except RecursionError:
        raise StateError(f"state {path!r} is nested too deeply to be stored; flatten it") from None


def _encode(value: Any, leaf: Encode, path: str, above: set[int]) -> Any:
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        # Beyond this many bits Python refuses to write an integer in decimal digits.
        return value if value.bit_length() <= _DECIMAL_BITS else {TAG: "int", "hex": hex(value)}
    if kind is str:
        return value if _is_unicode(value) else {TAG: "str", "base64": _surrogates(value)}
    if kind is float:
        return value if math.isfinite(value) else {TAG: "float", "value": repr(value)}
    tagged = leaf(path, value)
    if tagged is not None:
        return tagged
    if kind is bytes or kind is bytearray:
        return {TAG: kind.__name__, "base64": base64.b64encode(value).decode()}
    if kind is complex:
        return {TAG: "complex", "real": value.real.hex(), "imag": value.imag.hex()}
    if kind is range:
        return {TAG: "range", "items": [value.start, value.stop, value.step]}
    if isinstance(value, Path):
        return {TAG: "path", "value": value.as_posix()}
    if id(value) in above:
        raise StateError(f"state {path!r} contains itself; only trees can be stored")
    above.add(id(value))
    try:
        return _encode_container(value, leaf, path, above)
    finally:
        above.discard(id(value))


def _encode_container(value: Any, leaf: Encode, path: str, above: set[int]) -> Any:
    kind = type(value)

    def items(values: Any) -> list[Any]:
        return [_encode(item, leaf, join(path, i), above) for i, item in enumerate(values)]

    def pairs() -> list[list[Any]]:
        # "~" stands before 0 and 1 alone in a joined key, so these paths are nobody else's.
        found: list[list[Any]] = []
        taken: set[str] = set()
        for number, (key, item) in enumerate(value.items()):
            where = join(path, key)
            where = f"{where}~{number + 2}" if where in taken else where
            taken.add(where)
            found.append([_encode(key, leaf, f"{path}/~key{number}", above), _encode(item, leaf, where, above)])
        return found

    if kind is list:
        return items(value)
    if kind is dict and all(type(key) is str and _is_unicode(key) for key in value) and TAG not in value:
        return {key: _encode(item, leaf, join(path, key), above) for key, item in value.items()}
    if kind is tuple:
        return {TAG: "tuple", "items": items(value)}
    if kind is deque:
        return {TAG: "deque", "items": items(value), "maxlen": value.maxlen}
    if kind in (set, frozenset):
        return {TAG: kind.__name__, "items": items(sorted(value, key=lambda item: (str(type(item)), repr(item))))}
    if kind in (dict, OrderedDict, Counter):
        return {TAG: kind.__name__, "items": pairs()}
    if kind is defaultdict:
        name = getattr(value.default_factory, "__name__", None)
        if value.default_factory is None or _FACTORIES.get(str(name)) is value.default_factory:
            return {TAG: "defaultdict", "items": pairs(), "factory": name}
    raise StateError(
        f"state {path!r} is a {kind.__module__}.{kind.__qualname__}, which can't be stored: only numbers, strings, "
        "bytes, lists, tuples, dicts, sets, arrays, tensors and generators can. Convert it in your state_dict(), or, "
        "for an object that only pickles, track it as pickled(object)."
    )


def decode(value: Any, leaf: Decode) -> Any:
    """The inverse of `encode`. Raises CheckpointInvalid for what `encode` never writes."""
    try:
        return _decode(value, leaf)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointInvalid(f"the state tree is malformed: {type(error).__name__}: {error}") from error


def _decode(value: Any, leaf: Decode) -> Any:
    if isinstance(value, list):
        return [_decode(item, leaf) for item in value]
    if not isinstance(value, dict):
        return value
    if TAG not in value:
        return {key: _decode(item, leaf) for key, item in value.items()}
    tag = value[TAG]
    if tag in ("tuple", "set", "frozenset"):
        kinds: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}
        return kinds[tag](_decode(item, leaf) for item in _list(value["items"]))
    if tag == "deque":
        return deque((_decode(item, leaf) for item in _list(value["items"])), value["maxlen"])
    if tag in ("dict", "OrderedDict", "Counter", "defaultdict"):
        pairs = [(_decode(key, leaf), _decode(item, leaf)) for key, item in map(_list, _list(value["items"]))]
        if tag == "Counter":
            return Counter(dict(pairs))
        if tag == "defaultdict":
            factory = value["factory"]
            return defaultdict(None if factory is None else _FACTORIES[factory], pairs)
        return OrderedDict(pairs) if tag == "OrderedDict" else dict(pairs)
    if tag == "float":
        if value["value"] not in ("nan", "inf", "-inf"):
            raise ValueError(f"float {value['value']!r}")
        return float(value["value"])
    if tag in ("bytes", "bytearray"):
        data = base64.b64decode(value["base64"], validate=True)
        return data if tag == "bytes" else bytearray(data)
    if tag == "complex":
        return complex(float.fromhex(value["real"]), float.fromhex(value["imag"]))
    if tag == "range":
        return range(*_list(value["items"]))
    if tag == "int":
        return int(value["hex"], 16)
    if tag == "str":
        return base64.b64decode(value["base64"], validate=True).decode("utf-8", "surrogatepass")
    if tag == "path":
        return Path(value["value"])
    return leaf(value)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


def _is_unicode(text: str) -> bool:
    """False for text with surrogates, which JSON can't tell from other characters."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _surrogates(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()
