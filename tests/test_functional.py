"""mdn_residualize against its definition: textbook least squares, then textbook EM."""

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import ConvergenceWarning

import residmix as rm
from residmix.data import penguins
from residmix.errors import CollinearityWarning


def textbook(X, M, pi, mu, precisions, iterations=50, reg_covar=1e-6):
    """Return beta, residual, pi, mu, sigma, log-likelihood, responsibilities, written from the formulas."""
    design = np.column_stack([M, np.ones(len(X))])
    beta = np.linalg.lstsq(design, X, rcond=None)[0]
    R = X - design @ beta
    sigma = np.linalg.inv(precisions)
    d = X.shape[1]

    def posterior():
        density = np.empty((len(R), len(pi)))
        for k in range(len(pi)):
            away = R - mu[k]
            distance = np.einsum("ij,jk,ik->i", away, np.linalg.inv(sigma[k]), away)
            density[:, k] = pi[k] * np.exp(-distance / 2) / np.sqrt((2 * np.pi) ** d * np.linalg.det(sigma[k]))
        total = density.sum(axis=1)
        return density / total[:, None], np.log(total).sum()

    for _ in range(iterations):
        r, _ = posterior()
        count = r.sum(axis=0)
        pi, mu = count / len(R), (r.T @ R) / count[:, None]
        sigma = np.array(
            [((r[:, k, None] * (R - mu[k])).T @ (R - mu[k])) / count[k] + reg_covar * np.eye(d) for k in range(len(pi))]
        )
    r, log_likelihood = posterior()
    return {"beta": beta, "residual": R, "pi": pi, "mu": mu, "sigma": sigma, "log_likelihood": log_likelihood, "r": r}


def problem(metadata, seed=0, n=400, d=3, K=3):
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, K, n)
    centres = rng.normal(scale=3, size=(K, d))
    X = centres[cluster] + rng.normal(size=(n, d)) + metadata @ rng.normal(size=(metadata.shape[1], d)) + 10
    start = {
        "means_init": rng.normal(scale=2, size=(K, d)),
        "weights_init": np.array([0.5, 0.3, 0.2]),
        "precisions_init": np.array([np.eye(d) * s for s in (0.5, 1.0, 0.3)]),
    }
    return X, start


def numbers(n=400, p=2, seed=3):
    return np.random.default_rng(seed).normal(size=(n, p)) * [1.0, 30.0][:p] + [0.0, 50.0][:p]


@pytest.mark.parametrize("form", ["array", "one-dimensional", "frame", "lists", "collinear"])
def test_from_the_same_start_it_is_textbook_least_squares_and_textbook_em(form):
    M = numbers(p=1 if form == "one-dimensional" else 2)
    if form == "collinear":
        M = np.column_stack([M, M[:, 0] - 2 * M[:, 1]])
    X, start = problem(M)
    given = {
        "one-dimensional": M[:, 0],
        "frame": pd.DataFrame({"a": M[:, 0], "b": M[:, -1]}),
        "lists": M.tolist(),
    }.get(form, M)
    settings = dict(tol=0, max_iter=50, return_responsibilities=True, **start)
    if form == "collinear":
        with pytest.warns(CollinearityWarning, match="'m2' is determined by 'm0' and 'm1'"):
            found = rm.mdn_residualize(X, given, 3, **settings)
    else:
        found = rm.mdn_residualize(X, given, 3, **settings)
    expected = textbook(X, M, start["weights_init"], start["means_init"], start["precisions_init"])
    assert np.abs(expected["mu"] - start["means_init"]).max() > 0.5  # EM had somewhere to go
    for key in ("beta", "residual", "pi", "mu", "sigma"):
        np.testing.assert_allclose(found[key], expected[key], atol=1e-8)
    np.testing.assert_allclose(found["log_likelihood"], expected["log_likelihood"], rtol=1e-10)
    np.testing.assert_allclose(found["responsibilities"], expected["r"], atol=1e-8)
    assert found["n_iter"] == 50


