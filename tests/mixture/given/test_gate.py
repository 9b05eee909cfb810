"""The gate: its steps never overshoot, and end at the maximum-likelihood logit."""

import numpy as np
import pytest
from scipy.optimize import minimize

from residmix.mixture.given import gate as gating
from residmix.mixture.given.gate import gate_moments, gate_step, log_priors, make_gate


def problem(seed, n=400, r=3, K=3, steep=1.0):
    rng = np.random.default_rng(seed)
    u = rng.standard_normal((n, r))
    share = np.exp(log_priors(u, steep * rng.standard_normal((K, r + 1))))
    target = np.array([rng.multinomial(1, row / row.sum()) for row in share], dtype=float)
    return u, 0.8 * target + 0.2 / K, rng.uniform(0.2, 2.0, n)


def objective(coef, u, share, weight):
    return float(weight @ (share * log_priors(u, coef)).sum(axis=1))


def steps(gate, u, share, weight, count):
    """Yield gates, each one step after the other, as EM takes them."""
    v = np.column_stack([u, np.ones(len(u))])
    target = (share * weight[:, None]).T @ v
    for _ in range(count):
        moments = gate_moments(u, log_priors(u, gate.coef), weight, curvature=gate.needs_curvature())
        gate = gate_step(gate, target, moments, weight.sum())
        yield gate


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("steep", [0.3, 8.0])
def test_no_step_ever_lowers_the_likelihood(blocks, steep, monkeypatch):
    if blocks:  # the block-diagonal bound that large problems use
        monkeypatch.setattr(gating, "MAX_HESSIAN", 0)
    for seed in range(5):
        u, share, weight = problem(seed, steep=steep)
        start = make_gate(np.random.default_rng(seed).normal(scale=3.0, size=(3, 4)))
        values = [objective(start.coef, u, share, weight)]
        values += [objective(g.coef, u, share, weight) for g in steps(start, u, share, weight, 30)]
        # control: the first gates are far from the optimum, so there is something to gain
        assert values[-1] > values[0] + 1
        assert np.diff(values).min() >= -1e-12 * abs(values[-1])


def test_an_unguarded_newton_step_can_lower_the_likelihood():
    # control of the test above: without the shortened step, one Newton step from a saturated gate overshoots
    u, share, weight = problem(0, r=1, K=2)
    gate = make_gate(np.array([[4.0, 0.0], [-4.0, 0.0]]))
    v = np.column_stack([u, np.ones(len(u))])
    moments = gate_moments(u, log_priors(u, gate.coef), weight, curvature=True)
    gradient = (share * weight[:, None]).T @ v - moments.prior
    full = np.linalg.solve(moments.curvature, gradient[:-1].ravel()).reshape(1, 2)
    step = np.vstack([full, np.zeros((1, 2))])
    before = objective(gate.coef, u, share, weight)
    assert objective(gate.coef + step, u, share, weight) < before
    (safe,) = steps(gate, u, share, weight, 1)
    assert objective(safe.coef, u, share, weight) > before


def test_the_limit_is_the_maximum_likelihood_logit():
    u, share, weight = problem(1)
    *_, gate = steps(make_gate(np.zeros((3, 4))), u, share, weight, 60)

    def loss(free):
        return -objective(np.vstack([free.reshape(2, 4), np.zeros(4)]), u, share, weight) / weight.sum()

    best = minimize(loss, np.zeros(8), method="BFGS", options={"gtol": 1e-9})
    found = gate.coef - gate.coef[-1]
    # BFGS with numerical gradients finds the optimum to about 1e-6
    np.testing.assert_allclose(found[:2].ravel(), best.x, atol=2e-5)


def test_the_curvature_is_the_hessian():
    u, _, weight = problem(2, n=50, r=2)
    coef = np.random.default_rng(0).normal(size=(3, 3))
    coef -= coef[-1]
    moments = gate_moments(u, log_priors(u, coef), weight, curvature=True)

    def gradient(free):
        full = np.vstack([free.reshape(2, 3), np.zeros(3)])
        return gate_moments(u, log_priors(u, full), weight, curvature=False).prior[:2].ravel()

    h, free = 1e-5, coef[:2].ravel()
    numeric = np.stack([(gradient(free + h * e) - gradient(free - h * e)) / (2 * h) for e in np.eye(6)])
    # central differences of a smooth function: relative error about h^2
    np.testing.assert_allclose(moments.curvature, numeric, rtol=1e-6, atol=1e-6)


def test_moments_of_blocks_add_up():
    u, _, weight = problem(3)
    prior = log_priors(u, np.random.default_rng(1).normal(size=(3, 4)))
    whole = gate_moments(u, prior, weight, curvature=True)
    parts = [gate_moments(u[s], prior[s], weight[s], curvature=True) for s in (slice(0, 150), slice(150, None))]
    merged = parts[0].merge(parts[1])
    np.testing.assert_allclose(merged.prior, whole.prior, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(merged.curvature, whole.curvature, rtol=1e-12, atol=1e-10)
    np.testing.assert_array_equal(merged.reach, whole.reach)


def test_perfect_separation_stays_finite():
    u = np.repeat([[-1.0], [1.0]], 50, axis=0)
    share = np.repeat(np.eye(2), 50, axis=0)
    weight = np.ones(100)
    gates = list(steps(make_gate(np.zeros((2, 2))), u, share, weight, 200))
    values = [objective(g.coef, u, share, weight) for g in gates]
    assert np.isfinite(gates[-1].coef).all()
    assert np.diff(values).min() >= -1e-12
    assert values[-1] > -1e-3


def test_log_priors_survive_huge_logits():
    found = log_priors(np.array([[1e4], [-1e4]]), np.array([[1.0, 0.0], [-1.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.0, -2e4], [-2e4, 0.0]])
