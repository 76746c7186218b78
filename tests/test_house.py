"""The house: what somebody finds who opens the package for the first time."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import autoresume
from autoresume.config import options

PACKAGE = Path(autoresume.__file__).parent
FACE = {"__init__.py", "__main__.py", "errors.py", "py.typed"}
MOST_LINES = 340
MOST_LINES_OF_A_FUNCTION = 60
MOST_PARAMETERS = 7
PUBLIC_WITH_MORE = {"run/handle.py: loader"}
"""It has the parameters of torch's DataLoader."""

FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node


def is_command(function: ast.FunctionDef) -> bool:
    """Its parameters are the command line's options."""
    return any("click." in ast.unparse(decorator) for decorator in function.decorator_list)


def parameters(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    named = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in named if name not in ("self", "cls")]


def test_nothing_lies_at_the_root_but_the_public_face() -> None:
    """A newcomer reads the rooms' names, and knows the program."""
    found = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert found <= FACE


def test_every_room_says_what_it_is_for() -> None:
    """The docstring of its `__init__` is a room's law."""
    rooms = [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    silent = [path.name for path in rooms if not ast.get_docstring(ast.parse((path / "__init__.py").read_text()))]
    assert len(rooms) > 15
    assert not silent


def maker(name: str) -> Any:
    """What makes one of the documents."""
    spec = importlib.util.spec_from_file_location(name, PACKAGE.parent / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_that_of_the_code() -> None:
    """docs/reference.md says what the docstrings say: `python docs/make_reference.py` makes it."""
    making = maker("make_reference")
    assert making.PAGE.read_text() == making.page(), "run docs/make_reference.py"


def test_the_public_face_is_documented() -> None:
    """Whatever a user may write is said, and a docstring names each parameter, as code."""
    entries = maker("make_reference").entries()
    names = {entry.name for entry in entries}
    assert set(autoresume.__all__) - {"__version__"} <= names
    assert {
        "run.track",
        "run.step_count",
        "run.state",
        "run.state.get",
        "save_every",
        "restore.from",
        "doctor",
    } <= names
    assert {f"run.{name}" for name in vars(autoresume.Run) if not name.startswith("_")} <= names
    assert not [entry.name for entry in entries if not entry.text]
    assert not [(entry.name, entry.unnamed) for entry in entries if entry.unnamed]


def test_every_variable_is_known() -> None:
    """A variable that the code reads or sets is an option's, documented, or known as the project's own."""
    known = {field.name.upper() for field in fields(options.Options)} | options._INTERNAL
    used = {word for path in FILES for word in re.findall(r"AUTORESUME_([A-Z_]*[A-Z])", path.read_text())}
    assert not {word for word in used if word not in known and not word.startswith("RESTORE_")}


def test_the_picture_is_that_of_the_code() -> None:
    """docs/rooms.svg and the table of rooms show what the code imports: `python docs/make_picture.py` makes them."""
    drawing = maker("make_picture")
    assert drawing.PICTURE.read_text() == drawing.picture()
    assert drawing.PAGE.read_text() == drawing.page()


@pytest.mark.parametrize("page", ["architecture.md", "where.md"])
def test_files_that_the_pages_name_are_there(page: str) -> None:
    """A walk that names a file leads to it."""
    text = (PACKAGE.parent / "docs" / page).read_text()
    named = set(re.findall(r"`([a-z_]+/[a-z_0-9]+\.py)`", text))
    assert len(named) > 10
    assert not [name for name in named if not (PACKAGE / name).exists() and not (PACKAGE.parent / name).exists()]
    tests = set(re.findall(r"`(tests/[\w/.]+)`", text))
    assert not [name for name in tests if not (PACKAGE.parent / name).exists()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_and_its_functions_can_be_read(path: Path) -> None:
    """A file has a docstring and no two subjects' lengths; a function fits on a screen, and can be called from memory."""
    text, name = path.read_text(), path.relative_to(PACKAGE)
    assert ast.get_docstring(ast.parse(text)), f"{name} does not say what it is for"
    assert text.count("\n") <= MOST_LINES, f"{name} is long: do two subjects meet in it?"
    for function in functions(path):
        lines = (function.end_lineno or 0) - function.lineno + 1
        assert lines <= MOST_LINES_OF_A_FUNCTION, f"{name}: {function.name} has {lines} lines"
        count = len(parameters(function))
        known = is_command(function) or f"{name}: {function.name}" in PUBLIC_WITH_MORE
        assert known or count <= MOST_PARAMETERS, f"{name}: {function.name} has {count} parameters"
