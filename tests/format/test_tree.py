"""The tagged tree: what goes in comes out, or an error names the key."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autoresume.errors import CheckpointInvalid, StateError
from autoresume.format import tree
from autoresume.format.digest import canonical


class Unsupported:
    """Something that no state may hold."""


class Marker:
    """A leaf that the caller knows how to store: it stands for a tensor. Hashable, so it may be a key."""


def no_leaf(key: str, value: Any) -> None:
    return None


def unknown(tagged: dict[str, Any]) -> Any:
    raise ValueError(f"unknown type {tagged['$']!r}")


def there_and_back(value: Any) -> Any:
    """The way of a part: encoded, written as bytes, parsed, decoded."""
    return tree.decode(json.loads(canonical(tree.encode(value, no_leaf))), unknown)


def spelled(value: Any) -> Any:
    """Equal for two values if and only if they have the same types, values and order throughout.

    nan is nan, and -0.0 is not 0.0.
    """
    kind = type(value)
    if kind is float:
        return ("float", value.hex())
    if kind is complex:
        return ("complex", value.real.hex(), value.imag.hex())
    if isinstance(value, dict):
        extra = value.default_factory if kind is defaultdict else None
        return (kind.__name__, extra, [[spelled(k), spelled(v)] for k, v in value.items()])
    if kind in (set, frozenset):
        return (kind.__name__, sorted((spelled(item) for item in value), key=repr))
    if kind in (list, tuple):
        return (kind.__name__, [spelled(item) for item in value])
    if kind is deque:
        return ("deque", value.maxlen, [spelled(item) for item in value])
    if kind is range:
        return ("range", value.start, value.stop, value.step)
    return (kind.__name__, value)


def no_pair_of_surrogates(text: str) -> bool:
    """Two surrogates side by side have a test of their own below."""
    return not any("\ud800" <= a <= "\udbff" and "\udc00" <= b <= "\udfff" for a, b in itertools.pairwise(text))


any_text = st.text(st.characters(codec=None), max_size=8).filter(no_pair_of_surrogates)
keys = st.one_of(
    any_text,
    st.integers(),
    st.booleans(),
    st.none(),
    st.floats(),
    st.binary(max_size=4),
    st.just("$"),
    st.tuples(st.integers(), any_text),
    st.frozensets(st.integers(), max_size=3),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, -(2**64), 10**4000, -0.0, 5e-324, 1.7976931348623157e308]),
    st.floats(),
    st.complex_numbers(),
    any_text,
    st.binary(max_size=8),
    st.binary(max_size=8).map(bytearray),
    st.builds(range, st.integers(), st.integers(), st.integers().filter(bool)),
    st.text("ab/.", min_size=1, max_size=8).map(Path),
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def dictionaries(of: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[Any, Any]]:
        return st.dictionaries(of, inner, max_size=4)

    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.builds(deque, st.lists(inner, max_size=4), st.none() | st.integers(0, 5)),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
        dictionaries(any_text),
        dictionaries(keys),
        dictionaries(keys).map(OrderedDict),
        st.dictionaries(keys, st.integers(), max_size=4).map(Counter),
        st.builds(defaultdict, st.sampled_from([None, list, dict, set, int, float, str]), dictionaries(keys)),
    )


values = st.recursive(scalars, containers, max_leaves=12)


@given(values)
@example({"$": "tuple", "items": []})
@example({"a": {"$": 1}})
@example([math.nan, math.inf, -math.inf, -0.0])
@example({math.nan: 1, (1, ("a", (b"",))): [()]})
@example("\udfff\ud800")
def test_round_trip(value: Any) -> None:
    """Every supported value comes back from its bytes equal, with the same types throughout."""
    assert spelled(there_and_back(value)) == spelled(value)


@given(values)
def test_encoding_is_stable(value: Any) -> None:
    """Encoding what was decoded gives the same bytes: a run that saves, restores and saves writes the same tree."""
    first = canonical(tree.encode(value, no_leaf))
    assert canonical(tree.encode(tree.decode(json.loads(first), unknown), no_leaf)) == first


def test_a_pair_of_surrogates_stays_two_characters() -> None:
    """A string of two lone surrogates (file names read with surrogateescape) comes back as two, or is refused."""
    value = "\ud83d\ude00"  # two characters in Python; as JSON escapes they would be one
    with contextlib.suppress(StateError):
        assert [ord(letter) for letter in there_and_back(value)] == [0xD83D, 0xDE00]


def test_huge_integers_are_stored_or_refused() -> None:
    """An integer of more digits than Python converts comes back, or is a StateError that names its key."""
    value = {"exact": [0, 3**20_000]}
    try:
        tree.encode(value, no_leaf)
    except StateError:
        with pytest.raises(StateError, match="exact/1"):
            tree.encode(value, no_leaf)
    else:
        assert there_and_back(value) == value


# -- what can't be stored ---------------------------------------------------------------------------

path_steps = st.lists(st.integers(0, 3) | st.text(max_size=5), max_size=6)


@given(path_steps, st.text("ab/~", max_size=4))
def test_an_unsupported_leaf_names_its_key(steps: list[int | str], top: str) -> None:
    """Wherever a leaf that can't be stored lies, the error spells the way to it."""
    value: Any = Unsupported()
    for step in reversed(steps):
        value = [0] * step + [value] if isinstance(step, int) else {step: value}
    way = top
    for step in steps:
        word = str(step).replace("~", "~0").replace("/", "~1")
        way = f"{way}/{word}" if way else word
    with pytest.raises(StateError) as caught:
        tree.encode(value, no_leaf, top)
    assert f"state {way!r} is a " in str(caught.value)
    assert "Unsupported" in str(caught.value)


