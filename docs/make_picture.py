"""Draws docs/rooms.svg, and the table of rooms in docs/architecture.md, from the code: python docs/make_picture.py.

Law: floors are the layers of import-linter's contract in pyproject.toml, arrows the imports. Of arrows that a way over
other rooms makes up for none is drawn. The same code always gives the same picture; a test holds it to the code.
"""

from __future__ import annotations

import ast
import html
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "autoresume"
PICTURE = ROOT / "docs" / "rooms.svg"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: made by docs/make_picture.py -->", "<!-- rooms: end -->"
ALONE = {"__main__", "errors"}
"""Files, and no rooms."""
_WIDTH, _BOX, _HEIGHT, _FLOOR, _LEFT = 1000, 150, 44, 84, 20


def floors() -> list[list[str]]:
    """The rooms, from the top to the bottom."""
    text = (ROOT / "pyproject.toml").read_text()
    layers = re.search(r"^layers = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert layers is not None
    rows = [re.findall(r"\w+", line.split("#")[0]) for line in layers.group(1).splitlines()]
    return [kept for row in rows if (kept := [name for name in row if name not in ALONE])]


def first_sentence(room: str) -> str:
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def imports(room: str, rooms: set[str]) -> set[str]:
    """The rooms that a room's files import from."""
    found = set()
    for path in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("autoresume."):
                found.add(node.module.split(".")[1])
            elif isinstance(node, ast.Import):
                found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("autoresume.")}
    return (found & rooms) - {room}


def arrows(rows: list[list[str]]) -> list[tuple[str, str]]:
    """Imports without those that a way over other rooms makes up for."""
    rooms = {room for row in rows for room in row}
    direct = {room: imports(room, rooms) for room in rooms}
    below: dict[str, set[str]] = {}
    for row in reversed(rows):
        for room in row:
            below[room] = set().union(direct[room], *(below.get(other, set()) for other in direct[room]))
    return sorted(
        (room, other)
        for room in rooms
        for other in direct[room]
        if not any(other in below[between] for between in direct[room] if between != other)
    )


def picture() -> str:
    """The SVG."""
    rows = floors()
    places: dict[str, tuple[float, float]] = {}
    for floor, row in enumerate(rows):
        gap = (_WIDTH - len(row) * _BOX) / (len(row) + 1)
        for number, room in enumerate(row):
            places[room] = (_LEFT + gap + number * (_BOX + gap), 20 + floor * _FLOOR)
    height = 20 + len(rows) * _FLOOR
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH + 2 * _LEFT} {height}" '
        'font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{_WIDTH + 2 * _LEFT}" height="{height}" fill="#ffffff"/>',
    ]
    for room, other in arrows(rows):
        (x1, y1), (x2, y2) = places[room], places[other]
        begin, end = (x1 + _BOX / 2, y1 + _HEIGHT), (x2 + _BOX / 2, y2)
        bend = (end[1] - begin[1]) / 2
        lines.append(
            f'<path d="M {begin[0]:.0f} {begin[1]:.0f} C {begin[0]:.0f} {begin[1] + bend:.0f}, '
            f'{end[0]:.0f} {end[1] - bend:.0f}, {end[0]:.0f} {end[1]:.0f}" fill="none" stroke="#9aa7b5" '
            'stroke-width="1.4"/>'
        )
    for room, (x, y) in places.items():
        files = len(list((PACKAGE / room).glob("[!_]*.py")))
        lines += [
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{_BOX}" height="{_HEIGHT}" rx="6" fill="#eef3f8" stroke="#3b5b7a"/>',
            f'<text x="{x + _BOX / 2:.0f}" y="{y + 20:.0f}" text-anchor="middle" font-size="16" font-weight="bold" '
            f'fill="#1d3247">{html.escape(room)}</text>',
            f'<text x="{x + _BOX / 2:.0f}" y="{y + 36:.0f}" text-anchor="middle" font-size="11" fill="#5a6b7b">'
            f"{files} files</text>",
        ]
    return "\n".join([*lines, "</svg>", ""])


def table() -> str:
    rows = [f"| `{room}/` | {first_sentence(room)} |" for row in floors() for room in row]
    return "\n".join(["| room | what it is |", "|---|---|", *rows])


def page() -> str:
    """docs/architecture.md with the table as it is now."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PICTURE.write_text(picture())
    PAGE.write_text(page())
