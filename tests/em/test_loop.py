"""The EM loop, on sequences made up for it."""

import numpy as np
import pytest

from residmix.em.loop import Acceleration, run_em

# x <- rate x has the fixed point 0; -x^2 / 2 rises along the way, as a log-likelihood does
VECTOR = Acceleration(lambda x, like: np.atleast_1d(x), lambda vector, like: float(vector[0]))


def linear(rate):
    calls = []

    def step(x):
        calls.append(x)
        return -0.5 * x * x, rate * x

    return step, calls


def test_with_tol_zero_there_are_exactly_max_iter_iterations():
    step, calls = linear(0.5)
    state = run_em(step, 1.0, tol=0, max_iter=7)
    assert state.iteration == 7 and not state.converged and len(calls) == 8
    assert state.params == 0.5**7
    assert state.log_likelihoods == tuple(-0.5 * 0.25**i for i in range(8))


def test_a_slow_sequence_is_not_mistaken_for_a_converged_one():
    # gains fall below tol after one step, but a thousand such gains are still to come
    step, _ = linear(0.9995)
    state = run_em(step, 1.0, tol=1e-2, max_iter=100_000)
    assert state.converged
    assert -state.log_likelihood < 100 * 1e-2
    plain_change_rule = 1.0 * 0.9995
    assert abs(state.params) <= plain_change_rule


def test_acceleration_reaches_the_same_point_in_fewer_passes():
    def run(accelerate):
        step, calls = linear(0.99)
        state = run_em(step, 1.0, tol=1e-12, max_iter=10_000, accelerate=accelerate)
        assert state.converged and abs(state.params) < 1e-3
        return len(calls)

    assert 5 * run(VECTOR) < run(None)


@pytest.mark.parametrize("hostile", ["worse", "nan", "error"])
def test_an_extrapolation_that_fails_is_taken_back(hostile):
    plain = {1.0}

    def step(x):
        if x not in plain:
            if hostile == "error":
                raise ValueError("no such parameters")
            return (np.nan if hostile == "nan" else -1e9), x
        plain.add(0.99 * x)
        return -0.5 * x * x, 0.99 * x

    state = run_em(step, 1.0, tol=0.0, max_iter=60, accelerate=VECTOR)
    assert np.all(np.diff(state.log_likelihoods) >= 0)
    # exactly where textbook EM would be
    assert state.params == run_em(step, 1.0, tol=0.0, max_iter=60).params


def test_a_fit_resumed_from_any_state_ends_bit_for_bit_the_same():
    states = []
    step, _ = linear(0.97)
    whole = run_em(step, 1.0, tol=1e-10, max_iter=500, accelerate=VECTOR, callback=states.append)
    for state in states[:: max(1, len(states) // 7)]:
        assert run_em(step, state, tol=1e-10, max_iter=500, accelerate=VECTOR) == whole


def test_a_callback_that_returns_true_stops_the_fit():
    step, _ = linear(0.5)
    state = run_em(step, 1.0, tol=0, max_iter=50, callback=lambda state: state.iteration == 3)
    assert state.iteration == 3 and len(state.log_likelihoods) == 4


def test_an_error_at_plain_parameters_is_not_swallowed():
    def step(x):
        raise ValueError("singular")

    with pytest.raises(ValueError, match="singular"):
        run_em(step, 1.0, tol=1e-3, max_iter=5, accelerate=VECTOR)