class Subclass(dict[str, int]):
    pass


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(Unsupported(), id="an object"),
        pytest.param(lambda: 0, id="a function"),
        pytest.param(Unsupported, id="a class"),
        pytest.param(Subclass(a=1), id="a dict of a class of its own"),
        pytest.param(type("Words", (str,), {})("x"), id="a string of a class of its own"),
        pytest.param(iter([1]), id="an iterator"),
        pytest.param(memoryview(b"x"), id="a memoryview"),
        pytest.param(defaultdict(lambda: 0), id="a defaultdict that makes its values by a function"),
        pytest.param(PurePosixPath("x"), id="a pure path"),
    ],
)
def test_what_would_not_come_back_the_same_is_refused(value: Any) -> None:
    """Nothing is guessed: a type that decoding could not make again is an error that names the key."""
    with pytest.raises(StateError, match="'run/0' is a"):
        tree.encode([value], no_leaf, "run")


def test_a_value_that_contains_itself_is_refused() -> None:
    """A cycle is an error that names where it closes, not an endless walk."""
    value: dict[str, Any] = {"inner": []}
    value["inner"].append(value)
    with pytest.raises(StateError, match="'root/inner/0' contains itself"):
        tree.encode(value, no_leaf, "root")


def test_a_value_that_is_referred_to_twice_is_no_cycle() -> None:
    """The same list in two places is stored twice."""
    twice = [1]
    assert there_and_back({"a": twice, "b": (twice, twice)}) == {"a": [1], "b": ([1], [1])}


def test_too_deep_a_value_is_refused() -> None:
    """Nesting beyond Python's recursion is a StateError that names the object, not a RecursionError."""
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(StateError, match="'deep' is nested too deeply"):
        tree.encode(value, no_leaf, "deep")


# -- leaves of the caller -----------------------------------------------------------------------------

marked = st.recursive(
    st.builds(Marker) | st.integers(0, 1),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(deque),
        st.dictionaries(st.text("a/~0", max_size=2), inner, max_size=3),
        st.dictionaries(st.integers(0, 2), inner, max_size=3),
        st.dictionaries(st.tuples(st.integers(0, 2)), inner, max_size=3).map(OrderedDict),
        st.sets(st.builds(Marker), max_size=2),
    ),
    max_leaves=8,
)


def paths_of(value: Any) -> list[str]:
    """The key that each Marker of `value` was announced with."""
    seen: list[str] = []

    def leaf(key: str, item: Any) -> dict[str, Any] | None:
        if not isinstance(item, Marker):
            return None
        seen.append(key)
        return {"$": "marker", "key": key}

    tree.encode(value, leaf, "root")
    return seen


@given(marked)
def test_each_leaf_has_a_key_of_its_own(value: Any) -> None:
    """Two leaves never get the same key: a key is where a tensor is stored."""
    paths = paths_of(value)
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({0: Marker(), "0": Marker()}, id="a number and its digits"),
        pytest.param({None: Marker(), "None": Marker()}, id="None and its name"),
        pytest.param({(1, 2): Marker(), "(1, 2)": Marker()}, id="a tuple and its spelling"),
        pytest.param({Marker(): 1, Marker(): 2}, id="two keys that are leaves themselves"),
        pytest.param(Counter([Marker(), Marker()]), id="a Counter of leaves"),
        pytest.param({Marker(): 1, "<key>": Marker()}, id="a key that spells the place of keys"),
    ],
)
def test_keys_that_look_alike_stay_apart(value: Any) -> None:
    """Keys of different types with the same text, and keys that are leaves, get different paths."""
    paths = paths_of(value)
    assert len(set(paths)) == len(paths) == 2


