"""The fourteen families: what they minimise, how many numbers they are, and what belongs to them."""

import numpy as np
import pytest
from scipy.optimize import minimize

from residmix.mixture.families.family import ALIASES, FAMILIES, family

K, D = 3, 3
N = np.array([40.0, 25.0, 60.0])
LETTERS = list(FAMILIES)


def scatter(seed=0, d=D):
    """Covariances within components that are no family's."""
    roots = np.random.default_rng(seed).normal(size=(K, d, d + 2)) * np.array([1.0, 2.0, 0.7])[:, None, None]
    return roots @ roots.swapaxes(1, 2) / (d + 2)


def fitted(name, W):
    """What a family's step leads to."""
    of, found = FAMILIES[name], None
    for _ in range(300):
        found = of.fit(of.of_full(W, N), N, None if found is None else of.full(found, K, D))
    return of.full(found, K, D)


def cost(covariances, W):
    """Minus twice the expected log-likelihood, up to a constant."""
    return sum(
        n * (np.linalg.slogdet(S)[1] + np.trace(np.linalg.solve(S, w)))
        for n, S, w in zip(N, covariances, W, strict=True)
    )


def built(name, x, d=D):
    """Covariances lambda_k D_k A_k D_k' of a family from any vector: its definition, and its number of parameters."""
    x, used = np.asarray(x), [0]

    def take(count):
        used[0] += count
        return x[used[0] - count : used[0]]

    def each(letter, size, make):
        if letter == "I":
            return [np.eye(d)] * K
        parts = [make(take(size)) for _ in range(1 if letter == "E" else K)]
        return parts * K if letter == "E" else parts

    def shape(free):
        return np.diag(np.exp(np.append(free, -free.sum())))

    def rotation(free):
        skew = np.zeros((d, d))
        skew[np.triu_indices(d, 1)] = free
        # Cayley's map
        skew = skew - skew.T
        return np.linalg.solve(np.eye(d) + skew, np.eye(d) - skew)

    volumes = each(name[0], 1, lambda free: np.exp(free[0]) * np.eye(d))
    shapes = each(name[1], d - 1, shape)
    turns = each(name[2], d * (d - 1) // 2, rotation)
    return np.stack([v @ t @ a @ t.T for v, a, t in zip(volumes, shapes, turns, strict=True)]), used[0]


@pytest.mark.parametrize("name", LETTERS)
@pytest.mark.slow
def test_no_optimiser_finds_likelier_covariances_of_the_family(name):
    W = scatter()
    found = fitted(name, W)
    size = built(name, np.zeros(99))[1]
    rng = np.random.default_rng(0)
    starts = 0.5 * rng.normal(size=(6, size))
    ended = [minimize(lambda x: cost(built(name, x)[0], W), x, method="BFGS", options={"gtol": 1e-7}) for x in starts]
    least = min(end.fun for end in ended)
    assert cost(found, W) <= least + 1e-6
    # and it is a member of the family: the optimiser gets as low
    assert cost(found, W) >= least - 1e-6
    assert cost(found, W) < cost(np.stack([np.eye(D)] * K), W) - 1


@pytest.mark.parametrize("name", LETTERS)
@pytest.mark.parametrize("d", [1, 2, 4])
def test_parameters_are_as_many_as_the_directions_a_family_can_move_in(name, d):
    size = built(name, np.zeros(99), d)[1]
    x = 0.5 * np.random.default_rng(1).normal(size=size)
    h = 1e-6
    moves = [(built(name, x + h * e, d)[0] - built(name, x - h * e, d)[0]).ravel() / (2 * h) for e in np.eye(size)]
    assert FAMILIES[name].n_parameters(K, d) == np.linalg.matrix_rank(np.stack(moves), tol=1e-5)


@pytest.mark.parametrize("name", LETTERS)
def test_members_are_left_as_they_are_and_a_step_from_them_never_costs(name):
    of = FAMILIES[name]
    member = built(name, 0.5 * np.random.default_rng(2).normal(size=99))[0]
    again = of.full(of.fit(of.of_full(member, N), N, member), K, D)
    np.testing.assert_allclose(again, member, rtol=1e-6, atol=1e-7)
    W = scatter(3)
    stepped = of.full(of.fit(of.of_full(W, N), N, member), K, D)
    assert cost(stepped, W) < cost(member, W)


@pytest.mark.parametrize("name", LETTERS)
def test_scaling_the_features_says_whether_the_family_stays(name):
    # only if it stays does the likeliest member follow the units
    of, units = FAMILIES[name], np.array([1.0, 30.0, 0.2])
    W = scatter(4)
    plain, scaled = fitted(name, W) * units[:, None] * units, fitted(name, W * units[:, None] * units)
    assert np.allclose(plain, scaled, rtol=1e-6, atol=1e-9) == of.unit_free


@pytest.mark.parametrize("name", LETTERS)
def test_what_is_said_of_a_family_follows_from_its_members(name):
    of = FAMILIES[name]
    members = built(name, 0.5 * np.random.default_rng(5).normal(size=99))[0]
    diagonal = members * np.eye(D)
    assert of.diagonal == np.allclose(members, diagonal)
    assert of.isotropic == np.allclose(members, members[:, :1, :1] * np.eye(D))
    assert of.shared == np.allclose(members, members[:1])
    assert of.name == name


def test_scikit_learns_names_are_four_of_the_fourteen():
    assert {alias: family(alias).name for alias in ALIASES} == ALIASES
    shapes = {"full": (K, D, D), "tied": (D, D), "diag": (K, D), "spherical": (K,)}
    assert {alias: family(alias).shape_of(K, D) for alias in ALIASES} == shapes
    others = set(LETTERS) - set(ALIASES.values())
    assert {FAMILIES[name].shape_of(K, D) for name in others} == {(K, D, D)}
    assert len(LETTERS) == 14
