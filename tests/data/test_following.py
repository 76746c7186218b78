"""Scripts that iterate their own DataLoaders, in the loops that people write: exact, or told."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, DistributedSampler

from autoresume import current
from autoresume.restore import diff
from tests.data import loops
from tests.data.loops import Log, makers

FULL = os.environ.get("TORTURE") == "full"
SAMPLES = 8
KINDS = list(makers(0, True))
WORKERS = ["shuffled", "generator", "lazy", "counting-batches", "eager", "stream"]


def differences(one: Log, other: Log) -> list[str]:
    keys = sorted(one.keys() | other.keys(), key=str)
    return [f"{key}: {one.get(key)} != {other.get(key)}" for key in keys if one.get(key) != other.get(key)]


def assert_exact(folder: Path, loop: str, make: loops.Make, cuts: dict[int, str], save_every: int) -> None:
    wanted = loops.plain(loop, make, SAMPLES)
    got = loops.interrupted(loop, make, SAMPLES, folder, cuts, save_every)
    found = differences(wanted, got.log)
    assert not found, f"{loop}, cut at {cuts}, saved every {save_every}, told {got.told}:\n" + "\n".join(found[:3])


def random_cuts(*seeds: object) -> tuple[dict[int, str], int]:
    draw = random.Random(repr(seeds))
    cuts = {draw.randrange(13): draw.choice(["TERM", "TERM", "CRASH"]) for _ in range(draw.randrange(1, 5))}
    return cuts, draw.choice([1, 2, 3])


@pytest.mark.parametrize("loop", loops.ORDINARY)
@pytest.mark.parametrize("kind", KINDS)
def test_every_loop_over_every_loader(loop: str, kind: str, tmp_path: Path) -> None:
    """Whatever its loop and its sampler are, a script that iterates its own DataLoader goes on bit for bit as the script
    without autoresume: the batches, the numbers that enumerate and islice count, and all random numbers. Stopped and
    crashed at random; the sampler may draw as it goes, from whose generator it likes, and count its own epochs."""
    for turn in range(40 if FULL else 1):
        cuts, save_every = random_cuts(loop, kind, turn)
        assert_exact(tmp_path / str(turn), loop, makers(0, True)[kind], cuts, save_every)


@pytest.mark.parametrize("loop", loops.ORDINARY)
def test_every_border(loop: str, tmp_path: Path) -> None:
    """Each life does one step, so that each border is stopped at, and begun at."""
    cuts = dict.fromkeys(range(40), "TERM")
    assert_exact(tmp_path, loop, makers(0, True)["shuffled"], cuts, save_every=100)


def test_positions_do_not_tell_of_interruptions(tmp_path: Path) -> None:
    """The last checkpoint of a run that was interrupted is that of the one that was not, places in the data and all."""
    make, found = makers(0, True)["shuffled"], []
    for number, cuts in enumerate([{}, {2: "TERM", 5: "CRASH", 7: "TERM"}]):
        loops.interrupted("for_each", make, SAMPLES, tmp_path / str(number), cuts, 1)
        values = diff.read_values(str(next((tmp_path / str(number)).rglob("run.json")).parent))
        found.append({name: value for name, value in values.items() if name.startswith("run/followed")})
    assert found[0]
    assert diff.compare(*found) == []


@pytest.mark.parametrize("loop", loops.ORDINARY)
def test_undisturbed(loop: str, tmp_path: Path) -> None:
    """A script under autoresume that nothing happens to gives the very bits of the script that it was made from."""
    assert_exact(tmp_path, loop, makers(0, True)["lazy"], {}, save_every=1)


@pytest.mark.parametrize("kind", WORKERS)
def test_with_workers(kind: str, tmp_path: Path) -> None:
    """Workers fetch ahead: what they have drawn from the sampler, and the loop has not got, is drawn once. And the random
    numbers of each worker go on where they stood behind the last batch that was trained on."""
    for loop in loops.ORDINARY if FULL else ["for_each", "looked_ahead_over_borders"]:
        cuts, save_every = random_cuts(loop, kind, "workers")
        assert_exact(tmp_path / loop, loop, makers(2, True)[kind], cuts, save_every)


@pytest.mark.parametrize("loop", ["looked_ahead", "accumulated", "kept_ahead"])
@pytest.mark.parametrize("first", [0, 1, 4])
def test_without_gradients(loop: str, first: int, tmp_path: Path) -> None:
    """What a loop holds at its boundaries is counted where autograd notes nothing. After the very first step that can't
    be known: then it is told."""
    make = makers(0, True)["shuffled"]
    wanted = loops.plain(loop, make, 16, gradients=False)
    got = loops.interrupted(loop, make, 16, tmp_path, {first: "TERM"}, 100, gradients=False)
    if first == 0:
        assert any("fetched_ahead=1" in message for message in got.told)
    else:
        assert not differences(wanted, got.log)


@pytest.mark.parametrize("samples", [36, 24])
def test_a_script_that_skips_by_itself(samples: int, tmp_path: Path) -> None:
    """It would skip twice: the run is refused before anything of that is saved, also where nothing would be left, and
    the message says what to do."""
    got = loops.interrupted("skipped_by_itself", makers(0, True)["shuffled"], samples, tmp_path, {3: "TERM"}, 1)
    assert any("run.follow(loader, False)" in message for message in got.told)
    names = [path.name for path in tmp_path.glob("checkpoints/*")]
    assert names
    assert max(int(name.split("_")[1][1:]) for name in names) == 4


def test_a_loader_that_is_left_alone(tmp_path: Path) -> None:
    """run.follow(loader, False): the script's own skipping is all that happens, with what that draws."""
    make = makers(0, False)["plain"]
    wanted = loops.plain("left_alone", make, 24)
    got = loops.interrupted("left_alone", make, 24, tmp_path, {1: "TERM", 3: "TERM"}, 1)
    assert {step: batches for step, (batches, *_) in wanted.items()} == {
        step: batches for step, (batches, *_) in got.log.items()
    }
    assert not got.told


