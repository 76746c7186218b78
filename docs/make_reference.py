"""Writes docs/reference.md, the whole public face, from docstrings: python docs/make_reference.py [--check].

Law: nothing is written beside the code. What a page can't be made of (a name without a docstring, a parameter that its
docstring does not name) is told by tests/test_house.py.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "autoresume"
PAGE = ROOT / "docs" / "reference.md"
sys.path.insert(0, str(ROOT))

INTRODUCTION = """# Reference

All that a script, a shell and a job may use, made from the docstrings by `python docs/make_reference.py`. What is not
here is the project's own, and may change. Whole scripts are in [examples.md](examples.md); [options.md](options.md) and
[restore.md](restore.md) tell more of the options, [exactness.md](exactness.md) what holds of data and state.
`autoresume.__version__` is the version.
"""
EXIT_CODES = """Of a rank, of the commands that train, and of the node daemon. Anything else is a failure; 1, from a
script, is an error of autoresume's, which has been told. Under torchrun a rank's 75 becomes torchrun's 1, and under
torchrun and a node daemon ranks leave with 0: `autoresume history` says what really happened."""
VARIABLES = """Beside the options' own. What else begins with `AUTORESUME_` is either set by autoresume itself, or an
error that names the nearest option."""
_STORED_AS = {"from": "source", "strict": "lenient"}
"""Words of `restore` that are called otherwise in its class."""


@dataclass
class Entry:
    """One public name: `name` is what a user writes, `head` how it is called, `parameters` what its text must name."""

    name: str
    head: str
    text: str
    parameters: list[str] = field(default_factory=list)
    group: str = ""

    @property
    def unnamed(self) -> list[str]:
        """Parameters that the text does not name, as code."""
        code = " ".join(re.findall(r"`([^`]+)`", self.text))
        return [name for name in self.parameters if not re.search(rf"\b{name}\b", code)]


# -- Python ---------------------------------------------------------------------------------------


def parse(module: str) -> tuple[ast.Module, str]:
    text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    return ast.parse(text), text


def docstring(node: ast.FunctionDef | ast.ClassDef) -> str:
    return ast.get_docstring(node) or ""


def decorated(node: ast.FunctionDef, word: str) -> bool:
    return any(ast.unparse(one).split(".")[-1] == word for one in node.decorator_list)


def called(name: str, node: ast.FunctionDef) -> tuple[str, list[str]]:
    """How a function is called, and its parameters."""
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(plain) - len(given.defaults)), *given.defaults]
    words = [(one.arg, _parameter("", one, default)) for one, default in zip(plain, defaults) if one.arg != "self"]
    if given.posonlyargs:
        words.insert(len(given.posonlyargs), ("", "/"))
    if given.vararg is not None:
        words.append((given.vararg.arg, _parameter("*", given.vararg, None)))
    elif given.kwonlyargs:
        words.append(("", "*"))
    words += [(one.arg, _parameter("", one, default)) for one, default in zip(given.kwonlyargs, given.kw_defaults)]
    if given.kwarg is not None:
        words.append((given.kwarg.arg, _parameter("**", given.kwarg, None)))
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None and node.name != "__init__" else ""
    head = f"{name}({', '.join(word for _, word in words)}){returns}"
    if len(head) > 110:
        lines = "".join(f"    {word},\n" for _, word in words)
        head = f"{name}(\n{lines}){returns}"
    return head, [parameter for parameter, _ in words if parameter]


def _parameter(stars: str, one: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(one.annotation)}" if one.annotation is not None else ""
    return f"{stars}{one.arg}{kind}" + (f" = {ast.unparse(default)}" if default is not None else "")


def attributes(node: ast.ClassDef) -> Iterator[tuple[ast.AnnAssign, str]]:
    """Those with an annotation, and the string that follows it."""
    for one, after in itertools.pairwise([*node.body, ast.Pass()]):
        if isinstance(one, ast.AnnAssign):
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            yield one, inspect.cleandoc(str(after.value.value)) if said else ""  # type: ignore[attr-defined]


def definition(module: str, name: str) -> ast.FunctionDef | ast.ClassDef:
    """The last one of that name, which is no overload."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [one for one in parse(module)[0].body if isinstance(one, kinds) and one.name == name][-1]


