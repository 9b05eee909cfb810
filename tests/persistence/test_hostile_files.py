"""Thousands of files that somebody damaged or made up: each loads as it was written, or is one ValueError.

A run takes a few hundred of each kind. More, by one command:

    RESIDMIX_MUTANTS=10000 pytest tests/persistence/test_hostile_files.py
"""

import contextlib
import json
import os
import random
import sys
import tracemalloc

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save as to_bytes

import residmix as rm
from residmix.em.loop import EMState
from residmix.em.runs import Journal
from residmix.persistence import read, write
from residmix.persistence.files import _checksum

MUTANTS = int(os.environ.get("RESIDMIX_MUTANTS", "300"))

# What a mutation puts in the place of a value.
ODD = [
    None, True, -1, 0, 1, 2**63, 10**400, 0.5, 1e308, "", "x", "residmix.__main__:X", "os:system", [], [[]], {},
    {"a": 1}, {"$object": "residmix.__main__:X"}, {"$object": "GaussianMixture"}, {"$array": "0000"},
    {"$object": "em.Journal", "attributes": {}}, {"$items": [1], "shape": [800_000_000], "dtype": "O", "scalar": False},
    {"$items": ["a"], "shape": [1], "dtype": "<U100000000", "scalar": False}, {"$float": "nan"}, {"$float": "0x"},
    {"$slice": [0, 2**60, 1]}, {"$dtype": "i8,i8"}, {"$dtype": "O"}, {"$tuple": 3}, {"$dict": [[{}, 1]]},
]  # fmt: skip


def models():
    rng = np.random.default_rng(0)
    X, site, age = rng.normal(size=(60, 3)), rng.choice(["a", "b", "c"], 60), rng.normal(size=60)
    frame = {"site": site, "age": age, "x": X[:, 0], "y": X[:, 1]}
    import pandas as pd

    table = pd.DataFrame(frame)
    yield "mixture", rm.GaussianMixture(2, random_state=0).fit(X)
    yield "residualizer", rm.Residualizer("C(site) + bs(age, df=4)", scale=True).fit(table)
    yield (
        "joint",
        rm.ResidualMixture(2, formula="site", estimation="joint", gating="metadata", random_state=0).fit(table),
    )
    yield "eraser", rm.Eraser().fit(X, metadata=age)
    mixture = rm.GaussianMixture(2, random_state=0).fit(X)
    yield "checkpoint", Journal("a fit", (mixture._model(),), [EMState(mixture._model(), (0.0, 1.0), 3)])


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, model in models():
        write(model, folder / name)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def taken_apart(path):
    with safe_open(str(path), framework="np") as file:
        return json.loads(file.metadata()["residmix"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def put_together(header, tensors):
    """Return the bytes of a file whose checksum is right, whatever it holds."""
    header = dict(header)
    if header["format"] == 2:
        header["checksum"] = _checksum(header, tensors)
    return to_bytes(tensors, {"residmix": json.dumps(header)})


def places(node, path=()):
    yield path
    if isinstance(node, dict):
        for key in node:
            yield from places(node[key], (*path, key))
    elif isinstance(node, list):
        for i, item in enumerate(node):
            yield from places(item, (*path, i))


def replaced(node, path, value):
    if not path:
        return value
    node = dict(node) if isinstance(node, dict) else list(node)
    node[path[0]] = replaced(node[path[0]], path[1:], value)
    return node


def flipped(chance, content):
    content = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        content[chance.randrange(len(content))] = chance.randrange(256)
    cut = chance.random()
    if cut < 0.1:
        del content[chance.randrange(len(content)) :]
    elif cut < 0.2:
        content += bytes(chance.randrange(1, 50))
    return bytes(content)


def loaded(path, size):
    """Return what a file holds, or None for a ValueError that names it; nothing else may happen."""
    known = set(sys.modules)
    tracemalloc.start()
    found, told = None, "mutant"
    try:
        found = read(path)
    except ValueError as error:
        told = str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "mutant" in told
    assert peak < 10 * size + 200_000
    assert not {name for name in set(sys.modules) - known if not name.startswith("residmix")}
    return found


def content_of(path):
    header, tensors = taken_apart(path)
    return header["model"], {name: array.tobytes() for name, array in tensors.items()}


def test_changed_bytes_are_noticed(originals, tmp_path):
    chance = random.Random(0)
    (tmp_path / "original").write_bytes(b"")
    for i in range(MUTANTS):
        name = chance.choice(list(originals))
        mutant = flipped(chance, originals[name])
        (tmp_path / "mutant").write_bytes(mutant)
        if loaded(tmp_path / "mutant", len(mutant)) is not None:
            (tmp_path / "original").write_bytes(originals[name])
            assert content_of(tmp_path / "mutant") == content_of(tmp_path / "original"), i


def test_the_control_without_its_checksum_would_change_in_silence(originals, tmp_path):
    (tmp_path / "mutant").write_bytes(originals["mixture"])
    header, tensors = taken_apart(tmp_path / "mutant")
    name = max(tensors, key=lambda key: tensors[key].size)
    tensors[name] = tensors[name] + 1.0
    old = {"format": 1, "versions": {}, "model": header["model"]}
    (tmp_path / "mutant").write_bytes(to_bytes(tensors, {"residmix": json.dumps(old)}))
    assert read(tmp_path / "mutant") is not None
    (tmp_path / "mutant").write_bytes(to_bytes(tensors, {"residmix": json.dumps(header)}))
    assert loaded(tmp_path / "mutant", 10_000) is None


@pytest.mark.parametrize("number", [1, 2])
def test_made_up_values_are_one_error(number, originals, tmp_path):
    chance = random.Random(number)
    path = tmp_path / "mutant"
    parsed = {}
    for name, content in originals.items():
        path.write_bytes(content)
        header, tensors = taken_apart(path)
        parsed[name] = header["model"], tensors, list(places(header["model"]))
    for _ in range(MUTANTS):
        name = chance.choice(list(parsed))
        model, tensors, where = parsed[name]
        for _ in range(chance.choice([1, 1, 1, 3])):
            spot = chance.choice(where)
            try:
                model = replaced(model, spot, chance.choice(ODD))
            except (KeyError, IndexError, TypeError):  # an earlier mutation took the place away
                continue
        if chance.random() < 0.2:
            tensors = dict(list(tensors.items())[: chance.randrange(len(tensors) + 1)])
        content = put_together({"format": number, "versions": {}, "model": model}, tensors)
        path.write_bytes(content)
        loaded(path, len(content))
        with contextlib.suppress(ValueError):
            assert hasattr(rm.load(path), "get_params")
