"""Refits of a fitted mixture: to the same rows with other weights, or to rows drawn from it."""

from __future__ import annotations

from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from residmix.errors import unnoted
from residmix.sources.frames import is_frame

__all__ = ["Refits", "estimates", "in_order"]

Floats = NDArray[np.float64]

# What estimators show, and which of it has components along its first axis.
BY_COMPONENT = ("weights", "means", "covariances", "dof", "gate_coef", "gate_intercept")
SHOWN = (*BY_COMPONENT, "noise_weight", "coef", "intercept")


def estimates(model: Any) -> dict[str, Floats]:
    """Return the fitted parameters of a mixture, by name."""
    found = {name: getattr(model, f"{name}_", None) for name in SHOWN}
    return {name: np.asarray(value, dtype=np.float64) for name, value in found.items() if value is not None}


def in_order(found: dict[str, Floats], order: NDArray[np.intp], shared: bool) -> dict[str, Floats]:
    """Return parameters with their components in another order; a shared covariance and shared effects have none."""
    own = {*BY_COMPONENT} - ({"covariances"} if shared else set())
    if found.get("coef", order).ndim == 3:
        own.add("coef")
    return {name: value[order] if name in own else value for name, value in found.items()}


class Refits:
    """A fitted model, its rows, and how to fit it again; `weight` (n,) is for those who draw rows.

    Parameters
    ----------
    model : GaussianMixture or ResidualMixture
    X, metadata
        As its `fit` takes them.
    """

    weight: Floats | None = None

    def __init__(self, model: Any, X: Any, metadata: Any = None) -> None:
        check_is_fitted(model)
        self.model, self.X = model, X
        self.given = {} if metadata is None else {"metadata": metadata}
        self.n_rows = model._rows(X, *([metadata] if hasattr(model, "residualizer_") else [])).n_rows

    def template(self, n_components: int | None = None) -> Any:
        """Return an estimator with the model's settings that starts at the model's parameters; or of another size."""
        K = self.model.n_components_
        settings = {"n_components": n_components or K, "covariance_type": self.model.covariance_type_, "verbose": 0}
        starts: dict[str, Any] = {"weights_init": None, "means_init": None, "precisions_init": None}
        if n_components is None:
            weights = self.model.weights_ / self.model.weights_.sum()
            starts = {
                "weights_init": weights,
                "means_init": self.model.means_,
                "precisions_init": self.model.precisions_,
            }
            settings["n_init"] = 1
        made = clone(self.model).set_params(**settings, **starts, labels_init=None, warm_start=False, checkpoint=None)
        if not isinstance(made.random_state, int):
            made.set_params(random_state=0)
        return made

    def weighted(self, weight: Floats) -> Any:
        """Return the model fitted to the rows with other weights."""
        with unnoted():
            return self.template().fit(self.X, sample_weight=weight, **self.given)

    def drawn(self, seed: int) -> tuple[Any, dict[str, Any]]:
        """Return as many rows drawn from the model, given their metadata: X and the other arguments of `fit`."""
        model = clone(self.model)
        model.__dict__.update(self.model.__dict__)
        model.random_state = seed
        regressor = getattr(self.model, "residualizer_", None)
        if regressor is None or not self.model._design.columns:
            X = model.sample(self.n_rows)[0]
            names = getattr(self.model, "feature_names_in_", None)
            return X if names is None or not is_frame(self.X) else _put(self.X, names, X), {}
        metadata = self.given.get("metadata", self.X)
        X = model.sample(metadata=metadata)[0]
        if is_frame(self.X):
            return _put(self.X, regressor.features_, X), self.given
        if "metadata" not in self.given:
            raise TypeError(
                f"drawing rows needs metadata in memory: pass a data frame, or metadata=, not a {type(self.X).__name__}"
            )
        return X, self.given

    def fit_drawn(self, drawn: tuple[Any, dict[str, Any]], n_components: int | None = None) -> Any:
        """Return the model, or one of another size, fitted to drawn rows."""
        template = self.template(n_components)
        if n_components is None and getattr(self.model, "gate_coef_", None) is not None:
            # a gate has no start of its own among the settings: labels begin it, and the search isn't begun anew
            labels = np.asarray(self.model.predict(drawn[0], **drawn[1]))
            if np.array_equal(np.unique(labels), np.arange(self.model.n_components_)):
                template.set_params(weights_init=None, means_init=None, precisions_init=None, labels_init=labels)
        with unnoted():
            return template.fit(drawn[0], **drawn[1])


def _put(frame: Any, names: Any, X: Floats) -> Any:
    """Return a frame with other values in some columns."""
    own = nw.from_native(frame, eager_only=True)
    columns = [nw.new_series(str(name), X[:, j], backend=own.implementation) for j, name in enumerate(names)]
    if own.implementation.is_pandas():
        index = nw.maybe_get_index(own)
        if index is not None:
            columns = [nw.maybe_set_index(column, index=index) for column in columns]
    return own.with_columns(*columns).to_native()
