"""MergedMixture: a mixture whose components are merged into clusters."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval

from residmix.errors import check_arguments
from residmix.mixture.after.merging import Merges

__all__ = ["MergedMixture"]

Floats = NDArray[np.float64]


class MergedMixture:
    """A fitted mixture whose components are merged into clusters. Its density is unchanged.

    Returned by :meth:`residmix.GaussianMixture.merge_components`.

    Attributes
    ----------
    mixture : GaussianMixture or ResidualMixture
    n_clusters_ : int
    clusters_ : ndarray of int (K,)
        The cluster of each component.
    weights_ : ndarray (n_clusters,)
        Proportions of the clusters.
    entropy_ : dict of lists
        "n_clusters" (1 to K), "entropy" of the assignment to that number of clusters, and "shared": by how much the
        last merge lowered the entropy, per row of the two merged clusters. A bend in the entropy suggests a number of
        clusters; two clusters with a shared entropy above about 0.1 overlap.
    """

    def __init__(self, mixture: Any, merges: Merges, n_clusters: int) -> None:
        self.mixture, self._merges, self.n_clusters_ = mixture, merges, n_clusters
        self.clusters_ = merges.clusters[n_clusters - 1]
        self.weights_: Floats = np.asarray(np.bincount(self.clusters_, weights=mixture.weights_), dtype=np.float64)
        self.entropy_ = {
            "n_clusters": list(range(1, len(merges.entropy) + 1)),
            "entropy": merges.entropy.tolist(),
            "shared": merges.shared.tolist(),
        }

    def with_clusters(self, n_clusters: int) -> MergedMixture:
        """Return the same mixture with another number of clusters, 1 to K."""
        allowed = Interval(Integral, 1, len(self._merges.entropy) + 1, closed="left")
        check_arguments("with_clusters", n_clusters=([allowed], n_clusters))
        return MergedMixture(self.mixture, self._merges, n_clusters)

    def predict_proba(self, X: Any, **given: Any) -> Floats:
        """Return the probability of each cluster given the row, (n, n_clusters); noise has a last column.

        Parameters
        ----------
        X : array (n, d) or table
        **given
            ``metadata=`` of a :class:`~residmix.ResidualMixture`.
        """
        share = self.mixture.predict_proba(X, **given)
        whole = np.zeros((len(share), self.n_clusters_ + share.shape[1] - len(self.clusters_)))
        for k, cluster in enumerate(self.clusters_):
            whole[:, cluster] += share[:, k]
        whole[:, self.n_clusters_ :] = share[:, len(self.clusters_) :]
        return whole

    def predict(self, X: Any, **given: Any) -> NDArray[np.intp]:
        """Return the most probable cluster of each row, (n,); -1 for noise. Arguments as of :meth:`predict_proba`."""
        labels = self.predict_proba(X, **given).argmax(axis=1)
        return np.where(labels == self.n_clusters_, -1, labels)

    def __repr__(self) -> str:
        return f"<{len(self.clusters_)} components merged into {self.n_clusters_} clusters: {self.clusters_.tolist()}>"
