"""Names: one spelling for each thing, both ways, and none of them leaves its folder."""

from __future__ import annotations

import os.path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autoresume.errors import UsageError
from autoresume.format import names
from autoresume.format.names import CheckpointName

counts = st.integers(0, 10**18 - 1)
checkpoint_names = st.builds(
    CheckpointName, step=counts, incarnation=st.integers(1, 10**6), epoch=counts, samples=counts
)
digits = st.text("0123456789", max_size=6) | st.text("0123456789٣²-+_ ", max_size=4)
near_names = st.builds(
    "{}E{}_U{}_S{}-{}{}".format,
    *[st.sampled_from(["", " ", "e"]), *[digits] * 4, st.sampled_from(["", "\n", ".tmp", "/"])],
)


def everything(name: CheckpointName) -> tuple[int, int, int, int]:
    return name.epoch, name.step, name.samples, name.incarnation


@given(checkpoint_names)
def test_what_is_written_is_read(name: CheckpointName) -> None:
    """A checkpoint's name says epoch, step, samples and incarnation, and gives all four back."""
    found = CheckpointName.parse(str(name))
    assert found == name
    assert everything(found) == everything(name)


@given(near_names | st.text(max_size=12) | checkpoint_names.map(str))
@example("E0_U0_S0-0000")
@example("E0_U01_S0-0001")
@example("E0_U1_S0-00001")
@example("E0_U1_S0-0001\n")
@example("E0_U1_S0-١٢٣٤")
def test_only_the_one_spelling_is_read(text: str) -> None:
    """Leading zeros, other digits, a newline at the end: nothing but the spelling that is written is a name."""
    found = CheckpointName.parse(text)
    assert found is None or str(found) == text


@pytest.mark.parametrize("where", range(4))
def test_a_number_too_long_to_be_one_is_no_name(where: int) -> None:
    """`parse` gives None, never an error, for any text: also for more digits than Python converts."""
    words = ["1"] * 4
    words[where] = "1" * 5000
    assert CheckpointName.parse("E{}_U{}_S{}-000{}".format(*words)) is None


@given(checkpoint_names, checkpoint_names)
def test_newer_is_greater(one: CheckpointName, other: CheckpointName) -> None:
    """Names are ordered by step, and at the same step by incarnation; two spellings are never equal."""
    if (one.step, one.incarnation) != (other.step, other.incarnation):
        assert (one < other) == ((one.step, one.incarnation) < (other.step, other.incarnation))
    assert (one == other) == (str(one) == str(other))


@given(*[st.integers(-2, 2) | st.integers(10**17, 10**21)] * 4)
def test_a_name_that_could_not_be_read_can_not_be_made(step: int, incarnation: int, epoch: int, samples: int) -> None:
    """Negative counts, an incarnation before the first, numbers without end: refused when the name is made."""
    try:
        name = CheckpointName(step=step, incarnation=incarnation, epoch=epoch, samples=samples)
    except UsageError:
        assert min(step, epoch, samples) < 0 or incarnation < 1 or max(step, incarnation, epoch, samples) > 10**17
    else:
        assert CheckpointName.parse(str(name)) == name


@given(*[st.integers(0, 2**31)] * 3)
def test_every_real_name_can_be_made(step: int, epoch: int, samples: int) -> None:
    """Only what is no count is refused."""
    assert CheckpointName(step, 1 + step, epoch, samples * 10**6).step == step


@given(st.integers(0, 10**7))
def test_files_of_ranks_both_ways(rank: int) -> None:
    """A part's file name gives its rank back."""
    assert names.parse_part_file(names.part_file(rank).removeprefix("parts/")) == rank


@given(st.integers(1, 10**7))
def test_files_of_incarnations_both_ways(number: int) -> None:
    """An incarnation's file name gives its number back."""
    assert names.parse_incarnation_file(names.incarnation_file(number).removeprefix("incarnations/")) == number


@given(
    st.builds(
        "{}{}{}".format, st.sampled_from(["rank-", "", "RANK-"]), digits, st.sampled_from([".json", ".json\n", ""])
    )
)
@example("rank-000001.json")
@example("rank-00001.json.1-ab.tmp")
def test_only_one_spelling_of_a_part_is_read(text: str) -> None:
    """Neither temporary names nor other spellings are taken for a part."""
    rank = names.parse_part_file(text)
    assert rank is None or names.part_file(rank) == f"parts/{text}"


