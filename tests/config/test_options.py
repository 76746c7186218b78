"""Options: the decorator, then the YAML file, then the environment; a wrong one names the nearest."""

from __future__ import annotations

import ast
import inspect
import itertools
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresume.checkpoint.retain import Keep
from autoresume.config import options
from autoresume.config.options import Options, load_options
from autoresume.config.restore_request import RestoreRequest
from autoresume.errors import UsageError

FROZEN = {
    "run_dir": None,
    "save_every": "auto",
    "keep": 3,
    "keep_every": None,
    "keep_best": None,
    "restore": RestoreRequest(),
    "stage": None,
    "signals": "SIGTERM,SIGUSR1,SIGUSR2",
    "grace": 30.0,
    "seed": None,
    "loggers": (),
    "publish": "committed",
    "unchanged": "link",
    "backend": None,
    "profile": None,
    "retrained": "warn",
    "rehearse": False,
    "hang_after": "auto",
}
"""A new option needs a default that is right for nearly all, a line in the docs, and a line here."""

DOCUMENT = Path(__file__).parents[2] / "docs" / "options.md"


# -- what there is ----------------------------------------------------------------------------------


def test_the_options_are_these() -> None:
    """Options and their defaults are a promise: none comes, goes or changes by accident."""
    assert {field.name: field.default for field in fields(Options)} == FROZEN


def test_every_option_is_explained_where_it_stands() -> None:
    """Each has its sentence right below it."""
    (body,) = [node.body for node in ast.parse(inspect.getsource(Options)).body if isinstance(node, ast.ClassDef)]
    explained = set()
    for field, following in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(following, ast.Expr):
            assert isinstance(field.target, ast.Name)
            assert isinstance(following.value, ast.Constant)
            explained |= {field.target.id} if len(str(following.value.value)) > 20 else set()
    assert explained == set(FROZEN)


def test_every_option_is_in_the_document() -> None:
    """docs/options.md, to which the source refers, names each option and its variable in the environment."""
    text = DOCUMENT.read_text()
    missing = [name for name in FROZEN if f"`{name}`" not in text]
    assert not missing
    assert "AUTORESUME_SAVE_EVERY" in text


# -- where they come from ---------------------------------------------------------------------------


def test_without_anything_the_defaults_hold(tmp_path: Path) -> None:
    """Nothing given, no file, no variables."""
    assert load_options({}, {}, tmp_path) == Options()


def test_the_environment_beats_the_file_which_beats_the_decorator(tmp_path: Path) -> None:
    """Each source overrules the one before it, option by option."""
    (tmp_path / "autoresume.yaml").write_text("keep: 5\ngrace: 60\n")
    given = {"keep": 4, "seed": 7, "grace": 10.0}
    found = load_options(given, {"AUTORESUME_GRACE": "90", "HOME": "/root"}, tmp_path)
    assert (found.seed, found.keep, found.grace) == (7, 5, 90.0)


def test_another_file_can_be_named(tmp_path: Path) -> None:
    """AUTORESUME_CONFIG names the YAML file in place of autoresume.yaml; one that isn't there is an error."""
    (tmp_path / "autoresume.yaml").write_text("keep: 5\n")
    (tmp_path / "other.yaml").write_text("keep: 6\n")
    assert load_options({}, {"AUTORESUME_CONFIG": str(tmp_path / "other.yaml")}, tmp_path).keep == 6
    with pytest.raises(UsageError, match=r"AUTORESUME_CONFIG names .*nowhere.yaml, which does not exist"):
        load_options({}, {"AUTORESUME_CONFIG": str(tmp_path / "nowhere.yaml")}, tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [("keep: [1", "is not YAML"), ("- keep", "must hold options by name"), ("\xff\xfe".encode("latin-1"), "not YAML")],
)
def test_a_file_that_cant_be_read_is_named(tmp_path: Path, text: str | bytes, said: str) -> None:
    """Broken YAML, a list instead of names, another encoding: the error says which file."""
    (tmp_path / "autoresume.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=said) as error:
        load_options({}, {}, tmp_path)
    assert "autoresume.yaml" in str(error.value)


def test_an_empty_file_is_no_option(tmp_path: Path) -> None:
    """A file with nothing but comments changes nothing."""
    (tmp_path / "autoresume.yaml").write_text("# nothing yet\n")
    assert load_options({"keep": 9}, {}, tmp_path).keep == 9


def test_our_own_variables_are_no_options(tmp_path: Path) -> None:
    """What the daemon and tests set for the ranks is not taken for a misspelt option."""
    internal = {f"AUTORESUME_{name}": "x" for name in ("NODE_FOLDER", "MEMORY", "FAILPOINT")}
    assert load_options({}, internal, tmp_path) == Options()


# -- what is wrong with them ------------------------------------------------------------------------


def test_a_misspelt_option_names_the_nearest(tmp_path: Path) -> None:
    """In each source, the way it is spelt there."""
    with pytest.raises(UsageError, match="unknown option save_evry in the decorator; did you mean save_every"):
        load_options({"save_evry": 5}, {}, tmp_path)
    with pytest.raises(
        UsageError, match="unknown option AUTORESUME_SIGNAL in the environment; did you mean AUTORESUME_SIGNALS"
    ):
        load_options({}, {"AUTORESUME_SIGNAL": "TERM"}, tmp_path)
    (tmp_path / "autoresume.yaml").write_text("logger: tensorboard\n")
    with pytest.raises(UsageError, match=r"unknown option logger in .*autoresume.yaml; did you mean loggers"):
        load_options({}, {}, tmp_path)


def test_an_option_like_none_lists_all(tmp_path: Path) -> None:
    """Where nothing is near all are told."""
    with pytest.raises(UsageError) as error:
        load_options({"xyzzy": 1}, {}, tmp_path)
    assert all(name in str(error.value) for name in FROZEN)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keep", "many"),
        ("keep", True),
        ("keep", 2.5),
        ("keep", float("inf")),
        ("seed", "lucky"),
        ("grace", "soon"),
        ("grace", [1]),
        ("run_dir", 5),
        ("run_dir", ["runs"]),
        ("signals", ["SIGTERM"]),
        ("save_every", 2.5),
        ("save_every", True),
        ("loggers", 7),
    ],
)
def test_a_value_of_another_kind_says_where_it_stands(tmp_path: Path, name: str, value: Any) -> None:
    """The error names the option, the value and the source."""
    with pytest.raises(UsageError) as error:
        load_options({name: value}, {}, tmp_path)
    assert all(part in str(error.value) for part in (name, repr(value), "the decorator"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keep", 0),
        ("keep", -1),
        ("grace", 0.0),
        ("grace", -5.0),
        ("grace", float("nan")),
        ("backend", "mpi"),
        ("signals", "SIGTERM,SIGKILL"),
        ("signals", "HELLO"),
        ("save_every", "often"),
        ("save_every", 0),
        ("save_every", -5),
        ("save_every", "0 steps"),
        ("save_every", "2.5 steps"),
        ("save_every", "0 minutes"),
        ("save_every", "5 parsecs"),
        ("save_every", "500 ms"),
        ("save_every", "10 minutes or so"),
        ("save_every", ""),
        ("keep_every", "auto"),
    ],
)
def test_a_value_that_cant_be_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    """What makes no sense is refused when the run is opened, not hours later."""
    with pytest.raises(UsageError, match=r"=|signal"):
        load_options({name: value}, {}, tmp_path)


