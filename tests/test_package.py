"""The package as a whole: what it exports, and how little importing it costs."""

import subprocess
import sys
from pathlib import Path

import pytest

import residmix

HEAVY = ("sklearn", "numba", "torch", "dask", "matplotlib", "pandas", "scipy", "formulaic", "pyarrow")


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('LOADED', *(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


def test_import_loads_nothing_heavy():
    assert loaded_by("import residmix; dir(residmix)") == set()


def test_help_loads_nothing_heavy():
    run = "CliRunner().invoke(main, ['fit', '--help'])"
    code = f"from click.testing import CliRunner; from residmix.cli import main; {run}"
    assert loaded_by(code) == set()


def test_a_residualizer_needs_what_scikit_learns_base_needs_and_nothing_else():
    first = "import sklearn.base, sys; before = set(sys.modules); import residmix; residmix.Residualizer"
    script = f"{first}; print('LOADED', *sorted({{m.split('.')[0] for m in set(sys.modules) - before}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.rsplit("LOADED", 1)[1].split()) <= {"residmix", "concurrent"}


@pytest.mark.slow
def test_the_control_does_load_something_heavy():
    assert "sklearn" in loaded_by("import residmix; residmix.GaussianMixture")


def test_every_public_name_resolves_and_shows_in_dir():
    for name in residmix.__all__:
        assert getattr(residmix, name) is not None
    assert dir(residmix) == sorted(residmix.__all__)
    assert residmix.__all__ == sorted(residmix.__all__)


@pytest.mark.slow
def test_no_submodule_hides_a_public_name():
    walk = "import importlib, pkgutil, residmix\n"
    walk += "names = [m.name for m in pkgutil.iter_modules(residmix.__path__) if m.name != '__main__']\n"
    walk += "[importlib.import_module('residmix.' + name) for name in names]\n"
    walk += "skip = ('nn', '__version__')\n"
    walk += "print([n for n in residmix.__all__ if n not in skip and not callable(getattr(residmix, n))])"
    done = subprocess.run([sys.executable, "-c", walk], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="GaussianMixtures"):
        _ = residmix.GaussianMixtures


def documented(page: str) -> set[str]:
    text = (Path(__file__).parents[1] / "docs" / "reference" / page).read_text(encoding="utf-8")
    names = (line.strip() for line in text.splitlines() if line.startswith("   "))
    return {name for name in names if name.replace(".", "").isidentifier()}


def test_the_reference_lists_exactly_the_public_names():
    assert documented("index.md") >= set(residmix.__all__) - {"__version__", "nn"}
    extra = {name for name in documented("index.md") if "." not in name} - set(residmix.__all__)
    assert not extra


def test_the_reference_lists_exactly_the_public_names_of_nn():
    from residmix import nn

    assert {name for name in documented("nn.md") if "." not in name} == set(nn.__all__)


def test_the_reference_lists_every_warning():
    from residmix import errors

    listed = {name.removeprefix("errors.") for name in documented("warnings.md") if name.startswith("errors.")}
    listed = {name for name in listed if name.endswith("Warning")}
    assert listed == {name for name in errors.__all__ if name.endswith("Warning")}
