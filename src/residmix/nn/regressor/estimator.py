"""MDNRegressor: a mixture density network behind the scikit-learn interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from residmix.errors import check_number, keeps_notes
from residmix.nn.density.distribution import MixtureOfGaussians
from residmix.nn.density.head import COVARIANCES, hold_means
from residmix.nn.density.network import MixtureDensityNetwork
from residmix.nn.regressor.diagnosis import diagnose, warn_of
from residmix.nn.regressor.export import OnnxExport
from residmix.nn.regressor.fitting import CANDIDATES, Plan, Removal, fit_best, restored
from residmix.nn.regressor.forks import refuse_after_fork
from residmix.nn.regressor.predictive import PredictiveDensity, check_targets
from residmix.nn.regressor.reading import TableReader
from residmix.nn.regressor.targets import (
    LIKELIHOODS,
    choose_likelihood,
    constant_columns,
    distinct_rows,
    feature_scaling,
    standard_scaling,
)
from residmix.nn.regressor.training import History, Sample, Schedule, automatic_batches, automatic_epochs
from residmix.rows.checks import check_weight

__all__ = ["MDNRegressor"]

Array = NDArray[np.float64]

_PREDICT_ROWS = 4096


class MDNRegressor(PredictiveDensity, OnnxExport, TableReader, RegressorMixin, BaseEstimator):
    r"""Predict the density of a target with an ensemble of mixture density networks.

    .. math:: p(y | x, m) = \frac1M \sum_j \sum_k \pi_{jk}(h) N(y | \mu_{jk}(h), \Sigma_{jk}(h)), \quad h = r_j(x, m)

    with r_j a network whose representation is residualized on the metadata m, if there are any. Features and targets
    are standardised internally, and all results are in the units of y. The representation contains x itself, and
    training starts at a ridge regression with a mixture fitted to its residuals. From this linear model, early stopping
    on held-out rows decides how long to train.

    Identical rows are merged first and their weights added. So the fit doesn't depend on the order of the rows, and a
    weight of 2 is the same as a repeated row. In tables of few values, where rows come four times on average or more,
    they are used one by one.

    Parameters
    ----------
    formula : str, optional
        One-table form: metadata columns of `X`, e.g. ``"C(site) + age"``; the other numeric columns are features. If
        `metadata` is given to `fit`, a formula of its columns.
    n_components : int or "auto", default=3
        "auto" fits 1, 2, 3 and 5 and keeps the one with the lowest held-out loss.
    covariance : {"diagonal", "spherical", "full", "low-rank"}
        Covariance of several targets within a component.
    rank : int, default=1
        Of the low-rank part.
    hidden : sequence of int, default=(128, 128)
        Widths of the hidden layers; empty for a linear model with mixture noise.
    dropout : float, default=0.1
    n_members : int, default=5
        Number of networks in the ensemble. Each has its own held-out rows.
    likelihood : {"auto", "density", "interval"}
        "interval" is :math:`\log [F(y + w/2) - F(y - w/2)]/w` for targets recorded on a grid of step w. "auto" uses it,
        with a warning, if the values repeat on a grid coarser than 5 % of their spread.
    preserve : str, optional
        A formula of effects of the metadata that are estimated but not removed.
    protect_target : bool, default=True
        Estimate the effect of y on the representation together with that of the metadata, so that removing the metadata
        doesn't remove effects of y. The residual can then be correlated with metadata to the extent that y is.
    features : sequence of str, optional
        Columns of `X` to use as features. Constant ones are not used.
    space : {"sample", "feature"}
        "sample" needs metadata to predict; "feature" erases the metadata from the representation and needs none.
    learning_rate, weight_decay, max_epochs, patience, validation_fraction : float
        AdamW with warm-up and cosine decay over `max_epochs`; each member keeps the parameters of the epoch with the
        lowest held-out loss, and stops after `patience` epochs without improvement.
    batch_size : int or "auto"
        "auto" makes about 24 batches of 16 to 256 rows per epoch. With fewer batches, `patience` is multiplied by the
        square root of 24 over their number. With more, `max_epochs` is reduced to the number of steps of 24 batches per
        epoch, but to no less than 40 epochs.
    min_scale : float, default=1e-3
        Lower bound of the predicted standard deviations, as a fraction of the target's spread.
    device : str, default="auto"
        "auto" is a GPU if torch sees one.
    verbose : int, default=0
        Report the held-out loss every `verbose` epochs on stderr.
    random_state : int, RandomState or None

    Attributes
    ----------
    network_ : MixtureDensityNetwork
        The trained ensemble, in standard units, float64.
    n_components_ : int
    components_loss_ : dict of int to float
        Held-out loss of the candidates of "auto".
    likelihood_ : {"density", "interval"}
    cell_width_ : ndarray (D,) or None
        Cells of the interval likelihood, in the units of y.
    design_ : Design or None
        The fitted metadata design.
    diagnostics_ : dict
        ``component_weights`` (M, K) mean weight on the training rows; ``dead`` pairs (member, component) below 1 %;
        ``at_floor`` share of predicted scales within 1 % of their lower bound; of the training ``best_epoch`` and
        ``best_loss`` per member, ``n_epochs``, ``validation_loss`` (epochs, M; NaN once a member has ended), losses
        being the score, negated, on held-out rows. With metadata there is a second stage: the residuals are refitted
        exactly, and the head alone is trained on them; ``head`` holds the same four entries for this stage.
    n_features_in_, feature_names_in_, n_targets_

    Warns
    -----
    DiscreteTargetWarning
        If the values of a target repeat, on a coarse grid or at single values with a tenth of the rows.
    DeadComponentWarning
        If a component has a mean weight below 1 % in more than half of the members.
    CollapsedScaleWarning
        If more than 5 % of the predicted scales are at their lower bound.
    ConvergenceWarning
        If a member was best in the last epoch.

    Notes
    -----
    The guarantee for metadata is that of `Residualize`: on the training rows, the tensor that enters the head has no
    linear association with the columns of the design. Spread and weights of the density may still depend on the
    metadata; see `density_report`.

    References
    ----------
    C. Bishop (1994), Mixture density networks, Aston NCRG/94/004. B. Lakshminarayanan et al. (2017), Simple and
    scalable predictive uncertainty estimation using deep ensembles, NeurIPS.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 2))
    >>> y = X[:, 0] + np.where(rng.random(200) < 0.5, -2, 2) + 0.3 * rng.normal(size=200)
    >>> model = MDNRegressor(n_components=2, n_members=2, max_epochs=40, random_state=0).fit(X, y)
    >>> model.predict(X[:3]).shape, model.predict_interval(X[:3]).shape
    ((3,), (3, 2))
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "formula": [str, None],
        "n_components": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "covariance": [StrOptions(set(COVARIANCES))],
        "rank": [Interval(Integral, 1, None, closed="left")],
        "hidden": ["array-like"],
        "dropout": [Interval(Real, 0, 0.95, closed="both")],
        "n_members": [Interval(Integral, 1, None, closed="left")],
        "likelihood": [StrOptions(set(LIKELIHOODS))],
        "preserve": [str, None],
        "protect_target": ["boolean"],
        "features": "no_validation",  # by the table, which knows its columns
        "space": [StrOptions({"sample", "feature"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "max_epochs": [Interval(Integral, 0, None, closed="left")],
        "patience": [Interval(Integral, 1, None, closed="left")],
        "validation_fraction": [Interval(Real, 0, 0.9, closed="right")],
        "min_scale": [Interval(Real, 0, 1, closed="right")],
        "device": "no_validation",  # by torch
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        formula: str | None = None,
        *,
        n_components: int | str = 3,
        covariance: str = "diagonal",
        rank: int = 1,
        hidden: Sequence[int] = (128, 128),
        dropout: float = 0.1,
        n_members: int = 5,
        likelihood: str = "auto",
        preserve: str | None = None,
        protect_target: bool = True,
        features: Sequence[str] | None = None,
        space: str = "sample",
        learning_rate: float = 1e-2,
        weight_decay: float = 0.1,
        batch_size: int | str = "auto",
        max_epochs: int = 400,
        patience: int = 60,
        validation_fraction: float = 0.15,
        min_scale: float = 1e-3,
        device: str = "auto",
        verbose: int = 0,
        random_state: Any = None,
    ) -> None:
        self.formula = formula
        self.n_components = n_components
        self.covariance = covariance
        self.rank = rank
        self.hidden = hidden
        self.dropout = dropout
        self.n_members = n_members
        self.likelihood = likelihood
        self.preserve = preserve
        self.protect_target = protect_target
        self.features = features
        self.space = space
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.min_scale = min_scale
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    @keeps_notes
    def fit(self, X: Any, y: Any, *, metadata: Any = None, sample_weight: Any = None) -> MDNRegressor:
        """Fit the ensemble.

        Parameters
        ----------
        X : array_like (n, d), or data frame
            Features; with `formula` and no `metadata`, one table of both.
        y : array_like (n,) or (n, D)
            Targets. Among several, NaN means "not observed" and is integrated out.
        metadata : array (n,), (n, p) or data frame, optional
        sample_weight : array (n,), optional
        """
        refuse_after_fork()
        self._check_options()
        features, design = self._read(X, metadata, fitting=True)
        target = check_targets(y)
        if len(target) != len(features):
            raise ValueError(f"X and y have inconsistent numbers of samples: {len(features)} and {len(target)} rows")
        weight = check_weight(sample_weight, len(target))
        weight = np.ones(len(target)) if weight is None else weight
        use = (weight > 0) & ~np.isnan(target).all(axis=1)
        if use.sum() < 2:
            raise ValueError(f"at least 2 rows with positive weight are needed, got n_samples = {int(use.sum())}")
        parts = [part[use] for part in (features, target, design)]
        rows, weight = distinct_rows(parts, weight[use])
        features, target, design = (part[rows] for part in parts)

        self.n_targets_ = target.shape[1]
        self.target_is_vector_ = np.asarray(y).ndim > 1
        names = [str(name) for name in getattr(self, "feature_names_in_", range(features.shape[1]))]
        self._x_scaling = feature_scaling(features, weight, names)
        self._y_scaling = standard_scaling(target, weight)
        z = self._y_scaling.forward(target).astype(np.float32)
        scale = self._y_scaling.scale
        self.likelihood_, self.cell_width_, floor = choose_likelihood(
            target,
            scale,
            weight,
            likelihood=self.likelihood,
            min_scale=float(self.min_scale),
            boxes=self.n_targets_ == 1 or self.covariance in ("diagonal", "spherical"),
        )
        removal, given, kept = self._removal(design, z)
        sample = Sample.of(
            device=self.device,
            X=self._x_scaling.forward(features),
            y=z,
            weight=weight / weight.mean(),
            metadata=given,
            protected=kept,
            cell=None if self.cell_width_ is None else self.cell_width_ / scale,
        )
        plan = Plan(
            n_features=features.shape[1],
            n_targets=self.n_targets_,
            n_components=1 if self.n_components == "auto" else int(self.n_components),
            covariance=self.covariance,
            rank=int(self.rank),
            hidden=tuple(int(width) for width in self.hidden),
            dropout=float(self.dropout),
            members=int(self.n_members),
            min_scale=tuple(float(f) for f in floor),
            removal=removal,
        )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        network, stages = self._train(plan, sample, seed)
        # A constant is known; in its own size as unit, what training leaves of noise would be seen.
        hold_means(network.double().head, np.flatnonzero(constant_columns(target)).tolist())
        self._finish(network, stages, sample)
        return self

    def _check_options(self) -> None:
        self._validate_params()
        for width in self.hidden:
            check_number("a width in hidden", width, low=1, integral=True)

    def _removal(self, design: Array, z: NDArray[np.float32]) -> tuple[Removal | None, Array | None, Array | None]:
        """The layer's plan, the standardised metadata to remove, and the protected columns."""
        if self._design().n_removed == 0:
            return None, None, None
        self._m_scaling = standard_scaling(design, np.ones(len(design)))
        columns = self._m_scaling.forward(design)
        removed = self._design().n_removed
        kept = [columns[:, removed:]]
        if self.protect_target:
            kept.append(np.nan_to_num(z.astype(float)))
        protected = np.concatenate(kept, axis=1)
        return Removal(removed, protected.shape[1], space=self.space), columns[:, :removed], protected

    def _train(self, plan: Plan, sample: Sample, seed: int) -> tuple[MixtureDensityNetwork, list[History]]:
        n_train = len(sample.X) * (1 - self.validation_fraction)
        batch, stretch, epochs = int(self.batch_size) if self.batch_size != "auto" else 0, 1.0, int(self.max_epochs)
        if self.batch_size == "auto":
            batch, stretch = automatic_batches(n_train)
            epochs = automatic_epochs(n_train, batch, epochs)
        schedule = Schedule(
            max_epochs=epochs,
            patience=round(self.patience * stretch),
            batch_size=batch,
            learning_rate=float(self.learning_rate),
            weight_decay=float(self.weight_decay),
            report_every=int(self.verbose),
        )

        candidates = CANDIDATES if self.n_components == "auto" else (plan.n_components,)
        network, stages, loss = fit_best(
            plan, candidates, sample, schedule, validation_fraction=float(self.validation_fraction), seed=seed
        )
        self.n_components_, self.components_loss_ = network.head.n_components, loss
        self._plan = replace(plan, n_components=self.n_components_)
        return network, stages

    @torch.no_grad()
    def _finish(self, network: MixtureDensityNetwork, stages: list[History], sample: Sample) -> None:
        """Store the network, and warn of problems."""
        self.network_ = network.cpu()
        rows = [t.double().cpu() for t in (sample.X, sample.metadata) if t is not None]
        share = sample.weight.double().cpu() / float(sample.weight.sum())
        shift = float(np.log(self._y_scaling.scale).sum())
        self.diagnostics_ = diagnose(network(*rows), share, network.head.min_scale, stages, shift)
        warn_of(self.diagnostics_, max_epochs=int(self.max_epochs))

    @torch.no_grad()
    def predict_distribution(self, X: Any, *, metadata: Any = None) -> MixtureOfGaussians:
        """The predictive density of every row, in the units of y: a torch distribution, float64, on the CPU."""
        return self.member_distributions(X, metadata=metadata).pooled()

    @torch.no_grad()
    def member_distributions(self, X: Any, *, metadata: Any = None) -> MixtureOfGaussians:
        """The densities of the members, batch shape (M, n), in the units of y.

        The variance of their means is the epistemic part of the predictive variance, the mean of their variances
        the aleatoric part.
        """
        check_is_fitted(self, "network_")
        refuse_after_fork()
        features, design = self._read(X, metadata, fitting=False)
        z = torch.from_numpy(self._x_scaling.forward(features))
        given: tuple[torch.Tensor, ...] = ()
        if self._plan.removal is not None and self.space == "sample":
            q = self._plan.removal.n_metadata
            self._refuse_unseen(design, self._m_scaling.mean)
            given = (torch.from_numpy((design[:, :q] - self._m_scaling.mean[:q]) / self._m_scaling.scale[:q]),)
        raw = []
        for start in range(0, len(z), _PREDICT_ROWS):
            rows = slice(start, start + _PREDICT_ROWS)
            h = self.network_.representation(z[rows], *(t[rows] for t in given))
            raw.append(self.network_.head.linear(h))
        density = self.network_.head.distribution(torch.cat(raw, dim=1))
        return density.affine(*(torch.from_numpy(a) for a in (self._y_scaling.mean, self._y_scaling.scale)))

    def _to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        plain = {name: value for name, value in vars(self).items() if name != "network_"}
        arrays = self.network_.state_dict() if hasattr(self, "network_") else {}
        return plain, {name: tensor.numpy() for name, tensor in arrays.items()}

    @classmethod
    def _from_state(cls, plain: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> MDNRegressor:
        model = cls()
        model.__dict__.update(plain)
        if arrays:
            model.network_ = restored(model._plan, arrays)
        return model

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # score is a log density, so it has no 1 for perfect and no 0 for the mean.
        tags.regressor_tags.poor_score = True
        tags.target_tags.multi_output = True
        return tags