def of_run_loader(count: int) -> Any:
    return current().loader(loops.Noisy(count, True), batch_size=3, shuffle=True)


OVER_OURS = ["numbered", "numbered_batches", "left_early", "endless", "accumulated", "made_anew", "some_batches"]
OVER_OURS += ["draws_before_it_fetches", "draws_when_it_begins", "pairs", "one_after_the_other", "evaluated_inside"]


@pytest.mark.parametrize("loop", OVER_OURS)
def test_loops_over_our_loader(loop: str, tmp_path: Path) -> None:
    """The same loops over what run.loader makes: interrupted at each step, or at random, they are the undisturbed one."""
    wanted = loops.interrupted(loop, of_run_loader, SAMPLES, tmp_path / "whole", {}, 100)
    for name, cuts, save_every in (
        ("each", dict.fromkeys(range(40), "TERM"), 100),
        ("random", *random_cuts(loop, "ours")),
    ):
        got = loops.interrupted(loop, of_run_loader, SAMPLES, tmp_path / name, cuts, save_every)
        assert not differences(wanted.log, got.log), (name, cuts)


@pytest.mark.parametrize("loop", ["counted", "counted_batches"])
@pytest.mark.parametrize("make", [of_run_loader, makers(0, True)["shuffled"]], ids=["ours", "own"])
def test_loops_that_count_to_the_end(loop: str, make: loops.Make, tmp_path: Path) -> None:
    """A loop that takes len(loader) batches, and never asks for one more, begins a new epoch each time; and its last
    turn is a step, too."""
    whole = loops.interrupted(loop, make, SAMPLES, tmp_path / "whole", {}, 100)
    assert sorted(whole.log) == list(range(9))
    epochs = [sorted(item[0] for step in range(at, at + 3) for item in whole.log[step][0][0]) for at in (0, 3, 6)]
    assert epochs == [list(range(SAMPLES))] * 3
    assert {path.name.split("_")[1] for path in (tmp_path / "whole").glob("checkpoints/*")} == {"U9"}
    if make is not of_run_loader:
        assert not differences(loops.plain(loop, make, SAMPLES), whole.log)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("first", [0, 1])
