"""The daemon's table: scenarios in words (scenarios/*.txt), and what holds for any row of events."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoresume.errors import EXIT_INTERRUPTED
from autoresume.handoff.fence import Order
from autoresume.node import policy
from autoresume.node.policy import Action, Event, Kind, State

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))

# -- scenarios --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    """In the situation that the file describes the daemon does what the file says, and nothing else."""
    state, told, expected, events = State(), list[str](), list[str](), 0
    assert path.read_text().startswith("# "), "a scenario says which situation it is"
    for number, line in enumerate([*path.read_text().splitlines(), "= "], start=1):
        where = f"{path.name}:{number}: {line}"
        if line.startswith(("#", "->")) or not line:
            expected += [line.removeprefix("-> ")] if line.startswith("->") else []
            continue
        assert told == expected, f"before {where}"
        told, expected = [], []
        if line.startswith("= exit"):
            assert (state.over, state.exit_code) == (True, int(line.split()[2])), where
        elif not line.startswith("="):
            now, event = parse(line)
            state, actions = policy.step(state, event, now)
            told, events = [spell(action) for action in actions], events + 1
    assert events > 1


def parse(line: str) -> tuple[float, Event]:
    match = re.fullmatch(r"t=(\S+) (\w+)(.*)", line)
    assert match is not None, line
    given = dict(word.partition("=")[::2] for word in match.group(3).split())
    yes = {name: value in ("", "yes") for name, value in given.items()}
    event: Event = {
        "Signalled": lambda: policy.Signalled(given["why"], float(given["grace"])),
        "Wished": policy.Wished,
        "Tick": lambda: policy.Tick(
            yes["ready"],
            yes["idle"],
            float(given.get("silent", 0)),
            float(given.get("hang", "inf")),
            float(given.get("cost", 0)),
            yes.get("busy", False),
        ),
        "Limit": lambda: policy.Limit(None if given["end"] == "none" else float(given["end"]), float(given["lead"])),
        "NodeLost": lambda: policy.NodeLost(int(given["node"]), given["why"]),
        "Proposed": lambda: policy.Proposed(None if given["target"] == "none" else int(given["target"])),
        "RankDied": lambda: policy.RankDied(int(given["rank"])),
        "LifeOver": policy.LifeOver,
        "Greeted": policy.Greeted,
        "LauncherExited": lambda: policy.LauncherExited(
            int(given["code"]), yes.get("finished", False), yes.get("interrupted", False)
        ),
    }[match.group(2)]()
    return float(match.group(1)), event


def spell(action: Action) -> str:
    if action.kind is Kind.PROPOSE:
        return f"PROPOSE {action.order.name} ahead={action.ahead}"
    return f"{action.kind.name} {action.why}".strip()


# -- any row of events ------------------------------------------------------------------------------

BETWEEN_LIVES = (policy.LifeOver, policy.Greeted)
GRACE = st.sampled_from([0.5, 2.0, 5.0, 30.0, 300.0])
ticks = st.builds(policy.Tick, ready=st.booleans(), idle=st.booleans())
happenings = st.one_of(
    ticks,
    ticks,
    st.builds(policy.Signalled, why=st.sampled_from(["SIGTERM", "SIGUSR1"]), grace_seconds=GRACE),
    st.just(policy.Wished()),
    st.builds(policy.RankDied, rank=st.integers(0, 3)),
    st.builds(policy.NodeLost, node=st.integers(0, 3), why=st.just("its line broke")),
    st.just(policy.LifeOver()),
    st.just(policy.Greeted()),
    st.builds(policy.LauncherExited, code=st.sampled_from([0, 1, 75, 137]), finished=st.booleans()),
)
answers = st.sampled_from([None, 17])
rows = st.lists(st.tuples(st.sampled_from([0.01, 0.1, 1.0, 4.0, 20.0]), happenings, answers), max_size=30)


@dataclass(frozen=True)
class Moment:
    now: float
    before: State
    event: Event
    after: State
    actions: tuple[Action, ...]


def live(row: list[tuple[float, Event, int | None]]) -> list[Moment]:
    """Let it all happen; a proposal is answered at once, as the daemon does."""
    state, now, moments = State(), 0.0, list[Moment]()

    def happen(event: Event) -> tuple[Action, ...]:
        nonlocal state
        before = state
        state, actions = policy.step(state, event, now)
        moments.append(Moment(now, before, event, state, tuple(actions)))
        return tuple(actions)

    for pause, event, answer in row:
        now += pause
        if any(action.kind is Kind.PROPOSE for action in happen(event)):
            happen(policy.Proposed(answer))
    return moments


def first_signal(moments: list[Moment]) -> tuple[int, policy.Signalled] | None:
    for index, moment in enumerate(moments):
        if isinstance(moment.event, policy.Signalled) and not moment.before.over:
            return index, moment.event
    return None


@given(rows)
def test_nothing_happens_after_the_end(row: list[tuple[float, Event, int | None]]) -> None:
    """Once the launcher is gone and its snapshots are settled, no event changes anything, or has anything done."""
    for moment in live(row):
        if moment.before.over:
            assert (moment.after, moment.actions) == (moment.before, ())
        else:
            assert moment.after.over == isinstance(moment.event, policy.LauncherExited)
            assert moment.after.over == (Action(Kind.DRAIN) in moment.actions)


@given(rows)
def test_the_exit_code_is_a_contract(row: list[tuple[float, Event, int | None]]) -> None:
    """75 if a stop was asked for and the run isn't finished; the launcher's code in every other case."""
    moments = live(row)
    signalled = first_signal(moments)
    for moment in moments:
        if isinstance(moment.event, policy.LauncherExited) and not moment.before.over:
            interrupted = signalled is not None and not moment.event.finished
            assert moment.after.exit_code == (EXIT_INTERRUPTED if interrupted else moment.event.code)
        elif not moment.before.over:
            assert moment.after.exit_code is None


@given(rows)
def test_ranks_are_killed_once_in_their_life(row: list[tuple[float, Event, int | None]]) -> None:
    """From one start of the ranks to the end of the last of them each kind of kill is ordered at most once."""
    killed = list[Kind]()
    for moment in live(row):
        killed = [] if isinstance(moment.event, BETWEEN_LIVES) else killed
        kills = [action.kind for action in moment.actions if action.kind in (Kind.KILL_RANKS, Kind.KILL_ALL)]
        assert not set(kills) & set(killed)
        killed += kills


@given(rows)
def test_a_second_signal_changes_nothing(row: list[tuple[float, Event, int | None]]) -> None:
    """The first signal's deadline and reason stand."""
    moments = live(row)
    found = first_signal(moments)
    for moment in moments[found[0] + 1 if found else len(moments) :]:
        if isinstance(moment.event, policy.Signalled):
            assert (moment.after, moment.actions) == (moment.before, ())
        assert (moment.after.deadline, moment.after.interrupted) == (moments[found[0]].after.deadline, True)


