"""What watches a life: the drill's recorder where a drill runs, else the audit."""

from __future__ import annotations

from autoresume.audit.audit import Audit, Beginning
from autoresume.drill.recorder import Recorder
from autoresume.load.read_checkpoint import Restored
from autoresume.run.positions import Positions
from autoresume.run.resources import Resources
from autoresume.run.tracked import Tracked

Watch = Recorder | Audit


def watch(resources: Resources, positions: Positions, tracked: Tracked) -> Watch:
    following = positions.following
    return Recorder.of_environment(resources.ranks.rank) or Audit(
        resources.folder, resources.options.retrained, following.generators, tracked.given, following.leaves_alone
    )


def beginning(
    step: int, resources: Resources, restored: Restored | None, changes: list[str], unseeded: list[str]
) -> Beginning:
    """`restored` is what was taken over of this very run."""
    exact = restored is not None and restored.exact
    return Beginning(step, resources.number, resources.ranks.world_size, exact, changes, unseeded)
