"""Digits on the linear data sets of NIST's Statistical Reference Datasets, against exact rational arithmetic."""

from contextlib import nullcontext
from fractions import Fraction

import numpy as np
import pytest

from residmix import Residualizer
from residmix.errors import DesignWarning

# https://www.itl.nist.gov/div898/strd/lls/lls.shtml; works of the United States government, in the public domain.
LONGLEY = """
60323 83.0 234289 2356 1590 107608 1947
61122 88.5 259426 2325 1456 108632 1948
60171 88.2 258054 3682 1616 109773 1949
61187 89.5 284599 3351 1650 110929 1950
63221 96.2 328975 2099 3099 112075 1951
63639 98.1 346999 1932 3594 113270 1952
64989 99.0 365385 1870 3547 115094 1953
63761 100.0 363112 3578 3350 116219 1954
66019 101.2 397469 2904 3048 117388 1955
67857 104.6 419180 2822 2857 118734 1956
68169 108.4 442769 2936 2798 120445 1957
66513 110.8 444546 4681 2637 121950 1958
68655 112.6 482704 3813 2552 123366 1959
69564 114.2 502601 3931 2514 125368 1960
69331 115.7 518173 4806 2572 127852 1961
70551 116.9 554894 4007 2827 130081 1962
"""
FILIP = """
0.8116 -6.860120914 0.9072 -4.324130045 0.9052 -4.358625055 0.9039 -4.358426747 0.8053 -6.955852379
0.8377 -6.661145254 0.8667 -6.355462942 0.8809 -6.118102026 0.7975 -7.115148017 0.8162 -6.815308569
0.8515 -6.519993057 0.8766 -6.204119983 0.8885 -5.853871964 0.8859 -6.109523091 0.8959 -5.79832982
0.8913 -5.482672118 0.8959 -5.171791386 0.8971 -4.851705903 0.9021 -4.517126416 0.909 -4.143573228
0.9139 -3.709075441 0.9199 -3.499489089 0.8692 -6.300769497 0.8872 -5.953504836 0.89 -5.642065153
0.891 -5.031376979 0.8977 -4.680685696 0.9035 -4.329846955 0.9078 -3.928486195 0.7675 -8.56735134
0.7705 -8.363211311 0.7713 -8.107682739 0.7736 -7.823908741 0.7775 -7.522878745 0.7841 -7.218819279
0.7971 -6.920818754 0.8329 -6.628932138 0.8641 -6.323946875 0.8804 -5.991399828 0.7668 -8.781464495
0.7633 -8.663140179 0.7678 -8.473531488 0.7697 -8.247337057 0.77 -7.971428747 0.7749 -7.676129393
0.7796 -7.352812702 0.7897 -7.072065318 0.8131 -6.774174009 0.8498 -6.478861916 0.8741 -6.159517513
0.8061 -6.835647144 0.846 -6.53165267 0.8751 -6.224098421 0.8856 -5.910094889 0.8919 -5.598599459
0.8934 -5.290645224 0.894 -4.974284616 0.8957 -4.64454848 0.9047 -4.290560426 0.9129 -3.885055584
0.9209 -3.408378962 0.9219 -3.13200249 0.7739 -8.726767166 0.7681 -8.66695597 0.7665 -8.511026475
0.7703 -8.165388579 0.7702 -7.886056648 0.7761 -7.588043762 0.7809 -7.283412422 0.7961 -6.995678626
0.8253 -6.691862621 0.8602 -6.392544977 0.8809 -6.067374056 0.8301 -6.684029655 0.8664 -6.378719832
0.8834 -6.065855188 0.8898 -5.752272167 0.8964 -5.132414673 0.8963 -4.811352704 0.9074 -4.098269308
0.9119 -3.66174277 0.9228 -3.2644011
"""
# Wampler3 to 5: a polynomial of degree 5 plus 1, 100 or 10000 times these.
WAMPLER_DELTA = [759, -2048, 2048, -2048, 2523, -2048, 2048, -2048, 1838, -2048, 2048]
WAMPLER_DELTA += WAMPLER_DELTA[-2::-1]


def longley():
    values = np.array(LONGLEY.split(), dtype=float).reshape(-1, 7)
    return values[:, 1:], values[:, 0]


def filip():
    values = np.array(FILIP.split(), dtype=float).reshape(-1, 2)
    return values[:, 1:] ** np.arange(1, 11), values[:, 0]


