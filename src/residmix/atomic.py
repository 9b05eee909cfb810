"""Write a file under a temporary name, then rename it: a reader sees the old file or the whole new one."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

__all__ = ["atomic_path", "replaceable", "scratch_folder"]

# .NAME.residmix-PLACE-PID-RANDOM.SUFFIX
_TEMPORARY = re.compile(r"\..*\.residmix-(?P<place>[0-9a-f]{8})-(?P<pid>[0-9]+)-")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Temporary names that this process is writing under, and folders that it has swept.
_OWN: set[str] = set()
_SWEPT: set[tuple[int, str]] = set()


@contextmanager
def atomic_path(path: str | os.PathLike[str], n_bytes: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, else remove it.

    Temporary files left in the folder by killed processes are removed first.

    Parameters
    ----------
    path : path
        A symbolic link is followed: the file that it points to is replaced.
    n_bytes : int, optional
        Size of the file, for the error if the disk is full.

    Raises
    ------
    FileNotFoundError
        If the folder of `path` doesn't exist.
    OSError
        If `path` is no regular file, or can't be written; what was there before is kept.
    """
    target = replaceable(path)
    _sweep(target.parent)
    try:
        temporary = _made(target)
    except OSError as error:
        raise _told(error, path, n_bytes) from error
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(_mode(target))
        temporary.replace(target)
    except OSError as error:
        if error.errno not in _FULL and str(error.filename) not in (str(temporary), str(target)):
            raise  # of another file, which was to be read
        raise _told(error, path, n_bytes) from error
    except Exception as error:
        # libraries have their own ways to say that the disk is full
        if "No space left on device" not in str(error):
            raise
        raise _told(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path, n_bytes) from error
    finally:
        temporary.unlink(missing_ok=True)
        _OWN.discard(temporary.name)


@contextmanager
def scratch_folder(beside: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Yield a new temporary folder, and remove it; the next process removes folders of killed ones.

    Parameters
    ----------
    beside : path, optional
        A file in whose folder it's made. Default: the system's folder of temporary files.
    """
    place = Path(tempfile.gettempdir() if beside is None else os.path.realpath(os.path.dirname(beside) or "."))
    _sweep(place)
    made = tempfile.mkdtemp(prefix=f".columns.residmix-{_place()}-{os.getpid()}-", dir=place)
    _OWN.add(os.path.basename(made))
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)
        _OWN.discard(os.path.basename(made))


def replaceable(path: str | os.PathLike[str]) -> Path:
    """Return the file that writing to `path` replaces or makes.

    Raises
    ------
    FileNotFoundError
        If its folder doesn't exist.
    OSError
        If something else than a regular file is there: a folder, a device, a pipe, a socket.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"can't write {os.fspath(path)!r}: the folder {str(target.parent)!r} doesn't exist")
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return target
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
        kind = next((name for is_kind, name in kinds if is_kind(mode)), "a device")
        raise OSError(f"can't write {os.fspath(path)!r}: it is {kind}, and only regular files are replaced")
    return target


def _made(target: Path) -> Path:
    """Return a new empty file beside `target`."""
    name = f".{target.name[:80]}.residmix-{_place()}-{os.getpid()}-"
    handle, made = tempfile.mkstemp(prefix=name, suffix=target.suffix[-20:], dir=target.parent)
    os.close(handle)
    _OWN.add(os.path.basename(made))
    return Path(made)


def _mode(target: Path) -> int:
    """Return the permissions that the file has, or that a plain open() would give it; a temporary file has fewer."""
    try:
        return stat.S_IMODE(os.stat(target).st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _told(error: OSError, path: str | os.PathLike[str], n_bytes: int | None) -> OSError:
    """Return an error that names the file, what went wrong, and how much room was needed."""
    reason = os.strerror(error.errno) if error.errno in _FULL else error.strerror or str(error)
    needs = "" if n_bytes is None else f"; the file needs {n_bytes:,} bytes"
    kept = (", and" if needs else ";") + " the existing file is kept" if os.path.exists(path) else ""
    return type(error)(error.errno or errno.EIO, f"{reason}{needs}{kept}", os.fspath(path))


@cache
def _place() -> str:
    """Return where process numbers mean what they mean here: this machine, or this container."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    return hashlib.blake2b(f"{platform.node()} {namespace}".encode(), digest_size=4).hexdigest()


def _sweep(folder: Path) -> None:
    """Remove what processes of this place left in a folder when they were killed; once a process and folder."""
    if (os.getpid(), str(folder)) in _SWEPT:
        return
    _SWEPT.add((os.getpid(), str(folder)))
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.match(entry.name)
            if found and found["place"] == _place() and entry.name not in _OWN and not _lives(int(found["pid"])):
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)


def _lives(pid: int) -> bool:
    """Tell whether another process runs; what has our own number and isn't ours was left by a dead one."""
    if pid == os.getpid():
        return False
    if os.name == "nt":  # asking would end it there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