def test_what_is_held_may_be_said(first: int, gradients: bool, tmp_path: Path) -> None:
    """run.follow(loader, fetched_ahead=1): exact from the first step on, and nothing is told of it."""
    make = makers(0, True)["shuffled"]
    wanted = loops.plain("said_to_be_ahead", make, SAMPLES, gradients)
    got = loops.interrupted("said_to_be_ahead", make, SAMPLES, tmp_path, {first: "TERM"}, 1, gradients)
    assert not differences(wanted, got.log)
    assert not any("batch" in message for message in got.told)


def test_a_thread_that_fetches_is_told(tmp_path: Path) -> None:
    """How far a thread is ahead of the loop nobody knows: told at the first boundary, with what to do."""
    got = loops.interrupted("in_a_thread", makers(0, False)["plain"], 24, tmp_path, {}, 1)
    assert any("in a thread of its own" in message for message in got.told)


@pytest.mark.parametrize(("kind", "told"), [("all-the-time", True), ("lazy-own", False)])
def test_a_sampler_that_draws_all_the_time(kind: str, told: bool, tmp_path: Path) -> None:
    """One that draws from the process's generators for each batch of a long epoch is told; one with its own is not."""
    got = loops.interrupted("through_generator", makers(0, False)[kind], 450, tmp_path, {}, 1000)
    assert any("draws from the generators of this process" in message for message in got.told) == told


def test_cycle_is_told(tmp_path: Path) -> None:
    """itertools.cycle keeps what nobody can see: told at the first boundary, with the line that mends it."""
    got = loops.interrupted("cycled", makers(0, True)["shuffled"], SAMPLES, tmp_path, {}, 1)
    assert any("yield from loader" in message for message in got.told)


def test_another_loader_at_the_same_place(tmp_path: Path) -> None:
    """A loader that is made of other parts than before is not sent anywhere, which is told."""
    got = loops.interrupted("another_each_life", makers(0, True)["plain"], SAMPLES, tmp_path, {1: "TERM"}, 1)
    assert any("another one" in message for message in got.told)


def test_a_loop_that_was_moved(tmp_path: Path) -> None:
    """A loop that stands elsewhere in the script since begins anew: told at its first boundary, with both places."""
    got = loops.interrupted("moved", makers(0, True)["plain"], 24, tmp_path, {2: "TERM"}, 1)
    (message,) = [one for one in got.told if "another one" in one]
    assert message.count("loops.py:") == 2
    assert "behind batch 3" in message


def test_an_evaluation_through_the_same_generator(tmp_path: Path) -> None:
    """It is not taken for the training's loader, and nothing is told of it."""
    make = makers(0, False)["plain"]
    wanted = loops.plain("checked_first", make, 24)
    got = loops.interrupted("checked_first", make, 24, tmp_path, {2: "TERM", 9: "TERM"}, 1)
    assert {step: batches for step, (batches, *_) in wanted.items()} == {
        step: batches for step, (batches, *_) in got.log.items()
    }
    assert not any("another one" in message for message in got.told)


def test_torch_is_left_as_it_was(tmp_path: Path) -> None:
    """When the run is over, nothing of torch's loaders is ours."""
    before = {name: vars(DataLoader)[name] for name in ("__iter__", "_get_iterator")}
    loops.interrupted("for_each", makers(0, True)["shuffled"], SAMPLES, tmp_path, {1: "TERM"}, 1)
    assert {name: vars(DataLoader)[name] for name in before} == before
    assert "__init_subclass__" not in vars(DataLoader)


def test_another_number_of_ranks(tmp_path: Path) -> None:
    """A sampler that deals out the parts of other ranks is another one: the place in it means nothing, which is told."""
    life = itertools.count(2)

    def make(count: int) -> loops.DataLoader[Any]:
        data = loops.Noisy(count, True)
        return DataLoader(data, batch_size=3, sampler=DistributedSampler(data, next(life), 0, shuffle=False))

    got = loops.interrupted("through_generator", make, 24, tmp_path, {1: "TERM"}, 1)
    assert any("another one" in message for message in got.told)
