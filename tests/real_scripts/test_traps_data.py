"""Traps around data: epochs' borders, iterators dropped, batches fetched ahead, foreign loaders, workers."""

from __future__ import annotations

import pytest

from tests.real_scripts.harness import Stage, assert_same

EACH_STEP = ["TERM@+1!"]
"""Every life does one step: each border of the run is stopped at, and each is begun at."""
BORDERS = ["TERM@3", "TERM@4", "TERM@5", "KILL@8"]
"""The last batch of an epoch (4), the ones beside it, and a kill with a checkpoint behind it."""


KINDS = ["run", "shuffled", "generator", "wrapped", "numpy", "sampler", "batch_sampler", "torchdata"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_border_of_an_epoch(stage: Stage, kind: str) -> None:
    """Stopped after any step, the last of an epoch and the first of the next included, a run goes on bit for bit:
    with run.loader, a shuffled DataLoader, one with a generator of its own, one that is wrapped, ones with samplers
    (one of which draws from numpy), and torchdata's."""
    stage.compare("epochs.py", kind, "0", nasty=EACH_STEP)


@pytest.mark.parametrize("kind", ["run", "run-persistent", "shuffled", "shuffled-persistent"])
def test_borders_with_workers(stage: Stage, kind: str) -> None:
    """The same with data workers, also persistent ones; what run.loader's workers draw at random comes out
    the same although they have another past. And the script ends when it is done."""
    stage.compare("epochs.py", kind, "2", nasty=BORDERS, save_every="2")


def test_around_evaluation(stage: Stage) -> None:
    """A signal or a kill before, in or after the evaluation between two epochs changes nothing."""
    nasty = ["TERM@4/before evaluation", "KILL@8/before evaluation", "KILL@8/after evaluation"]
    nasty += ["TERM@8/after evaluation", "KILL@12/after evaluation", "TERM@12/before evaluation"]
    stage.compare("epochs.py", "run", "0", nasty=nasty, save_every="2")


@pytest.mark.parametrize("kind", ["drawing", "still", "own"])
def test_workers_that_persist_are_warned_about(stage: Stage, kind: str) -> None:
    """What workers that persist draw, or what a dataset draws in workers from a generator of its own, can't be repeated:
    that is said, with the way out. Where nothing random happens in them, nothing is said."""
    ended = stage.place("one").run("drawing_workers.py", kind)
    assert ended.code == 0, ended.err
    assert ("persistent_workers=False" in ended.err) == (kind == "drawing")
    assert ("a generator of its own" in ended.err) == (kind == "own")
    assert ("random numbers" in ended.err) == (kind == "drawing")


@pytest.mark.parametrize("kind", ["plain", "persistent", "shared"])
def test_foreign_evaluation_loaders(stage: Stage, kind: str) -> None:
    """A DataLoader used for evaluation draws from the global generator at iter(), and one with persistent workers
    does so at the first of each process only: neither shifts the training's random numbers after a resume. Nor does
    one whose workers' seed and order come from a generator that the script tracks."""
    stage.compare("evaluation.py", kind, nasty=EACH_STEP if kind == "plain" else BORDERS, save_every="1")


@pytest.mark.parametrize("kind", ["run", "plain"])
@pytest.mark.parametrize("what", ["peek", "early", "preview"])
def test_iterators_made_and_dropped(stage: Stage, what: str, kind: str) -> None:
    """A look at a loader's first batch before each epoch, an evaluation that stops early, a preview of one batch:
    an iterator that the loop doesn't train on moves nothing, and takes no restored position away."""
    whole, _ = stage.compare("peek.py", what, kind, nasty=EACH_STEP)
    if what != "peek":  # as with torch's own loader, each look begins at the beginning
        for key in ("test0", "test1", "preview"):
            assert len({values[key] for values in whole.metrics.values() if key in values}) <= 1


@pytest.mark.parametrize(
    ("workers", "loop", "ahead"),
    [
        ("0", "epochs", "1"),
        ("2", "epochs", "1"),
        ("0", "while", "1"),
        ("2", "while", "2"),
        ("0", "while", "3"),
        ("0", "endless", "1"),
        ("2", "endless", "2"),
        ("0", "endless", "3"),
        ("0", "endless", "5"),
    ],
)
def test_batches_fetched_ahead(stage: Stage, workers: str, loop: str, ahead: str) -> None:
    """With fetched_ahead the batches that a prefetcher holds at the boundary are trained on after the resume, with
    the random augmentation that they would have had; and every sample is counted once. It may hold batches of the
    next epoch, and more of them than an epoch has."""
    nasty = EACH_STEP if workers == "0" else BORDERS
    whole, torn = stage.compare("ahead.py", "map", workers, loop, ahead, nasty=nasty, save_every="1")
    for place in (whole, torn):
        assert place.ended[-1].out == "samples 42\n"


def test_streams_fetched_ahead(stage: Stage) -> None:
    """An iterable dataset under fetched_ahead is exact, or refused; it is never silently off by one batch."""
    ended = stage.place("first").run("ahead.py", "stream", "0", "while", "1")
    if ended.code == 1:
        assert "ahead" in ended.err
    else:
        stage.compare("ahead.py", "stream", "0", "while", "1", nasty=EACH_STEP)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_iterable_dataset_with_state(stage: Stage, workers: str) -> None:
    """An iterable dataset with state_dict goes on where it was (torchdata), at every border."""
    nasty = EACH_STEP if workers == "0" else BORDERS
    stage.compare("iterable.py", "stateful", workers, nasty=nasty, save_every="1")


@pytest.mark.parametrize("workers", ["0", "1", "2"])
def test_iterable_dataset_without_state(stage: Stage, workers: str) -> None:
    """torchdata skips what was consumed. However often the run is interrupted within an epoch, it skips that, and not
    what it skipped before once more."""
    inside = ["TERM@2", "TERM@4", "TERM@7", "TERM@10"]
    stage.compare("iterable.py", "plain", workers, nasty=inside, save_every="1")


@pytest.mark.parametrize("kind", ["peek", "own-peek"])
def test_iterable_dataset_and_a_look_at_it(stage: Stage, kind: str) -> None:
    """A look at the first batch of a stream does not take the restored position from the loop, neither from
    run.batches nor from a loop of one's own."""
    inside = ["TERM@2", "TERM@3", "TERM@7", "TERM@10"]  # at a border such a look finds nothing
    stage.compare("iterable.py", kind, "0", nasty=EACH_STEP if kind == "peek" else inside, save_every="1")


def test_evaluation_over_a_stream(stage: Stage) -> None:
    """A stream of run.loader's that is evaluated on, in loops of one's own, is whole after a resume, too."""
    whole, _ = stage.compare("iterable.py", "evaluated", "0", nasty=EACH_STEP)
    assert {values["seen"] for values in whole.metrics.values() if "seen" in values} == {14}


@pytest.mark.parametrize("kind", ["foreign", "list"])
def test_what_can_not_seek_is_skipped_through(stage: Stage, kind: str) -> None:
    """A DataLoader over a stream without state, and any other iterable: what was consumed is skipped, which is
    said, and the random numbers drawn on the way are undone."""
    _, torn = stage.compare("iterable.py", kind, "0", nasty=EACH_STEP)
    assert "skipping 3 batches" in torn.ended[3].err


ANEW = ["run", "foreign", "iterable", "splits", "broken", "counter", "named", "kept"]


@pytest.mark.parametrize("kind", ANEW)
def test_loader_made_anew_for_each_epoch(stage: Stage, kind: str) -> None:
    """A loader that is made in a function for each epoch has the position of the one before it, not of the first; two
    that are made at one place are told apart; and one that is left early begins its next epoch in the next turn."""
    whole, _ = stage.compare("fresh.py", kind, nasty=EACH_STEP)
    firsts = [values["first"] for values in whole.metrics.values() if "first" in values]
    assert len(set(firsts)) == len(firsts), "each epoch has an order of its own"


@pytest.mark.parametrize("kind", ["pair", "foreign-pair", "own-pair", "choice"])
def test_several_loaders_in_turn(stage: Stage, kind: str) -> None:
    """Where an epoch trains on one loader after the other, the second is neither passed over nor begun again in the
    epoch in which the first was interrupted; nor does one take another's place that is used in another epoch."""
    stage.compare("fresh.py", kind, nasty=EACH_STEP)


def test_gradient_accumulation(stage: Stage) -> None:
    """With accumulate=4 the boundary lies where the optimizer steps; nothing accumulated is lost."""
    stage.compare("accumulate.py", nasty=EACH_STEP)


def test_nested_loops_of_ones_own(stage: Stage) -> None:
    """run.range and run.epochs in each other, a counter in run.state, steps between: each turn goes on where it was."""
    stage.compare("loops.py", "nested", nasty=EACH_STEP)


def test_ranges_without_names(stage: Stage) -> None:
    """Several run.range(...) in each other and after each other, one of which is left by a break and one of which
    comes in some turns only: an interruption in the inner one enters it again in the same turn, and no other."""
    stage.compare("ranges.py", nasty=EACH_STEP)


def test_a_range_whose_turns_end_with_a_step(stage: Stage) -> None:
    """`for i in run.range(n): ...; run.step()` does no turn twice, or is warned about with the name of run.steps."""
    try:
        stage.compare("loops.py", "flat", nasty=EACH_STEP)
    except AssertionError:
        assert "run.steps" in stage.place("whole").folder.joinpath("err-0").read_text()


def test_the_option_seed(stage: Stage) -> None:
    """With the option `seed`, each start of a script that seeds nothing draws the same splits and weights."""
    nasty = ["TERM@2", "KILL@6", "TERM@8"]
    stage.compare("unseeded.py", "inside", nasty=nasty, save_every="3", AUTORESUME_SEED="5")


@pytest.mark.parametrize("how", ["decorator", "start"])
def test_a_script_that_seeds_before_the_run_is_opened(stage: Stage, how: str) -> None:
    """Seeds that were set at the top of the file count: two runs of the script are the same, interrupted or not."""
    whole, _ = stage.compare("seeded.py", how, nasty=["TERM@2", "KILL@6"], save_every="2")
    again = stage.place("again")
    again.live("seeded.py", how)
    assert_same(whole, again)


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_a_script_that_seeds_nothing_is_warned_about(stage: Stage, where: str) -> None:
    """A split that is drawn without a seed is another one after the resume: no restored generator repairs that, so
    it is said, with the generator's name and the way out. Generators that nobody draws from are no matter, and a script
    that seeds hears nothing."""
    place, seeded = stage.place("one"), stage.place("two")
    place.live("unseeded.py", where, nasty=["TERM@2"])
    assert "the random numbers of python and torch stand elsewhere" in place.ended[1].err
    assert "does not seed them" in place.ended[1].err
    seeded.live("seeded.py", "start", nasty=["TERM@2"])
    assert "does not seed" not in seeded.ended[1].err


@pytest.mark.parametrize("sampler", ["plain", "seedable"])
def test_accelerate(stage: Stage, sampler: str) -> None:
    """A loop over a loader that accelerate has prepared, which looks ahead by one, counts its own epochs, and reshuffles
    by that count: it goes on at each border of its accumulations."""
    pytest.importorskip("accelerate")
    _, torn = stage.compare("accelerated.py", "for", sampler, nasty=EACH_STEP, save_every="1")
    assert "holds a batch" not in torn.ended[0].err
