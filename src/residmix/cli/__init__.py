"""The residmix command."""

from residmix.cli.main import main

__all__ = ["main"]