def test_the_keys_and_shapes_are_the_contract():
    M = numbers()
    X, _ = problem(M)
    found = rm.mdn_residualize(X, M, random_state=0)
    assert set(found) == {"beta", "residual", "pi", "mu", "sigma", "log_likelihood", "n_iter", "converged"}
    shapes = {key: found[key].shape for key in ("beta", "residual", "pi", "mu", "sigma")}
    assert shapes == {"beta": (3, 3), "residual": (400, 3), "pi": (3,), "mu": (3, 3), "sigma": (3, 3, 3)}
    assert found["converged"] is True and isinstance(found["n_iter"], int)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_every_covariance_type_gives_full_matrices_whose_density_is_the_log_likelihood(kind):
    from scipy.stats import multivariate_normal

    M = numbers()
    X, _ = problem(M)
    found = rm.mdn_residualize(X, M, 2, covariance_type=kind, random_state=0)
    density = sum(
        w * multivariate_normal(m, s).pdf(found["residual"])
        for w, m, s in zip(found["pi"], found["mu"], found["sigma"], strict=True)
    )
    np.testing.assert_allclose(np.log(density).sum(), found["log_likelihood"], rtol=1e-9)


def test_a_number_of_iterations_is_asked_for_in_silence_and_a_tolerance_that_is_missed_is_told():
    metadata = numbers()
    X, start = problem(metadata)
    rm.mdn_residualize(X, metadata, **start, tol=0, max_iter=2)
    with pytest.warns(ConvergenceWarning):
        rm.mdn_residualize(X, metadata, **start, max_iter=2)


def test_the_default_start_finds_the_clusters_that_a_poor_one_misses():
    M = numbers(n=600)
    rng = np.random.default_rng(5)
    cluster = rng.integers(0, 3, 600)
    X = np.array([[0, 0], [8, 0], [0, 8.0]])[cluster] + rng.normal(size=(600, 2)) + M @ rng.normal(size=(2, 2))
    for seed in range(5):
        found = rm.mdn_residualize(X, M, random_state=seed)
        np.testing.assert_allclose(np.sort(found["pi"]), np.sort(np.bincount(cluster) / 600), atol=0.02)


def test_penguins_without_sex_show_their_species():
    from sklearn.metrics import adjusted_rand_score

    data = penguins()
    features = data.select_dtypes("number").drop(columns="year", errors="ignore")
    for seed in range(3):
        found = rm.mdn_residualize(features, data[["sex"]], return_responsibilities=True, random_state=seed)
        assert adjusted_rand_score(data["species"], found["responsibilities"].argmax(axis=1)) >= 0.96


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.full((10, 2), np.nan)}, "NaN|value"),
        ({"X": np.full((10, 2), np.inf)}, "infinity"),
        ({"X": np.zeros(10)}, "2D"),
        ({"X": np.array([["a", "b"]] * 10)}, "numeric|convert|numbers"),
        ({"metadata": np.zeros(9)}, "10 rows but metadata has 9"),
        ({"metadata": np.full(10, np.nan)}, "missing"),
        ({"metadata": np.zeros((2, 5, 2))}, "1|2"),
        ({"n_components": 11}, "n_components = 11"),
        ({"n_components": 0}, "n_components"),
        ({"means_init": np.zeros((2, 2))}, "means"),
    ],
)
def test_bad_input_gets_one_clear_error(change, message):
    good = {"X": np.random.default_rng(0).normal(size=(10, 2)), "metadata": np.arange(10.0), "n_components": 3}
    with pytest.raises((ValueError, TypeError), match=message):
        rm.mdn_residualize(**(good | change))


def test_metadata_of_the_same_rows_in_another_order_are_refused():
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 2)), columns=["x", "y"])
    metadata = pd.DataFrame({"age": np.arange(30.0)})
    with pytest.raises(ValueError, match="row 0 is 0 in X and 29 in metadata"):
        rm.mdn_residualize(X, metadata[::-1], 1)
    assert rm.mdn_residualize(X, metadata, 1)["beta"].shape == (2, 2)