@given(rows)
def test_nobody_is_stopped_or_killed_without_a_reason(row: list[tuple[float, Event, int | None]]) -> None:
    """Ranks are told to stop only after a signal, and killed only after a signal, or a death or a loss among them."""
    signalled = died = False
    for moment in live(row):
        signalled = signalled or isinstance(moment.event, policy.Signalled)
        died = (died or isinstance(moment.event, (policy.RankDied, policy.NodeLost))) and not isinstance(
            moment.event, BETWEEN_LIVES
        )
        for action in moment.actions:
            assert action.order is not Order.STOP or signalled
            assert action.kind is not Kind.KILL_ALL or signalled
            assert action.kind is not Kind.KILL_RANKS or (died and not signalled)
            assert action.kind is Kind.DRAIN or action.why or action.order


@given(rows)
def test_after_a_signal_nothing_but_the_stop_is_proposed(row: list[tuple[float, Event, int | None]]) -> None:
    """A save that is wished later would take the place of the stop that the ranks are on their way to."""
    moments = live(row)
    found = first_signal(moments)
    for moment in moments[found[0] if found else len(moments) :]:
        assert all(action.order in (Order.STOP, Order.NOTHING) for action in moment.actions)


@settings(max_examples=100)
@given(rows, GRACE, rows, st.booleans(), st.booleans())
def test_after_a_signal_nobody_lives_beyond_the_deadline(
    before: list[tuple[float, Event, int | None]],
    grace: float,
    after: list[tuple[float, Event, int | None]],
    ready: bool,
    idle: bool,
) -> None:
    """Whatever happened before, and happens after: unless the launcher ends, all are killed before the deadline."""
    row = [item for item in before if not isinstance(item[1], (policy.LauncherExited, policy.Signalled))]
    elapsed = 0.0
    row.append((0.01, policy.Signalled("SIGTERM", grace), None))
    for pause, event, answer in after:
        if elapsed + pause < grace and not isinstance(event, policy.LauncherExited):
            elapsed += pause
            row.append((pause, event, answer))
    # The daemon's loop goes on turning.
    row += [(grace / 50, policy.Tick(ready, idle), None)] * int(50 * (grace - elapsed) / grace)
    moments = live(row)
    found = first_signal(moments)
    assert found is not None
    kills = [m for m in moments[found[0] :] for action in m.actions if action.kind is Kind.KILL_ALL]
    assert kills, "the deadline passed, and nobody was killed"
    assert kills[0].now <= moments[found[0]].now + grace


