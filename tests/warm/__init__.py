"""Python processes that need not import torch: forked from one that has, a fork server for each test process.

Law: what is started warm is the process that a cold start would make (test_warm.py compares them): its own pid, a child
of who started it, with its session, signals, files, environment, command line, and nothing of autoresume's or of the
script's imported. What it starts with `subprocess` and the same Python is warm, too: a launcher's ranks are its children.
What a fork can't make is started cold, and so is all with COLD=1 in the environment.
"""

from tests.warm.start import SITE, Popen, close, cold, run, server

__all__ = ["SITE", "Popen", "close", "cold", "run", "server"]
