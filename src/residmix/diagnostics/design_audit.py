"""Look at a design before anything is fitted: can the removed and the preserved effects be told apart?"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term
from residmix.errors import ResidmixWarning
from residmix.removal.residualizer import Residualizer
from residmix.sources.open import as_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DesignAudit", "design_audit", "overlap_by_level"]

Floats = NDArray[np.float64]

# Below this the values at a level lie apart from those at the others: effects are told apart by extrapolation only.
LEAST_OVERLAP = 0.1
# Of a level with two categories or more elsewhere, rows from which it is told that it has one only.
_ENOUGH = 5
# The limit of residmix.errors.EntangledEffectsWarning.
_ENTANGLED = 0.95


@dataclass(frozen=True)
class DesignAudit:
    """Result of a look at a design.

    Attributes
    ----------
    levels : DataFrame
        factor, level, rows, and the least overlap of a covariate with the other levels ("overlap"), and which
        ("covariate").
    overlaps : DataFrame
        factor, level, covariate, overlap: from 0, apart, to 1, the same distribution.
    correlation : float
        The largest canonical correlation of removed and preserved effects; NaN if nothing is preserved.
    problems : tuple of str
        What to look at before a fit, in words.
    """

    levels: pd.DataFrame
    overlaps: pd.DataFrame
    correlation: float
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "passed": self.passed,
            "problems": list(self.problems),
            "correlation": None if np.isnan(self.correlation) else self.correlation,
            "levels": self.levels.to_dict("records"),
            "overlaps": self.overlaps.to_dict("records"),
        }

    def __str__(self) -> str:
        lines = [self.levels.round({"overlap": 2}).to_string(index=False)] if len(self.levels) else []
        if not np.isnan(self.correlation):
            lines.append(f"canonical correlation of removed and preserved effects: {self.correlation:.3f}")
        told = [f"! {problem}" for problem in self.problems] or ["nothing stands out"]
        return "\n".join([*lines, *told])


def design_audit(X: Any, formula: str, *, preserve: str | None = None, fewest: int = 10) -> DesignAudit:
    r"""Tell, from metadata alone, which effects of a design can't be told apart, and which levels are too small.

    The overlap of a covariate at a level with the other levels is :math:`1 - \max_t |F_k(t) - F_{-k}(t)|` for a number
    (one less the Kolmogorov-Smirnov distance), and one less the total variation distance for a factor.

    Parameters
    ----------
    X : table
        With the metadata columns that the formulas name; features aren't read.
    formula : str
        Of the effects to remove. Its factors are looked at level by level.
    preserve : str, optional
        Of the effects to keep.
    fewest : int, default 10
        Levels with fewer rows are told of.

    Returns
    -------
    DesignAudit

    See Also
    --------
    residmix.Residualizer : With ``on_entangled="error"`` a fit refuses such a design.

    Examples
    --------
    A site that only saw the old, and one that only saw cases:

    >>> import numpy as np
    >>> import pandas as pd
    >>> import residmix as rm
    >>> rng = np.random.default_rng(0)
    >>> site = np.repeat(["a", "b", "c"], [50, 50, 6])
    >>> people = pd.DataFrame({"site": site, "age": rng.uniform(20, 60, 106)})
    >>> people["group"] = rng.choice(["case", "control"], 106)
    >>> people.loc[site == "b", "age"] += 45
    >>> people.loc[site == "c", "group"] = "case"
    >>> print(rm.design_audit(people, "site", preserve="age + group"))
    factor level  rows  overlap covariate
      site     a    50     0.11       age
      site     b    50     0.00       age
      site     c     6     0.46       age
    canonical correlation of removed and preserved effects: 0.892
    ! site b: age overlaps with the other levels' by 0.00 only, so its effect is told from that of age by extrapolation
    ! site c: all 6 rows have group=case
    ! site c: 6 rows, fewer than 10; shrinkage='eb' or 'blup' shrinks what is mostly noise
    """
    import pandas as pd

    columns = tuple(dict.fromkeys(_columns(formula, preserve)))
    frame = pd.concat([_pandas(chunk) for chunk in as_table(X).chunks(columns)], ignore_index=True)
    nothing = np.zeros((len(frame), 1))
    model = Residualizer(formula, preserve=preserve, check_leakage=False, missing="mean", on_unknown="mean")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResidmixWarning)
        model.fit(nothing, metadata=frame)
    correlations = model.canonical_correlations_
    factors = [own for own in model.design_.terms if own.kind in ("factor", "absorbed") and not own.preserved]
    rows = [row for term in factors if term.kind == "factor" for row in _overlaps(term, model.design_, frame)]
    overlaps = pd.DataFrame(rows, columns=["factor", "level", "covariate", "overlap"])
    levels, problems = [], []
    for term in factors:
        (own,) = term.variables
        for level, count in _counts(frame[own]).items():
            here = overlaps[(overlaps["factor"] == term.name) & (overlaps["level"] == level)]
            least = here.loc[here["overlap"].idxmin()] if len(here) else None
            levels.append(
                (term.name, level, count, np.nan if least is None else least["overlap"],
                 "" if least is None else least["covariate"])
            )  # fmt: skip
            problems += _problems(term, level, count, here, frame, fewest)
    largest = float(correlations[0]) if len(correlations) else np.nan
    if largest > _ENTANGLED:
        problems.append(
            f"removed and preserved effects are nearly collinear (canonical correlation {largest:.3f}): they can't be "
            "told apart"
        )
    table = pd.DataFrame(levels, columns=["factor", "level", "rows", "overlap", "covariate"])
    return DesignAudit(table, overlaps, largest, tuple(problems))


def _columns(formula: str, preserve: str | None) -> list[str]:
    from residmix.design.formula.parser import formula_columns

    return [name for text in (formula, preserve) if text is not None for name in formula_columns(text)]


def _pandas(chunk: Any) -> pd.DataFrame:
    import pandas as pd

    return chunk if isinstance(chunk, pd.DataFrame) else chunk.to_pandas()


def _counts(values: pd.Series) -> dict[str, int]:
    counted = values.dropna().astype(str).value_counts().sort_index()
    return {str(level): int(count) for level, count in counted.items()}


def _overlaps(term: Term, design: Design, frame: pd.DataFrame) -> list[tuple[str, str, str, float]]:
    """Return the overlap of every other column, at each level of a factor, with the other levels."""
    (own,) = term.variables
    others = dict.fromkeys(name for other in design.terms for name in other.variables if name != own)
    found = []
    for name in others:
        by_level = overlap_by_level(frame[own], frame[name], number=design.levels_of(name) is None)
        found += [(term.name, level, name, overlap) for level, overlap in by_level.items()]
    return found


def overlap_by_level(own: pd.Series, values: pd.Series, *, number: bool) -> dict[str, float]:
    """Return how far the distribution of some values at each level overlaps with that at the others, from 0 to 1."""
    level, found = own.astype(str).where(own.notna()), {}
    for one in _counts(own):
        here, there = values[level == one].dropna(), values[level.notna() & (level != one)].dropna()
        if len(here) and len(there):
            found[one] = _of_numbers(here, there) if number else _of_categories(here, there)
    return found


def _of_numbers(here: pd.Series, there: pd.Series) -> float:
    one, two = np.sort(here.to_numpy(dtype=np.float64)), np.sort(there.to_numpy(dtype=np.float64))
    both = np.concatenate([one, two])
    below = [np.searchsorted(part, both, side="right") / len(part) for part in (one, two)]
    return float(1.0 - np.abs(below[0] - below[1]).max())


def _of_categories(here: pd.Series, there: pd.Series) -> float:
    one, two = (part.astype(str).value_counts(normalize=True) for part in (here, there))
    return float(one.to_frame("one").join(two.to_frame("two"), how="inner").min(axis=1).sum())


def _problems(term: Term, level: str, count: int, here: pd.DataFrame, frame: pd.DataFrame, fewest: int) -> list[str]:
    """Return what there is to tell of a level."""
    (own,) = term.variables
    told = []
    for covariate, overlap in zip(here["covariate"], here["overlap"], strict=True):
        if overlap < LEAST_OVERLAP:
            told.append(
                f"{own} {level}: {covariate} overlaps with the other levels' by {overlap:.2f} only, so its effect is "
                f"told from that of {covariate} by extrapolation"
            )
        values = frame.loc[frame[own].astype(str) == level, covariate].dropna()
        few = values.nunique() == 1 and frame[covariate].nunique() > 1
        if few and count >= _ENOUGH and overlap >= LEAST_OVERLAP:
            told.append(f"{own} {level}: all {len(values)} rows have {covariate}={values.iloc[0]}")
    if count < fewest:
        told.append(
            f"{own} {level}: {count} rows, fewer than {fewest}; shrinkage='eb' or 'blup' shrinks what is mostly noise"
        )
    return told