@given(rows, st.integers(1, 10**6))
def test_ranks_that_are_ready_are_told_at_once(row: list[tuple[float, Event, int | None]], target: int) -> None:
    """The first look at ranks that train after a signal tells them to stop, if there is time, and tells them once."""
    row = [item for item in row if isinstance(item[1], (policy.Tick, policy.Wished, policy.Greeted))]
    row.append((0.01, policy.Signalled("SIGTERM", 30.0), None))
    row += [(0.01, policy.Tick(ready=True, idle=False), target)] * 5
    moments = live(row)
    orders = [action.order for m in moments[-6:] for action in m.actions if action.kind is Kind.PROPOSE]
    assert orders == [Order.STOP]


@given(st.lists(answers, max_size=40))
def test_a_refused_order_is_wanted_until_it_is_accepted(given_answers: list[int | None]) -> None:
    """Each refusal moves the proposal further ahead, and an acceptance is the end of it."""
    state, _ = policy.step(State(), policy.Wished(), 0.0)
    before = 0
    for answer in given_answers:
        state, (action,) = policy.step(state, policy.Tick(ready=True, idle=False), 1.0)
        assert (action.kind, action.order) == (Kind.PROPOSE, Order.SAVE)
        assert before <= action.ahead <= max(1, 2 * before)
        before = action.ahead
        state, _ = policy.step(state, policy.Proposed(answer), 1.0)
        if answer is not None:
            assert policy.step(state, policy.Tick(ready=True, idle=False), 1.0) == (state, [])
            return


@pytest.mark.parametrize("steps", [1, 100, 20_000])
def test_no_ranks_are_too_quick_to_be_stopped(steps: int) -> None:
    """Ranks that make 20,000 steps while one proposal is made (10 ms, half a microsecond each) are caught in 20."""
    state, _ = policy.step(State(), policy.Signalled("SIGTERM", 30.0), 0.0)
    for refused in range(20):
        state, (action,) = policy.step(state, policy.Tick(ready=True, idle=False), refused * 0.02)
        if action.ahead > steps:
            return
        state, _ = policy.step(state, policy.Proposed(None), refused * 0.02)
    pytest.fail(f"after 20 refusals the proposal is {action.ahead} steps ahead")
