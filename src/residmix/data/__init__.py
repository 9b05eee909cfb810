"""Small data sets: real ones (``SOURCE.md`` names their source), and a simulated one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["make_sites", "penguins", "penguins_file"]

# People at each site: a few large ones, most of twenty or so, and some of a handful.
_SIZES = (150, 110, 80, 60, 45, 40, 32, 30, 28, 25, 24, 22, 20, 19, 18, 16, 15, 12, 10, 8, 5, 3)
_ODD = 12


def penguins(*, complete: bool = True) -> pd.DataFrame:
    """Return the Palmer penguins: 4 measurements, with species, island, sex and year.

    Parameters
    ----------
    complete : bool, default True
        Leave out the 11 of 344 rows in which the sex (and in 2 of them the measurements) is missing.

    Returns
    -------
    pandas.DataFrame
        333 rows (344 with ``complete=False``); lengths in mm, mass in g.

    References
    ----------
    Gorman, Williams and Fraser (2014), PLoS ONE 9(3):e90081. Licence CC0.

    Examples
    --------
    >>> from residmix.data import penguins
    >>> penguins().shape
    (333, 8)
    """
    import pandas as pd

    with penguins_file() as path:
        table = pd.read_csv(path)
    return table.dropna().reset_index(drop=True) if complete else table


def make_sites(*, seed: int = 0) -> pd.DataFrame:
    """Return a simulated table of 22 sites: 40 measures of 772 people, with site, age, sex and diagnosis.

    All values are drawn at random, the same in every call with the same seed. Measures resemble cortical thickness in
    mm. Sites differ in mean, spread and covariance; some have only 3 to 10 people, and the shift of site "s13" is three
    times that of the others. Measures fall with age at an increasing rate. Sites differ in their age range and share of
    cases. In cases the first eight measures are lower by half a standard deviation.

    Parameters
    ----------
    seed : int, default 0

    Returns
    -------
    pandas.DataFrame
        Columns site, age, sex, diagnosis, and m01 to m40, in order of the sites.

    Examples
    --------
    >>> from residmix.data import make_sites
    >>> table = make_sites()
    >>> table.shape, table["site"].nunique(), int(table.groupby("site").size().min())
    ((772, 44), 22, 3)
    """
    import numpy as np
    import pandas as pd

    rng = np.random.Generator(np.random.PCG64(seed))
    n, d, sites = sum(_SIZES), 40, np.repeat(np.arange(len(_SIZES)), _SIZES)
    age = np.clip(rng.normal(rng.uniform(25, 60, len(_SIZES))[sites], 9.0), 18, 85).round(1)
    sex, case = rng.random(n) < 0.5, rng.random(n) < rng.uniform(0.2, 0.6, len(_SIZES))[sites]
    shared = rng.normal(size=(5, d))
    noise = rng.normal(size=(n, 5)) @ shared * 0.5 + rng.normal(size=(n, d))
    own = rng.normal(size=(len(_SIZES), d))  # a direction in which a site varies more than others
    noise += 1.2 * rng.normal(size=n)[:, None] * own[sites] / np.linalg.norm(own, axis=1)[sites, None] * np.sqrt(d) / 3
    spread = np.exp(0.2 * rng.normal(size=(len(_SIZES), 1)) + 0.1 * rng.normal(size=(len(_SIZES), d)))
    shift = rng.normal(0.0, 0.6, (len(_SIZES), d))
    shift[_ODD] *= 3.0
    years = (age - 40.0) / 20.0
    z = noise * spread[sites] + shift[sites] - (0.5 * years + 0.15 * years**2)[:, None] + 0.3 * sex[:, None]
    z[:, :8] -= 0.5 * case[:, None] * np.sqrt(1.0 + np.sum((0.5 * shared[:, :8]) ** 2, axis=0))
    table = pd.DataFrame(
        {
            "site": [f"s{k + 1:02d}" for k in sites],
            "age": age,
            "sex": np.where(sex, "m", "f"),
            "diagnosis": np.where(case, "case", "control"),
        }
    )
    measures = pd.DataFrame((2.5 + 0.15 * z).round(4), columns=[f"m{j:02d}" for j in range(1, d + 1)])
    return pd.concat([table, measures], axis=1)


def penguins_file() -> AbstractContextManager[Path]:
    """Return a context manager with the path of the penguins' CSV file, all 344 rows.

    Examples
    --------
    >>> with penguins_file() as path:
    ...     print(path.name)
    penguins.csv
    """
    return as_file(files(__name__) / "penguins.csv")
