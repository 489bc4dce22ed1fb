"""Draw the map of the package's rooms from its imports: docs/architecture/rooms.svg, and the table on the page.

    python scripts/draw_rooms.py            # rewrite both
    python scripts/draw_rooms.py --check    # status 1 where one is stale

A room is a folder or a single module of the package. Its level stands in tests/test_imports.py, what it is for in
its docstring, and what it imports is read from its sources. The map leaves out arrows that follow from others.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dsrl_offpolicy"
LEVELS = ROOT / "tests" / "test_imports.py"
PAGE = ROOT / "docs" / "architecture.md"
MAP = ROOT / "docs" / "architecture" / "rooms.svg"
BEGIN, END = "<!-- rooms: written by scripts/draw_rooms.py -->", "<!-- end of rooms -->"
WIDTH, ROW, BOX_WIDTH, BOX_HEIGHT = 860, 74, 120, 30

Imports = dict[str, set[str]]


def levels() -> list[list[str]]:
    """Return the rooms of every level, highest first, as the test of imports holds them."""
    for node in ast.parse(LEVELS.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LEVELS":
            return [sorted(rooms) for rooms in reversed(ast.literal_eval(node.value))]
    raise ValueError(f"{LEVELS} has no LEVELS")


def sources(room: str) -> list[Path]:
    """Return the modules of a room, that of its docstring first; none where there is no such room."""
    folder = PACKAGE / room
    found = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    return [path for path in found if path.is_file()]


def purpose(path: Path) -> str:
    """Return the first paragraph of a module's docstring, as Markdown.

    Raises:
        ValueError: there is none.
    """
    text = ast.get_docstring(ast.parse(path.read_text()))
    if not text:
        raise ValueError(f"{path.relative_to(ROOT)} has no docstring that says what it is for")
    return " ".join(text.split("\n\n")[0].split()).replace("``", "`")


def used_rooms(room: str) -> tuple[set[str], set[str]]:
    """Return the other rooms that a room imports, lazily or not, and those that it finds by a name in a string."""
    imported, named = set(), set()
    for node in (node for path in sources(room) for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE.name:
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
        elif isinstance(node, ast.Constant) and re.fullmatch(rf"{PACKAGE.name}(\.\w+)+(:\w+)?", str(node.value)):
            named.add(str(node.value))
    rooms = [{name.split(".")[1] for name in names if name.startswith(f"{PACKAGE.name}.")} - {room}
             for names in (imported, named)]  # fmt: skip
    imported, named = ({name for name in names if sources(name)} for names in rooms)
    return imported, named - imported


def arrows(imports: Imports) -> list[tuple[str, str]]:
    """Return the imports that do not follow from others."""

    def reached(room: str) -> set[str]:
        return imports[room].union(*(reached(other) for other in imports[room]))

    return [
        (room, other)
        for room, others in imports.items()
        for other in sorted(others)
        if not any(other in reached(between) for between in others - {other})
    ]


def svg(imports: Imports, named: Imports) -> str:
    """Return the map: the rooms by level, arrows to those that a room imports, dashed to those that it names."""
    rows = [[room for room in rooms if room in imports] for rooms in levels()]
    place = {
        room: (WIDTH * (column + 1) / (len(rooms) + 1), ROW * row + ROW / 2)
        for row, rooms in enumerate(rows)
        for column, room in enumerate(rooms)
    }
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {ROW * len(rows)}" font-family="monospace" '
        'font-size="14">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#57606a"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{ROW * len(rows)}" fill="#ffffff"/>',
    ]
    below = {room: {other for other in named[room] if place[other][1] > place[room][1]} for room in place}
    for room, other in arrows({room: imports[room] | below[room] for room in place}):
        (x, y), (u, v) = place[room], place[other]
        dashes = ' stroke-dasharray="5 4"' if other in named[room] else ""
        lines.append(
            f'<path d="M{x:.0f} {y + BOX_HEIGHT / 2:.0f} L{u:.0f} {v - BOX_HEIGHT / 2 - 1:.0f}" fill="none" '
            f'stroke="#57606a" stroke-width="1.2"{dashes} marker-end="url(#head)"/>'
        )
    for room, (x, y) in place.items():
        title = purpose(sources(room)[0]).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        lines.append(
            f'<g><title>{title}</title><rect x="{x - BOX_WIDTH / 2:.0f}" y="{y - BOX_HEIGHT / 2:.0f}" '
            f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5" fill="#eef4fb" stroke="#1f4e79"/>'
            f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" fill="#1f2328">{room}</text></g>'
        )
    return "\n".join([*lines, "</svg>", ""])


def table(imports: Imports, named: Imports) -> str:
    """Return what every room is for and imports, as a Markdown table; names that it looks up come last."""
    lines = ["| room | what it is for | imports |", "|---|---|---|"]
    for room in imports:
        own, *inner = sources(room)
        folder = own.name == "__init__.py"
        link = f"[`{room}{'/' if folder else ''}`](../dsrl_offpolicy/{room}{'' if folder else '.py'})"
        below = [path for path in inner if path.name == "__init__.py"]
        parts = "".join(f" `{path.parent.relative_to(PACKAGE)}/`: {purpose(path)}" for path in below)
        used = ", ".join(other for other in imports if other in imports[room])
        by_name = ", ".join(other for other in imports if other in named[room])
        column = "; ".join(part for part in (used, by_name and f"by name: {by_name}") if part)
        lines.append(f"| {link} | {purpose(own)}{parts} | {column or 'nothing'} |")
    return "\n".join(lines)


def drawn() -> dict[Path, str]:
    """Return both files as they should be.

    Raises:
        ValueError: a room without a docstring, or a page without the markers.
    """
    used = {room: used_rooms(room) for rooms in levels() for room in rooms if sources(room)}
    imports, named = ({room: both[i] for room, both in used.items()} for i in (0, 1))
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.relative_to(ROOT)} lacks {BEGIN!r} ... {END!r}")
    return {PAGE: f"{before}{begin}\n{table(imports, named)}\n{end}{after}", MAP: svg(imports, named)}


def stale() -> list[str]:
    """Return the names of the files that are not what the imports say."""
    return [path.name for path, text in drawn().items() if not path.is_file() or path.read_text() != text]


def main() -> int:
    """Draw, or only check. Return the exit status."""
    parser = argparse.ArgumentParser(description="Draw the map of the rooms into docs/.")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where the map is stale")
    if parser.parse_args().check:
        if found := stale():
            print(f"stale: {', '.join(found)}; run python scripts/draw_rooms.py")
        return int(bool(found))
    MAP.parent.mkdir(exist_ok=True)
    for path, text in drawn().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
