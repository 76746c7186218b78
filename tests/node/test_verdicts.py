"""Verdicts: situations in words (verdicts/*.txt), what holds for any history, and what is blamed for an end."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresume.errors import UsageError
from autoresume.node import causes, verdicts
from autoresume.node.causes import Cause, Lost
from autoresume.node.verdicts import Kind, Now, Past, Verdict

VERDICTS = sorted((Path(__file__).parent / "verdicts").glob("*.txt"))
TIME = 1.8e9
FLAGS = {"restarts-here": "restarts_here", "can-requeue": "can_requeue", "cancelled": "cancelled",
         "stop-wanted": "stop_wanted", "requeued": "requeued_by_slurm"}  # fmt: skip

# -- situations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", VERDICTS, ids=lambda path: path.stem)
def test_verdict(path: Path) -> None:
    """In the situation that the file describes the verdict is the file's."""
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# "), "a verdict's file says which situation it is"
    split = next(number for number, line in enumerate(lines) if line.startswith("= "))
    verdict = verdicts.decide(situation(lines[1:split]))
    assert spell(verdict) == lines[split:]


def situation(lines: list[str]) -> Now:
    """committed N / life CAUSE [from=N] [to=N] [node=NAME] [error=TEXT] [hours=N] / N lives ... / now FLAGS."""
    lives, committed = list[Past](), 0
    for line in lines:
        words = shlex.split(line)
        given = dict(word.partition("=")[::2] for word in words[1:])
        if words[0] == "committed":
            committed = int(words[1])
        elif words[0] == "life" or words[1:2] == ["lives"]:
            lives += [life(words[1 + (words[0] != "life")], given)] * (1 if words[0] == "life" else int(words[0]))
        else:
            cause = given.get("cause")
            budgets = dict(verdicts.parse_budget(word[7:]) for word in words[1:] if word.startswith("budget:"))
            nodes = given["nodes"].split(",") if "nodes" in given else ()
            flags = {name: word in words for word, name in FLAGS.items()}
            unknown = {word for word in words[1:] if "=" not in word} - {*FLAGS, "not-stepped"}
            assert not unknown, unknown
            return Now(
                lives=lives,
                cause=Cause(cause) if cause else lives[-1].cause,
                time=TIME,
                committed_step=committed,
                stepped="not-stepped" not in words,
                nodes=nodes,
                spares=int(given.get("spares", 0)),
                budgets=budgets,
                **flags,
            )
    raise AssertionError("no line says what is now")


def life(cause: str, given: dict[str, str]) -> Past:
    assert set(given) <= {"from", "to", "node", "error", "hours", "lives", cause}, given
    return Past(
        Cause(cause.replace("-", " ")),
        int(given["from"]) if "from" in given else None,
        int(given["to"]) if "to" in given else None,
        TIME - 3600 * float(given.get("hours", 0)),
        given.get("node"),
        given.get("error"),
    )


def spell(verdict: Verdict) -> list[str]:
    lines = [f"= {verdict.kind.name} {verdict.why}"]
    lines += [f"exclude {','.join(verdict.exclude)}"] if verdict.exclude else []
    words = {"hopeless": verdict.hopeless, "asked for": verdict.asked_for, "by Slurm": verdict.by_slurm}
    return lines + [word for word, holds in words.items() if holds]


def test_every_cause_and_every_budget_has_its_file() -> None:
    """A new cause needs a situation; a new budget one in which it is used up."""
    texts = {path.stem: path.read_text() for path in VERDICTS}
    for cause in Cause:
        word = cause.value.replace(" ", "-")
        assert any(f"life {word}" in text or f"lives {word}" in text for text in texts.values()), cause
        budget = verdicts.BUDGETS.get(cause)
        if budget is not None:
            used_up = f"ended so ({cause.value}), and {budget} are allowed"
            assert any(used_up in text for text in texts.values()), cause


# -- any history ------------------------------------------------------------------------------------

