"""Model files: same predictions to the last bit, no code run on load, nothing half written, old files stay readable."""

import dataclasses
import errno
import json
import pickle
import re
import runpy
import tracemalloc
import typing
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.base import BaseEstimator

import residmix as rm
from residmix.atomic import atomic_path
from residmix.data import penguins
from residmix.effects.unseen.batches import LevelTotals
from residmix.errors import DesignWarning
from residmix.mixture.families.restraint import Prior, Restraint
from residmix.mixture.params import make_params
from residmix.persistence import describe, read, write
from residmix.persistence.files import _checksum as checksum
from residmix.persistence.kinds import FORMAT_1, HOMES, name_of, type_of
from residmix.persistence.nodes import decode, encode
from residmix.sources import Block

MODELS = Path(__file__).parents[1] / "fixtures" / "models"
# Kinds that no file of an earlier format holds.
NEWER = {
    "effects.Covariances",
    "effects.Smooths",
    "effects.Still",
    "effects.Stretched",
    "erasure.Aligned",
    "erasure.Along",
    "erasure.ByGroup",
    "erasure.Certificate",
    "erasure.Transport",
    "mixture.ByGroup",
    "mixture.Prior",
    "mixture.Restraint",
    "moments.LevelMoments",
}
MADE = runpy.run_path(str(MODELS / "make.py"))


def round_trip(value):
    tensors = {}
    node = encode(value, tensors, "x")
    return decode(json.loads(json.dumps(node)), tensors)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -3,
        "site – A",
        0.1,
        float("inf"),
        -0.0,
        [1, [2.5, None]],
        (1, ("a", 2)),
        {"a": 1, 2: "b", (1, 2): {"$array": 3}},
        slice(1, None, 2),
        np.dtype("float32"),
        np.float32(0.1),
        np.int64(7),
    ],
    ids=repr,
)
def test_values_come_back_equal_and_of_the_sametype_of(value):
    back = round_trip(value)
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_nan_comes_back():
    assert np.isnan(round_trip(float("nan")))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i4", "u1", "?"])
def test_arrays_keep_dtype_shape_and_bits(dtype, order):
    array = np.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)) * 9, dtype=dtype, order=order)
    for value in (array, array[:, ::2], array[0, 0, 0], np.zeros((0, 3), dtype), np.zeros((), dtype)):
        back = round_trip(value)
        assert back.dtype == value.dtype
        assert back.shape == value.shape
        np.testing.assert_array_equal(back, value)


def test_arrays_of_strings_and_mixed_levels_come_back():
    for value in (np.array(["a", "bc"]), np.array([["a", 1], [None, 2.5]], dtype=object)):
        back = round_trip(value)
        assert back.dtype == value.dtype
        assert back.tolist() == value.tolist()


def test_types_of_the_table_come_back_and_others_are_refused_byname_of():
    back = round_trip(LevelTotals(("a", 2), np.ones((5, 2, 1))))
    assert type(back) is LevelTotals
    assert back.labels == ("a", 2)
    np.testing.assert_array_equal(back.centred, np.ones((5, 2, 1)))
    with pytest.raises(TypeError, match=r"model\.rows is a residmix\..*Block, which model files can't store"):
        encode(Block(0, np.zeros((1, 1))), {}, "model.rows")
    with pytest.raises(TypeError, match=r"model\.random_state is a .*RandomState"):
        encode(np.random.RandomState(0), {}, "model.random_state")
    with pytest.raises(TypeError, match="complex128"):
        encode(np.zeros(2, complex), {}, "model.x")


def fitted():
    table = penguins()
    rng = np.random.default_rng(0)
    X, m = rng.normal(size=(60, 3)), rng.normal(size=(60, 2))
    features = ["bill_length_mm", "bill_depth_mm"]
    formula = "C(sex) + bs(flipper_length_mm, df=3)"
    yield "mixture", rm.GaussianMixture(2, random_state=0).fit(X), lambda model: model.score_samples(X)
    yield (
        "residualizer",
        rm.Residualizer(formula, features=features).fit(table),
        lambda model: model.transform(table),
    )
    yield "arrays", rm.Residualizer().fit(X, metadata=m), lambda model: model.transform(X, metadata=m)
    yield (
        "conditional",
        rm.ResidualMixture(2, formula=formula, features=features, random_state=0).fit(table),
        lambda model: model.score_samples(table),
    )
    yield (
        "joint",
        rm.ResidualMixture(
            2, formula="C(sex)", features=features, estimation="joint", gating="metadata", random_state=0
        ).fit(table),
        lambda model: np.column_stack([model.score_samples(table), model.predict_proba(table)]),
    )
    yield "eraser", rm.Eraser().fit(X, metadata=m), lambda model: model.transform(X)


