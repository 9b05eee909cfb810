"""Draw the rooms of the package and who imports whom, from the imports themselves.

    python docs/draw_house.py

writes docs/_static/house.svg. A room stands on the floor above the highest one that it imports from. Of the imports
only those are drawn that no chain of others implies, so that the picture can be read. Imports for types alone don't
count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1] / "src" / "residmix"
PICTURE = Path(__file__).resolve().parent / "_static" / "house.svg"

WIDTH, HEIGHT, BETWEEN, FLOOR, MARGIN = 112, 34, 16, 78, 24


def rooms() -> dict[str, set[str]]:
    """Return, of every room at the top, the rooms that it imports from."""
    names = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    names -= {"__init__", "__main__", "data"}
    found: dict[str, set[str]] = {}
    for name in sorted(names):
        folder = ROOT / name
        files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
        imported = {part for file in files for part in _imports(ast.parse(file.read_text(encoding="utf-8")))}
        found[name] = (imported & names) - {name}
    return found


def _imports(tree: ast.AST) -> Iterator[str]:
    """Yield the rooms that a module imports from, also inside functions, but not for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "residmix":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("residmix."))
        yield from _imports(node)


def floors(imports: dict[str, set[str]]) -> dict[str, int]:
    """Return the floor of each room: 0 for those that import nothing.

    Raises
    ------
    ValueError
        If rooms import each other in a circle.
    """
    level: dict[str, int] = {}
    while len(level) < len(imports):
        ready = [name for name, below in imports.items() if name not in level and below <= level.keys()]
        if not ready:
            raise ValueError(f"rooms in a circle: {sorted(imports.keys() - level.keys())}")
        level |= {name: max((level[other] + 1 for other in imports[name]), default=0) for name in ready}
    return level


def direct(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out the imports that a chain of others implies."""

    def reach(name: str) -> set[str]:
        return imports[name].union(*map(reach, imports[name]))

    return {name: below - set().union(*map(reach, below)) for name, below in imports.items()}


def svg(imports: dict[str, set[str]]) -> str:
    """Return the picture as text; equal imports give equal text."""
    level, drawn = floors(imports), direct(imports)
    top = max(level.values())
    rows = [[name for name in sorted(level) if level[name] == at] for at in range(top, -1, -1)]
    widest = max(map(len, rows))
    wide = 2 * MARGIN + widest * WIDTH + (widest - 1) * BETWEEN
    high = 2 * MARGIN + top * FLOOR + HEIGHT
    place: dict[str, tuple[float, float]] = {}
    for y, row in enumerate(rows):
        left = (wide - len(row) * WIDTH - (len(row) - 1) * BETWEEN) / 2
        for x, name in enumerate(sorted(row, key=lambda name: (_above(name, drawn, place, wide / 2), name))):
            place[name] = left + x * (WIDTH + BETWEEN), MARGIN + y * FLOOR
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" role="img" font-family="sans-serif">',
        "<title>The rooms of residmix; arrows point from a room to those it imports from</title>",
        '<defs><marker id="tip" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0L6 3L0 6z" fill="#667"/></marker></defs>',
        f'<rect width="{wide}" height="{high}" fill="#fff"/>',
    ]
    for name in sorted(drawn):
        x, y = place[name]
        for other in sorted(drawn[name]):
            to, down = place[other]
            half = (y + HEIGHT + down) / 2
            lines.append(
                f'<path d="M{x + WIDTH / 2:g} {y + HEIGHT:g}C{x + WIDTH / 2:g} {half:g} {to + WIDTH / 2:g} {half:g} '
                f'{to + WIDTH / 2:g} {down:g}" fill="none" stroke="#667" marker-end="url(#tip)"/>'
            )
    for name, (x, y) in sorted(place.items()):
        lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#eef3f8" stroke="#345"/>'
        )
        lines.append(
            f'<text x="{x + WIDTH / 2:g}" y="{y + HEIGHT / 2 + 5:g}" text-anchor="middle" font-size="15" fill="#123">'
            f"{escape(name)}</text>"
        )
    return "\n".join([*lines, "</svg>\n"])


def _above(name: str, drawn: dict[str, set[str]], place: dict[str, tuple[float, float]], middle: float) -> float:
    """Return where the rooms that import from `name` stand on average, so that few arrows cross."""
    places = [place[other][0] for other in place if name in drawn[other]]
    return sum(places) / len(places) if places else middle


if __name__ == "__main__":
    PICTURE.write_text(svg(rooms()), encoding="utf-8")