steps = st.one_of(st.none(), st.integers(0, 50))
pasts = st.builds(
    Past,
    st.sampled_from(Cause),
    steps,
    steps,
    st.floats(TIME - 2 * verdicts.DAY_SECONDS, TIME),
    st.sampled_from([None, "node1", "node2"]),
    st.sampled_from([None, "ValueError: a", "ValueError: b"]),
)
nows = st.builds(
    Now,
    lives=st.lists(pasts, max_size=12),
    cause=st.sampled_from(Cause),
    time=st.just(TIME),
    committed_step=st.integers(0, 50),
    stepped=st.booleans(),
    stop_wanted=st.booleans(),
    cancelled=st.booleans(),
    requeued_by_slurm=st.booleans(),
    restarts_here=st.booleans(),
    nodes=st.sampled_from([(), ("node1",), ("node1", "node2", "node3")]),
    spares=st.integers(0, 1),
    can_requeue=st.booleans(),
)


@given(nows)
def test_nobody_is_started_again_against_a_will(now: Now) -> None:
    """A finished, cancelled, stopped or already requeued job is neither requeued nor restarted, whatever else holds."""
    verdict = verdicts.decide(now)
    if now.cause in verdicts.FINAL or now.cancelled or now.stop_wanted or now.requeued_by_slurm:
        assert verdict.kind is Kind.NOTHING
        assert not verdict.hopeless, "it would be told to be beyond help"
        assert not verdict.by_slurm or now.requeued_by_slurm


@given(nows)
def test_a_verdict_is_one_thing_and_can_be_carried_out(now: Now) -> None:
    """One kind; a requeue only where one can be asked for, a restart only where the job goes on; always with a reason."""
    verdict = verdicts.decide(now)
    assert verdict.why
    assert verdict.kind is not Kind.REQUEUE or now.can_requeue
    assert verdict.kind is not Kind.RESTART or (now.restarts_here and now.cause not in verdicts.GIVEN_BACK)
    assert not (verdict.hopeless or verdict.asked_for) or verdict.kind is Kind.NOTHING
    if verdict.kind is Kind.RESTART and now.can_requeue:
        assert len({*verdict.exclude} & {*now.nodes}) <= now.spares, "a node that is bad is needed again"
    assert set(verdict.exclude) <= {life.node for life in now.lives}


@given(
    st.lists(
        st.tuples(st.sampled_from([c for c in Cause if c not in verdicts.FINAL]), pasts), min_size=30, max_size=30
    ),
    st.integers(0, 50),
    st.booleans(),
    st.booleans(),
)
def test_without_progress_there_is_an_end(
    failures: list[tuple[Cause, Past]], committed: int, restarts: bool, stepped: bool
) -> None:
    """Whatever causes follow each other: if no checkpoint comes, five lives are the last."""
    lives = list[Past]()
    for cause, past in failures:
        began = None if past.began_step is None or cause is Cause.START else committed
        lives.append(dataclasses.replace(past, cause=cause, began_step=began, ended=TIME))
        now = Now(lives, cause, TIME, committed, stepped, restarts_here=restarts, can_requeue=True)
        if verdicts.decide(now).kind is Kind.NOTHING:
            return
        assert len(lives) < verdicts.LIVES_WITHOUT_PROGRESS
    pytest.fail("it goes on for ever")


@given(st.sampled_from([c for c in Cause if verdicts.BUDGETS.get(c) is not None]), st.integers(1, 10))
def test_a_failure_that_comes_always_has_an_end_though_there_is_progress(cause: Cause, gain: int) -> None:
    """Each life gains some steps and then fails in the same way, at another step: within a day that ends."""
    lives = list[Past]()
    for number in range(1, 40):
        lives.append(Past(cause, number * gain, number * gain + 7, TIME, None, f"ValueError: {number}"))
        now = Now(lives, cause, TIME, (number + 1) * gain, restarts_here=True, can_requeue=True)
        if verdicts.decide(now).kind is Kind.NOTHING:
            budget = verdicts.BUDGETS[cause]
            assert budget is not None
            assert number == budget + 1
            return
    pytest.fail("it goes on for ever")


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("error=1", (Cause.ERROR, 1)),
        ("node-failure=0", (Cause.NODE, 0)),
        ("out_of_memory=7", (Cause.MEMORY, 7)),
        ("preempted=unlimited", (Cause.PREEMPTED, None)),
    ],
)
def test_budgets_are_read(word: str, found: tuple[Cause, int | None]) -> None:
    """Causes with blanks, dashes or underscores."""
    assert verdicts.parse_budget(word) == found


