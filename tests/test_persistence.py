"""Model files: same predictions to the last bit, no code run on load, nothing half written."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

import residmix as rm
from residmix.atomic import atomic_path
from residmix.data import penguins
from residmix.persistence import _decode, _encode
from residmix.sources import Block


def round_trip(value):
    tensors = {}
    node = _encode(value, tensors, "x")
    return _decode(json.loads(json.dumps(node)), tensors)


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
def test_values_come_back_equal_and_of_the_same_type(value):
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


def test_our_dataclasses_come_back_and_others_are_refused_by_name():
    back = round_trip(Block(3, np.arange(4.0).reshape(2, 2), weight=np.ones(2)))
    assert back.start == 3
    assert back.codes == ()
    np.testing.assert_array_equal(back.X, [[0, 1], [2, 3]])
    with pytest.raises(TypeError, match=r"model\.random_state is a .*RandomState"):
        _encode(np.random.RandomState(0), {}, "model.random_state")
    with pytest.raises(TypeError, match="complex128"):
        _encode(np.zeros(2, complex), {}, "model.x")


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
    X = np.random.default_rng(1).normal(size=(40, 2))
    for name in ("a", "b"):
        rm.save(rm.GaussianMixture(2, random_state=3).fit(X), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def write(path, header):
    save_file({"x": np.zeros(1)}, str(path), {"residmix": json.dumps(header)})


def test_a_newer_format_is_refused_with_the_remedy(tmp_path):
    write(tmp_path / "new", {"format": 99, "versions": {"residmix": "9.0"}, "model": {"$future": 1}})
    with pytest.raises(ValueError, match=r"model format 99, written by residmix 9\.0.*pip install --upgrade"):
        rm.load(tmp_path / "new")


@pytest.mark.parametrize(
    "named",
    ["os:system", "subprocess:Popen", "builtins:eval", "sklearn.mixture:GaussianMixture", "residmix.cli:main"],
)
def test_a_file_that_names_other_code_is_refused(named, tmp_path):
    write(tmp_path / "evil", {"format": 1, "model": {"$object": named, "attributes": {}}})
    with pytest.raises(ValueError, match="refused"):
        rm.load(tmp_path / "evil")


def test_loading_never_unpickles(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    (tmp_path / "bomb").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="damaged or no model file"):
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