def members(name: str, module: str, node: ast.ClassDef) -> list[Entry]:
    """Public methods, properties and attributes, in the groups that the file has."""
    lines = parse(module)[1].splitlines()
    found = [
        Entry(f"{name}.{ast.unparse(one.target)}", ast.unparse(one.annotation), text, group="attributes")
        for one, text in attributes(node)
    ]
    for one in node.body:
        if not isinstance(one, ast.FunctionDef) or one.name.startswith("_"):
            continue
        if decorated(one, "property"):
            kind = ast.unparse(one.returns) if one.returns is not None else ""
            found.append(Entry(f"{name}.{one.name}", kind, docstring(one), group="attributes"))
            continue
        headings = re.findall(r"# -- (.+?) -+$", "\n".join(lines[: one.lineno]), re.MULTILINE)
        head, parameters = called(f"{name}.{one.name}", one)
        found.append(Entry(f"{name}.{one.name}", head, docstring(one), parameters, headings[-1] if headings else ""))
    return found


def entry_of(name: str, module: str) -> Entry:
    """A function, or a class as it is made."""
    node = made = definition(module, name)
    if isinstance(node, ast.ClassDef):
        made = next(one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__")
    if name == "Run" or not isinstance(made, ast.FunctionDef):  # a run is opened, not made
        return Entry(name, f"class autoresume.{name}", docstring(node))
    head, parameters = called(f"autoresume.{name}", made)
    return Entry(name, head, docstring(node), parameters)


def public() -> list[tuple[Entry, list[Entry]]]:
    """What `import autoresume` gives, each with its members; and `run.state`."""
    package = importlib.import_module("autoresume")
    found = []
    for name in [one for one in package.__all__ if one != "__version__"]:
        module = package._HOMES[name]
        node = definition(module, name)
        inside = members({"Run": "run"}.get(name, name), module, node) if isinstance(node, ast.ClassDef) else []
        found.append((entry_of(name, module), inside))
    state = definition("autoresume.state.namespace", "Namespace")
    assert isinstance(state, ast.ClassDef)
    methods = members("run.state", "autoresume.state.namespace", state)
    return [*found, (Entry("run.state", "run.state.<name> = value", docstring(state)), methods)]


def errors() -> list[Entry]:
    classes = [node for node in parse("autoresume.errors")[0].body if isinstance(node, ast.ClassDef)]
    return [Entry(node.name, ast.unparse(node.bases[0]), docstring(node)) for node in classes]


def exit_codes() -> list[Entry]:
    body = parse("autoresume.errors")[0].body
    found = []
    for one, after in itertools.pairwise(body):
        if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]).startswith("EXIT_"):
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = inspect.cleandoc(str(after.value.value)) if said else ""  # type: ignore[attr-defined]
            found.append(Entry(ast.unparse(one.targets[0]), ast.unparse(one.value), text))
    return sorted(found, key=lambda entry: int(entry.head))


# -- options --------------------------------------------------------------------------------------


@dataclass
class Option(Entry):
    variable: str = ""
    default: str = ""


def _words(value: Any) -> str:
    if value is None or value in ((), {}, frozenset()):
        return "none"
    return f"`{value}`"


def _described(module: str, name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Of a class's attributes: what they mean, and their types."""
    node = definition(module, name)
    assert isinstance(node, ast.ClassDef)
    found = [(ast.unparse(one.target), ast.unparse(one.annotation), text) for one, text in attributes(node)]
    return {name: text for name, _, text in found}, {name: kind for name, kind, _ in found}


def options() -> list[Option]:
    module = importlib.import_module("autoresume.config.options")
    texts, kinds = _described("autoresume.config.options", "Options")
    found = []
    for one in fields(module.Options):
        default = "none" if one.name == "restore" else _words(one.default)
        variable = f"AUTORESUME_{one.name.upper()}{'_...' if one.name == 'restore' else ''}"
        found.append(Option(one.name, kinds[one.name], texts[one.name], variable=variable, default=default))
    return found


def restore_words() -> list[Option]:
    module = importlib.import_module("autoresume.config.restore_request")
    texts, _ = _described("autoresume.config.restore_request", "RestoreRequest")
    request = module.RestoreRequest()
    found = []
    for word in module.FIELDS:
        name = _STORED_AS.get(word, word)
        default = "`true`" if word == "strict" else _words(getattr(request, name))
        found.append(Option(f"restore.{word}", "", texts[name], variable=module.variable_name(word), default=default))
    return found


def variables() -> list[Entry]:
    module = importlib.import_module("autoresume.config.options")
    return [Entry(f"AUTORESUME_{name}", "", text) for name, text in module.VARIABLES.items()]


# -- commands -------------------------------------------------------------------------------------


def commands() -> list[tuple[Entry, list[Entry]]]:
    """Each command, and its options."""
    group = importlib.import_module("autoresume.cli").cli
    found = []
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        given = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
        words = [_argument(one) for one in arguments]
        words = ["[OPTIONS]", *words] if given else words
        text, head = inspect.cleandoc(command.help or ""), " ".join(["autoresume", name, *words])
        own = re.search(rf"^ +(autoresume {name} .*)\n", text, re.MULTILINE)
        if own is not None:  # one that looks at its words by itself says how
            text, head = text.replace(own.group() + "\n", ""), own.group(1)
        found.append((Entry(name, head, text), [_option(one) for one in given]))
    return found


def _argument(argument: Any) -> str:
    word = str(argument.name).upper()
    word = word if argument.required else f"[{word}]"
    return f"{word}..." if argument.nargs == -1 else word


def _option(option: Any) -> Entry:
    words = ", ".join([*option.opts, *option.secondary_opts])
    if not option.is_flag:
        choices = "|".join(getattr(option.type, "choices", ()))
        kinds = {"integer": "N", "integer range": "N", "float": "NUMBER"}
        kinds |= dict.fromkeys(("path", "file", "directory"), "PATH")
        words += f" {option.metavar or choices or kinds.get(option.type.name, 'TEXT')}"
    text = option.help or ""
    more = [f"default: {option.default}"] if option.show_default else []
    more += ["required"] if option.required else []
    more += ["may be repeated"] if option.multiple else []
    return Entry(words, "", f"{text} ({', '.join(more)})" if text and more else text)


# -- the page -------------------------------------------------------------------------------------


def entries() -> list[Entry]:
    """All that is on the page."""
    inside = [one for pair in (*public(), *commands()) for one in (pair[0], *pair[1])]
    return [*inside, *errors(), *exit_codes(), *options(), *restore_words(), *variables()]


def escaped(text: str) -> str:
    """Outside of code "<" begins no tag."""
    parts = text.split("`")
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts))