@given(st.builds("{}{}".format, digits, st.sampled_from([".json", ".json\n", ".alive", ""])))
@example("00004.json")
@example("0000.json")
def test_only_one_spelling_of_an_incarnation_is_read(text: str) -> None:
    """A number is claimed by one name: "00004.json" is not the claim of incarnation 4."""
    number = names.parse_incarnation_file(text)
    assert number is None or names.incarnation_file(number) == f"incarnations/{text}"


@pytest.mark.parametrize("parse", [names.parse_part_file, names.parse_incarnation_file])
def test_an_absurd_number_is_no_file_of_ours(parse: object) -> None:
    """Parsing a name from a listing never raises, however many digits somebody's file has."""
    assert callable(parse)
    assert parse("rank-" + "1" * 5000 + ".json") is None
    assert parse("1" * 5000 + ".json") is None


# -- staying inside -----------------------------------------------------------------------------------


@given(st.text("ab./\\\0~ \n", max_size=12) | st.text(max_size=8))
@example("..")
@example("a/../b")
def test_a_name_inside_stays_inside(file: str) -> None:
    """Whatever `is_inside` lets through lies below the folder, by the operating system's own reckoning."""
    if names.is_inside(file):
        assert os.path.normpath(f"/root/folder/{file}") == f"/root/folder/{file}"
        assert "\0" not in file


@pytest.mark.parametrize(
    "file",
    ["", ".", "..", "/", "/etc/passwd", "../x", "a/..", "a/../../x", "a//b", "a/", "./a", "a/./b", "a\0b", "a/\0"],
)
def test_escapes_are_refused(file: str) -> None:
    """Names that lead out of a folder, or have a second spelling, are not inside; building one is an error."""
    assert not names.is_inside(file)
    with pytest.raises(UsageError):
        CheckpointName(1, 1, 0, 0).inside(file)


@pytest.mark.parametrize("file", ["a", "a/b", "...", "a..b", "..a", "shards/rank-00000.safetensors", "ä ö\n", "-rf"])
def test_plain_names_are_let_through(file: str) -> None:
    """Dots inside a name, spaces and other letters are no escapes."""
    assert names.is_inside(file)
    assert CheckpointName(1, 1, 0, 0).inside(file) == f"checkpoints/E0_U1_S0-0001/{file}"


@given(checkpoint_names, st.integers(0, 10**6), st.text(min_size=1, max_size=10))
def test_every_name_that_is_built_is_inside(name: CheckpointName, number: int, word: str) -> None:
    """Each function that builds a name builds one that stays inside the run's folder."""
    built = [name.manifest, name.parts, name.part(number), name.shard(number), name.folder]
    built += [
        name.inside(names.pickle_file(number, word)),
        names.incarnation_file(number),
        names.heartbeat_file(number),
    ]
    built += [names.aside_folder(str(name), number), names.log_file(number, number), names.temporary("a/b", "token")]
    assert all(names.is_inside(one) for one in built)
    assert len(set(built)) == len(built)


@pytest.mark.parametrize(("one", "other"), [("é", "è"), ("a b", "a_b"), ("a/b", "a_b"), ("日", "本")])
def test_two_pickled_objects_never_share_a_file(one: str, other: str) -> None:
    """Different names give different files: otherwise the second would overwrite the first."""
    assert names.pickle_file(0, one) != names.pickle_file(0, other)


# -- temporary names ----------------------------------------------------------------------------------


@given(checkpoint_names, st.text("0123456789abcdef-", min_size=1, max_size=12))
def test_temporary_names_are_nothing_else(name: CheckpointName, token: str) -> None:
    """A temporary name is recognised, lies beside its target, and is never taken for what it will become."""
    for target in (str(name), names.part_file(0), names.incarnation_file(1)):
        temporary = names.temporary(target, token)
        assert names.is_temporary(temporary)
        assert not names.is_temporary(target)
        assert os.path.dirname(temporary) == os.path.dirname(target)
        last = os.path.basename(temporary)
        assert CheckpointName.parse(last) is None
        assert names.parse_part_file(last) is None
        assert names.parse_incarnation_file(last) is None
