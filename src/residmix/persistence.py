"""Models as files: arrays in safetensors, everything else in one JSON header. Loading runs no code from the file.

The header holds ``{"format": 1, "versions": {...}, "model": node}``. A node is a JSON value, or an object with one
key that begins with ``$``: ``$array`` (a tensor of the file), ``$object`` (one of this package's own classes and its
attributes), and a few more for Python's tuples, slices and floats that JSON lacks. One metadata key only, because
safetensors writes several in random order; so equal models give equal bytes.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
from typing import Any

import numpy as np

from residmix.atomic import atomic_path

__all__ = ["load", "save"]

FORMAT = 1
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
        If the model, or something it holds, can't be kept in the format; the message says which attribute.
    FileNotFoundError
        If the folder doesn't exist.

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
    from safetensors.numpy import save_file

    if not _is_ours(type(model)):
        raise TypeError(f"save takes an estimator of residmix, not {type(model).__name__}")
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    node = _encode(model, tensors, type(model).__name__)
    header = {"format": FORMAT, "versions": _versions(), "model": node}
    with atomic_path(path) as temporary:
        save_file(tensors, str(temporary), {_KEY: json.dumps(header, sort_keys=True)})


def load(path: str | os.PathLike[str]) -> Any:
    """Read an estimator that :func:`save` wrote; its predictions are the same to the last bit.

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
        If the file is no residmix model, is damaged, or was written in a newer format.
    """
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise FileNotFoundError(f"no model file {os.fspath(path)!r}")
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)!r} is damaged or no model file of residmix ({error})") from error
    if text is None:
        raise ValueError(f"{os.fspath(path)!r} is a safetensors file, but not one that residmix.save wrote")
    header = json.loads(text)
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise ValueError(f"{os.fspath(path)!r} is damaged: its header has no format number")
    if header["format"] > FORMAT:
        writer = header.get("versions", {}).get("residmix", "a newer version")
        raise ValueError(
            f"{os.fspath(path)!r} has model format {header['format']}, written by residmix {writer}; this version "
            f"reads formats up to {FORMAT}. Upgrade with: pip install --upgrade residmix"
        )
    return _decode(header["model"], tensors)


def _versions() -> dict[str, str]:
    import sklearn

    from residmix import __version__

    return {"residmix": __version__, "numpy": np.__version__, "scikit-learn": sklearn.__version__}


def _is_ours(cls: type) -> bool:
    """Whether objects of `cls` are plain bundles of attributes of this package, safe to rebuild."""
    from sklearn.base import BaseEstimator

    ours = cls.__module__.split(".")[0] == "residmix"
    return ours and (dataclasses.is_dataclass(cls) or issubclass(cls, BaseEstimator) or hasattr(cls, "_from_state"))


def _attributes(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return fields | getattr(value, "__dict__", {})
    # scikit-learn's callbacks watch this process; they aren't what was learned
    return {name: item for name, item in vars(value).items() if name != "_skl_callbacks"}


def _encode(value: Any, tensors: dict[str, np.ndarray[Any, Any]], where: str) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return _encode_array(value, tensors, where)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, list):
        return [_encode(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]}
    if isinstance(value, dict):
        pairs = [
            [_encode(key, tensors, f"{where} key"), _encode(item, tensors, f"{where}[{key!r}]")]
            for key, item in value.items()
        ]
        return {"$dict": pairs}
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return {"$slice": [_encode(part, tensors, where) for part in parts]}
    if isinstance(value, np.dtype):
        return {"$dtype": value.str}
    cls = type(value)
    if _is_ours(cls):
        node: dict[str, Any] = {"$object": f"{cls.__module__}:{cls.__qualname__}"}
        if hasattr(cls, "_from_state"):
            plain, arrays = value._to_state()
            node["state"] = _encode(plain, tensors, where)
            node["arrays"] = _encode(arrays, tensors, where)
        else:
            node["attributes"] = {
                name: _encode(item, tensors, f"{where}.{name}") for name, item in sorted(_attributes(value).items())
            }
        return node
    raise TypeError(
        f"{where} is a {cls.__module__}.{cls.__qualname__}, which the model format doesn't keep; "
        "use a plain value (an integer as random_state, for instance), or keep this model with skops or pickle"
    )


def _encode_array(value: Any, tensors: dict[str, np.ndarray[Any, Any]], where: str) -> Any:
    array = np.asarray(value)
    scalar = isinstance(value, np.generic)
    if array.dtype.kind in "biuf" and array.dtype.itemsize <= 8:
        name = f"{len(tensors):04d}:{where}"
        # a copy in C order: safetensors writes the buffer as it lies, whatever the strides say
        tensors[name] = np.array(array, order="C").astype(array.dtype.newbyteorder("="), copy=False)
        return {"$array": name, "scalar": scalar}
    if array.dtype.kind in "UO":
        items = [_encode(item, tensors, f"{where}[{i}]") for i, item in enumerate(array.ravel().tolist())]
        return {"$items": items, "shape": list(array.shape), "dtype": array.dtype.str, "scalar": scalar}
    raise TypeError(f"{where} is an array of {array.dtype}, which the model format doesn't keep")


def _decode(node: Any, tensors: dict[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(node, list):
        return [_decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    if "$array" in node:
        array = tensors[node["$array"]]
        return array[()] if node["scalar"] else array
    if "$items" in node:
        array = np.empty(math.prod(node["shape"]), dtype=node["dtype"])
        array[:] = [_decode(item, tensors) for item in node["$items"]]
        array = array.reshape(node["shape"])
        return array[()] if node["scalar"] else array
    if "$float" in node:
        return float(node["$float"])
    if "$tuple" in node:
        return tuple(_decode(item, tensors) for item in node["$tuple"])
    if "$dict" in node:
        return {_decode(key, tensors): _decode(item, tensors) for key, item in node["$dict"]}
    if "$slice" in node:
        return slice(*(_decode(part, tensors) for part in node["$slice"]))
    if "$dtype" in node:
        return np.dtype(node["$dtype"])
    if "$object" in node:
        return _decode_object(node, tensors)
    raise ValueError(f"the model file holds a value of an unknown kind: {sorted(node)}")


def _decode_object(node: dict[str, Any], tensors: dict[str, np.ndarray[Any, Any]]) -> Any:
    module, _, name = node["$object"].partition(":")
    if module.split(".")[0] != "residmix":
        raise ValueError(f"the model file asks for {module}.{name}, which is not part of residmix: refused")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"the model file asks for {module}.{name}, which this version doesn't have") from error
    if not (isinstance(cls, type) and cls.__module__ == module and _is_ours(cls)):
        raise ValueError(f"the model file asks for {module}.{name}, which is no model class: refused")
    if "state" in node:
        rebuild: Any = getattr(cls, "_from_state")  # noqa: B009 - mypy can't see that _is_ours has checked it
        return rebuild(_decode(node["state"], tensors), _decode(node["arrays"], tensors))
    value: Any = object.__new__(cls)
    for attribute, item in node["attributes"].items():
        object.__setattr__(value, attribute, _decode(item, tensors))  # frozen dataclasses too
    return value
