"""Every name on disk is built, and parsed, here.

Law: no other module joins or splits a name of a run. Names are relative to the run directory and
use "/" on every system and every storage.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote

from autoresume.errors import UsageError

FORMAT_VERSION = 1

RUN = "run.json"
JOURNAL = "metrics.jsonl"
INCARNATIONS = "incarnations"
STOP_REQUEST = "requests/stop.json"
STACKS = "stacks"
TRACES = "traces"
FAILED_STARTS = "jobs/failed-starts.json"
PROGRESS = "progress.json"
SUBMISSIONS = "submissions"
CHECKPOINTS = "checkpoints"
ASIDE = "aside"
ASIDE_FILES = "aside-files"
LOGS = "logs"
FILES = "files"
TAGS = "tags"
REPORTS = "reports"
RETRAINED_PATTERN = "*-retrained-*.json"
NOTES = "notes"
SOURCES = "sources"

_COUNT = r"(0|[1-9]\d{0,17})"
_CHECKPOINT = re.compile(rf"E{_COUNT}_U{_COUNT}_S{_COUNT}-(\d{{4,18}})\Z", re.ASCII)
_INCARNATION = re.compile(r"(\d{4,18})\.json\Z", re.ASCII)
_PART = re.compile(r"rank-(\d{5,18})\.json\Z", re.ASCII)
_TEMPORARY = ".tmp"
_UNPUBLISHED = re.compile(r"\.[0-9a-f]+-[0-9a-f]{8}\.tmp\Z")


@dataclass(frozen=True, order=True)
class CheckpointName:
    """A checkpoint's folder: epoch, update (= step), samples seen, and who wrote it.

    Ordered by step, then incarnation: of two checkpoints the greater one is the newer.
    """

    step: int
    incarnation: int
    epoch: int
    samples: int

    def __post_init__(self) -> None:
        counts = (self.step, self.epoch, self.samples, self.incarnation)
        if min(counts) < 0 or max(counts) >= 10**18 or self.incarnation < 1:
            raise UsageError(f"no checkpoint can be named {self!r}: a count is negative, or has more than 18 digits")

    def __str__(self) -> str:
        return f"E{self.epoch}_U{self.step}_S{self.samples}-{self.incarnation:04d}"

    @classmethod
    def parse(cls, text: str) -> CheckpointName | None:
        """The name that `text` spells, or None if it spells none."""
        match = _CHECKPOINT.match(text)
        if match is None:
            return None
        epoch, step, samples, incarnation = (int(group) for group in match.groups())
        if incarnation < 1 or f"{incarnation:04d}" != match.group(4):
            return None
        return cls(step=step, incarnation=incarnation, epoch=epoch, samples=samples)

    @cached_property
    def folder(self) -> str:
        return f"{CHECKPOINTS}/{self}"

    @property
    def manifest(self) -> str:
        return f"{self.folder}/manifest.json"

    @property
    def parts(self) -> str:
        return f"{self.folder}/parts"

    def part(self, rank: int) -> str:
        return f"{self.folder}/{part_file(rank)}"

    def shard(self, rank: int) -> str:
        return f"{self.folder}/{shard_file(rank)}"

    def inside(self, file: str) -> str:
        """The name of `file`, which is relative to the checkpoint's folder. Never leaves the folder."""
        if not is_inside(file):
            raise UsageError(f"{file!r} is not a file inside a checkpoint")
        return f"{self.folder}/{file}"


def is_inside(file: str) -> bool:
    """True for a plain relative name: no "..", no absolute path, no empty or dotted component."""
    return all(part not in ("", ".", "..") and "\0" not in part for part in file.split("/"))


def part_file(rank: int) -> str:
    return f"parts/rank-{rank:05d}.json"


def shard_file(rank: int) -> str:
    return f"shards/rank-{rank:05d}.safetensors"


def unchanged_file(rank: int) -> str:
    """The tensors of a rank that were the same in its last checkpoints."""
    return f"shards/rank-{rank:05d}-unchanged.safetensors"


def pickle_file(rank: int, name: str) -> str:
    return f"pickles/rank-{rank:05d}-{quote(name, safe='')}.pkl"


def parse_part_file(file: str) -> int | None:
    """The rank of a part's file name (without its folder), or None."""
    match = _PART.match(file)
    return int(match.group(1)) if match and f"rank-{int(match.group(1)):05d}.json" == file else None


def incarnation_file(number: int) -> str:
    return f"{INCARNATIONS}/{number:04d}.json"


def heartbeat_file(number: int) -> str:
    return f"{INCARNATIONS}/{number:04d}.alive"


def parse_incarnation_file(file: str) -> int | None:
    match = _INCARNATION.match(file)
    number = int(match.group(1)) if match else 0
    return number if number > 0 and f"{number:04d}.json" == file else None


def aside_folder(name: str, attempt: int) -> str:
    """Where a checkpoint that can't be trusted is moved to; `attempt` makes it unique."""
    return f"{ASIDE}/{name}" if attempt == 0 else f"{ASIDE}/{name}.{attempt}"


def log_file(incarnation: int, rank: int) -> str:
    return f"{LOGS}/{incarnation:04d}-rank-{rank:05d}.log"


def temporary(name: str, token: str) -> str:
    """A name beside `name` that only the holder of `token` writes; garbage after a crash."""
    return f"{name}.{token}{_TEMPORARY}"


def is_unpublished(name: str) -> bool:
    """A file that a process was writing, to be published under the name before the last two dots."""
    return _UNPUBLISHED.search(name) is not None


def is_temporary(name: str) -> bool:
    return name.endswith(_TEMPORARY)


def job_folder(life: str) -> str:
    """Of one life of a batch job, `life` being its number and its restarts: where its daemons meet."""
    return f"jobs/{life}"


def trace_worker(incarnation: int, rank: int) -> str:
    """What a trace's file name begins with: TensorBoard shows it as the worker."""
    return f"life-{incarnation:04d}-rank-{rank:05d}"


def tag_file(tag: str) -> str:
    return f"{TAGS}/{tag}.json"


def report_file(incarnation: int) -> str:
    """What a life took over when it began."""
    return f"{REPORTS}/{incarnation:04d}.json"


def retrained_file(incarnation: int, rank: int) -> str:
    """What became of the steps that a rank trained again in that life."""
    return f"{REPORTS}/{incarnation:04d}-retrained-{rank:05d}.json"


def notes_file(rank: int) -> str:
    """What a rank saw in its last steps."""
    return f"{NOTES}/rank-{rank:05d}.jsonl"


def stacks_file(incarnation: int, rank: int) -> str:
    """Where a rank's threads stood when it hung."""
    return f"{STACKS}/{incarnation:04d}-rank-{rank:05d}.txt"
