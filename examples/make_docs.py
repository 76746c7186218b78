"""Writes docs/examples.md from the examples: what changes in each script, as a diff.

python examples/make_docs.py [--check]
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "examples.md"

INTRODUCTION = """# Examples

Four ordinary scripts, each before and after. The diffs are all there is to it; each pair, undisturbed, ends with the
same weights bit for bit, and so does the second script however often it is stopped or killed. Start it again with the
same command, and it goes on. (This page is made by `examples/make_docs.py`.)

What it takes is about five lines: the import, `@autoresume` and the argument `run`, `run.track`, and the loop over
the steps, `run.steps`. Loops over epochs take one more: `run.epochs` enters the epoch that was interrupted, and
`run.step()` says where a step ends. Metrics whose curve is to show each step once are one more, `run.log(loss=loss)`.
All that a script may call is in [reference.md](reference.md).
"""

PARAGRAPHS = {
    "ddp_classifier": """## A classifier under DDP

Nested loops stay as they are: `run.epochs` enters the epoch that was interrupted, and there the script's own DataLoader
with its DistributedSampler goes on at the next batch. `run.step()` is the step boundary: everything is consistent, on
all ranks. What the ranks do not share (random numbers, the batch norm statistics of each) is kept for each of them. It
runs as `torchrun --nproc-per-node 2 after.py`, and survives more as `autoresume run --nproc 2 after.py`.""",
    "nanogpt_style": """## nanoGPT's manner

There is no main function, so `autoresume.start()` opens the run and `run.finish()` ends it. The loop is the script's
own: `run.restore()` once, `run.step()` at the end of each step. The batch that was fetched ahead of the boundary has
left the random number generator already, so it is state like the counters: all of them go through `run.state`, before
the loop's way out, so that a finished run can be trained on. The boundary comes after it: a run is then never resumed
with nothing left to do. `run.finish()` counts the last update. Mixed precision is one more name in `run.track`.""",
    "gan": """## A GAN

Two models and two optimizers are four names. The fixed noise is drawn before the run is restored, from the script's own
seed, so that it is the same at each start and need not be kept.""",
    "rl": """## Deep Q-learning

No epochs and no loader. The replay buffer's `state_dict` gives its arrays up to where they are filled, the environment
gives its few numbers, and the numpy generator that both draw from is tracked by itself. Exploration follows the step,
which `run.steps` gives from where the run stands; each turn of it ends at a step boundary.""",
}


def changed_lines(before: str, after: str) -> int:
    """Added and changed lines; blank lines and comments are not counted, nor is the script's name in its docstring."""

    def code(text: str) -> list[str]:
        lines = [line.rstrip() for line in text.splitlines()]
        kept = [line for line in lines if line and not line.lstrip().startswith("#")]
        return [line.replace("before.py", "after.py") for line in kept]

    one, other = code(before), code(after)
    opcodes = difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    return sum(max(b - a, d - c) for tag, a, b, c, d in opcodes if tag != "equal")


def read(name: str) -> tuple[str, str]:
    return (HERE / name / "before.py").read_text(), (HERE / name / "after.py").read_text()


def page() -> str:
    parts = [INTRODUCTION]
    for name, paragraph in PARAGRAPHS.items():
        before, after = read(name)
        renamed = before.replace("before.py", "after.py").splitlines()
        files = [f"examples/{name}/{which}.py" for which in ("before", "after")]
        diff = "\n".join(difflib.unified_diff(renamed, after.splitlines(), *files, n=2, lineterm=""))
        parts.append(f"{paragraph}\n\n{changed_lines(before, after)} lines:\n\n```diff\n{diff}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if PAGE.exists() and PAGE.read_text() == page() else f"{PAGE} is out of date: run {__file__}")
    PAGE.write_text(page())