def test_the_caller_is_asked_before_containers_are_opened() -> None:
    """A leaf may be a tuple or dict of a class of its own (torch.Size): the caller's word comes first."""

    class Size(tuple):  # type: ignore[type-arg]
        pass

    def leaf(key: str, item: Any) -> dict[str, Any] | None:
        return {"$": "size", "items": list(item)} if isinstance(item, Size) else None

    encoded = tree.encode({"a": Size((1, 2))}, leaf)
    assert encoded == {"a": {"$": "size", "items": [1, 2]}}
    assert tree.decode(encoded, lambda tagged: Size(tagged["items"])) == {"a": (1, 2)}


# -- decoding trusts nothing ------------------------------------------------------------------------

ALLOWED = {
    *(type(None), bool, int, float, complex, str, bytes, bytearray, range, type(Path())),
    *(list, tuple, dict, set, frozenset, deque, OrderedDict, Counter, defaultdict),
}
TAGS = [
    *("tuple", "set", "frozenset", "deque", "dict", "OrderedDict", "Counter", "defaultdict"),
    *("float", "bytes", "bytearray", "complex", "range", "path", "os.system", "builtins.eval"),
]


def types_in(value: Any) -> set[type]:
    found = {type(value)}
    if isinstance(value, dict):
        for key, item in value.items():
            found |= types_in(key) | types_in(item)
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        for item in value:
            found |= types_in(item)
    return found


json_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "list", "eval", "0x1p0", "inf"])
)
fields = ["items", "value", "maxlen", "factory", "base64", "real", "imag"]
json_trees = st.recursive(
    json_scalars | st.sampled_from([2**70, "0x1p99999", "eA==", "__class__"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.builds(
            lambda tag, rest: {"$": tag, **rest},
            st.sampled_from(TAGS) | inner,
            st.dictionaries(st.sampled_from(fields), inner, max_size=4),
        ),
    ),
    max_leaves=10,
)


@given(json_trees)
def test_any_json_is_decoded_or_refused(value: Any) -> None:
    """Whatever a file says, decoding gives plain values of known types, or CheckpointInvalid: never another error."""
    try:
        found = tree.decode(value, unknown)
    except CheckpointInvalid:
        return
    assert types_in(found) <= ALLOWED


@pytest.mark.parametrize(
    "value",
    [
        {"$": "os.system", "items": ["true"]},
        {"$": "builtins.eval", "value": "1"},
        {"$": "object", "__reduce__": ["os.system", ["true"]]},
        {"$": ["tuple"], "items": []},
        {"$": None},
        {"$": "tuple"},
        {"$": "tuple", "items": 3},
        {"$": "tuple", "items": "abc"},
        {"$": "set", "items": [[1]]},
        {"$": "dict", "items": [[1]]},
        {"$": "dict", "items": [[1, 2, 3]]},
        {"$": "dict", "items": [[[1], 2]]},
        {"$": "dict", "items": ["ab"]},
        {"$": "defaultdict", "items": [], "factory": "eval"},
        {"$": "defaultdict", "items": [], "factory": ["list"]},
        {"$": "defaultdict", "items": []},
        {"$": "deque", "items": [], "maxlen": -1},
        {"$": "deque", "items": [], "maxlen": "1"},
        {"$": "deque", "items": [], "maxlen": 2**100},
        {"$": "float", "value": "1.0"},
        {"$": "float", "value": 1.0},
        {"$": "bytes", "base64": "e"},
        {"$": "bytes", "base64": "eA==\n"},
        {"$": "bytes", "base64": 5},
        {"$": "complex", "real": "1", "imag": None},
        {"$": "complex", "real": "0x1p99999", "imag": "0x0p+0"},
        {"$": "range", "items": [0, 1, 0]},
        {"$": "range", "items": "ab"},
        {"$": "range", "items": [0, 1, 1, 1]},
        {"$": "path", "value": 1},
    ],
    ids=lambda value: json.dumps(value),
)
def test_what_encode_never_writes_is_refused(value: Any) -> None:
    """A malformed tagged object, at the top or below, is CheckpointInvalid."""
    for nested in (value, [value], {"a": value}, {"$": "tuple", "items": [value]}):
        with pytest.raises(CheckpointInvalid):
            tree.decode(nested, unknown)


def test_json_that_is_too_deep_is_refused() -> None:
    """Deep nesting in a file is CheckpointInvalid, not a RecursionError."""
    value: Any = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(CheckpointInvalid):
        tree.decode(value, unknown)
