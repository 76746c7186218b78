"""What a drill found, for people (text, a plot), for programs (JSON) and for CI (JUnit)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from autoresume.drill import causes
from autoresume.drill.compare import numbers
from autoresume.drill.drill import DIVERGED, IDENTICAL, INCONCLUSIVE, NOT_DETERMINISTIC, SAME_DATA, Result
from autoresume.drill.record import Trajectory


def verdict(result: Result) -> list[str]:
    """The lines that everybody reads."""
    lines = []
    if result.verdict == IDENTICAL:
        lines.append(
            f"identical: {result.steps} steps on {_count(result.ranks, 'rank')} with "
            f"{_count(len(result.lives) - 1, 'interruption')} are, step by step and bit for bit, those of the "
            f"undisturbed run; {_count(sum(life.trained_on for life in result.lives), 'life')} trained on from a save"
        )
    elif result.verdict == NOT_DETERMINISTIC:
        lines.append("not deterministic: the script does not repeat itself even where nobody interrupts it")
    elif result.verdict == SAME_DATA:
        sizes = ", ".join(str(life.ranks) for life in result.lives)
        lines.append(
            f"same data: with {sizes} ranks in its lives each epoch saw the samples of the undisturbed run, each once, "
            "and what was restored is what was saved"
        )
    elif result.verdict == INCONCLUSIVE:
        lines.append(
            "inconclusive: no life trained on from a checkpoint: the training was over before, or had saved nothing "
            "when it was interrupted. Drill more steps, or save more often (--save-every)"
            if not any(life.trained_on for life in result.lives)
            else "inconclusive: no loader told which samples it drew; use run.loader(dataset, ...)"
        )
    else:
        lines.append("diverged: after a resume it is another training")
    if result.divergence is not None:
        lines.append(f"  first at {result.divergence.words()}")
        if result.verdict == DIVERGED and result.divergence.life:
            before = next((one for one in result.lives if one.number == result.divergence.life - 1), None)
            if before is not None:
                lines.append(f"  in life {result.divergence.life}, which followed on a {before.words}")
    if result.cause is not None:
        lines += [f"  likely cause: {result.cause.name}: {result.cause.why}", f"  what to do: {result.cause.remedy}"]
    lines += [f"  differs: {line}" for line in result.final]
    if result.verdict == DIVERGED and result.suspects:
        lines.append("  untracked, and another than undisturbed in the first step after the resume:")
        lines += [f"    {line}" for line in causes.as_lines(result.suspects)[:8]]
    if result.unnoticed:
        lines.append("  untracked, and another than undisturbed at the end, with no effect on this training so far:")
        lines += [f"    {line}" for line in causes.as_lines(result.unnoticed)[:8]]
    if result.not_compared:
        lines.append(f"  not compared, since it differs undisturbed, too: {', '.join(result.not_compared)}")
    return lines


def _count(number: int, what: str) -> str:
    many = {"life": "lives"}.get(what, f"{what}s")
    return f"{number} {what if number == 1 else many}"


def figures(result: Result) -> list[str]:
    """What the interruptions cost."""
    if not result.lives:
        return []
    lines = [
        f"  {len(result.lives)} lives; {result.lost_steps} steps were made again, plain restarts would have made "
        f"{result.lost_without} again"
    ]
    if result.save_seconds is not None:
        fits = "fits" if result.save_seconds < result.grace else "does NOT fit"
        lines.append(
            f"  the last save took at most {result.save_seconds:.2f} s, which {fits} a grace time of "
            f"{result.grace:.0f} s; a checkpoint has {result.checkpoint_bytes:,} bytes"
        )
    return lines


def rows(result: Result) -> list[dict[str, object]]:
    """A row for each life."""
    return [
        {
            "life": life.number,
            "ranks": life.ranks,
            "interruption": life.words + ("" if life.came or life.interruption is None else " (did not come)"),
            "from": life.resumed_step,
            "to": life.reached_step,
            "lost": lost,
            "first_step": "" if life.first_step_seconds is None else f"{life.first_step_seconds:.1f} s",
            "code": life.code,
        }
        for life, lost in zip(result.lives, result.lost())
    ]


COLUMNS = [
    ("life", "life"),
    ("ranks", "ranks"),
    ("interruption", "ended by"),
    ("from", "after step"),
    ("to", "to step"),
    ("lost", "steps lost"),
    ("first_step", "first step after"),
    ("code", "exit code"),
]


def write_json(result: Result, target: Path) -> None:
    target.write_text(json.dumps(result.to_json(), indent=1) + "\n")


def write_junit(result: Result, target: Path, name: str) -> None:
    """One test case: the whole drill."""
    seconds = f"{sum(life.seconds for life in result.lives):.3f}"
    failed = result.verdict not in (IDENTICAL, SAME_DATA)
    suite = ElementTree.Element(
        "testsuite",
        name="autoresume drill",
        tests="1",
        failures=str(int(failed)),
        errors="0",
        skipped="0",
        time=seconds,
    )
    case = ElementTree.SubElement(suite, "testcase", classname="autoresume.drill", name=name, time=seconds)
    text = "\n".join(verdict(result))
    if failed:
        failure = ElementTree.SubElement(case, "failure", message=text.partition("\n")[0], type=result.verdict)
        failure.text = text
    ElementTree.SubElement(case, "system-out").text = "\n".join([text, *figures(result)])
    ElementTree.ElementTree(suite).write(target, encoding="utf-8", xml_declaration=True)


def write_plot(result: Result, reference: Trajectory, other: Trajectory, target: Path) -> str | None:
    """Both trajectories, with the interruptions and where they part. Returns why there is none, if so."""
    try:
        import matplotlib
    except ImportError:
        return "no plot: matplotlib is not installed (pip install 'autoresume-hpc[drill]')"
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    steps, values = _curve(reference)
    axes.plot(steps, values, color="0.75", linewidth=6, solid_capstyle="round", label="undisturbed", zorder=1)
    lives = sorted({int(line["life"]) for each in other.steps.get(0, {}).values() for line in each})
    for number, life in enumerate(lives):
        steps, values = _curve(other, life)
        axes.plot(steps, values, linewidth=1.5, color=f"C{number % 10}", label=f"life {life}", zorder=2)
    for one in result.lives[:-1]:
        axes.axvline(one.reached_step, color="C3", linewidth=0.8, linestyle=":", zorder=0)
    if result.divergence is not None and result.divergence.step:
        axes.axvline(result.divergence.step, color="C3", linewidth=2, label=f"parts at step {result.divergence.step}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, rank 0")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"{result.verdict}: {_count(len(result.lives[:-1]), 'interruption')} (dotted)", loc="left")
    if len(lives) <= 12:
        axes.legend(loc="best", fontsize="small")
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
    return None


def _curve(trajectory: Trajectory, life: int | None = None) -> tuple[Sequence[int], list[float]]:
    steps, lines = [], []
    for step, each in sorted(trajectory.steps.get(0, {}).items()):
        chosen = [line for line in each if life is None or line["life"] == life]
        if chosen:
            steps.append(step)
            lines.append(chosen[-1])
    values = numbers(lines)
    kept = [(step, value) for step, value in zip(steps, values) if math.isfinite(value)]
    return [step for step, _ in kept], [value for _, value in kept]