def cell(text: str) -> str:
    return " ".join(escaped(text).split()).replace("|", "\\|")


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([cell(one) for one in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" if line[0] != "---" else f"|{'|'.join(line)}|" for line in lines)


def paragraphs(text: str) -> str:
    """A docstring as Markdown; what its writer has laid out (behind click's mark) stays as it is."""
    before, mark, laid_out = text.partition("\b\n")
    return f"{escaped(before.strip())}\n\n```text\n{laid_out.rstrip()}\n```" if mark else escaped(text.strip())


def chapter(entry: Entry, inside: list[Entry], level: int) -> Iterator[str]:
    yield f"{'#' * level} `{entry.name}`"
    yield f"```python\n{entry.head}\n```\n\n{paragraphs(entry.text)}"
    there = [one for one in inside if one.group == "attributes"]
    if there:
        rows = [[f"`{one.name}`", f"`{one.head}`", one.text] for one in there]
        yield table(["attribute", "type", "meaning"], rows)
    group = ""
    for one in inside:
        if one.group == "attributes":
            continue
        if one.group != group:
            group, level = one.group, level if group else level + 1
            yield f"{'#' * level} {group[0].upper()}{group[1:]}"
        yield f"{'#' * (level + 1)} `{one.name}`"
        yield f"```python\n{one.head}\n```\n\n{paragraphs(one.text)}"


def python_chapters() -> Iterator[str]:
    first = ["autoresume", "start", "current", "Run", "run.state"]
    known = {pair[0].name: pair for pair in public()}
    yield "## Python"
    for name in [*first, *(name for name in known if name not in first)]:
        yield from chapter(*known[name], level=3)
    yield "## Errors"
    yield "In `autoresume.errors`."
    yield table(["error", "is a", "meaning"], [[f"`{one.name}`", f"`{one.head}`", one.text] for one in errors()])


def command_chapters() -> Iterator[str]:
    yield "## Commands"
    for entry, given in commands():
        yield f"### `autoresume {entry.name}`"
        yield f"```text\n{entry.head}\n```\n\n{paragraphs(entry.text)}"
        if given:
            yield table(["option", "meaning"], [[f"`{one.name}`", one.text] for one in given])


def page() -> str:
    parts = [INTRODUCTION.strip(), *python_chapters()]
    heads = ["option", "variable", "default", "meaning"]
    for title, some in (("## Options", options()), ("### `restore`", restore_words())):
        rows = [[f"`{one.name}`", f"`{one.variable}`", one.default, one.text] for one in some]
        parts += [title, table(heads, rows)]
    rows = [[f"`{one.name}`", one.text] for one in variables()]
    parts += ["## Environment variables", VARIABLES, table(["variable", "meaning"], rows)]
    rows = [[one.head, f"`{one.name}`", one.text] for one in exit_codes()]
    parts += ["## Exit codes", EXIT_CODES, table(["code", "in `autoresume.errors`", "meaning"], rows)]
    return "\n\n".join([*parts, *command_chapters()]) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if PAGE.exists() and PAGE.read_text() == page() else f"{PAGE} is out of date: run {__file__}")
    PAGE.write_text(page())
