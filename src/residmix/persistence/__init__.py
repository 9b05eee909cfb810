"""Models as files, which last and which anybody may load."""

from residmix.persistence.files import describe, load, read, save, write

__all__ = ["describe", "load", "read", "save", "write"]
