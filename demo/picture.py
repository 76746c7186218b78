"""The demo's picture: both loss curves, and below them the lives of the interrupted run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"]
"""Told apart also by those who see fewer colors."""


def draw(
    file: Path,
    calm: list[dict[str, Any]],
    rough: list[dict[str, Any]],
    lives: list[dict[str, Any]],
    words: Sequence[str],
) -> None:
    """`lives`: the rows of `autoresume history`; `words`: what ended each of them."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells that it looks for fonts
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, (above, below) = pyplot.subplots(
        2, 1, sharex=True, figsize=(10, 6.6), height_ratios=[2.6, 0.34 * len(lives)], layout="constrained"
    )
    _curves(above, calm, rough, lives)
    _bars(below, lives, words)
    for number, life in enumerate(lives[:-1]):
        ended, lost = life["ended_at_step"], life["steps_lost"] or 0
        for axes in (above, below):
            axes.axvline(ended, color="0.55", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
            axes.axvspan(ended - lost, ended, color=COLORS[number % len(COLORS)], alpha=0.13, linewidth=0, zorder=0)
        above.annotate(f"{number + 1}", (ended, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom")
    below.set_xlim(0, len(calm) * 1.01)
    figure.suptitle("The same training: left in peace, and interrupted", fontsize=14)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def _curves(axes: Any, calm: list[dict[str, Any]], rough: list[dict[str, Any]], lives: list[dict[str, Any]]) -> None:
    axes.plot(*_points(calm), color="0.82", linewidth=7, solid_capstyle="round", label="left in peace", zorder=1)
    ends = [life["began_at_step"] for life in lives[1:]] + [len(rough)]
    for number, (life, end) in enumerate(zip(lives, ends)):
        # One step earlier, so that the curve has no gap.
        part = [record for record in rough if life["began_at_step"] <= record["step"] <= end]
        label = f"interrupted, life {life['incarnation']}"
        axes.plot(*_points(part), color=COLORS[number % len(COLORS)], linewidth=1.6, label=label, zorder=2)
    axes.set_ylabel("loss")
    axes.legend(framealpha=1, edgecolor="none", ncols=2, loc="upper right")


def _bars(axes: Any, lives: list[dict[str, Any]], words: Sequence[str]) -> None:
    whole = lives[-1]["ended_at_step"]
    for number, (life, text) in enumerate(zip(lives, words)):
        color, began, ended = COLORS[number % len(COLORS)], life["began_at_step"], life["ended_at_step"]
        lost = life["steps_lost"] or 0
        axes.barh(number, ended - lost - began, left=began, height=0.62, color=color)
        if lost:
            axes.barh(number, lost, left=ended - lost, height=0.62, color="white", edgecolor=color, hatch="////")
            text += f": {lost} step{'s' * (lost != 1)} trained again"
        right = whole - ended > began  # where there is more room
        place, side = (ended + 0.012 * whole, "left") if right else (began - 0.012 * whole, "right")
        background = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        axes.text(place, number, text, ha=side, va="center", fontsize=10, bbox=background, zorder=3)
    axes.set_yticks(range(len(lives)), [f"life {life['incarnation']}" for life in lives])
    axes.invert_yaxis()
    axes.set_xlabel("step")


def _points(records: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    return [record["step"] for record in records], [record["values"]["loss"] for record in records]
