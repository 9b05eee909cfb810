"""Values as nodes of JSON beside tensors, and back. What comes back is checked, since a file may say anything.

A node is a JSON value, or an object with one key that begins with ``$``: ``$array`` (a tensor of the file), ``$object``
(one of the classes in `residmix.persistence.kinds`), and a few more for Python's tuples, slices and floats that JSON
lacks.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.persistence.kinds import name_of, type_of

__all__ = ["Tensors", "decode", "encode"]

Tensors = dict[str, NDArray[Any]]

# Types of numpy that files name: numbers, truth values, texts and objects (which are plain values, never pickles).
_DTYPE = re.compile(r"[<>|=]?(?:[biuf][1248]|O|U[0-9]{1,9})")


def encode(value: Any, tensors: Tensors, where: str) -> Any:
    """Return the node of `value`, putting its arrays among `tensors`.

    Raises
    ------
    TypeError
        For a value that files don't hold, naming `where` it stands.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return _encode_array(value, tensors, where)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, list):
        return [encode(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": [encode(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]}
    if isinstance(value, dict):
        pairs = [
            [encode(key, tensors, f"{where} key"), encode(item, tensors, f"{where}[{key!r}]")]
            for key, item in value.items()
        ]
        return {"$dict": pairs}
    if isinstance(value, slice):
        return {"$slice": [encode(part, tensors, where) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, np.dtype):
        return {"$dtype": value.str}
    return _encode_object(value, tensors, where)


def _encode_object(value: Any, tensors: Tensors, where: str) -> dict[str, Any]:
    cls = type(value)
    name = name_of(cls)
    if name is None:
        raise TypeError(
            f"{where} is a {cls.__module__}.{cls.__qualname__}, which model files can't store; use a plain value "
            "(for example an integer as random_state), or save this model with skops or pickle"
        )
    if hasattr(cls, "_from_state"):
        plain, arrays = value._to_state()
        return {"$object": name, "state": encode(plain, tensors, where), "arrays": encode(arrays, tensors, where)}
    attributes = sorted(_attributes(value).items())
    return {"$object": name, "attributes": {key: encode(item, tensors, f"{where}.{key}") for key, item in attributes}}


def _attributes(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return fields | getattr(value, "__dict__", {})
    # scikit-learn's callbacks watch this process; they aren't what was learned
    return {name: item for name, item in vars(value).items() if name != "_skl_callbacks"}


def _encode_array(value: Any, tensors: Tensors, where: str) -> dict[str, Any]:
    array = np.asarray(value)
    scalar = isinstance(value, np.generic)
    if array.dtype.kind in "biuf" and array.dtype.itemsize <= 8:
        name = f"{len(tensors):04d}:{where}"
        # a copy in C order: safetensors writes the buffer as it lies, whatever the strides say
        tensors[name] = np.array(array, order="C").astype(array.dtype.newbyteorder("="), copy=False)
        return {"$array": name, "scalar": scalar}
    if array.dtype.kind in "UO":
        items = [encode(item, tensors, f"{where}[{i}]") for i, item in enumerate(array.ravel().tolist())]
        return {"$items": items, "shape": list(array.shape), "dtype": array.dtype.str, "scalar": scalar}
    raise TypeError(f"{where} is an array of {array.dtype}, which model files can't store")


def decode(node: Any, tensors: Tensors) -> Any:
    """Return the value that `encode` made `node` of.

    Raises
    ------
    ValueError, TypeError, KeyError, AttributeError
        If `encode` can't have made `node`. Memory use is bounded by the size of the node, not by the sizes that it
        declares.
    """
    if isinstance(node, list):
        return [decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    kinds = [key for key in node if key in _DECODERS]
    if len(kinds) != 1:
        raise ValueError(f"it holds a value of an unknown kind: {sorted(node)[:4]}")
    return _DECODERS[kinds[0]](node, tensors)


def _array(node: dict[str, Any], tensors: Tensors) -> Any:
    array = tensors[node["$array"]]
    return array.reshape(())[()] if node["scalar"] else array


def _items(node: dict[str, Any], tensors: Tensors) -> Any:
    items, shape, dtype = node["$items"], node["shape"], _dtype(node["dtype"])
    if not isinstance(items, list) or dtype.kind not in "UO":
        raise ValueError(f"it holds an array of {dtype} where texts or objects were expected")
    if any(type(size) is not int or size < 0 for size in shape) or math.prod(shape) != len(items):
        raise ValueError(f"it holds an array of shape {shape} that has {len(items)} items")
    values = [decode(item, tensors) for item in items]
    if dtype.kind == "U":
        if not all(isinstance(value, str) for value in values):
            raise ValueError("it holds an array of texts in which something else stands")
        longest = max(map(len, values), default=0)
        # a width that the texts don't need is kept where it costs little more than the texts
        wide = 4 * len(values) * dtype.itemsize > 64 * (1024 + sum(map(len, values)))
        if wide or dtype.itemsize < 4 * longest:
            dtype = np.dtype(object)
    array = np.empty(len(values), dtype=dtype)
    for i, value in enumerate(values):
        array[i] = value
    array = array.reshape(shape)
    return array[()] if node["scalar"] else array


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise ValueError(f"it names {name!r} as a type of numbers")
    return np.dtype(name)


def _dict(node: dict[str, Any], tensors: Tensors) -> dict[Any, Any]:
    return {decode(key, tensors): decode(item, tensors) for key, item in node["$dict"]}


def _slice(node: dict[str, Any], tensors: Tensors) -> slice:
    start, stop, step = node["$slice"]
    if any(part is not None and type(part) is not int for part in (start, stop, step)):
        raise ValueError("it holds a slice of something else than whole numbers")
    return slice(start, stop, step)


def _object(node: dict[str, Any], tensors: Tensors) -> Any:
    cls = type_of(node["$object"])
    rebuild = getattr(cls, "_from_state", None)
    if rebuild is not None:
        return rebuild(decode(node["state"], tensors), decode(node["arrays"], tensors))
    attributes = {name: decode(item, tensors) for name, item in node["attributes"].items()}
    upgrade = getattr(cls, "_from_older", None)  # what earlier versions stored under other names
    if upgrade is not None:
        attributes = upgrade(attributes)
    value: Any = object.__new__(cls)
    if hasattr(cls, "_get_param_names"):  # parameters that older files don't know
        attributes = _default_parameters(cls) | attributes
    if dataclasses.is_dataclass(cls):
        attributes = _defaults(cls) | attributes
        lacking = [field.name for field in dataclasses.fields(cls) if field.name not in attributes]
        if lacking:
            raise ValueError(f"its {node['$object']} lacks {lacking[0]!r}")
    for name, item in attributes.items():
        if name.startswith("__") or callable(getattr(cls, name, None)):
            raise ValueError(f"its {node['$object']} has a value in the place of its own {name!r}")
        object.__setattr__(value, name, item)  # frozen dataclasses too
    return value


def _default_parameters(cls: Any) -> dict[str, Any]:
    """Return the parameters of an estimator that have a default, and these."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {own.name: own.default for own in parameters if own.default is not inspect.Parameter.empty}


def _defaults(cls: Any) -> dict[str, Any]:
    """Return the defaults of a dataclass, which fields have that older files don't know."""
    found = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


_DECODERS = {
    "$array": _array,
    "$items": _items,
    "$float": lambda node, tensors: float(node["$float"]),
    "$tuple": lambda node, tensors: tuple(decode(item, tensors) for item in node["$tuple"]),
    "$dict": _dict,
    "$slice": _slice,
    "$dtype": lambda node, tensors: _dtype(node["$dtype"]),
    "$object": _object,
}
