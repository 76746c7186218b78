"""The option `restore`, what its words mean wherever they are said, and what changed between two starts."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from autoresume.config.command_line import default_run_dir
from autoresume.config.options import Options, load_options
from autoresume.config.restore_request import RestoreRequest, take_from_arguments
from autoresume.errors import UsageError
from autoresume.restore import changes


def restore_of(
    tmp_path: Path, given: Any = None, environment: dict[str, str] | None = None, line: Any = None
) -> RestoreRequest:
    return load_options({"restore": given} if given else {}, environment or {}, tmp_path, line).restore


def test_the_same_words_mean_the_same(tmp_path: Path) -> None:
    """Nested values, and the text that a command line or the environment has for them."""
    nested = {
        "mode": "hotstart",
        "from": Path("runs/base"),
        "select": "best.loss",
        "strict": {"ema": False, "model": True},
        "fresh": ["scheduler", "model.head.*"],
        "rename": {"^a": "b"},
        "weights": {"model": "ema"},
    }
    text = {
        "mode": "HotStart",
        "from": "runs/base",
        "select": "best.loss",
        "strict": "ema=false,model=true",
        "fresh": "scheduler, model.head.*",
        "rename": "^a=b",
        "weights": "model=ema",
    }
    by_environment = {f"AUTORESUME_RESTORE_{word.upper()}": value for word, value in text.items()}
    expected = restore_of(tmp_path, nested)
    assert restore_of(tmp_path, None, by_environment) == expected == restore_of(tmp_path, None, None, text)
    assert expected.is_lenient("ema")
    assert not expected.is_lenient("model")
    assert expected.fresh_inside("model") == ["head.*"]


def test_parts_are_merged_the_later_counting_more(tmp_path: Path) -> None:
    """A mode in the file and a source on the command line make one request."""
    (tmp_path / "autoresume.yaml").write_text("restore:\n  mode: finetune\n  from: here\n  select: best.loss\n")
    found = restore_of(tmp_path, {"mode": "continue"}, {"AUTORESUME_RESTORE_SELECT": "U5"}, {"from": "there"})
    assert (found.mode, found.source, found.select) == ("finetune", "there", "U5")
    (tmp_path / "autoresume.yaml").write_text("restore:\n  mode: null\n  from: null\n")
    assert restore_of(tmp_path, {"mode": "finetune", "from": "x"}).mode is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mode": "finetune"}, "needs to know from where"),
        ({"from": "x"}, "without restore.mode"),
        ({"mode": "restart", "from": "x"}, "null .*finetune .*hotstart .*continue"),
        ({"mode": "hotstart", "form": "x"}, "did you mean restore.from"),
        ({"mode": "hotstart", "from": "x", "strict": "perhaps"}, "can't be read"),
        ({"mode": "hotstart", "from": "x", "rename": "abc"}, "can't be read"),
        ({"mode": "hotstart", "from": "x", "rename": {"(": "y"}}, "no regular expression"),
        ({"resume_from_checkpoint": "x"}, "did you mean restore.from"),
        ("runs/base", "give its parts by name"),
    ],
)
def test_what_makes_no_sense_is_an_error(given: Any, said: str, tmp_path: Path) -> None:
    """Each with what to write instead."""
    with pytest.raises(UsageError, match=said):
        restore_of(tmp_path, given)


def test_arguments_are_taken_out_of_a_command_line() -> None:
    """In both spellings, wherever they stand; what comes after -- is the script's."""
    line = ["train.py", "--lr", "1", "--restore.mode=finetune", "--restore.from", "a=b", "x", "--", "--restore.mode"]
    assert take_from_arguments(line) == {"mode": "finetune", "from": "a=b"}
    assert line == ["train.py", "--lr", "1", "x", "--", "--restore.mode"]
    with pytest.raises(UsageError, match="needs a value"):
        take_from_arguments(["--restore.mode"])
    with pytest.raises(UsageError, match=r"unknown restore\.modes .*did you mean restore.mode"):
        take_from_arguments(["--restore.modes", "x"])


