"""AnnData objects: the same residuals from dense, sparse and backed matrices, written under one name."""

import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LinearRegression

import residmix as rm
from residmix import anndata as ra
from residmix.design.fit import Design
from residmix.errors import LeakageWarning


def cells(n=600, d=20, seed=0):
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {"batch": rng.choice(["a", "b", "c"], n), "counts": rng.gamma(5, 200, n), "kind": rng.choice(["t", "b"], n)},
        index=[f"cell{i}" for i in range(n)],
    )
    X = rng.normal(size=(n, d))
    X[:, 0] += 3 * (obs.batch == "b")
    X[:, 1] += obs.counts / 200
    return X, obs


def expected(X, obs, formula="batch + counts", **options):
    return rm.Residualizer(formula, **options).fit_transform(X, metadata=obs)


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csr_array, sp.csc_matrix])
def test_residuals_of_any_matrix_are_those_of_the_array(kind):
    X, obs = cells()
    adata = anndata.AnnData(kind(X), obs=obs.copy())
    model = ra.residualize(adata, "batch + counts")
    # Blocks of another length are summed in another order: rounding only.
    np.testing.assert_allclose(adata.layers["residual"], expected(X, obs), atol=1e-10)
    assert isinstance(model, rm.Residualizer)
    assert np.abs(adata.layers["residual"][obs.batch == "b"].mean(axis=0)).max() < 1e-10


