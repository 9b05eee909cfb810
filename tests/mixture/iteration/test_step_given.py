"""The steps of ECM against a plain-numpy reference, closed forms and numerical differentiation."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from residmix.em.loop import run_em
from residmix.mixture.families.family import ALIASES, FAMILIES, family
from residmix.mixture.given import coefficients
from residmix.mixture.given.coefficients import coefficient_step, conjugate_gradients
from residmix.mixture.given.gate import Gate, log_priors, make_gate
from residmix.mixture.iteration.estep import Problem, mixture_block
from residmix.mixture.iteration.mstep import m_step
from residmix.mixture.iteration.step import MixtureEM, block_log_joint, block_moments, residual_moments
from residmix.mixture.params import make_params
from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows


def moments_of(block, params):
    return block_moments(Problem.of(params, full=True), block, with_design=True)


def data(seed=0, n=900, d=3, q=2, K=3):
    """Rows around K clusters whose proportions depend on the (centred, orthonormal) design."""
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(np.column_stack([np.ones(n), rng.standard_normal((n, q))]))[0][:, 1:] * np.sqrt(n)
    prior = np.exp(log_priors(u, rng.normal(scale=1.5, size=(K, q + 1))))
    z = (rng.random((n, 1)) > prior.cumsum(axis=1)).sum(axis=1).clip(0, K - 1)
    mu, D = 4.0 * rng.standard_normal((K, d)), rng.standard_normal((q, d))
    x = mu[z] + u @ D + rng.standard_normal((n, d)) * rng.uniform(0.6, 1.4, (K, d))[z]
    return x, u, z, mu, D, rng.uniform(0.5, 2.0, n)


def covariances(kind, K, d, rng):
    spread = rng.standard_normal((K, d, 2 * d))
    full = spread @ np.swapaxes(spread, 1, 2) / (2 * d) + np.eye(d)
    return family(kind).fit(family(kind).of_full(full, np.ones(K)), np.ones(K))


def start(kind, x, q, mu, gated, seed=0):
    rng = np.random.default_rng(seed)
    K, d = mu.shape
    mixture = make_params(
        np.full(K, 1 / K), mu + 0.5 * rng.standard_normal(mu.shape), covariances(kind, K, d, rng), kind
    )
    gate = make_gate(rng.normal(scale=0.3, size=(K, q + 1))) if gated else None
    return replace(mixture, coef=0.3 * rng.standard_normal((q, d)), gate=gate)


def reference_log_joint(x, u, params):
    """log pi_k(u) + log N(x - u D | mu_k, Sigma_k), by scipy."""
    residual = x - u @ params.coef
    full = params.full_covariances()
    gauss = np.stack(
        [multivariate_normal(m, c).logpdf(residual) for m, c in zip(params.means, full, strict=True)], axis=1
    )
    prior = np.log(params.weights) if params.gate is None else log_priors(u, params.gate.coef)
    return gauss + prior


@pytest.mark.parametrize("kind", [*ALIASES, *FAMILIES])
@pytest.mark.parametrize("gated", [False, True])
def test_density_and_moments_are_those_of_plain_numpy(kind, gated):
    x, u, _, mu, _, w = data(n=200)
    params = start(kind, x, 2, mu, gated)
    block = Block(0, x, u, (), w)
    log_joint = reference_log_joint(x, u, params)
    assert_allclose(block_log_joint(Problem.of(params), block), log_joint, rtol=1e-9, atol=1e-9)
    moments = moments_of(block, params)
    share = np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True)) * w[:, None]
    assert_allclose(moments.log_likelihood, w @ logsumexp(log_joint, axis=1), rtol=1e-11)
    for k in range(len(mu)):
        row = np.column_stack([u, x - u @ params.coef - params.means[k]])
        assert_allclose(moments.shift[k], share[:, k] @ row, rtol=1e-9, atol=1e-8)
        assert_allclose(moments.scatter[k], (row * share[:, k : k + 1]).T @ row, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("kind", [*ALIASES, *FAMILIES])
@pytest.mark.parametrize("gated", [False, True])
def test_the_likelihood_never_falls_and_ends_where_its_gradient_is_zero(kind, gated):
    x, u, _, mu, _, w = data(1)
    em = MixtureEM(ArrayRows(x, u, weight=w, block_rows=256), 0.0)
    state = run_em(em, start(kind, x, 2, mu, gated), tol=1e-14, max_iter=3000)
    values = np.array(state.log_likelihoods)
    assert values[-1] > values[0] + 0.1
    assert np.diff(values).min() >= -1e-12 * abs(values[-1])

    def value(change):
        """Log-likelihood per row after a change of coefficients, means and gate."""
        params, q = state.params, 2
        D, m, rest = np.split(change, [q * 3, q * 3 + mu.size])
        moved = replace(params, means=params.means + m.reshape(mu.shape))
        gate = None if params.gate is None else Gate(params.gate.coef + rest.reshape(params.gate.coef.shape))
        log_joint = reference_log_joint(x, u, replace(moved, coef=params.coef + D.reshape(q, 3), gate=gate))
        return w @ logsumexp(log_joint, axis=1) / w.sum()

    size = 2 * 3 + mu.size + (mu.shape[0] * 3 if gated else 0)
    h = 1e-5
    gradient = np.array([(value(h * e) - value(-h * e)) / (2 * h) for e in np.eye(size)])
    # EM stopped at a relative gain of 1e-14, where the gradient is about the root of that
    assert np.abs(gradient).max() < 2e-6


@pytest.mark.parametrize("kind", [*ALIASES, *FAMILIES])
def test_one_component_is_least_squares(kind):
    # with one component every covariance gives the same coefficients: those of least squares
    x, u, _, _, _, w = data(2)
    params = make_params(np.ones(1), np.zeros((1, 3)), covariances(kind, 1, 3, np.random.default_rng(0)), kind)
    em = MixtureEM(ArrayRows(x, u, weight=w), 0.0)
    _, found = em(replace(params, coef=np.zeros((2, 3))))
    design = np.column_stack([u, np.ones(len(u))]) * np.sqrt(w)[:, None]
    expected = np.linalg.lstsq(design, x * np.sqrt(w)[:, None], rcond=None)[0]
    # the damping of 1e-10 that keeps unseen directions still costs as many digits
    assert_allclose(found.coef, expected[:2], rtol=1e-8, atol=1e-8)
    assert_allclose(found.means[0], expected[2], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", [*ALIASES, *FAMILIES])
def test_coefficients_solve_generalised_least_squares(kind):
    x, u, _, mu, _, w = data(3, n=300)
    params = start(kind, x, 2, mu, False)
    moments = moments_of(Block(0, x, u, (), w), params)
    step = coefficient_step(moments, 2, params)
    log_joint = reference_log_joint(x, u, params)
    share = np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True)) * w[:, None]
    precisions = np.linalg.inv(params.full_covariances())
    residual = x - u @ params.coef
    left = right = 0.0
    for k, P in enumerate(precisions):
        centred = [v - share[:, k] @ v / share[:, k].sum() for v in (u, residual)]
        left = left + np.kron((centred[0] * share[:, k : k + 1]).T @ centred[0], P)
        right = right + (centred[0] * share[:, k : k + 1]).T @ centred[1] @ P
    assert_allclose(step, np.linalg.solve(left, right.ravel()).reshape(2, 3), rtol=1e-7, atol=1e-8)
    assert np.abs(step).max() > 0.01


def test_conjugate_gradients_find_what_the_dense_solver_finds(monkeypatch):
    x, u, _, mu, _, _ = data(4)
    params = start("full", x, 2, mu, False)
    moments = moments_of(Block(0, x, u), params)
    dense = coefficient_step(moments, 2, params)
    monkeypatch.setattr(coefficients, "MAX_DENSE", 0)
    assert_allclose(coefficient_step(moments, 2, params), dense, rtol=1e-7, atol=1e-9)
    zero = conjugate_gradients(lambda v: v, np.zeros((2, 3)), np.eye(2), np.eye(3))
    assert_allclose(zero, 0.0, atol=0)


def test_moments_move_with_the_coefficients():
    x, u, _, mu, _, w = data(5, n=300)
    params = start("full", x, 2, mu, False)
    step = np.random.default_rng(0).standard_normal((2, 3))
    moved = residual_moments(mixture_block(x, params, weight=w, extra=u), step)
    log_joint = reference_log_joint(x, u, replace(params, coef=np.zeros((2, 3))))
    share = np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True)) * w[:, None]
    for k, mean in enumerate(params.means):
        row = x - u @ step - mean
        assert_allclose(moved.shift[k], share[:, k] @ row, rtol=1e-8, atol=1e-7)
        assert_allclose(moved.scatter[k], (row * share[:, k : k + 1]).T @ row, rtol=1e-8, atol=1e-7)


@pytest.mark.parametrize("kind", [*ALIASES, *FAMILIES])
def test_without_design_it_is_plain_em(kind):
    x, _, _, mu, _, w = data(6)
    params = start(kind, x, 0, mu, False)
    rows = ArrayRows(x, np.empty((len(x), 0)), weight=w)
    value, found = MixtureEM(rows, 1e-6)(params)
    moments = mixture_block(x, params, weight=w)
    plain = m_step(moments, params, reg_covar=1e-6)
    assert_allclose(value, moments.log_likelihood / moments.total, rtol=1e-12)
    assert_allclose(found.means, plain.means, rtol=1e-9)
    assert_allclose(found.covariances, plain.covariances, rtol=1e-7, atol=1e-10)


def test_blocks_and_weights_only_change_the_rounding():
    x, u, _, mu, _, _ = data(7)
    params = start("full", x, 2, mu, True)
    twice = np.where(np.arange(len(x)) % 2, 2.0, 1.0)
    doubled = np.repeat(np.arange(len(x)), twice.astype(int))
    value, found = MixtureEM(ArrayRows(x, u, weight=twice, block_rows=100), 0.0)(params)
    other, again = MixtureEM(ArrayRows(x[doubled], u[doubled]), 0.0)(params)
    assert_allclose(value, other, rtol=1e-12)
    assert_allclose(found.coef, again.coef, rtol=1e-8)
    assert_allclose(found.gate.coef, again.gate.coef, rtol=1e-8, atol=1e-10)


def test_a_dead_component_is_revived_with_half_of_the_heaviest_prior():
    x, u, _, mu, _, _ = data(8)
    params = start("full", x, 2, np.vstack([mu[:2], np.full((1, 3), 1e4)]), True)
    em = MixtureEM(ArrayRows(x, u), 1e-6)
    _, found = em(params)
    assert em.revived == [[2]]
    heavy = int(np.argmax(found.weights[:2]))
    assert_allclose(found.gate.coef[2], found.gate.coef[heavy])
    state = run_em(em, found, tol=1e-6, max_iter=300)
    assert np.isfinite(state.log_likelihood) and state.params.weights.min() > 0.01
