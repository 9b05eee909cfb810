"""Decoded tables that are needed again: in memory if they are small, else in a temporary file."""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

__all__ = ["Kept"]


class Kept:
    """Tables, numbered as they came; all of them are in memory, or all in one temporary file, or none is kept.

    The file has no name (where the system allows that), so that nothing is left of it however the process ends; it is
    read, never mapped. Without enough disk space nothing is kept, and rows are decoded again when they are needed.

    Parameters
    ----------
    most_bytes : int
        In memory.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self._size = most_bytes, 0
        self._entries: list[pa.Table | tuple[int, int]] = []
        self._file: Any = None
        self._lock = threading.Lock()
        self.failure: OSError | None = None

    @property
    def in_memory(self) -> bool:
        """Whether all that was kept is in memory."""
        return self._file is None and self.failure is None

    def add(self, table: pa.Table) -> int:
        """Keep a table; return its number."""
        self._size += table.nbytes
        self._entries.append(table)
        self._spill()
        return len(self._entries) - 1

    def put(self, number: int, table: pa.Table) -> None:
        """Keep another table under a number."""
        self._size += table.nbytes
        if self._entries:
            self._entries[number] = table
        self._spill()

    def get(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Return some columns of a table."""
        entry = self._entries[number]
        if isinstance(entry, pa.Table):
            return entry.select(list(columns))
        with pa.ipc.open_stream(pa.py_buffer(self._read(*entry))) as reader:
            return reader.read_all().select(list(columns))

    def drop(self) -> None:
        """Forget everything."""
        self._entries = []
        if self._file is not None:
            self._file.close()

    def _spill(self) -> None:
        """Move what is in memory to the file, if it is too much."""
        if self.failure is not None:
            self._entries = []
        elif self._file is not None or self._size > self._most:
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(prefix="residmix-")  # noqa: SIM115 - lives as long as this
                    weakref.finalize(self, self._file.close)
                for number, entry in enumerate(self._entries):
                    if isinstance(entry, pa.Table):
                        self._entries[number] = self._write(entry)
            except OSError as error:
                self.failure = error
                self.drop()

    def _write(self, table: pa.Table) -> tuple[int, int]:
        start = self._file.seek(0, os.SEEK_END)
        with pa.ipc.new_stream(self._file, table.schema) as writer:
            writer.write_table(table.combine_chunks())  # columns in one piece are what is read quickly
        self._file.flush()
        return start, self._file.tell() - start

    def _read(self, start: int, length: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), length, start)
        with self._lock:
            self._file.seek(start)
            return bytes(self._file.read(length))