@pytest.mark.parametrize(("name", "model", "predict"), [pytest.param(*case, id=case[0]) for case in fitted()])
def test_predictions_are_the_same_to_the_last_bit(name, model, predict, tmp_path):
    path = tmp_path / "model.safetensors"
    rm.save(model, path)
    again = rm.load(path)
    assert type(again) is type(model)
    assert repr(again.get_params()) == repr(model.get_params())
    np.testing.assert_array_equal(predict(again), predict(model))


def test_equal_models_give_equal_bytes_and_leave_nothing_else_behind(tmp_path):
    X = np.random.default_rng(1).normal(size=(400, 2))
    for name in ("a", "b"):
        rm.save(rm.GaussianMixture(1, random_state=3).fit(X), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def made_up(path, header):
    """Write a file that says what somebody wanted it to say, its checksum right."""
    tensors = {"x": np.zeros(1)}
    if header["format"] == 2:
        header = header | {"checksum": checksum(header, tensors)}
    save_file(tensors, str(path), {"residmix": json.dumps(header)})


def test_a_newer_format_is_refused_with_the_remedy(tmp_path):
    made_up(tmp_path / "new", {"format": 99, "versions": {"residmix": "9.0"}, "model": {"$future": 1}})
    with pytest.raises(ValueError, match=r"model format 99, written by residmix 9\.0.*pip install --upgrade"):
        rm.load(tmp_path / "new")


@pytest.mark.parametrize(
    "named",
    [
        "os:system",
        "subprocess:Popen",
        "builtins:eval",
        "sklearn.mixture:GaussianMixture",
        "residmix.cli:main",
        "residmix.rows.block:Block",
        "residmix.nowhere:Residualizer",
        "residualizer",
    ],
)
@pytest.mark.parametrize("number", [1, 2])
def test_a_file_that_names_anything_else_is_refused_without_importing_it(named, number, tmp_path, monkeypatch):
    made_up(tmp_path / "evil", {"format": number, "model": {"$object": named, "attributes": {}}})
    assert callable(rm.load)  # which is itself imported when it is needed first
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"imported {name}"))
    with pytest.raises(ValueError, match=f"{named}.*refused"):
        rm.load(tmp_path / "evil")


def test_the_table_is_of_classes_where_they_live_and_every_name_of_format_1_is_in_it():
    pytest.importorskip("torch", reason="networks need the extra nn")
    for name, home in HOMES.items():
        cls = type_of(name)
        assert f"{cls.__module__}:{cls.__qualname__}" == home
        assert dataclasses.is_dataclass(cls) or issubclass(cls, BaseEstimator) or hasattr(cls, "_from_state"), name
    assert len(set(HOMES.values())) == len(HOMES)
    assert set(FORMAT_1.values()) <= set(HOMES)


def test_every_public_estimator_and_all_that_annotations_say_a_model_holds_is_in_the_table():
    pytest.importorskip("torch", reason="networks need the extra nn")
    public = [getattr(room, name) for room in (rm, rm.nn) for name in room.__all__]
    for cls in public:
        assert not (isinstance(cls, type) and issubclass(cls, BaseEstimator)) or name_of(cls) is not None, cls
    for name in set(HOMES) - {"design.Design", "rows.Sample"}:  # these are written as plain values
        for attribute, hint in typing.get_type_hints(type_of(name)).items():
            for cls in parts(hint):
                assert not dataclasses.is_dataclass(cls) or name_of(cls) is not None, (name, attribute, cls)


def parts(hint):
    yield typing.get_origin(hint) or hint
    for inner in typing.get_args(hint):
        yield from parts(inner)


def header(path):
    with safe_open(str(path), framework="np") as file:
        return json.loads(file.metadata()["residmix"])


