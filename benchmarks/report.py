"""From results.jsonl to tables, plots, and the results in benchmarks/README.md: `python -m benchmarks.report`.

Law: a table shows, for each figure, the median of all samples and the best one, and their number. A rival that
failed, or isn't installed, has a line with its reason. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
_BEGIN, _END = "<!-- results: made by `python -m benchmarks.report --publish` -->", "<!-- end of results -->"
_LIMIT = "limit"

TITLES = {
    "save": "Saving, while nothing else goes on",
    "loop": "Periodic saves of a real training loop",
    "restore": "Restoring into live tensors",
    "overhead": "A step without a save",
    "preemption": "Preempted, and killed",
    "startup": "The command line, whole processes",
}
NOTES = {
    "save": (
        "`stall`: how long the loop stands still; `÷ copy`: divided by one plain multi-threaded copy of the same bytes "
        "into warm memory, made just before. `complete`: by the rival's own word; `durable`: bytes and names synced, "
        "by itself or (where it doesn't) by an fsync of all it wrote. `of raw write`: a sequential direct write of the "
        "same bytes, made just before, divided by `durable`. `processor`: user and system seconds of all processes "
        "until then, per GB."
    ),
    "loop": (
        "`stall`: time inside the call that saves and in what waits for its copy before the optimizer's step, less "
        "what the same takes in a step without a save. `durable`: from the boundary to the commit. `slow-down`: of "
        "forward, backward and optimizer while a snapshot is being persisted. The daemon's processor time is that of a "
        "save, without what it takes where nothing is saved."
    ),
    "restore": (
        "Cold: the first load of a process, with none of the files in the page cache (mincore says so); the limit is a "
        "direct read of as many bytes by 4 threads. Warm: later loads of the same process; the limit is mmap and copy. "
        "What autoresume loads is verified against its digests, and its time is that of the whole `run.restore()`, "
        "which claims the run as well."
    ),
    "overhead": "Microseconds; `daemon`: under the node daemon, which decides for all ranks in shared memory.",
    "preemption": (
        "SIGTERM reaches the node daemon in the middle of a step. Then SIGKILL for rank 0, with the node and its page "
        "cache left as they are: until a new process has restored, and has taken a step."
    ),
    "startup": "",
}
COLUMNS: dict[str, list[tuple[str, str]]] = {
    "save": [
        ("first stall", "first stall, s"),
        ("stall", "stall, s"),
        ("stall / copy", "÷ copy"),
        ("complete", "complete, s"),
        ("durable", "durable, s"),
        ("raw write / durable", "of raw write"),
        ("processor", "processor, s/GB"),
    ],
    "loop": [
        ("first stall", "first stall, s"),
        ("stall", "stall, s"),
        ("stall / copy", "÷ copy"),
        ("durable", "durable, s"),
        ("step", "step, s"),
        ("slow-down while persisting", "slow-down"),
        ("daemon's processor", "daemon's processor, s/GB"),
        ("idle daemon", "idle daemon, % of a core"),
    ],
    "restore": [
        ("cold load", "cold, s"),
        ("limit / cold load", "of limit, cold"),
        ("warm load", "warm, s"),
        ("limit / warm load", "of limit, warm"),
    ],
    "overhead": [
        ("run.step()", "run.step(), µs"),
        ("mean of run.step()", "mean, µs"),
        ("run.log()", "run.log(), µs"),
    ],
    "preemption": [
        ("SIGTERM to commit", "SIGTERM to commit, s"),
        ("copy + raw write + step", "copy + raw write + one step, s"),
        ("to commit / (copy + raw write + step)", "ratio"),
        ("SIGTERM to exit", "to the daemon's exit, s"),
        ("kill to restored", "kill to restored, s"),
        ("kill to first step", "kill to first step, s"),
        ("read from the disk by rank 0", "read from the disk, B"),
    ],
    "startup": [
        ("python -c pass", "python -c pass, s"),
        ("import autoresume.cli", "import autoresume.cli, s"),
        ("autoresume ls", "autoresume ls, s"),
        ("import torch", "import torch, s"),
    ],
}
_MORE_IS_BETTER = ("raw write / durable", "limit / ", "copy", "raw write", "cold read", "warm read")

Key = tuple[str, str, int]
"""(suite, state, world size)"""


@dataclass
class Results:
    about: dict[str, Any] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    """All that wrote into these results, one after the other."""
    samples: dict[Key, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    """key -> rival -> figure -> samples."""
    problems: dict[Key, dict[str, str]] = field(default_factory=dict)


def read(path: Path) -> Results:
    found = Results()
    for line in map(json.loads, path.read_text().splitlines()):
        if "about" in line:
            found.about = line["about"]
            found.commands.append(line["about"].get("command"))
            continue
        key = (line["suite"], line["state"], line["world"])
        if "problem" in line:
            found.problems.setdefault(key, {})[line["rival"]] = line["problem"]
            found.samples.setdefault(key, {})
            continue
        rival = found.samples.setdefault(key, {}).setdefault(line["rival"], {})
        rival.setdefault(line["figure"], []).extend(line["samples"])
    return found


def best(figure: str, samples: Sequence[float]) -> float:
    return max(samples) if figure.startswith(_MORE_IS_BETTER) and figure != "copy + raw write + step" else min(samples)


def number(value: float) -> str:
    """Three digits, without an exponent."""
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.{2 if value >= 10 else 3 if value >= 0.1 else 4}g}" if value >= 0.1 else f"{value:.2g}"


def cell(figure: str, samples: Sequence[float] | None) -> str:
    if not samples:
        return ""
    middle = statistics.median(samples)
    return number(middle) if len(samples) == 1 else f"{number(middle)} ({number(best(figure, samples))})"


def table(results: Results, key: Key) -> str:
    suite, state, world = key
    columns = COLUMNS[suite]
    rivals = results.samples[key]
    sizes = [(one["bytes"][0], one.get("tensors", [0])[0]) for one in rivals.values() if "bytes" in one]
    what = f"{state}, " if state else ""
    size = f"{sizes[0][0] / 1e9:.2f} GB, " if sizes else ""
    tensors = next((f"{count:,.0f} tensors, " for _, count in sizes if count), "")
    lines = [f"**{what}{size}{tensors}{world} rank{'s' if world > 1 else ''}**: median (best)", ""]
    lines += ["| | " + " | ".join(name for _, name in columns) + " | n |", "|---|" + "--:|" * (len(columns) + 1)]
    for rival, figures in rivals.items():
        shown = [cell(figure, figures.get(figure)) for figure, _ in columns]
        if rival == _LIMIT or not any(shown):
            continue
        counted = "stall" if suite in ("save", "loop") else columns[0][0]
        count = len(figures.get(counted, ()))
        lines.append(f"| {rival} | " + " | ".join(shown) + f" | {count} |")
    for rival, problem in results.problems.get(key, {}).items():
        said = problem.replace("|", "/").replace("\n", " ")
        lines.append(f"| {rival} | failed: {said} |" + " |" * len(columns))
    limits = results.samples[key].get(_LIMIT, {})
    said = ", ".join(f"{name} {cell(name, values)} GB/s" for name, values in limits.items())
    return "\n".join(lines) + (f"\n\nLimits in the same processes: {said}." if said else "") + "\n"


def markdown(results: Results, plots: Sequence[str]) -> str:
    about = results.about
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    lines = [
        f"Measured {about.get('time')} on {about.get('machine')}, {about.get('memory')}, {about.get('disk')}; "
        f"{about.get('system')}; {versions}. Load before: {about.get('load')}.",
        "",
        "Commands: " + ", ".join(f"`{command}`" for command in results.commands),
        "",
    ]
    for suite, title in TITLES.items():
        keys = [key for key in results.samples if key[0] == suite]
        if keys:
            lines += [f"### {title}", "", NOTES[suite], ""]
            lines += [f"![{suite}](plots/{suite}.svg)", ""] if suite in plots else []
            lines += [table(results, key) for key in keys]
    return "\n".join(lines)


def draw(results: Results, folder: Path) -> list[str]:
    """A plot for each of saving, loop and restoring, as PNG and SVG; which were drawn."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("no plots: matplotlib is not installed (benchmarks/requirements.txt)")
        return []
    drawn = []
    pairs = {"save": ("stall", "durable"), "loop": ("stall", "durable"), "restore": ("cold load", "warm load")}
    for suite, figures in pairs.items():
        keys = [key for key in results.samples if key[0] == suite]
        if not keys:
            continue
        bars = sum(len(results.samples[key]) for key in keys)
        shown, (axes,) = pyplot.subplots(1, len(figures), figsize=(11, 1 + 0.25 * bars), squeeze=False)
        for axis, figure in zip(axes, figures):
            rows = [
                (f"{rival} · {key[1]} · {key[2]}", found[figure])
                for key in keys
                for rival, found in results.samples[key].items()
                if found.get(figure)
            ]
            if not rows:
                continue
            rows.reverse()
            values = [statistics.median(samples) for _, samples in rows]
            colours = ["#c44e52" if name.startswith("autoresume") else "#8c9db5" for name, _ in rows]
            axis.barh([name for name, _ in rows], values, color=colours)
            axis.plot([best(figure, samples) for _, samples in rows], range(len(rows)), "k|", markersize=8)
            for place, value in enumerate(values):
                axis.text(value, place, f" {number(value)}", va="center", fontsize=7)
            axis.margins(x=0.15)
            axis.set_title(f"{figure}, s (bar: median, mark: best)", fontsize=9)
            axis.tick_params(labelsize=7)
        shown.tight_layout()
        for kind in ("png", "svg"):
            shown.savefig(folder / f"{suite}.{kind}", dpi=120)
        pyplot.close(shown)
        drawn.append(suite)
    return drawn


def write(path: Path, folder: Path) -> str:
    """report.md and plots beside the results; the text."""
    results = read(path)
    plots = folder / "plots"
    shutil.rmtree(plots, ignore_errors=True)
    plots.mkdir()
    text = markdown(results, draw(results, plots))
    (folder / "report.md").write_text(text)
    print(text)
    return text


def publish(text: str, plots: Path) -> None:
    """Put the results into benchmarks/README.md, between its marks, with the plots beside it."""
    readme = _HERE / "README.md"
    before, rest = readme.read_text().split(_BEGIN)
    readme.write_text(f"{before}{_BEGIN}\n\n{text}\n{_END}{rest.split(_END)[1]}")
    shutil.rmtree(_HERE / "plots", ignore_errors=True)
    shutil.copytree(plots, _HERE / "plots")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=_HERE / "output", help="the folder that holds results.jsonl")
    parser.add_argument("--publish", action="store_true", help="into benchmarks/README.md")
    given = parser.parse_args()
    text = write(given.output / "results.jsonl", given.output)
    if given.publish:
        publish(text, given.output / "plots")


if __name__ == "__main__":
    main()
