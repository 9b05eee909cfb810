"""Models as files: arrays in safetensors, everything else in one JSON header. Loading runs no code from the file.

The header holds ``{"format": 2, "versions": {...}, "rows": n, "settings": {...}, "checksum": "...", "model": node}``,
with nodes as in `residmix.persistence.nodes`; rows and settings are for those who only look. The checksum is of all the
rest, so that damage is noticed. One metadata key only, because safetensors writes several in random order; so equal
models give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import numpy as np

from residmix.atomic import atomic_path
from residmix.persistence.about import about
from residmix.persistence.kinds import name_of
from residmix.persistence.nodes import Tensors, decode, encode
from residmix.persistence.versions import versions

__all__ = ["FORMAT", "describe", "load", "read", "save", "write"]

FORMAT = 2
_KEY = "residmix"


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a fitted estimator to one file, without pickle.

    Parameters
    ----------
    model : estimator of this package
        For example a fitted :class:`~residmix.ResidualMixture`.
    path : path
        Conventionally ``*.safetensors``. The file is written under a temporary name and renamed.

    Raises
    ------
    TypeError
        If the model, or one of its attributes, can't be stored in this format; the message names it.
    FileNotFoundError
        If the folder doesn't exist.
    OSError
        If it can't be written; the message has the size needed, and an existing file is kept.

    See Also
    --------
    load : The inverse.

    Examples
    --------
    >>> import numpy as np, residmix as rm, tempfile, pathlib
    >>> X = np.random.default_rng(0).normal(size=(50, 2))
    >>> model = rm.GaussianMixture(2, random_state=0).fit(X)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> rm.save(model, path)
    >>> bool((rm.load(path).score_samples(X) == model.score_samples(X)).all())
    True
    """
    if not _is_estimator(type(model)):
        raise TypeError(f"save needs an estimator of residmix, not {type(model).__name__}")
    write(model, path)


def load(path: str | os.PathLike[str]) -> Any:
    """Read an estimator that :func:`save` wrote; its predictions are bitwise equal.

    Files from untrusted sources are safe to load: no code in them is run or imported, and memory use is bounded by
    their size.

    Parameters
    ----------
    path : path

    Returns
    -------
    estimator

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file isn't a residmix model, is damaged, or has a newer format; the message names the file.

    Examples
    --------
    >>> import os, tempfile, numpy as np, residmix as rm
    >>> X = np.random.default_rng(0).normal(size=(50, 2))
    >>> model = rm.GaussianMixture(1).fit(X)
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> rm.save(model, path)
    >>> (rm.load(path).score_samples(X) == model.score_samples(X)).all()
    np.True_
    """
    model = read(path)
    if not _is_estimator(type(model)):
        raise ValueError(f"{os.fspath(path)!r} holds a {type(model).__name__}, not a model; it may be a checkpoint")
    return model


def write(value: Any, path: str | os.PathLike[str]) -> None:
    """Write an estimator, or the state of a fit under way, to one file."""
    from safetensors.numpy import save as to_bytes

    tensors: Tensors = {}
    node = encode(value, tensors, type(value).__name__)
    header = {"format": FORMAT, "versions": versions(), "model": node} | _plain(about(value))
    header["checksum"] = _checksum(header, tensors)
    content = to_bytes(tensors, {_KEY: json.dumps(header, sort_keys=True)})
    with atomic_path(path, len(content)) as temporary:
        temporary.write_bytes(content)


def read(path: str | os.PathLike[str]) -> Any:
    """Read what `write` wrote."""
    name = os.fspath(path)
    header, tensors = _open(name)
    try:
        if header["format"] > 1 and header.get("checksum") != _checksum(header, tensors):
            raise ValueError("its checksum doesn't match its content")
        return decode(header["model"], tensors)
    except ImportError:  # a model of an extra that isn't installed
        raise
    except Exception as error:  # whatever goes wrong in taking a file apart is the file's fault
        raise ValueError(f"the model file {name!r} is damaged or forged: {_told(error)}") from error


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the description in a model file: format, versions, kind of model, checksum, rows of the fit, settings.

    Entries that older files don't have are None or empty.
    """
    header, _ = _open(os.fspath(path))
    model = header.get("model")
    kind = model.get("$object") if isinstance(model, dict) else None
    return {
        "format": header["format"],
        "versions": header.get("versions", {}),
        "kind": kind,
        "checksum": header.get("checksum"),
        "rows": header.get("rows"),
        "settings": header.get("settings") or {},
    }


def _plain(told: dict[str, Any]) -> dict[str, Any]:
    """Return what JSON holds; anything else as the text that Python shows for it."""
    plain: dict[str, Any] = json.loads(json.dumps(told, default=repr, skipkeys=True))
    return plain


def _open(name: str) -> tuple[dict[str, Any], Tensors]:
    """Return header and tensors of a file, neither of them trusted yet."""
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(name):
        raise FileNotFoundError(f"there is no model file {name!r}")
    try:
        with safe_open(name, framework="np") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {} if text is None else {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError, AttributeError) as error:  # types that numpy lacks, too
        raise ValueError(f"{name!r} is damaged or isn't a model file of residmix ({_told(error)})") from error
    if text is None:
        raise ValueError(f"{name!r} is a safetensors file, but not one that residmix.save wrote")
    try:
        header = _parsed(text)
    except ValueError as error:
        raise ValueError(f"{name!r} is damaged: its header can't be read ({_told(error)})") from error
    number = header.get("format") if isinstance(header, dict) else None
    if type(number) is not int or number < 1:
        raise ValueError(f"{name!r} is damaged: its header has no format number")
    if number > FORMAT:
        told = header.get("versions")
        writer = told.get("residmix", "a newer version") if isinstance(told, dict) else "a newer version"
        raise ValueError(
            f"{name!r} has model format {number}, written by residmix {writer}; this version "
            f"reads formats up to {FORMAT}. Upgrade with: pip install --upgrade residmix"
        )
    return header, tensors


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _checksum(header: dict[str, Any], tensors: Tensors) -> str:
    """Return a digest of everything in a file but the digest itself."""
    found = hashlib.blake2b(digest_size=16)
    rest = {key: value for key, value in header.items() if key != "checksum"}
    found.update(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        found.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _told(error: Exception) -> str:
    """Return the words of an error in one line of bounded length, with its type where it says too little."""
    text = " ".join(str(error).split())
    if not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 300 else text[:297] + "..."


def _is_estimator(cls: type) -> bool:
    from sklearn.base import BaseEstimator

    return name_of(cls) is not None and issubclass(cls, BaseEstimator)