def test_a_run_that_begins_elsewhere_has_a_directory_of_its_own(tmp_path: Path) -> None:
    """From scratch, from one run and from another: three runs. continue has none of its own."""
    begins = [
        RestoreRequest(),
        RestoreRequest("finetune", "a"),
        RestoreRequest("finetune", "b"),
        RestoreRequest("hotstart", "a"),
    ]
    folders = [default_run_dir(["train.py"], tmp_path, one) for one in begins]
    assert len(set(folders)) == 4
    assert (
        default_run_dir(["train.py"], tmp_path, RestoreRequest("continue", "a"))
        == folders[0]
        == tmp_path / "runs" / "train"
    )


@pytest.mark.parametrize(
    ("text", "count", "metric", "highest"),
    [("val_loss", 1, "val_loss", False), ("3 highest my score", 0, "", False), ("2 highest x", 2, "x", True)],
)
def test_keep_best(text: str, count: int, metric: str, highest: bool) -> None:
    """A metric, with how many and which end where that isn't plain; anything else is an error."""
    if not count:
        with pytest.raises(UsageError, match="give a metric"):
            Options(keep_best=text)
        return
    keep = Options(keep_best=text).retention
    assert (keep.best, keep.metric, keep.highest) == (count, metric, highest)
    with pytest.raises(UsageError, match="lowest or the highest"):
        Options(keep_best="temperature")


# -- what changed -------------------------------------------------------------------------------------


def test_changes_are_judged_by_their_names() -> None:
    """Safe: learning rate, batch size, epochs, augmentation, callbacks. Risky: architecture, dimensions, the optimizer's
    type, the seed. What nobody knows is only told."""
    before = {
        "config": {
            "optimizer.lr": 1,
            "batch_size": 8,
            "max_epochs": 3,
            "augmentation": "a",
            "callbacks": [],
            "same": 0,
        },
        "objects": {"optimizer": {"kind": "optimizer", "class": "Adam", "lr": 0.1}, "model": {"parameters": 9}},
        "world_size": 2,
    }
    now = {
        "config": {"optimizer.lr": 2, "batch_size": 4, "max_epochs": 5, "augmentation": "b", "callbacks": [1], "same": 0,
                   "seed": 1, "hidden_dim": 3, "whatever": 0},
        "objects": {"optimizer": {"kind": "optimizer", "class": "SGD", "lr": 0.2}, "model": {"parameters": 7}},
        "world_size": 4,
    }  # fmt: skip
    found = {change.what: change.verdict for change in changes.compare_facts(before, now)}
    assert found == {
        "config.optimizer.lr": "safe",
        "config.batch_size": "safe",
        "config.max_epochs": "safe",
        "config.augmentation": "safe",
        "config.callbacks": "safe",
        "config.seed": "risky",
        "config.hidden_dim": "risky",
        "config.whatever": "unknown",
        "objects.optimizer.class": "risky",
        "objects.optimizer.lr": "safe",
        "objects.model.parameters": "risky",
        "world_size": "safe",
    }
    assert changes.compare_facts(before, before) == []


def test_settings_of_any_kind_are_plain() -> None:
    """A namespace, a dataclass and nested mappings become dotted names; objects become words without addresses."""

    @dataclasses.dataclass
    class Settings:
        lr: float = 0.1
        model: dict[str, Any] = dataclasses.field(default_factory=lambda: {"layers": [1, 2], "kind": object()})

    found = changes.flatten_config(Settings())
    assert found["lr"] == 0.1
    assert found["model.layers"] == [1, 2]
    assert "0x" not in found["model.kind"]
    assert changes.flatten_config(argparse.Namespace(a=1, b=None)) == {"a": 1, "b": None}
    with pytest.raises(TypeError):
        changes.flatten_config(3)


def test_a_command_line_as_settings() -> None:
    """Options in both spellings, flags, hydra's overrides, and the rest by place."""
    line = ["--lr", "0.1", "--fast", "--name=x", "model.width=3", "data"]
    assert changes.parse_arguments(line) == {"lr": "0.1", "fast": True, "name": "x", "model.width": "3", "0": "data"}
