"""Closed-form scores of Gaussian mixtures against `scoringrules`, quadrature, and known values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import integrate, stats

from residmix.nn.density import scores


@pytest.fixture
def forecasts() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    n, K = 200, 4
    weights = rng.dirichlet(np.ones(K), n)
    return rng.normal(size=n) * 3, weights, rng.normal(size=(n, K)) * 2, rng.uniform(0.05, 2, (n, K))


def test_crps_has_the_known_values_that_another_library_gets_wrong() -> None:
    # skpro 2.16.0 gives 0.0977 and 4.202 here.
    assert scores.crps_mixture(0.5, [1.0], [0.0], [1.0]) == pytest.approx(0.331404, abs=1e-6)
    assert scores.crps_mixture(0.5, [0.5, 0.5], [-5, 5], [1, 1]) == pytest.approx(2.217906, abs=1e-6)


@pytest.mark.slow
def test_crps_and_log_density_agree_with_scoringrules(forecasts) -> None:
    import scoringrules  # which compiles for seconds

    y, weights, means, scales = forecasts
    crps = scoringrules.crps_mixnorm(y, means, scales, weights)
    np.testing.assert_allclose(scores.crps_mixture(y, weights, means, scales), crps, rtol=1e-12, atol=1e-13)
    log = -scoringrules.logs_mixnorm(y, means, scales, weights)
    np.testing.assert_allclose(scores.mixture_logpdf(y, weights, means, scales), log, rtol=1e-10, atol=1e-10)


def test_crps_is_the_integral_of_the_squared_gap_of_the_distribution_functions(forecasts) -> None:
    y, *mixture = (a[0] for a in forecasts)

    def gap(t: float) -> float:
        return float((scores.mixture_cdf(t, *mixture) - (t >= y)) ** 2)

    below, above = integrate.quad(gap, -40, y, limit=500)[0], integrate.quad(gap, y, 40, limit=500)[0]
    assert scores.crps_mixture(y, *mixture) == pytest.approx(below + above, abs=1e-7)


def test_crps_in_chunks_is_crps_at_once(forecasts, monkeypatch) -> None:
    whole = scores.crps_mixture(*forecasts)
    monkeypatch.setattr(scores, "_PAIRS", 3 * 4 * 4)
    np.testing.assert_array_equal(scores.crps_mixture(*forecasts), whole)


def test_cdf_is_the_integral_of_the_density(forecasts) -> None:
    y, *mixture = (a[1] for a in forecasts)
    area = integrate.quad(lambda t: np.exp(scores.mixture_logpdf(t, *mixture)), -40, y, limit=500)[0]
    assert scores.mixture_cdf(y, *mixture) == pytest.approx(area, abs=1e-8)


def test_cdf_reads_scales_as_standard_deviations() -> None:
    # cde 1.0.1 reads them as variances and gives 0.623 one standard deviation above the mean.
    assert scores.mixture_cdf(2.0 + 0.1, [1.0], [2.0], [0.1]) == pytest.approx(stats.norm.cdf(1))


@pytest.mark.parametrize("level", [1e-12, 1e-3, 0.05, 0.5, 0.95, 1 - 1e-9])
def test_quantiles_invert_the_cdf(forecasts, level) -> None:
    _, *mixture = forecasts
    back = scores.mixture_cdf(scores.mixture_quantile(level, *mixture), *mixture)
    np.testing.assert_allclose(back, level, rtol=1e-7, atol=1e-13)


def test_quantiles_ignore_components_of_weight_zero_and_survive_gaps() -> None:
    far = scores.mixture_quantile([0.25, 0.75], [0.5, 0.5, 0.0], [-1e6, 1e6, 1e9], [1e-3, 1e-3, 1.0])
    np.testing.assert_allclose(far, [-1e6, 1e6], rtol=1e-9)


def test_quantile_levels_outside_the_unit_interval_are_refused() -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        scores.mixture_quantile([0.5, 1.0], [1.0], [0.0], [1.0])


def test_everything_is_finite_a_million_standard_deviations_away() -> None:
    y = np.array([-1e6, 1e6])
    assert np.isfinite(scores.mixture_logpdf(y, [0.3, 0.7], [0, 1], [1, 2])).all()
    assert np.isfinite(scores.crps_mixture(y, [0.3, 0.7], [0, 1], [1, 2])).all()
    assert np.isfinite(scores.cell_log_score(y, [0.3, 0.7], [0, 1], [1, 2], width=1.0)).all()


def test_cell_score_is_the_log_of_the_mass_in_the_cell_and_tends_to_the_density(forecasts) -> None:
    y, *mixture = forecasts
    width = 0.7
    mass = scores.mixture_cdf(y + width / 2, *mixture) - scores.mixture_cdf(y - width / 2, *mixture)
    near = mass > 1e-9  # elsewhere the subtraction on the right has lost its digits
    got = scores.cell_log_score(y, *mixture, width=width)
    np.testing.assert_allclose(got[near], np.log(mass[near] / width), rtol=1e-6, atol=1e-6)
    fine = scores.cell_log_score(y, *mixture, width=1e-5)
    np.testing.assert_allclose(fine, scores.mixture_logpdf(y, *mixture), atol=1e-4)


def test_cell_scores_of_a_grid_sum_to_one_where_densities_do_not() -> None:
    grid = np.arange(-30, 31)
    spikes = ([0.5, 0.5], [0.0, 1.0], [1e-4, 1e-4])
    assert np.exp(scores.cell_log_score(grid, *spikes, width=1.0)).sum() == pytest.approx(1.0)
    assert scores.mixture_logpdf(0.0, *spikes) > 7  # the density of the same forecast has no bound


def test_entropy_is_the_integral(forecasts) -> None:
    _, weights, means, scales = (a[2] for a in forecasts)
    mixture = (weights, means, scales)

    def integrand(t: float) -> float:
        log = float(scores.mixture_logpdf(t, *mixture))
        return -np.exp(log) * log

    area = integrate.quad(integrand, -30, 30, limit=800)[0]
    assert scores.mixture_entropy(*mixture) == pytest.approx(area, abs=1e-6)


@pytest.mark.parametrize("narrow", [1e-1, 1e-2, 1e-4, 1e-8])
def test_entropy_sees_a_narrow_component_within_a_wide_one(narrow: float) -> None:
    mixture = (np.array([0.5, 0.5]), np.array([0.0, 0.1]), np.array([1.0, narrow]))
    ends = np.unique(np.concatenate([m + s * np.linspace(-9, 9, 73) for m, s in zip(*mixture[1:], strict=True)]))

    def integrand(t: float) -> float:
        log = float(scores.mixture_logpdf(t, *mixture))
        return -np.exp(log) * log

    area = sum(integrate.quad(integrand, a, b, epsabs=1e-12)[0] for a, b in itertools.pairwise(ends))
    assert scores.mixture_entropy(*mixture) == pytest.approx(area, abs=1e-6)
    # In the limit the two don't overlap: the mean of their entropies, and log 2 for which of them it is.
    limit = 0.5 * np.log(2 * np.pi * np.e) + np.log(2) + 0.5 * np.log(narrow)
    assert area == pytest.approx(limit, abs=5 * narrow * max(1.0, -np.log(narrow)))


def test_pit_of_the_truth_is_uniform_and_of_a_narrow_forecast_is_not() -> None:
    y = np.random.default_rng(1).normal(size=4000)
    right = scores.pit_mixture(y, [1.0], [0.0], [1.0])
    narrow = scores.pit_mixture(y, [1.0], [0.0], [0.5])
    # Kolmogorov's 99.9 % point at n = 4000 is 1.95/sqrt(n) = 0.031.
    assert scores.uniformity(right) < 0.031 < scores.uniformity(narrow)
    assert scores.quantile_calibration_error(right) < 0.02 < scores.quantile_calibration_error(narrow)
    assert scores.uniformity(right) == pytest.approx(stats.kstest(right, "uniform").statistic)


def test_randomised_pit_is_uniform_on_a_grid_where_the_plain_one_is_not() -> None:
    y = np.round(np.random.default_rng(2).normal(size=4000))
    plain = scores.pit_mixture(y, [1.0], [0.0], [1.0])
    random = scores.pit_mixture(y, [1.0], [0.0], [1.0], width=1.0, random_state=0)
    assert scores.uniformity(random) < 0.031 < scores.uniformity(plain)


@pytest.mark.slow
def test_interval_score_pinball_and_coverage_agree_with_scoringrules(forecasts) -> None:
    import scoringrules  # which compiles for seconds

    y, *mixture = forecasts
    ends = np.stack([scores.mixture_quantile(p, *mixture) for p in (0.05, 0.95)], axis=-1)
    reference = scoringrules.interval_score(y, ends[:, 0], ends[:, 1], 0.1)
    np.testing.assert_allclose(scores.interval_score(y, ends, level=0.9), reference)
    np.testing.assert_allclose(
        scores.pinball_loss(y, ends[:, 0], level=0.05), scoringrules.quantile_score(y, ends[:, 0], 0.05)
    )
    assert scores.coverage(y, ends) == pytest.approx(np.mean((y >= ends[:, 0]) & (y <= ends[:, 1])))


@pytest.mark.slow
def test_energy_score_tends_to_the_crps_and_agrees_with_scoringrules() -> None:
    import scoringrules  # which compiles for seconds

    rng = np.random.default_rng(3)
    draws, y = rng.normal(size=(400, 2, 3)), rng.normal(size=(2, 3))
    reference = scoringrules.es_ensemble(y, draws.transpose(1, 0, 2), estimator="fair")
    np.testing.assert_allclose(scores.energy_score(y, draws), reference, rtol=1e-10)
    single = rng.normal(size=(4000, 1, 1))
    # The standard error of the mean of 4000 draws is about 0.01.
    assert scores.energy_score([[0.5]], single)[0] == pytest.approx(0.3314, abs=0.04)
    with pytest.raises(ValueError, match="at least 2 draws"):
        scores.energy_score(y, draws[:1])


def test_the_randomised_pit_of_a_value_is_uniform_over_its_grid_cell(forecasts) -> None:
    weights, means, scales = (part[0] for part in forecasts[1:])
    ends = scores.mixture_cdf([0.75, 1.25], weights, means, scales)
    found = scores.pit_mixture(np.full(5000, 1.0), weights, means, scales, width=0.5, random_state=0)
    assert ends[0] <= found.min() and found.max() <= ends[1]
    assert stats.kstest((found - ends[0]) / (ends[1] - ends[0]), "uniform").pvalue > 0.01