def test_blocks_give_what_one_block_gives_to_the_bit(monkeypatch):
    X, obs = cells(2000)
    whole = anndata.AnnData(sp.csr_matrix(X), obs=obs.copy())
    ra.residualize(whole, "batch + counts")
    monkeypatch.setattr(ra, "BATCH_BYTES", 8 * 20 * 300)
    parts = anndata.AnnData(sp.csr_matrix(X), obs=obs.copy())
    ra.residualize(parts, "batch + counts")
    np.testing.assert_array_equal(parts.layers["residual"], whole.layers["residual"])


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix])
def test_backed_files_are_read_and_not_changed(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(ra, "BATCH_BYTES", 8 * 20 * 300)
    X, obs = cells()
    path = tmp_path / "cells.h5ad"
    anndata.AnnData(kind(X), obs=obs).write_h5ad(path)
    before = path.read_bytes()
    backed = anndata.read_h5ad(path, backed="r")
    ra.residualize(backed, "batch + counts")
    np.testing.assert_allclose(backed.layers["residual"], expected(X, obs), atol=1e-10)
    backed.file.close()
    assert path.read_bytes() == before


PARTS = {
    "genes": (slice(None), [7, 1, 3]),
    "rows": (np.arange(600) % 3 > 0, slice(None)),
    "both": (np.flatnonzero(np.arange(600) % 3), slice(2, 9)),
    "in another order": (np.random.default_rng(0).permutation(600)[:400], [7, 1, 3]),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_parts_of_backed_objects_are_read_block_by_block(tmp_path, kind, part, monkeypatch):
    monkeypatch.setattr(ra, "BATCH_BYTES", 8 * 20 * 300)
    X, obs = cells()
    rows, genes = PARTS[part]
    anndata.AnnData(kind(X), obs=obs).write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    view = backed[rows, genes]
    table = ra.from_anndata(view, "batch + counts")
    model = rm.Residualizer("batch + counts", scale=True, shrinkage={"batch": "eb"}, check_leakage=False)
    found = model.fit_transform(table)
    own = X[rows][:, genes], obs.iloc[np.arange(600)[rows]]
    whole = expected(*own, scale=True, shrinkage={"batch": "eb"}, check_leakage=False)
    np.testing.assert_allclose(found, whole, atol=1e-9)
    assert list(model.features_) == list(view.var_names)
    # the model finds its genes by name in the whole object
    if part != "rows":
        np.testing.assert_allclose(model.transform(ra.from_anndata(backed, "batch + counts"))[rows], found, atol=1e-9)
    for write in (ra.residualize, ra.mixture):
        with pytest.raises(ValueError, match="part of a backed object, which nothing can be written to"):
            write(view, "batch")
    backed.file.close()


def test_results_of_a_part_in_memory_stand_in_the_part():
    X, obs = cells()
    adata = anndata.AnnData(X, obs=obs.copy())
    part = adata[obs.batch != "c", [7, 1, 3]]
    with pytest.warns(anndata.ImplicitModificationWarning):
        ra.residualize(part, "batch + counts")
    rows = (obs.batch != "c").to_numpy()
    np.testing.assert_allclose(part.layers["residual"], expected(X[rows][:, [7, 1, 3]], obs[rows]), atol=1e-10)
    assert "residual" not in adata.layers


def test_layers_and_embeddings_are_features_too():
    X, obs = cells()
    adata = anndata.AnnData(np.zeros_like(X), obs=obs.copy(), layers={"log": np.arcsinh(X)}, obsm={"X_pca": X[:, :5]})
    ra.residualize(adata, "batch", layer="log", key="clean")
    np.testing.assert_allclose(adata.layers["clean"], expected(np.arcsinh(X), obs, "batch"), atol=1e-10)
    ra.residualize(adata, "batch", basis="X_pca")
    np.testing.assert_allclose(adata.obsm["X_pca_residual"], expected(X[:, :5], obs, "batch"), atol=1e-10)
    assert adata.uns["clean"]["features"] == "layers/log" and adata.uns["residual"]["features"] == "obsm/X_pca"
    assert not adata.X.any()


def test_preserved_effects_are_kept():
    X, obs = cells()
    X[:, 2] += 4 * (obs.kind == "t")
    adata = anndata.AnnData(X.copy(), obs=obs.copy())
    ra.residualize(adata, "batch", preserve="kind")
    np.testing.assert_allclose(adata.layers["residual"], expected(X, obs, "batch", preserve="kind"), atol=1e-10)
    gap = adata.layers["residual"][obs.kind == "t", 2].mean() - adata.layers["residual"][obs.kind == "b", 2].mean()
    assert gap == pytest.approx(4, abs=0.5)


def test_what_is_written_survives_an_h5ad_file(tmp_path):
    import json

    X, obs = cells()
    adata = anndata.AnnData(X.copy(), obs=obs.copy())
    model = ra.residualize(adata, "batch + counts")
    adata.write_h5ad(tmp_path / "out.h5ad")
    again = anndata.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(again.layers["residual"], adata.layers["residual"])
    np.testing.assert_array_equal(again.uns["residual"]["coef"], model.coef_)
    design = Design.from_dict(json.loads(again.uns["residual"]["design"]))
    rebuilt = X - again.uns["residual"]["intercept"] - design.matrix(obs).dense @ again.uns["residual"]["coef"]
    np.testing.assert_allclose(rebuilt, adata.layers["residual"], atol=1e-9)


@pytest.mark.parametrize("residuals", ["in-sample", "cross-fitted"])
def test_some_genes_only_have_their_places_and_the_others_are_nan(residuals):
    X, obs = cells()
    adata = anndata.AnnData(X, obs=obs.copy())
    wanted = [adata.var_names[j] for j in (7, 1, 3)]
    model = ra.residualize(adata, "batch + counts", features=wanted, residuals=residuals)
    found = adata.layers["residual"]
    assert found.shape == X.shape
    own = expected(X[:, [7, 1, 3]], obs[["batch", "counts"]], residuals=residuals)
    np.testing.assert_allclose(found[:, [7, 1, 3]], own, atol=1e-12)
    assert np.isnan(np.delete(found, [7, 1, 3], axis=1)).all()
    assert adata.uns["residual"]["names"].tolist() == wanted == model.features_.tolist()
    adata.obsm["X_pca"] = X
    ra.residualize(adata, "batch + counts", basis="X_pca", features=[2])
    np.testing.assert_allclose(
        adata.obsm["X_pca_residual"][:, 2], expected(X, obs[["batch", "counts"]])[:, 2], atol=1e-12
    )


def test_a_mixture_writes_components_and_probabilities():
    rng = np.random.default_rng(0)
    kind, batch = rng.integers(0, 2, 500), rng.integers(0, 2, 500)
    X = rng.normal(size=(500, 3)) + 6 * kind[:, None] * [1, 0, 0] + 5 * batch[:, None] * [0, 1, 0]
    obs = pd.DataFrame({"batch": np.array(["a", "b"])[batch]}, index=[f"c{i}" for i in range(500)])
    adata = anndata.AnnData(X, obs=obs)
    model = ra.mixture(adata, "batch", 2, random_state=0)
    found = adata.obs["residmix"].cat.codes.to_numpy()
    assert max(np.mean(found == kind), np.mean(found != kind)) > 0.99
    np.testing.assert_allclose(adata.obsm["X_residmix"].sum(axis=1), 1)
    np.testing.assert_array_equal(adata.uns["residmix"]["means"], model.means_)


def test_what_cannot_be_read_is_one_clear_error():
    X, obs = cells(60)
    adata = anndata.AnnData(X, obs=obs, layers={"log": X})
    with pytest.raises(ValueError, match="unknown column 'bacth' in obs - did you mean 'batch'"):
        ra.residualize(adata, "bacth")
    with pytest.raises(ValueError, match="there is no layer 'lgo' - did you mean 'log'"):
        ra.residualize(adata, "batch", layer="lgo")
    with pytest.raises(ValueError, match="no basis 'X_pca'; there are: none"):
        ra.residualize(adata, "batch", basis="X_pca")
    with pytest.raises(ValueError, match="layer or basis, not both"):
        ra.residualize(adata, "batch", layer="log", basis="X_pca")
    with pytest.raises(TypeError, match="must be an AnnData object, not ndarray"):
        ra.residualize(X, "batch")
    with pytest.raises(ValueError, match=r"adata.X is empty"):
        ra.residualize(anndata.AnnData(obs=obs), "batch")


@pytest.mark.slow
def test_without_anndata_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['anndata'] = None\n"
        "import residmix.anndata as ra\n"
        "try: ra.residualize(None, 'batch')\n"
        "except ImportError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'residmix[anndata]'" in out


def test_honest_residuals_are_what_is_written():
    X, obs = cells(200)
    for residuals in ("loo", "cross-fitted"):
        adata = anndata.AnnData(sp.csr_matrix(X), obs=obs.copy())
        ra.residualize(adata, "batch + counts", residuals=residuals)
        np.testing.assert_allclose(adata.layers["residual"], expected(X, obs, residuals=residuals), atol=1e-10)
        assert np.abs(adata.layers["residual"] - expected(X, obs)).max() > 0.01


def test_genes_are_found_by_their_names(tmp_path):
    X, obs = cells()
    names = [f"gene{j}" for j in range(20)]
    adata = anndata.AnnData(X.copy(), obs=obs.copy(), var=pd.DataFrame(index=names))
    model = ra.residualize(adata, "batch")
    assert list(model.features_) == names
    shuffled = adata[:, ::-1].copy()
    again = model.transform(ra.from_anndata(shuffled, "batch"))
    np.testing.assert_allclose(again, adata.layers["residual"], atol=1e-12)
    with pytest.raises(ValueError, match="gene0"):
        model.transform(ra.from_anndata(adata[:, 1:].copy(), "batch"))
    np.testing.assert_allclose(model.transform(X, metadata=obs), adata.layers["residual"], atol=1e-12)
    counts = anndata.AnnData(np.round(X * 3).astype(int), obs=obs.copy(), var=pd.DataFrame(index=names))
    with pytest.warns(LeakageWarning, match=r"features with repeated values \('gene"):
        ra.residualize(counts, "batch")
    twice = adata.copy()
    twice.var_names = ["gene"] * 20  # names that tell nothing apart
    assert list(ra.residualize(twice, "batch").features_[:2]) == ["x0", "x1"]
    frame = pd.DataFrame(X[:, :3], index=adata.obs_names, columns=["u", "v", "w"])
    adata.obsm["moments"] = frame
    assert list(ra.residualize(adata, "batch", basis="moments").features_) == ["u", "v", "w"]


def test_unused_categories_and_gaps_in_obs_have_the_right_answer():
    X, obs = cells()
    obs["batch"] = pd.Categorical(obs["batch"], categories=["z", "c", "b", "a"])
    adata = anndata.AnnData(X.copy(), obs=obs.copy())
    assert ra.residualize(adata, "batch").design_columns_ == ["batch[T.b]", "batch[T.c]"]
    adata.obs.loc["cell3", "counts"] = np.nan
    adata.obs.loc["cell4", "batch"] = np.nan
    with pytest.raises(ValueError, match=r"'(batch|counts)' has 1 missing value \(the first in row [34]\)"):
        ra.residualize(adata, "batch + counts")
    model = ra.residualize(adata, "batch + counts", missing="mean")
    np.testing.assert_allclose(adata.layers["residual"], expected(X, adata.obs, missing="mean"), atol=1e-10)
    assert np.isfinite(model.transform(ra.from_anndata(adata, "batch + counts"))).all()


def test_a_regressor_may_take_the_place_of_least_squares(tmp_path):
    X, obs = cells()
    adata = anndata.AnnData(X.copy(), obs=obs.copy())
    model = ra.residualize(adata, "batch + counts", estimator=LinearRegression())
    np.testing.assert_allclose(adata.layers["residual"], expected(X, obs, estimator=LinearRegression()), atol=1e-10)
    adata.write_h5ad(tmp_path / "out.h5ad")
    assert "coef" not in adata.uns["residual"]
    np.testing.assert_array_equal(adata.uns["residual"]["r2"], model.r2_)