@given(
    st.sampled_from(sorted(FROZEN)),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.lists(st.text(max_size=3)),
)
def test_any_value_is_an_option_or_a_usage_error(name: str, value: Any) -> None:
    """Whatever stands in the file: no other exception."""
    try:
        found = load_options({name: value}, {}, Path("/nowhere"))
    except UsageError:
        return
    assert found.retention.last >= 1
    assert found.stop_signals is not None
    assert (found.save_steps is None) != (found.save_seconds is None) or found.save_every is None


# -- what they mean ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "steps", "seconds"),
    [
        ("auto", None, 0.0),
        (500, 500, None),
        ("500", 500, None),
        ("500 steps", 500, None),
        ("1 step", 1, None),
        ("500steps", 500, None),
        ("10 minutes", None, 600.0),
        ("10min", None, 600.0),
        ("90 s", None, 90.0),
        ("30 secs", None, 30.0),
        ("1.5 Hours", None, 5400.0),
        ("2 h", None, 7200.0),
        (" 1 day ", None, 86400.0),
        ("3 d", None, 259200.0),
    ],
)
def test_intervals_are_steps_or_a_time(value: str | int, steps: int | None, seconds: float | None) -> None:
    """Exactly one of the two is set."""
    found = Options(save_every=value)
    assert (found.save_steps, found.save_seconds) == (steps, seconds)


def test_retention_is_what_was_asked_for() -> None:
    """`keep` and `keep_every`, in steps or seconds."""
    assert Options().retention == Keep(3, None, None)
    assert Options(keep=7, keep_every="1000 steps").retention == Keep(7, 1000, None)
    assert Options(keep_every="2 hours").retention == Keep(3, None, 7200.0)


def test_the_signals_are_parsed() -> None:
    """As names of Python's."""
    assert Options(signals="usr2 TERM").stop_signals == (signal.SIGUSR2, signal.SIGTERM)
    assert Options().stop_signals == (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def test_values_from_the_environment_are_read_like_any_other(tmp_path: Path) -> None:
    """Text becomes what the option is."""
    variables = {
        "AUTORESUME_KEEP": "12",
        "AUTORESUME_SEED": "-3",
        "AUTORESUME_GRACE": "12.5",
        "AUTORESUME_LOGGERS": "tensorboard, wandb",
        "AUTORESUME_SAVE_EVERY": "200",
        "AUTORESUME_RUN_DIR": "/scratch/run",
    }
    found = load_options({}, variables, tmp_path)
    assert (found.keep, found.seed, found.grace) == (12, -3, 12.5)
    assert found.loggers == ("tensorboard", "wandb")
    assert (found.save_steps, found.run_dir) == (200, "/scratch/run")


def test_loggers_are_a_list_or_words(tmp_path: Path) -> None:
    """A list in the decorator and in YAML, words in the environment, and nothing at all."""
    assert load_options({"loggers": ["a", "b"]}, {}, tmp_path).loggers == ("a", "b")
    assert load_options({"loggers": "a b"}, {}, tmp_path).loggers == ("a", "b")
    assert load_options({"loggers": None}, {}, tmp_path).loggers == ()


def test_a_path_may_be_a_path(tmp_path: Path) -> None:
    """run_dir takes pathlib's."""
    assert load_options({"run_dir": tmp_path}, {}, tmp_path).run_dir == str(tmp_path)


def test_options_do_not_change() -> None:
    """Once loaded they are what they are."""
    with pytest.raises(AttributeError):
        Options().keep = 5  # type: ignore[misc]


def test_the_file_is_called_autoresume_yaml() -> None:
    """The name that the docs tell."""
    assert options.DEFAULT_FILE == "autoresume.yaml"