def types(node):
    if isinstance(node, dict):
        return {node[key] for key in node if key == "$object"}.union(*map(types, node.values()))
    return set().union(*map(types, node)) if isinstance(node, list) else set()


class Written:
    """The files that one format's code wrote, and what its models gave."""

    def __init__(self, folder, scratch):
        with zipfile.ZipFile(folder / "models.zip") as archive:
            archive.extractall(scratch)
        found = np.load(folder / "predictions.npz")
        self.folder, self.kinds = scratch, dict(found["kinds"].tolist())
        self.outputs = {key: found[key] for key in found.files if "|" in key}

    def given(self, model, name):
        return MADE["running"](model) if name.endswith("checkpoint") else MADE["outputs"](model, self.kinds[name])

    def check(self, model, name):
        """Return what a model gives; it is what it gave when the file was written, to rounding.

        Sums add up in another order on other processors and in later versions, which changes a few last digits: hence
        1e-12 of the largest number of each array, since residuals and shares near zero are differences of larger ones.
        """
        given = self.given(model, name)
        expected = {key.split("|")[1]: value for key, value in self.outputs.items() if key.split("|")[0] == name}
        assert set(given) >= set(expected), name  # models of later versions have more methods
        for key, value in expected.items():
            assert given[key].dtype == value.dtype
            if value.dtype.kind not in "fc":
                np.testing.assert_array_equal(given[key], value, err_msg=f"{name} {key}")
            else:
                scale = 1e-12 if value.dtype == np.float64 else 1e-6
                largest = np.nanmax(np.abs(value))
                np.testing.assert_allclose(given[key], value, rtol=0, atol=scale * largest, err_msg=f"{name} {key}")
        return given


