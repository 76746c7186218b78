"""Signals as flags: noted, chained, put back; nobody else's business is touched."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import pytest

from autoresume.errors import UsageError
from autoresume.handoff.signals import SignalTrap, parse_signals

USR1, USR2 = signal.SIGUSR1, signal.SIGUSR2


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Whatever a test does, the handlers of the test process come back."""
    before = {number: signal.getsignal(number) for number in (USR1, USR2, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def trap() -> Iterator[SignalTrap]:
    made = SignalTrap([USR1, USR2])
    made.install()
    yield made
    made.restore()


def test_the_first_signal_counts(trap: SignalTrap) -> None:
    """A trap notes which signal came first, and when; later ones are only counted."""
    assert (trap.first, trap.count) == (None, 0)
    before = time.monotonic()
    signal.raise_signal(USR2)
    since = trap.since
    signal.raise_signal(USR1)
    assert (trap.first, trap.count, trap.since) == (USR2, 2, since)
    assert before <= since <= time.monotonic()
    trap.clear()
    assert (trap.first, trap.count) == (None, 0)
    signal.raise_signal(USR1)
    assert trap.first is USR1


def test_the_handler_that_was_there_is_called_too() -> None:
    """A script's own handler goes on doing what it did."""
    heard: list[int] = []
    signal.signal(USR1, lambda number, frame: heard.append(number))
    trap = SignalTrap([USR1])
    trap.install()
    signal.raise_signal(USR1)
    assert (heard, trap.first) == ([USR1], USR1)


def test_what_was_there_is_put_back() -> None:
    """After `restore` each signal has the handler that it had before `install`, defaults and "ignore" among them."""

    def mine(number: int, frame: FrameType | None) -> None:
        pass

    for there in (mine, signal.SIG_DFL, signal.SIG_IGN):
        signal.signal(USR1, there)
        trap = SignalTrap([USR1])
        trap.install()
        assert signal.getsignal(USR1) != there
        trap.restore()
        assert signal.getsignal(USR1) == there


def test_a_handler_that_came_later_is_left_alone(trap: SignalTrap) -> None:
    """`restore` takes off what is ours, and nothing that a framework has put on since."""

    def theirs(number: int, frame: FrameType | None) -> None:
        pass

    signal.signal(USR1, theirs)
    trap.restore()
    assert signal.getsignal(USR1) == theirs


def test_installing_again_puts_ours_on_last(trap: SignalTrap) -> None:
    """A framework that replaced our handler without calling it does not take the signal away from us for good."""
    heard: list[int] = []
    signal.signal(USR1, lambda number, frame: heard.append(number))
    signal.raise_signal(USR1)
    assert (trap.first, heard) == (None, [USR1])
    trap.install()
    signal.raise_signal(USR1)
    assert (trap.first, heard) == (USR1, [USR1, USR1])


def test_handlers_that_call_each_other_end(trap: SignalTrap) -> None:
    """A framework that chains to our handler, and to which we chain then, is no endless circle."""
    ours = signal.getsignal(USR1)
    heard: list[int] = []

    def theirs(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        assert callable(ours)
        ours(number, frame)

    signal.signal(USR1, theirs)
    trap.install()
    signal.raise_signal(USR1)
    assert (trap.first, trap.count, heard) == (USR1, 1, [USR1])


def test_installing_twice_changes_nothing(trap: SignalTrap) -> None:
    """Our own handler is not chained to itself."""
    trap.install()
    signal.raise_signal(USR1)
    assert trap.count == 1


def test_ctrl_c_is_noted_without_its_exception() -> None:
    """Python's own handler of SIGINT would raise KeyboardInterrupt: it is not called while the trap is on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trap = SignalTrap([signal.SIGINT])
    trap.install()
    signal.raise_signal(signal.SIGINT)
    assert trap.first is signal.SIGINT
    trap.restore()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_forked_child_ignores_the_signals() -> None:
    """DataLoader workers inherit the handlers: there the signal is neither noted, nor handed on, nor deadly."""
    script = """
import os, signal
from autoresume.handoff.signals import SignalTrap
heard = []
signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
trap = SignalTrap([signal.SIGUSR1, signal.SIGUSR2])
trap.install()
child = os.fork()
if child == 0:
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR2)
    os._exit(0 if (trap.first, trap.count, heard) == (None, 0, []) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
signal.raise_signal(signal.SIGUSR1)
assert (trap.count, heard) == (1, [signal.SIGUSR1])
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_another_thread_may_not_and_nothing_happens() -> None:
    """Python lets the main thread alone set handlers; elsewhere installing is silent, and changes nothing."""
    before = signal.getsignal(USR1)
    trap = SignalTrap([USR1])
    thread = threading.Thread(target=trap.install)
    thread.start()
    thread.join()
    assert signal.getsignal(USR1) == before
    trap.restore()
    assert signal.getsignal(USR1) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("TERM,USR1", (signal.SIGTERM, USR1)),
        ("SIGTERM SIGUSR1", (signal.SIGTERM, USR1)),
        ("sigusr2", (USR2,)),
        (" usr1 ,  12 ", (USR1, signal.Signals(12))),
        ("", ()),
    ],
)
def test_signals_have_many_spellings(text: str, expected: tuple[signal.Signals, ...]) -> None:
    """Names with and without SIG, in any case, numbers, commas and spaces."""
    assert parse_signals(text) == expected


@pytest.mark.parametrize("text", ["TERMINATE", "SIG", "USR3", "999", "-15", "15.0", "²"])
def test_an_unknown_signal_is_named(text: str) -> None:
    """The error says which word, and what is known."""
    with pytest.raises(UsageError, match="SIGUSR1") as error:
        parse_signals(f"SIGTERM,{text}")
    assert repr(text) in str(error.value)


@pytest.mark.parametrize("text", ["KILL", "SIGSTOP", "9"])
def test_a_signal_that_nobody_can_catch_is_refused(text: str) -> None:
    """SIGKILL and SIGSTOP can't announce anything."""
    with pytest.raises(UsageError, match="can't be caught"):
        parse_signals(text)
