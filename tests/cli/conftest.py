"""The command, called in this process."""

import pytest
from click.testing import CliRunner

from residmix.cli import main


@pytest.fixture
def run():
    def call(*arguments, code=0, input=None):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=input)
        assert result.exit_code == code, f"{result.exit_code}: {result.output} {result.exception!r}"
        return result

    return call
