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
    # the first gain is below tol already, but five hundred times tol is to come
    step, _ = linear(0.9995)
    state = run_em(step, 1.0, tol=1e-3, max_iter=100_000)
    assert 0 < state.log_likelihoods[1] - state.log_likelihoods[0] < 1e-3
    assert state.converged and -state.log_likelihood < 100 * 1e-3
    # nor does it go on to the last digit
    assert -state.log_likelihood > 1e-3


def quadratic(rates):
    """An iteration with the eigenvalues `rates`, which ascends -sum (1 - rate) x^2 / 2."""
    rates = np.asarray(rates)
    calls = []

    def step(x):
        calls.append(x)
        return float(-0.5 * ((1 - rates) * x**2).sum()), rates * x

    return step, calls


def valley(x, like):
    return np.array(x)


@pytest.mark.parametrize("slow", [0.99, 0.998, 0.9995])
@pytest.mark.parametrize("quick", [0.2, 0.5, 0.8, 0.9])
@pytest.mark.parametrize("tol", [1e-3, 1e-5, 1e-7])
def test_quick_directions_do_not_hide_what_a_slow_one_has_to_gain(slow, quick, tol):
    step, _ = quadratic([slow, quick, 0.5 * quick])
    accelerate = Acceleration(valley, lambda vector, like: vector)
    state = run_em(step, np.array([1.0, 30.0, 10.0]), tol=tol, max_iter=100_000, accelerate=accelerate)
    assert state.converged and -state.log_likelihood < 100 * tol


def double_well(x):
    """Ascent in a plane with a saddle at 0 and maxima at x = (+-1, 0), where the value is 1/4 (times a small unit)."""
    unit = 0.02
    value = unit * (0.5 * x[0] ** 2 - 0.25 * x[0] ** 4) - 0.5 * x[1] ** 2
    return float(value), np.array([x[0] + unit * (x[0] - x[0] ** 3), 0.6 * x[1]])


@pytest.mark.parametrize("moves", [True, False])
def test_a_saddle_is_not_mistaken_for_a_maximum(moves):
    accelerate = Acceleration(valley, lambda vector, like: vector, moves=moves)
    begin = np.array([1e-4, 1.0])
    state = run_em(double_well, begin, tol=1e-7, max_iter=5000, accelerate=accelerate)
    assert state.converged and 0.005 - state.log_likelihood < 100 * 1e-7
    # Aitken's estimate alone stops at the saddle
    alone = run_em(double_well, begin, tol=1e-7, max_iter=5000)
    assert alone.converged and 0.005 - alone.log_likelihood > 100 * 1e-7


def test_values_that_the_data_do_not_tell_apart_let_a_fit_end():
    # only the sum of the first two counts
    def step(x):
        gap = 1 - x[0] - x[1]
        return float(-0.5 * gap**2 - 0.5 * x[2] ** 2), np.array([x[0] + 0.2 * gap, x[1] + 0.2 * gap, 0.9 * x[2]])

    accelerate = Acceleration(valley, lambda vector, like: vector)
    state = run_em(step, np.array([3.0, 1.0, 5.0]), tol=1e-6, max_iter=1000, accelerate=accelerate)
    assert state.converged and state.iteration < 200 and -state.log_likelihood < 1e-4


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


def test_an_earlier_runs_log_likelihoods_count_only_where_it_ended():
    def step(k):  # gains shrink by a tenth each time
        return 1e-3 * (1 - 0.9**k), k + 1

    def iterations(*history):
        return run_em(step, 0, tol=2e-4, max_iter=50, history=history).iteration

    # one gain tells nothing of those to come, two do; the last step of the earlier run is the first of two
    assert iterations() == 2
    assert iterations(-1e-4 / 0.9, 0.0) == 1
    # other data: these are no gains of this run
    assert iterations(-1e-3, 0.1) == iterations(-1.0, 7.0) == 2
