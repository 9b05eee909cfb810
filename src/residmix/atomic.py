"""Write a file under a temporary name, then rename it: a reader sees the old file or the whole new one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_path"]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, else remove it.

    Raises
    ------
    FileNotFoundError
        If the folder of `path` doesn't exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"can't write {str(target)!r}: the folder {str(target.parent)!r} doesn't exist")
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp gives 0600, a plain open() would not
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