@pytest.mark.parametrize(
    ("word", "said"), [("eror=1", "known are .*error"), ("error", "give a number"), ("error=-1", "give a number")]
)
def test_a_wrong_budget_is_named(word: str, said: str) -> None:
    """With what would be right."""
    with pytest.raises(UsageError, match=said):
        verdicts.parse_budget(word)


# -- what is blamed ---------------------------------------------------------------------------------

GLOO = "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:31000"
NCCL = "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited"
STORE = "torch.distributed.DistStoreError: wait timeout after 60000ms"
NAN = "ValueError: loss is nan\nat batch 7"
CUDA_OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"


def said(rank: int, how: str, at: float, why: str = "the script came to its end") -> dict[str, Any]:
    return {"rank": rank, "how": how, "time": at, "why": why, "step": 12, "traceback": "in main"}


def report(
    node: str,
    *byes: dict[str, Any],
    gone: tuple[tuple[int, float | None], ...] = (),
    kills: int = 0,
    step: int | None = 12,
) -> dict[str, Any]:
    silent = [{"rank": rank, "time": at} for rank, at in gone]
    return {"node": node, "step": step, "byes": list(byes), "silent": silent, "memory_kills": kills, "number": 1}


@dataclasses.dataclass(frozen=True)
class Case:
    reports: list[dict[str, Any]]
    cause: Cause
    node: str | None
    why: str
    how: str = "failed"
    stopping: str | None = None
    hung: bool = False
    lost: tuple[Lost, ...] = ()


