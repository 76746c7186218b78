"""Places in a script: the same again, in this process and in the next one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from autoresume.base.call_site import CallSite, call_site, is_same_place, lasting, where


def place() -> CallSite:
    return call_site()


def test_a_place_is_the_same_however_often_it_was_come_by() -> None:
    """The interpreter changes the instructions of code that runs often: that makes no other place of it."""
    found = {place() for _ in range(100)}
    assert len(found) == 1
    assert where(found.pop()).startswith("test_call_site.py:")


def test_two_places_on_one_line_are_two() -> None:
    """Also where they are called by one function."""
    one, other = place(), place()
    assert one != other or sys.version_info < (3, 11)
    assert where(one) == where(other)


def values() -> Iterator[CallSite]:
    yield place()
    yield place()


def test_who_takes_out_of_a_generator_does_not_matter() -> None:
    """A loader that a generator iterates is at the generator's place, wherever the first value is taken."""
    one = lasting(next(values()))
    other = [lasting(site) for site in values()]
    assert is_same_place(one, other[0])
    assert not is_same_place(one, other[1])


SCRIPT = """
import json, sys
from autoresume.base.call_site import call_site, lasting
{more}
def make():
    {first}
    return lasting(call_site())
found = make()
print(json.dumps(found))
"""


def of(more: str = "", first: str = "pass") -> list[list[object]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(more=more, first=first)], capture_output=True, text=True, check=True
    )
    found: list[list[object]] = json.loads(done.stdout)
    return found


def test_the_same_place_in_another_process() -> None:
    """Lines that are added above a function, and changes in the function itself, leave its places where they are."""
    before = of()
    assert is_same_place(before, of())
    assert is_same_place(before[:1], of(more="def other(): return 1")[:1])
    assert is_same_place(before[:1], of(first="changed = 1")[:1])
