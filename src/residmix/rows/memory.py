"""What memory the machine has, so that what can't be is said before it is tried."""

from __future__ import annotations

import os

__all__ = ["machine_bytes", "told_bytes"]


def machine_bytes() -> float:
    """Return the bytes of memory that the machine has; infinity where it doesn't say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # no POSIX system
        return float("inf")


def told_bytes(count: float) -> str:
    """Return a number of bytes in words.

    Examples
    --------
    >>> told_bytes(8e10), told_bytes(1.5e6)
    ('80 GB', '1.5 MB')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"
