"""Small real data that ships with the package; ``SOURCE.md`` beside each file says whence and under what licence."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["penguins", "penguins_file"]


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


def penguins_file() -> AbstractContextManager[Path]:
    """Return a context that gives the path of the penguins' CSV file, all 344 rows.

    Examples
    --------
    >>> with penguins_file() as path:
    ...     print(path.name)
    penguins.csv
    """
    return as_file(files(__name__) / "penguins.csv")
