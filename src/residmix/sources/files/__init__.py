"""Files: one format a file, tables over many of them, what is kept of them between passes."""

from residmix.sources.files.table import FileTable, find_files

__all__ = ["FileTable", "find_files"]