def wampler(number):
    x = np.arange(21)
    powers = (x[:, None] ** np.arange(6)).astype(float)
    if number == 2:
        return powers[:, 1:], np.array([float(sum(Fraction(int(v) ** k, 10**k) for k in range(6))) for v in x])
    delta = {1: 0, 3: 1, 4: 100, 5: 10_000}[number] * np.array(WAMPLER_DELTA)
    return powers[:, 1:], powers.sum(axis=1) + delta


SETS = {"Longley": longley, "Filip": filip} | {f"Wampler{k}": lambda k=k: wampler(k) for k in range(1, 6)}


def exact(design, y):
    """Solve the normal equations of [design 1] in rational numbers, so that nothing is rounded."""
    rows = [[Fraction(float(v)) for v in row] + [Fraction(1)] for row in design]
    target = [Fraction(float(v)) for v in y]
    p = len(rows[0])
    system = [
        [sum(row[i] * row[j] for row in rows) for j in range(p)]
        + [sum(r[i] * t for r, t in zip(rows, target, strict=True))]
        for i in range(p)
    ]
    for i in range(p):
        pivot = next(k for k in range(i, p) if system[k][i] != 0)
        system[i], system[pivot] = system[pivot], system[i]
        system[i] = [value / system[i][i] for value in system[i]]
        for k in range(p):
            if k != i and system[k][i] != 0:
                system[k] = [a - system[k][i] * b for a, b in zip(system[k], system[i], strict=True)]
    return [row[-1] for row in system]


def digits(found, truth):
    """Return the fewest right decimal digits (LRE), at most 15."""
    worst = 15.0
    for value, right in zip(found, truth, strict=True):
        error = abs(Fraction(float(value)) - right) / (abs(right) if right else 1)
        worst = min(worst, -np.log10(float(error)) if error else 15.0)
    return worst


def scaled_lstsq(design, y):
    Z = np.column_stack([design, np.ones(len(y))])
    norm = np.linalg.norm(Z, axis=0)
    return np.linalg.lstsq(Z / norm, y, rcond=None)[0] / norm


@pytest.mark.parametrize("name", SETS)
def test_as_many_digits_as_a_scaled_svd(name):
    design, y = SETS[name]()
    truth = exact(design, y)
    exactly = name in ("Wampler1", "Wampler2")  # polynomials without noise
    with pytest.warns(DesignWarning, match="determined exactly by the design") if exactly else nullcontext():
        model = Residualizer().fit(y[:, None], metadata=design)
    found = digits([*model.coef_[:, 0], model.intercept_[0]], truth)
    reference = digits(scaled_lstsq(design, y), truth)
    # half a digit, since which of two backward stable methods is luckier on one data set is chance
    assert found >= reference - 0.5, f"{found:.1f} digits, lstsq {reference:.1f}"
    # Longley's condition number leaves a Gram matrix enough digits; the others are refined to nearly all there are
    assert found >= (11.0 if name == "Longley" else 12.5)


def test_the_certified_values_are_the_exact_solution_of_the_data_above():
    # a mistyped datum would show here; certified values as printed by NIST
    design, y = filip()
    certified = [-2772.17959193342, -2316.37108160893, -1127.97394098372, -354.478233703349, -75.1242017393757]
    # powers of x round in double precision, which moves this solution in the eighth digit
    np.testing.assert_allclose([float(v) for v in exact(design, y)[:5]], certified, rtol=1e-6)
    design, y = longley()
    certified = [15.0618722713733, -0.358191792925910e-1, -2.02022980381683, -1.03322686717359, -0.511041056535807e-1]
    np.testing.assert_allclose([float(v) for v in exact(design, y)[:5]], certified, rtol=1e-12)
    assert exact(*wampler(5)) == [1] * 6


# Wampler1 and 2 lie on their polynomial: what is left of them is rounding alone.
@pytest.mark.parametrize("name", ["Longley", "Filip", "Wampler3", "Wampler4", "Wampler5"])
def test_residuals_are_uncorrelated_with_every_column_to_rounding(name):
    design, y = SETS[name]()
    model = Residualizer().fit(y[:, None], metadata=design)
    residual = model.transform(y[:, None], metadata=design)[:, 0]
    a = design - design.mean(axis=0)
    largest = np.abs(a.T @ residual / np.linalg.norm(a, axis=0) / np.linalg.norm(residual)).max()
    # coefficients grow with the condition number, and rounding of their products with them
    assert largest <= 10 * np.finfo(float).eps * model.condition_number_
