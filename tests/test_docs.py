"""The README and the documentation say what is true: their code runs, and prints what they show."""

import contextlib
import importlib
import inspect
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import residmix
import residmix.errors
from residmix.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if "_build" not in path.parts
    and "generated" not in path.parts
    and re.search(r"^```python|^\$ residmix", path.read_text(encoding="utf-8"), re.MULTILINE)
)
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def examples(text: str) -> list[tuple[str, str | None]]:
    """Pair each python block with the text block that directly follows it, if one does."""
    found = list(BLOCK.finditer(text))
    pairs = []
    for i, match in enumerate(found):
        if match[1] != "python":
            continue
        after = found[i + 1] if i + 1 < len(found) and found[i + 1][1] == "text" else None
        shown = after[2] if after is not None and not text[match.end() : after.start()].strip() else None
        pairs.append((match[2], shown))
    return pairs


def commands(text: str) -> list[tuple[str, str]]:
    """Run every console block that begins with ``$ residmix`` or an example's script; return (printed, shown)."""
    outputs = []
    for match in BLOCK.finditer(text):
        first, _, shown = match[2].partition("\n")
        if match[1] == "console" and first.startswith("$ residmix"):
            done = CliRunner().invoke(main, shlex.split(first)[2:])
            assert done.exit_code == 0, done.output
            outputs.append((rstripped(done.stdout), rstripped(shown)))
        elif match[1] == "console" and first.startswith("$ python examples/"):
            script = [sys.executable, str(ROOT / first.split()[2])]
            ran = subprocess.run(script, capture_output=True, text=True, timeout=900)
            assert ran.returncode == 0, ran.stderr
            outputs.append((rstripped(ran.stdout), rstripped(shown)))
    return outputs


def rstripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def run_page(text: str) -> list[tuple[str, str]]:
    """Run the blocks of a page in one namespace; return (printed, shown) where an output is shown."""
    namespace: dict[str, object] = {}
    outputs = []
    for code, shown in examples(text):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "page", "exec"), namespace)
        if shown is not None:
            outputs.append((rstripped(printed.getvalue()), rstripped(shown)))
    return outputs


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.slow
def test_the_code_on_the_page_prints_what_the_page_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    for printed, shown in [*run_page(text), *commands(text)]:
        assert printed == shown


def test_a_page_that_shows_something_else_is_noticed():
    page = "```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n"
    assert run_page(page) == [("2", "3")]
    page = "```console\n$ residmix --version\nresidmix, version 0.0\n```\n"
    assert commands(page) == [(f"residmix, version {residmix.__version__}", "residmix, version 0.0")]


def test_links_between_pages_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        if "_build" in page.parts or "generated" in page.parts:
            continue
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def referenced(pages: list[str]) -> set[str]:
    """Return the full names in the lists of the reference pages."""
    found = set()
    for page in pages:
        module = ""
        for line in page.splitlines():
            if line.startswith(".. currentmodule:: "):
                module = line.split()[2]
            elif re.fullmatch(r"   [\w.]+", line):
                found.add(f"{module}.{line.strip()}")
    return found


def test_every_public_name_stands_on_a_reference_page_with_an_example():
    there = referenced([path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md")])
    for module in ("residmix", "residmix.nn", "residmix.anndata", "residmix.data"):
        room = importlib.import_module(module)
        for name in set(room.__all__) - {"__version__", "nn"}:
            assert f"{module}.{name}" in there, f"{module}.{name} stands on no reference page"
            assert ">>> " in (getattr(room, name).__doc__ or ""), f"{module}.{name} has no example"
    for name in residmix.errors.__all__:
        if name.endswith(("Warning", "Error")):
            assert f"residmix.errors.{name}" in there, f"residmix.errors.{name} stands on no reference page"


# Called by torch, by scikit-learn or by our own rooms, not by users.
BEHIND = {
    *("extra_repr", "get_extra_state", "set_extra_state", "initialise", "distribution", "gather", "settle"),
    *("synchronize", "read", "representation", "to", "to_onnx", "log_cell_prob", "pooled", "fit_to", "open_rows"),
    *("rows_of", "to_dict"),
}


def without_example(kind: type, page: str) -> list[str]:
    """Return the public methods of ours that have neither a doctest nor a call in the python blocks of a page."""
    code = "\n".join(block for block, _ in examples(page))
    found = []
    for name in dir(kind):
        method = inspect.getattr_static(kind, name)
        method = inspect.unwrap(getattr(method, "__func__", method)) if callable(getattr(kind, name)) else None
        if name.startswith("_") or name in BEHIND or not str(getattr(method, "__module__", "")).startswith("residmix"):
            continue
        called = re.search(rf"\.{name}\(", code) or (name == "forward" and "layer(h, m)" in code)
        if not called and ">>> " not in (method.__doc__ or ""):
            found.append(f"{kind.__name__}.{name}")
    return found


def test_every_method_that_users_call_has_an_example():
    page = (ROOT / "docs" / "reference" / "methods.md").read_text(encoding="utf-8")
    kinds = [residmix.Residualizer, residmix.GaussianMixture, residmix.ResidualMixture, residmix.Eraser]
    parts = importlib.import_module("residmix.nn")
    kinds += [one for name in parts.__all__ if inspect.isclass(one := getattr(parts, name))]
    assert [name for kind in kinds for name in without_example(kind, page)] == []
    assert "Residualizer.tidy" in without_example(residmix.Residualizer, page.replace(".tidy(", ".untidy("))


def test_a_name_that_stands_on_no_page_is_noticed():
    page = (
        ".. currentmodule:: residmix\n```\n\n.. autosummary::\n   :toctree: generated/\n\n   scan\n   data.penguins\n"
    )
    assert referenced([page]) == {"residmix.scan", "residmix.data.penguins"}


def test_every_promise_names_tests_and_each_of_them_exists():
    page = (ROOT / "docs" / "explanation" / "promises.md").read_text(encoding="utf-8")
    promised = page.partition("## What we don't promise")[0]
    for paragraph in promised.split("\n\n"):
        if paragraph.startswith("**"):
            assert re.search(r"^`tests/[^`]+::test_\w+`$", paragraph, re.MULTILINE), paragraph
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", promised)
    assert len(named) > 25
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"
    for file in re.findall(r" (tests/[\w/]+\.py)", page):
        assert (ROOT / file).exists(), file


def test_the_long_modes_leave_out_no_test_for_being_slow():
    page = (ROOT / "docs" / "explanation" / "promises.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ RESIDMIX_\w+=\d+ pytest (.*)$", page, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        files = [word for word in shlex.split(command) if word.endswith(".py")]
        assert files and all((ROOT / name).exists() for name in files), command
        is_slow = any("mark.slow" in (ROOT / name).read_text(encoding="utf-8") for name in files)
        assert '-m ""' in command or not is_slow, command


def test_every_mutation_that_is_listed_names_a_file_and_a_test_that_exist():
    page = (ROOT / "docs" / "contributing" / "tests.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| .* \| `(tests/[^`]+)::(test_\w+)` \|$", page, re.MULTILINE)
    assert len(rows) == page.count("\n| `") >= 30
    for file, test_file, test in rows:
        assert (ROOT / "src" / "residmix" / file).is_file(), file
        assert f"def {test}(" in (ROOT / test_file).read_text(encoding="utf-8"), f"{test_file}::{test}"