@pytest.fixture(scope="module", params=sorted(path.name for path in MODELS.glob("format*")))
def written(request, tmp_path_factory):
    pytest.importorskip("torch", reason="some of the models are networks, which need the extra nn")
    return Written(MODELS / request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
def test_files_of_every_format_load_to_the_same_numbers_and_so_do_they_when_saved_anew(written, tmp_path):
    named = set()
    files = [(name, f"{name}.safetensors") for name in written.kinds]
    files += [(path.name, path.name) for path in written.folder.glob("*.checkpoint")]
    assert len(files) == len(list(written.folder.iterdir()))
    for name, file in files:
        model = read(written.folder / file)
        write(model, tmp_path / file)
        again = read(tmp_path / file)
        if written.kinds.get(name) == "none":
            assert repr(again.get_params()) == repr(model.get_params())
            assert vars(model).keys() == vars(again).keys()
        else:
            before = written.check(model, name)
            for key, value in written.given(again, name).items():
                np.testing.assert_array_equal(value, before[key], err_msg=f"{name} {key}")  # one version: the same bits
        new = header(tmp_path / file)
        assert new["format"] == 2
        assert not re.search(r"residmix[\w.]*:\w", json.dumps(new["model"])), file
        named |= types(new["model"])
    # a name without a file here is one that nobody checks
    assert named == set(HOMES) - NEWER


def test_what_files_of_no_format_before_held_comes_back_too(tmp_path):
    frame = MADE["read"]()
    frame.loc[frame["site"] == "c", "f2"] = 0.0
    options = {"features": MADE["FEATURES"], "scale": True, "covariance": True, "check_leakage": False}
    with pytest.warns(DesignWarning, match="'f2' at site=c"):
        model = rm.Residualizer("site", **options).fit(frame)
    rm.save(model, tmp_path / "still")
    np.testing.assert_array_equal(rm.load(tmp_path / "still").transform(frame), model.transform(frame))
    found = types(header(tmp_path / "still")["model"])
    x = frame[MADE["FEATURES"]].to_numpy()[:, [0, 2]]
    curves = rm.Residualizer("s(age)", check_leakage=False).fit(x, metadata=frame)
    rm.save(curves, tmp_path / "curves")
    again = rm.load(tmp_path / "curves")
    np.testing.assert_array_equal(again.transform(x, metadata=frame), curves.transform(x, metadata=frame))
    found |= types(header(tmp_path / "curves")["model"])
    spread = {"preserve": "age", "scale": "site + age", "shrinkage": "eb", "check_leakage": False}
    stretched = rm.Residualizer("site", **spread).fit(x, metadata=frame)
    rm.save(stretched, tmp_path / "stretched")
    again = rm.load(tmp_path / "stretched")
    np.testing.assert_array_equal(again.transform(x, metadata=frame), stretched.transform(x, metadata=frame))
    found |= types(header(tmp_path / "stretched")["model"])
    eraser = rm.Eraser(method="full", n_components=1).fit(x, metadata=frame["age"])
    rm.save(eraser, tmp_path / "eraser")
    again = rm.load(tmp_path / "eraser")
    np.testing.assert_array_equal(again.transform(x, metadata=frame["age"]), eraser.transform(x, metadata=frame["age"]))
    found |= types(header(tmp_path / "eraser")["model"])
    random = np.random.default_rng(0)
    site = np.repeat(["a", "b"], 200)
    away = 6 * random.integers(0, 2, 400)[:, None] + random.normal(size=(400, 2)) * np.where(site == "a", 1, 2)[:, None]
    for name, model, give in (
        ("aligned", rm.Eraser(method="full", n_components=2), "transform"),
        ("grouped", rm.ResidualMixture(2, covariance_by="site", formula="site", random_state=0), "residuals"),
    ):
        table = pd.DataFrame({"site": site})
        with warnings.catch_warnings():  # of the certificate of so few rows
            warnings.simplefilter("ignore")
            model.fit(away, metadata=table)
        rm.save(model, tmp_path / name)
        again = getattr(rm.load(tmp_path / name), give)
        np.testing.assert_array_equal(again(away, metadata=table), getattr(model, give)(away, metadata=table))
        found |= types(header(tmp_path / name)["model"])
    # a checkpoint's alone
    restraint = Restraint(Prior(np.zeros(2), 0.1, 4.0, np.eye(2)), 3.0)
    params = dataclasses.replace(
        make_params(np.ones(1), np.zeros((1, 2)), np.eye(2)[None], "full"), restraint=restraint
    )
    write(params, tmp_path / "restrained")
    np.testing.assert_array_equal(read(tmp_path / "restrained").restraint.prior.scale, np.eye(2))
    assert found | types(header(tmp_path / "restrained")["model"]) >= NEWER


def test_a_checkpoint_is_no_model(written, tmp_path):
    for path in written.folder.glob("*.checkpoint"):
        with pytest.raises(ValueError, match=r"gated|mixture.*holds a Journal, not a model"):
            rm.load(path)


def test_a_file_says_what_it_is_before_it_is_loaded(tmp_path):
    model = rm.GaussianMixture(1).fit(np.random.default_rng(0).normal(size=(20, 2)))
    rm.save(model, tmp_path / "model")
    told = describe(tmp_path / "model")
    assert (told["format"], told["kind"]) == (2, "GaussianMixture")
    assert told["versions"]["residmix"] == rm.__version__
    assert re.fullmatch("[0-9a-f]{32}", told["checksum"])
    rm.save(model.fit(np.random.default_rng(1).normal(size=(20, 2))), tmp_path / "other")
    assert describe(tmp_path / "other")["checksum"] != told["checksum"]


@pytest.mark.parametrize(
    ("fit", "own"),
    [
        (lambda X: rm.GaussianMixture(1, tol=0.5).fit(X), {"tol": 0.5}),
        (lambda X: rm.Residualizer(missing="mean").fit(X, metadata=X[:, 0] ** 2), {"missing": "mean"}),
        (lambda X: rm.ResidualMixture(1, reg_covar=0.5).fit(X, metadata=X[:, 1] ** 2), {"reg_covar": 0.5}),
    ],
    ids=["mixture", "residualizer", "both"],
)
def test_a_file_says_how_many_rows_and_which_settings_and_is_read_without(fit, own, tmp_path):
    model = fit(np.random.default_rng(0).normal(size=(50, 2)))
    rm.save(model, tmp_path / "model")
    told = describe(tmp_path / "model")
    assert told["rows"] == 50 and own.items() <= told["settings"].items()
    with safe_open(str(tmp_path / "model"), framework="np") as file:
        header, tensors = json.loads(file.metadata()["residmix"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    older = {key: value for key, value in header.items() if key not in ("rows", "settings")}
    older["checksum"] = checksum(older, tensors)
    save_file(tensors, str(tmp_path / "older"), {"residmix": json.dumps(older)})
    assert (describe(tmp_path / "older")["rows"], describe(tmp_path / "older")["settings"]) == (None, {})
    assert vars(rm.load(tmp_path / "older")).keys() == vars(model).keys()


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ({"$items": [1], "shape": [800_000_000], "dtype": "O", "scalar": False}, "has 1 items"),
        ({"$items": [], "shape": [-1, 0], "dtype": "O", "scalar": False}, "shape"),
        ({"$items": ["a"], "shape": [1], "dtype": "<f8", "scalar": False}, "texts or objects"),
        ({"$items": ["a"], "shape": [1], "dtype": "V9", "scalar": False}, "type of numbers"),
        ({"$array": "nowhere", "scalar": False}, "nowhere"),
        ({"$slice": ["a", None, None]}, "slice"),
        ({"$dict": [[[1], 2]]}, "unhashable"),
        ({"$float": "one"}, "float"),
        ({"a": 1, "b": 2}, "unknown kind"),
    ],
)
def test_values_that_no_model_has_are_one_error_that_names_the_file(node, told, tmp_path):
    root = {"$object": "GaussianMixture", "attributes": {"means_": node}}
    made_up(tmp_path / "odd.model", {"format": 2, "model": root})
    with pytest.raises(ValueError, match=rf"odd\.model.*{told}"):
        rm.load(tmp_path / "odd.model")


def test_a_width_that_no_text_needs_takes_no_memory(tmp_path):
    node = {"$items": ["a", "b"], "shape": [2], "dtype": "<U100000000", "scalar": False}
    made_up(tmp_path / "wide", {"format": 2, "model": {"$object": "GaussianMixture", "attributes": {"names_": node}}})
    tracemalloc.start()
    names = rm.load(tmp_path / "wide").names_
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert names.tolist() == ["a", "b"]
    assert peak < 10_000_000


@pytest.mark.parametrize(
    "root", [3, None, [], "x", {"$tuple": []}, {"$object": "moments.LinearMoments", "attributes": {}}]
)
def test_what_stands_at_the_root_must_be_a_model(root, tmp_path):
    made_up(tmp_path / "root", {"format": 2, "model": root})
    with pytest.raises(ValueError, match="root"):
        rm.load(tmp_path / "root")


def test_values_cant_take_the_place_of_methods(tmp_path):
    for name in ("fit", "__class__"):
        root = {"$object": "GaussianMixture", "attributes": {name: 1}}
        made_up(tmp_path / "file", {"format": 2, "model": root})
        with pytest.raises(ValueError, match="place of its own"):
            rm.load(tmp_path / "file")


def test_what_nests_too_deep_is_damaged(tmp_path):
    text = '{"format": 1, "model": ' + "[" * 200_000 + "]" * 200_000 + "}"
    save_file({"x": np.zeros(1)}, str(tmp_path / "deep"), {"residmix": text})
    with pytest.raises(ValueError, match=r"deep.*nested too deep"):
        rm.load(tmp_path / "deep")


def test_a_full_disk_is_told_with_the_bytes_that_are_needed(tmp_path, monkeypatch):
    model = rm.GaussianMixture(1).fit(np.random.default_rng(0).normal(size=(20, 2)))
    path = tmp_path / "model"
    rm.save(model, path)
    before = path.read_bytes()

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device; the file needs [\d,]+ bytes") as caught:
        rm.save(model, path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["model"]


def test_loading_never_unpickles(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    (tmp_path / "bomb").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="damaged or isn't a model file"):
        rm.load(tmp_path / "bomb")
    assert not (tmp_path / "boom").exists()


def test_clear_errors_for_what_is_no_model_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model file"):
        rm.load(tmp_path / "absent")
    save_file({"x": np.zeros(1)}, str(tmp_path / "plain"))
    with pytest.raises(ValueError, match=r"not one that residmix\.save wrote"):
        rm.load(tmp_path / "plain")
    with pytest.raises(TypeError, match="not DataFrame"):
        rm.save(pd.DataFrame(), tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="doesn't exist"):
        rm.save(rm.GaussianMixture(), tmp_path / "nowhere" / "x")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "kept"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half way"), atomic_path(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
