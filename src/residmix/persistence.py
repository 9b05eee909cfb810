"""Models as files: arrays in safetensors, everything else in one JSON header. Loading runs no code from the file.

The header holds ``{"format": 2, "versions": {...}, "model": node}``. A node is a JSON value, or an object with one
key that begins with ``$``: ``$array`` (a tensor of the file), ``$object`` (one of the types in a table below, and its
attributes), and a few more for Python's tuples, slices and floats that JSON lacks. One metadata key only, because
safetensors writes several in random order; so equal models give equal bytes.

Files name types by short names that stay as they are when modules move. Only the table says where a type lives, so a
file can't have anything imported that isn't in it.
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

FORMAT = 2
_KEY = "residmix"

# What a file may hold, and where it lives today. Names are for ever; homes follow the code.
_HOMES = {
    "Eraser": "residmix.erasure.eraser:Eraser",
    "GaussianMixture": "residmix.mixture.gaussian:GaussianMixture",
    "MDNRegressor": "residmix.nn.regressor.estimator:MDNRegressor",
    "ResidualMixture": "residmix.conditional.residual_mixture:ResidualMixture",
    "Residualizer": "residmix.removal.residualizer:Residualizer",
    "conditional.Gate": "residmix.conditional.gate:Gate",
    "conditional.Params": "residmix.conditional.ecm:ConditionalParams",
    "conditional.ToResidual": "residmix.conditional.ecm:ToResidual",
    "design.Design": "residmix.design.design:Design",
    "effects.Frozen": "residmix.effects.later_batches:Frozen",
    "effects.LaterBatches": "residmix.effects.later_batches:LaterBatches",
    "effects.LevelPrior": "residmix.effects.level_priors:LevelPrior",
    "effects.LevelTotals": "residmix.effects.later_batches:LevelTotals",
    "effects.NewLevels": "residmix.effects.new_levels:NewLevels",
    "effects.RandomEffects": "residmix.effects.crossed:RandomEffects",
    "effects.Scale": "residmix.effects.scale:Scale",
    "effects.SpreadPrior": "residmix.effects.level_priors:SpreadPrior",
    "em.Journal": "residmix.em.runs:Journal",
    "em.Memory": "residmix.em.loop:Memory",
    "em.State": "residmix.em.loop:EMState",
    "mixture.Params": "residmix.mixture.families:MixtureParams",
    "moments.Affine": "residmix.moments.affine:Affine",
    "moments.Cells": "residmix.moments.absorbed:Cells",
    "moments.FactorFit": "residmix.moments.solve_absorbed:FactorFit",
    "moments.FactorMoments": "residmix.moments.absorbed:FactorMoments",
    "moments.LevelSums": "residmix.moments.absorbed:LevelSums",
    "moments.LinearFit": "residmix.moments.solve:LinearFit",
    "moments.LinearMoments": "residmix.moments.linear:LinearMoments",
    "moments.Scatter": "residmix.moments.scatter:Scatter",
    "moments.WithEffects": "residmix.moments.affine:WithEffects",
    "nn.Plan": "residmix.nn.regressor.fitting:Plan",
    "nn.Removal": "residmix.nn.regressor.fitting:Removal",
    "nn.Scaling": "residmix.nn.regressor.targets:Scaling",
    "removal.Nuisance": "residmix.removal.nuisance:Nuisance",
    "rows.Sample": "residmix.rows.sampled:Sample",
}
_NAMES = {home: name for name, home in _HOMES.items()}

# What files of format 1 call them: where they lived when it was written. Nothing here ever changes.
_FORMAT_1 = {
    "residmix.checkpoint:Journal": "em.Journal",
    "residmix.conditional:ResidualMixture": "ResidualMixture",
    "residmix.crossed_blup:RandomEffects": "effects.RandomEffects",
    "residmix.design:Design": "design.Design",
    "residmix.em:EMState": "em.State",
    "residmix.em:Memory": "em.Memory",
    "residmix.eraser:Eraser": "Eraser",
    "residmix.families:MixtureParams": "mixture.Params",
    "residmix.gating:Gate": "conditional.Gate",
    "residmix.joint:ConditionalParams": "conditional.Params",
    "residmix.joint:ToResidual": "conditional.ToResidual",
    "residmix.later_batches:Frozen": "effects.Frozen",
    "residmix.later_batches:LaterBatches": "effects.LaterBatches",
    "residmix.level_totals:LevelTotals": "effects.LevelTotals",
    "residmix.mixture:GaussianMixture": "GaussianMixture",
    "residmix.moments.factor:FactorFit": "moments.FactorFit",
    "residmix.moments.levels:Cells": "moments.Cells",
    "residmix.moments.levels:FactorMoments": "moments.FactorMoments",
    "residmix.moments.levels:LevelSums": "moments.LevelSums",
    "residmix.moments.levels:WithEffects": "moments.WithEffects",
    "residmix.moments.linear:Affine": "moments.Affine",
    "residmix.moments.linear:LinearMoments": "moments.LinearMoments",
    "residmix.moments.scatter:Scatter": "moments.Scatter",
    "residmix.moments.solve:LinearFit": "moments.LinearFit",
    "residmix.new_levels:LevelPrior": "effects.LevelPrior",
    "residmix.new_levels:NewLevels": "effects.NewLevels",
    "residmix.new_levels:SpreadPrior": "effects.SpreadPrior",
    "residmix.nn.fitting:Plan": "nn.Plan",
    "residmix.nn.fitting:Removal": "nn.Removal",
    "residmix.nn.regressor:MDNRegressor": "MDNRegressor",
    "residmix.nn.targets:Scaling": "nn.Scaling",
    "residmix.nuisance:Nuisance": "removal.Nuisance",
    "residmix.residualizer:Residualizer": "Residualizer",
    "residmix.scale:Scale": "effects.Scale",
    "residmix.sources.sampled:Sample": "rows.Sample",
}


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

    if _name(type(model)) is None:
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


def _name(cls: type) -> str | None:
    """Return what files call `cls`; None if they don't hold such things."""
    return _NAMES.get(f"{cls.__module__}:{cls.__qualname__}")


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
    if (name := _name(cls)) is not None:
        node: dict[str, Any] = {"$object": name}
        if hasattr(cls, "_from_state"):
            plain, arrays = value._to_state()
            node["state"] = _encode(plain, tensors, where)
            node["arrays"] = _encode(arrays, tensors, where)
        else:
            attributes = sorted(_attributes(value).items())
            node["attributes"] = {key: _encode(item, tensors, f"{where}.{key}") for key, item in attributes}
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
    cls = _type(node["$object"])
    rebuild = getattr(cls, "_from_state", None)
    if rebuild is not None:
        return rebuild(_decode(node["state"], tensors), _decode(node["arrays"], tensors))
    value: Any = object.__new__(cls)
    for attribute, item in node["attributes"].items():
        object.__setattr__(value, attribute, _decode(item, tensors))  # frozen dataclasses too
    return value


def _type(name: str) -> Any:
    """Return the class that a file calls `name`, which is looked up and never imported as it stands."""
    home = _HOMES.get(_FORMAT_1.get(name, name))
    if home is None:
        raise ValueError(
            f"the model file asks for {name!r}, which this version doesn't know as part of a model: refused"
        )
    module, _, attribute = home.partition(":")
    return getattr(importlib.import_module(module), attribute)
