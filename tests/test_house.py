"""The house stays one that anybody finds their way in: folders, files and functions of a size that can be read."""

import ast
import runpy
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "residmix"
FILES = sorted(SOURCE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in FILES} - {SOURCE})


def entries(folder):
    return [
        path for path in folder.iterdir() if not path.name.startswith("__") and path.name not in ("py.typed", "data")
    ]


def test_the_top_has_at_most_22_entries():
    assert len(entries(SOURCE)) <= 22


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(SOURCE)))
def test_a_folder_has_at_most_a_dozen_entries(folder):
    assert len(entries(folder)) <= 12


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_can_be_read_at_once(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own = node.end_lineno - node.lineno + 1
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                own -= first.end_lineno - first.lineno + 1
            assert own <= 60, f"{node.name} has {own} lines"


def test_what_examples_write_is_not_kept():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout: nothing says which files are kept")
    kept = {name.split("/")[0] for name in listed.stdout.splitlines()}
    folders = {"src", "tests", "docs", "benchmarks", "examples", ".ci", ".github"}
    settings = {".editorconfig", ".gitignore", ".pre-commit-config.yaml", "pyproject.toml", "hatch_build.py"}
    texts = {name for name in kept if name.endswith((".md", ".cff", ".txt"))} | {"LICENSE"}
    assert kept <= folders | settings | texts


def test_tests_stand_where_what_they_test_stands():
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests")
        assert (SOURCE / folder).is_dir() or folder == Path("personas"), folder


def test_the_picture_of_the_house_is_that_of_today():
    draw = runpy.run_path(str(ROOT / "docs" / "draw_house.py"))
    assert draw["PICTURE"].read_text(encoding="utf-8") == draw["svg"](draw["rooms"]())
