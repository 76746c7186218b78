"""Asking the running cluster."""

from __future__ import annotations

import subprocess

from one_machine.daemons import environment
from one_machine.layout import Layout
from one_machine.packages import program
from one_machine.plan import Plan

# A node in one of these can run jobs, now or after the ones that it runs.
SERVING = {"idle", "mixed", "allocated", "completing", "planned", "reserved", "maint"}
# Somebody took it out on purpose; it is alive.
DRAINED = {"draining", "drained"}


def node_states(plan: Plan, layout: Layout) -> dict[str, str]:
    """Node -> state in sinfo's words; "unknown" if the controller does not answer."""
    states = dict.fromkeys(plan.nodes, "unknown")
    try:
        answer = subprocess.run(
            [program("sinfo"), "--noheader", "--Node", "--partition=low", "--format=%N %T"],
            capture_output=True,
            text=True,
            timeout=15,
            env=environment(layout),
        )
    except subprocess.TimeoutExpired:
        return states
    if answer.returncode == 0:
        states.update(dict(line.split() for line in answer.stdout.splitlines()))
    return states


def serves(state: str) -> bool:
    # Marks after the word tell of other things than death, except the star: it does not answer.
    return not state.endswith("*") and state.rstrip("~#!%$@^-+") in SERVING


def alive(state: str) -> bool:
    return serves(state) or state in DRAINED
