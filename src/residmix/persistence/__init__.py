"""Model files: stable across versions, and safe to load."""

from residmix.persistence.files import describe, load, read, save, write

__all__ = ["describe", "load", "read", "save", "write"]