CASES = {
    "all finished": Case([report("n1", said(0, "finished", 5)), report("n2", said(1, "finished", 6))], Cause.FINISHED, None, "came to its end", "finished"),
    "all interrupted, and the daemon knows why": Case([report("n1", said(0, "interrupted", 5, "asked to stop"))], Cause.SIGNAL, None, "SIGTERM received", "interrupted", stopping="SIGTERM received"),
    "all interrupted by an agreement of their own": Case([report("n1", said(0, "interrupted", 5, "asked to stop"))], Cause.SIGNAL, None, "asked to stop", "interrupted"),
    "a rank that was killed after the others were told to stop": Case([report("n1", said(0, "interrupted", 5), gone=((1, 9),))], Cause.SIGNAL, None, "SIGTERM", "interrupted", stopping="SIGTERM"),
    "a stop whose deadline came: all killed": Case([report("n1", gone=((0, 9), (1, 9)))], Cause.SIGNAL, None, "SIGTERM", "interrupted", stopping="SIGTERM"),
    "one rank was killed": Case([report("n1", gone=((0, 8), (1, 5)))], Cause.KILLED, "n1", "rank 1 was killed", "died"),
    "killed on the second node, echo on the first": Case([report("n1", said(0, "failed", 5.3, GLOO)), report("n2", gone=((1, 5),))], Cause.KILLED, "n2", "rank 1 was killed", "died"),
    "the echo is seen before the death itself": Case([report("n1", said(0, "failed", 4.9, NCCL)), report("n2", gone=((1, 5.4),))], Cause.KILLED, "n2", "rank 1 was killed", "died"),
    "three echoes and one death": Case([report("n1", said(0, "failed", 5.1, NCCL), said(1, "failed", 5.2, GLOO)), report("n2", said(2, "failed", 5.05, STORE), gone=((3, 5),))], Cause.KILLED, "n2", "rank 3", "died"),
    "an error, and its echo came first by the clock": Case([report("n1", said(0, "failed", 4.5, GLOO)), report("n2", said(1, "failed", 5, NAN))], Cause.ERROR, "n2", "loss is nan"),
    "two errors: the first counts": Case([report("n1", said(0, "failed", 5, "KeyError: 'b'")), report("n2", said(1, "failed", 4, NAN))], Cause.ERROR, "n2", "loss is nan"),
    "an error, after which torchrun killed the others": Case([report("n1", said(0, "failed", 5, NAN), gone=((1, 7),))], Cause.ERROR, "n1", "loss is nan"),
    "an error, and torchrun is killing the others at this moment": Case([report("n1", said(0, "failed", 5, NAN), gone=((1, None),))], Cause.ERROR, "n1", "loss is nan"),
    "a rank was killed, and long after another one's code failed of it": Case([report("n1", said(0, "failed", 35, "RuntimeError: a worker does not answer")), report("n2", gone=((1, 5),))], Cause.KILLED, "n2", "rank 1 was killed", "died"),
    "killed for want of memory": Case([report("n1", gone=((0, 5),), kills=1)], Cause.MEMORY, "n1", "rank 0 was killed for want of memory", "died"),
    "killed for want of memory on one node, the echo on the other": Case([report("n1", said(0, "failed", 5.2, GLOO)), report("n2", gone=((1, 5),), kills=2)], Cause.MEMORY, "n2", "rank 1 was killed for want", "died"),
    "a memory kill explains deaths at about the same time elsewhere": Case([report("n1", gone=((0, 5.0),)), report("n2", gone=((1, 5.3),), kills=1)], Cause.MEMORY, "n2", "rank 1", "died"),
    "a memory kill of old on another node explains nothing": Case([report("n1", gone=((0, 5),)), report("n2", gone=((1, 9),), kills=1)], Cause.KILLED, "n1", "rank 0 was killed", "died"),
    "the GPU's memory": Case([report("n1", said(0, "failed", 5, CUDA_OOM))], Cause.MEMORY, "n1", "CUDA out of memory"),
    "a broken connection on one node alone": Case([report("n1", said(0, "failed", 5, NCCL), said(1, "failed", 5.1, NCCL))], Cause.COMMUNICATION, "n1", "NCCL error"),
    "a broken connection between nodes: nobody knows whose": Case([report("n1", said(0, "failed", 5, NCCL)), report("n2", said(1, "failed", 5.1, NCCL))], Cause.COMMUNICATION, None, "NCCL error"),
    "a broken connection, and the others were killed for it": Case([report("n1", said(0, "failed", 5, STORE)), report("n2", gone=((1, 9),))], Cause.COMMUNICATION, None, "wait timeout"),
    "hung": Case([report("n1", gone=((0, 5),)), report("n2", gone=((1, 5),), kills=1)], Cause.HANG, None, "no rank made a step", "died", hung=True),
    "a lost node, and the echo of it": Case([report("n1", said(0, "failed", 5, GLOO))], Cause.NODE, "n2", "node 1 is lost: silent", "died", lost=(Lost(1, "n2", "silent"),)),
    "a lost node without a name": Case([report("n1", gone=((0, 5),))], Cause.NODE, None, "node 1 is lost", "died", lost=(Lost(1, None, "silent"),)),
    "nobody said anything": Case([report("n1", step=None)], Cause.UNKNOWN, None, "no rank said", "died"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("turned", [False, True])
def test_the_first_cause_is_blamed(case: Case, turned: bool) -> None:
    """What ended it first is told, with its node; in whichever order the nodes report. An echo is never blamed."""
    reports = case.reports[::-1] if turned else case.reports
    told = causes.cause_of(reports, case.stopping, case.hung, case.lost)
    assert (told.how, told.cause, told.node) == (case.how, case.cause, case.node)
    assert re.search(re.escape(case.why), told.why), told.why
    assert told.step == max((one["step"] for one in reports if one["step"] is not None), default=None)


def test_an_error_is_told_in_one_line_and_with_its_traceback() -> None:
    """The first line is what is compared with the error before, and shown."""
    told = causes.cause_of([report("n1", said(0, "failed", 5, NAN))], None, False)
    assert told.more == {"error": "ValueError: loss is nan", "traceback": "in main"}


@given(st.data())
def test_of_a_killed_rank_and_echoes_the_killed_one_is_blamed(data: st.DataObject) -> None:
    """Any number of nodes and ranks, one killed; all others end within a second by what it broke, in any order."""
    nodes = data.draw(st.integers(2, 4))
    guilty = data.draw(st.integers(0, nodes - 1))
    reports = []
    for node in range(nodes):
        echoes = [said(node, "failed", data.draw(st.floats(4.5, 6)), data.draw(st.sampled_from([GLOO, NCCL, STORE])))]
        reports.append(report(f"n{node}", *echoes, gone=((99, 5.0),) if node == guilty else ()))
    told = causes.cause_of(data.draw(st.permutations(reports)), None, False)
    assert (told.cause, told.node) == (Cause.KILLED, f"n{guilty}")
