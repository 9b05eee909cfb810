"""Versions of the package and its dependencies, for model files and bug reports."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

__all__ = ["show_versions", "versions"]

# What decides about the digits of a model.
_RECORDED = ("numpy", "scikit-learn")
_NEEDED = (
    "numpy",
    "scipy",
    "scikit-learn",
    "numba",
    "llvmlite",
    "formulaic",
    "narwhals",
    "pandas",
    "pyarrow",
    "safetensors",
    "threadpoolctl",
    "matplotlib",
    "jinja2",
    "click",
    "rich",
)
_OPTIONAL = ("polars", "dask", "distributed", "torch", "anndata", "onnx", "onnxscript")


def versions() -> dict[str, str]:
    """Return the versions that a model file records."""
    from residmix import __version__

    return {"residmix": __version__} | {name: str(_version(name)) for name in _RECORDED}


def show_versions() -> None:
    """Print the versions of Python, the system, residmix and its dependencies, for bug reports.

    Examples
    --------
    >>> import residmix
    >>> residmix.show_versions()  # doctest: +ELLIPSIS
    residmix: ...
    Python: ...
    """
    from threadpoolctl import threadpool_info

    from residmix import __version__

    print(f"residmix: {__version__}")
    print(f"Python: {platform.python_version()} ({sys.implementation.name})")
    print(f"system: {platform.platform()}, {platform.machine()}")
    print(f"processors: {os.cpu_count()}, RESIDMIX_NUM_THREADS={os.environ.get('RESIDMIX_NUM_THREADS', '')}")
    for name in _NEEDED:
        print(f"{name}: {_version(name) or 'not installed, although it is required'}")
    for name in _OPTIONAL:
        print(f"{name}: {_version(name) or 'not installed'}")
    import numpy  # noqa: F401 - so that its BLAS is there to be told

    for library in threadpool_info():
        told = " ".join(filter(None, (library.get("version"), library.get("architecture"))))
        print(f"{library['internal_api']}: {told}, {library['num_threads']} threads")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
