"""Residualizer: remove the effects of metadata from features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self, cast

from numpy.typing import NDArray
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from residmix.effects.effect import Effect
from residmix.effects.mean.least_squares import LeastSquares
from residmix.effects.unseen.levels import adapted
from residmix.errors import keeps_notes
from residmix.removal.fitting import moments_of, remaining
from residmix.removal.held_out import group_column, leave_one_out, refitted_by_fold
from residmix.removal.learner import Learner
from residmix.removal.settings import CONSTRAINTS, effect_of, refuse_moments_alone, refuse_new_levels
from residmix.removal.transformer import refuse_frames
from residmix.removal.watch import Watch
from residmix.sources.open import as_table
from residmix.sources.output import collect, delivered

__all__ = ["Residualizer"]


class Residualizer(Learner):
    r"""Residuals of features on metadata, fitted by least squares.

    .. math:: r = x - \bar x - (a(m) - \bar a)' B

    where a(m) is the design row that `formula` makes of the metadata m, and B minimises the (weighted) sum of
    squares over the training rows. Residuals are centred and in the units of x. Fit reads the data once, transform
    reads and writes once.

    Parameters
    ----------
    formula : str, optional
        What to remove, such as ``"C(site) + bs(age, df=4)"``. Its columns are taken from `metadata`, or from X
        itself if X is a table and no metadata is given. Without a formula every metadata column is removed (numbers
        as they are, text and categories as factors); without metadata, features are only centred.
    preserve : str, optional
        Formula of effects that are estimated together with the removed ones, but kept. Transform doesn't need their
        columns. Of an interaction that holds removed terms, what these explain over the rows is removed.
    features : list of str, optional
        Columns of X to residualize. Default: all, apart from the metadata.
    alpha : float or dict, default 0
        Ridge penalty: adds ``alpha * sum of squares of the coefficients``, those of removed terms, as
        :class:`sklearn.linear_model.Ridge` does; or one number per term, ``{"site": 10.0}``. Of a factor the effects
        of the levels about their mean are penalised, so that the reference level doesn't matter; beside an interaction
        with a number, effects at its mean, so that it doesn't matter where it is 0.
    scale : bool or str, default False
        Remove the effect on the spread as well: the log variance of each feature is modelled as linear in the design,
        and residuals are rescaled to the pooled spread, in the units of x. With `preserve`, transform then needs the
        preserved columns too, since preserved effects aren't rescaled. A formula names the terms that the spread
        depends on, among those of `formula` and `preserve`: ``scale="site + age"``. With ``shrinkage="eb"``, True means
        the pooled factor alone (ComBat); with covariates in the formula as well it is ComBatLS, which keeps the
        spread that preserved covariates explain, and fits need all rows
        (:class:`residmix.effects.pooled.covariates.BesideCovariates`).
    covariance : bool, {"shrunk", "scores"} or dict, default False
        With ``scale=True``, also transform the covariance of each level of the one removed factor to the pooled
        covariance (:class:`residmix.effects.covariance.covariance.Covariance`). "shrunk" (the same as True): each
        level's covariance is estimated with Ledoit-Wolf shrinkage towards the pooled one, so that levels with few rows
        hardly change. "scores", with ``shrinkage="eb"``: CovBat as published, without shrinkage. ``{"site": "shrunk"}``
        names the factor. Missing values in features raise an error.
    shrinkage : {None, "eb", "eb-one-row", "eb-nonparametric", "eb-robust"} or dict
        "eb": shrink the effects of the one removed factor by empirical Bayes over the features. With ``scale=True``
        this is ComBat: ``fit_transform(X) + X.mean(0)`` is what ``sva::ComBat`` returns. "eb-one-row": as
        ``sva::ComBat(mean.only=TRUE)``, which shrinks each batch as if it had one row. "eb-nonparametric": with
        nonparametric priors, as ``sva::ComBat(par.prior=FALSE)``. "eb-robust": with medians and median absolute
        deviations by level, for skewed data; `merge` and `partial_fit` don't work with it. ``{"site": "blup"}``: random
        effects of this factor, removed or preserved. Each feature has its own variance ratio
        (:mod:`residmix.effects.random`), and levels with few rows are shrunk more. ``{"site": "eb", "subject":
        "blup"}``: each factor as given; factors that aren't named aren't shrunk. With preserved random effects of
        subjects, "eb" with ``scale=True`` is longitudinal ComBat (Beer et al. 2020). ``{"subject": "blup",
        "time:subject": "blup"}``, with ``time + subject + time:subject`` in a formula: each subject has a random line.
    reference : level, optional
        With "eb", a batch that the others are adjusted to and that isn't changed itself. Residuals are centred at its
        mean, and ``inverse_transform`` with this batch for all rows gives what ``sva::ComBat(ref.batch=)`` returns.
    residuals : {"in-sample", "loo", "cross-fitted"}, default "in-sample"
        What `fit_transform` returns for the training rows. In-sample residuals are smaller than those of new rows.
        "loo": by the fit of all other rows, exactly (with the penalty of all, see `alpha`). "cross-fitted": by fits of
        the other folds; whatever is estimated. A level that those lack is treated as `on_unknown` says, or with a
        warning as by "mean" where that is "error".
    estimator : regressor, optional
        Predict the features from the design with this scikit-learn regressor instead of least squares. Training
        residuals are then always cross-fitted, since flexible regressors overfit; there are no coefficients.
    cv : int or splitter, default 5
        Folds for cross-fitting: a number of shuffled folds, or a splitter.
    groups : str, optional
        A metadata column of groups whose rows must be in the same fold, such as subjects: ``Residualizer("site",
        residuals="cross-fitted", cv=GroupKFold(5), groups="subject")``. It is neither removed nor used as a feature.
        Folds that split a group raise an error.
    on_unknown : {"error", "mean", "shrink"}, default "error"
        What to do in transform with a level that fit didn't see: raise; use the unweighted average effect of the known
        levels; or use the expected effect of a new level, where known levels with few rows count less
        (:func:`residmix.effects.unseen.priors.level_prior`). `adapt` learns such a level from a few of its rows. If a
        feature has no values at a level, or at a combination of levels in an interaction, residuals there are NaN with
        "error". Otherwise the average effect of the other levels, or the sum of the effects of the two levels, is
        removed.
    on_entangled : {"warn", "error"}, default "warn"
        Whether to warn or raise if removed and preserved effects are nearly collinear: canonical correlation above
        0.95.
    missing : {"error", "mean", "indicator"}, default "error"
        What to do with missing metadata: raise; use the mean; or use the mean and estimate an effect of missingness.
        Missing *features* are always allowed: each feature is fitted on its rows with values, and NaN stays NaN.
    check_leakage : bool, default True
        Whether to check, on a sample of the rows, if a decision tree can predict metadata from the residuals, and if
        features hold codes for missing values.

    Attributes
    ----------
    features_ : ndarray of str (d,)
        Names of the features.
    new_levels_ : dict of str to NewLevels or LaterBatches
        Effects of levels that fit didn't see, by term: with ``on_unknown="shrink"``, and after `adapt`.
    design_ : Design
        The fitted map from metadata to design columns; without metadata an empty one.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Only if X had column names.

    Warns
    -----
    CollinearityWarning
        If columns of the design, or levels of large factors, are aliased (linearly dependent). The warning names them.
    EntangledEffectsWarning
        If removed and preserved effects are nearly collinear, with their canonical correlation.
    DesignWarning
        If a column of few distinct integers is used as a number, or a feature has no values.
    ManyColumnsWarning
        If there are so many design columns that residuals lose most of their variance.
    RareLevelWarning
        If a level has fewer than three rows, or occurs in one fold only.
    LeakageWarning
        If a decision tree predicts the metadata better from the residuals than from the features, because of repeated
        values or skewed distributions. For factors with too many levels for columns, it predicts the removed effects.
        The check uses 1000 rows of 256 features, which the model keeps for `partial_fit` and `merge`, but doesn't
        pickle or save.

    Notes
    -----
    Usually one pass over centred moments is enough. If the condition number is so large that precision would be lost, a
    second pass computes a QR decomposition (Demmel et al. 2012) and a third refines the solution.

    Examples
    --------
    >>> import pandas as pd
    >>> import residmix as rm
    >>> table = pd.DataFrame({"site": ["a", "a", "b", "b", "a", "b"], "x": [1.0, 2.0, 11.0, 12.0, 3.0, 13.0]})
    >>> rm.Residualizer("site").fit_transform(table).ravel().tolist()
    [-1.0, 0.0, -1.0, 0.0, 1.0, 1.0]

    Where the spread grows with age, at every site, ComBatLS leaves that as it is:

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> people = pd.DataFrame({"site": np.repeat(["a", "b"], 500), "age": rng.uniform(20, 60, 1000)})
    >>> people["age"] += 20.0 * (people["site"] == "b")
    >>> X = rng.normal(size=(1000, 9)) * np.exp(0.03 * (people[["age"]].to_numpy() - 50))
    >>> for scale in (True, "site + age"):
    ...     model = rm.Residualizer("site", preserve="age", scale=scale, shrinkage="eb", check_leakage=False)
    ...     residual = model.fit_transform(X, metadata=people)
    ...     old, young = people["age"] > 65, people["age"] < 35
    ...     print(
    ...         scale, (residual[old].std() / residual[young].std()).round(1), (X[old].std() / X[young].std()).round(1)
    ...     )
    True 2.2 3.8
    site + age 3.8 3.8
    """

    __metadata_request__fit = {"metadata": True}
    __metadata_request__partial_fit = {"metadata": True}
    __metadata_request__transform = {"metadata": True, "out": UNUSED}  # a path is never routed
    __metadata_request__inverse_transform = {"metadata": True}

    _parameter_constraints: ClassVar[dict[str, Any]] = CONSTRAINTS

    def __init__(
        self,
        formula: str | None = None,
        *,
        preserve: str | None = None,
        features: Sequence[str] | None = None,
        alpha: float | dict[str, float] = 0.0,
        scale: bool | str = False,
        covariance: bool | str | dict[str, str] = False,
        shrinkage: str | dict[str, str] | None = None,
        reference: Any = None,
        residuals: str = "in-sample",
        estimator: Any = None,
        cv: Any = 5,
        groups: str | None = None,
        on_unknown: str = "error",
        on_entangled: str = "warn",
        missing: str = "error",
        check_leakage: bool = True,
    ) -> None:
        self.formula = formula
        self.preserve = preserve
        self.features = features
        self.alpha = alpha
        self.scale = scale
        self.covariance = covariance
        self.shrinkage = shrinkage
        self.reference = reference
        self.residuals = residuals
        self.estimator = estimator
        self.cv = cv
        self.groups = groups
        self.on_unknown = on_unknown
        self.on_entangled = on_entangled
        self.missing = missing
        self.check_leakage = check_leakage

    # ---- fitting -----------------------------------------------------------------------------------------------------

    @keeps_notes
    def fit(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> Self:
        """Estimate the effects of the metadata.

        Parameters
        ----------
        X : array (n, d), or a table with the features and, if `metadata` isn't given, the metadata columns
        y : ignored
        metadata : array (n,) or (n, p), or table, optional
        sample_weight : array (n,) or str, optional
            Weights, or the name of the column of X that holds them. A row of weight 2 counts as two rows, but in
            standard errors, random effects and smoothness as one row with half the noise variance, as in R's lm, lme4
            and mgcv.

        Raises
        ------
        ValueError, TypeError
            For input that can't be used, with what to do about it.
        """
        self.fit_to(X, as_table(X, metadata=metadata), sample_weight, y=y)
        return self

    @keeps_notes
    def fit_transform(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> NDArray[Any]:
        """Fit, and return the residuals (n, d) of the same rows."""
        table = as_table(X, metadata=metadata)
        rows, residual = self.fit_to(X, table, sample_weight, y=y)
        if residual is not None:
            return residual
        if self.residuals == "cross-fitted":
            own = group_column(table, self.groups)
            return refitted_by_fold(self, X, metadata, sample_weight, rows.n_rows, own)
        if self.residuals == "loo":
            penalty = cast(LeastSquares, effect_of(self)).penalty(self.design_, self._linear.moments.linear)
            return collect(rows, leave_one_out(self._linear, penalty))
        return collect(rows, self._withheld(self._found.remover()))

    @keeps_notes
    def partial_fit(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> Self:
        """Fit on further rows; the result is that of a fit on all rows so far.

        The first call learns the design (levels, knots), so its rows must include every level. Earlier rows aren't read
        again, so with a condition number above 1e3 the result has fewer correct digits than that of `fit`.
        """
        if not self.__sklearn_is_fitted__():
            tables = as_table(X, metadata=metadata).batches()
            self.fit_to(X, next(tables), sample_weight, further=True)
        else:
            refuse_moments_alone(self)
            tables = self.open_rows(X, metadata, fitting=True).batches()
        for table in tables:
            rows = self._further_rows(table, sample_weight)
            self._refit(*moments_of(cast(Effect, effect_of(self)), rows, self.design_, self._watch))
        return self

    @keeps_notes
    def merge(self, other: Residualizer) -> Self:
        """Add the rows that `other`, with the same design, was fitted on; return self.

        Raises
        ------
        TypeError, ValueError
            If `other` is something else, or designs or features differ.
        """
        self._refuse_other(other)
        refuse_moments_alone(self)
        self._refit(other.moments_, self._watch.merged(other._watch))
        return self

    @keeps_notes
    def forget(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> Self:
        """Remove rows from the fit, as if it had never seen them; return self.

        Their sums are subtracted, accurate to nine digits or more. The design (levels, knots) doesn't change. The
        sample of rows for the leakage check starts anew.

        Parameters
        ----------
        X, metadata, sample_weight
            The rows as they were given to the fit.
        y : ignored

        Raises
        ------
        ValueError
            If moments aren't enough (as for `merge`, and with levels without columns), if there are more rows than the
            fit has seen, or if rounding errors would be too large.

        Examples
        --------
        >>> import numpy as np
        >>> from residmix import Residualizer
        >>> age = np.linspace(20.0, 60.0, 40)
        >>> X = np.sqrt(age)[:, None]
        >>> model = Residualizer().fit(X, metadata=age).forget(X[30:], metadata=age[30:])
        >>> bool(np.allclose(model.coef_, Residualizer().fit(X[:30], metadata=age[:30]).coef_))
        True
        """
        check_is_fitted(self)
        refuse_moments_alone(self)
        rows = self._further_rows(self.open_rows(X, metadata, fitting=True), sample_weight)
        self._keep(
            remaining(cast(Effect, effect_of(self)), self._linear, rows, self.design_, list(self.features_)),
            Watch(active=self.check_leakage),
        )
        return self

    @keeps_notes
    def adapt(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> Self:
        """Learn levels that fit didn't see from a few of their rows; return self.

        The effect of a new level is the mean of its rows after all other effects are removed, shrunk towards the
        expected effect of a new level. With ``scale=True`` its effect on the spread is learned in the same way
        (:class:`~residmix.effects.unseen.levels.NewLevels`). With ``shrinkage="eb"`` it is ComBat's estimate for a new
        batch, with the mean and the pooled variance of the fit
        (:class:`~residmix.effects.unseen.batches.LaterBatches`). Further calls add rows. All other effects are
        unchanged, and rows of known levels aren't used.

        Parameters
        ----------
        X, metadata, sample_weight
            As in fit, preserved columns included.
        y : ignored

        Raises
        ------
        ValueError
            If there is no new level, or a row has new levels of two factors.
        """
        check_is_fitted(self)
        refuse_new_levels(self.estimator, "adapt")
        table = self.open_rows(X, metadata)
        self.new_levels_ = adapted(
            self._linear,
            self.design_,
            self.new_levels_,
            table,
            lambda design: self.rows_of(table, sample_weight, design=design, preserved=True, allow_nan=True),
        )
        return self

    # ---- applying ----------------------------------------------------------------------------------------------------

    def transform(self, X: Any, *, metadata: Any = None, out: Any = None) -> Any:
        """Return the residuals (n, d), in the dtype of X; or write them to a file, or into an array.

        Parameters
        ----------
        X : array (n, d) or table
            As in fit. Unused columns may be absent.
        metadata : array or table, optional
            As in fit.
        out : path or ndarray, optional
            A Parquet file to write the residuals to, block by block; its path is returned instead of an array. The file
            appears only when it is complete. Or a C-contiguous array with the dtype of X to write the residuals to. It
            may be X itself; after an error part of it may be overwritten.

        Raises
        ------
        ValueError
            For input that can't be used, with what to do about it.
        """
        check_is_fitted(self)
        if out is not None:
            refuse_frames(self)
        rows = self._later_rows(self.open_rows(X, metadata))
        return delivered(rows, self._remover(), self.features_, out)

    def inverse_transform(self, X: Any, *, metadata: Any = None) -> NDArray[Any]:
        """Add the effects of the metadata back: features (n, d) from residuals.

        Parameters
        ----------
        X : array (n, d) or table
            Residuals.
        metadata : array or table, optional
            Metadata whose effects are added: that of the rows, or other values ("as if all were measured at site A").
        """
        check_is_fitted(self)
        return collect(self._later_rows(self.open_rows(X, metadata, check=False)), self._remover(sign=1))
