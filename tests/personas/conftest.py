"""Tables of four people, and their command line."""

import importlib.util
from pathlib import Path

import pytest
from click.testing import CliRunner

from residmix.cli import main

_spec = importlib.util.spec_from_file_location("persona_tables", Path(__file__).parent / "tables.py")
_tables = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_tables)


@pytest.fixture
def tables():
    return _tables


@pytest.fixture
def at(tmp_path, monkeypatch):
    """Type commands in a folder: at most three, and whatever goes wrong is told in a few lines."""
    monkeypatch.chdir(tmp_path)
    typed = []

    def call(*arguments, code=0):
        typed.append(arguments)
        assert len(typed) <= 3, "the way is too long"
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return call
