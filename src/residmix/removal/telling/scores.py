"""z-scores and centiles of rows, given their metadata."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from residmix.effects.removal import LinearRemoval
from residmix.removal.transformer import MetadataTransformer, refuse_frames
from residmix.rows.block import Block
from residmix.rows.rows import Rows
from residmix.sources.output import delivered

__all__ = ["Scores", "Standardized"]


@dataclass(frozen=True)
class Standardized:
    """Residuals of a block as z-scores, or as centiles of a normal distribution.

    Attributes
    ----------
    remove : callable
        Block to residuals.
    sd : ndarray (d,)
    centiles : bool
    """

    remove: Any
    sd: NDArray[np.float64]
    centiles: bool = False

    def __call__(self, block: Block) -> NDArray[Any]:
        from scipy.special import ndtr

        exact = self.remove(replace(block, X=np.asarray(block.X, dtype=np.float64)))
        z = exact / self.sd
        return np.asarray(100.0 * ndtr(z) if self.centiles else z, dtype=block.X.dtype)


class Scores(MetadataTransformer):
    """Scores of :class:`residmix.Residualizer`."""

    _found: Any
    _remover: Callable[..., Any]
    _later_rows: Callable[..., Rows]

    def z_scores(self, X: Any, *, metadata: Any = None, out: Any = None) -> Any:
        r"""Return the z-score of each value, given its metadata, (n, d).

        .. math:: z = r / s, \quad s_j^2 = RSS_j / \nu_j

        with r the residual of `transform` and :math:`s_j` the residual standard deviation of the fit. With
        ``scale=True`` the effects on the spread are removed from r, so that z is standard normal for any metadata if
        the features are normal: this is a normative model. Preserved effects stay in z: with a preserved diagnosis, z
        shows its deviation from the norm.

        Parameters
        ----------
        X, metadata, out
            As in transform.

        Examples
        --------
        >>> import numpy as np
        >>> import pandas as pd
        >>> import residmix as rm
        >>> rng = np.random.default_rng(0)
        >>> age = rng.uniform(8, 90, 2000)
        >>> x = np.log(age) + 0.01 * age * rng.normal(size=2000)
        >>> norms = rm.Residualizer("s(age)", scale=True).fit(x[:, None], metadata=pd.DataFrame({"age": age}))
        >>> later = pd.DataFrame({"age": [20.0, 80.0]})
        >>> norms.z_scores(np.log(later["age"]).to_numpy()[:, None] + 0.4, metadata=later).ravel().round(1).tolist()
        [2.2, 0.5]
        """
        return self._scores(X, metadata, out, centiles=False)

    def centiles(self, X: Any, *, metadata: Any = None, out: Any = None) -> Any:
        r"""Return the centile (0 to 100) of each value in a normal population with the same metadata, (n, d).

        :math:`100\,\Phi(z)` with z from `z_scores`. For features that aren't normal, use
        :meth:`residmix.ResidualMixture.centiles`.

        Parameters
        ----------
        X, metadata, out
            As in transform.
        """
        return self._scores(X, metadata, out, centiles=True)

    def _scores(self, X: Any, metadata: Any, out: Any, *, centiles: bool) -> Any:
        check_is_fitted(self)
        if not isinstance(self._found, LinearRemoval):
            raise ValueError("z_scores and centiles don't work with estimator=; use a linear fit")
        if out is not None:
            refuse_frames(self)
        score = Standardized(self._remover(), self._found.residual_sd, centiles)
        return delivered(self._later_rows(self.open_rows(X, metadata)), score, self.features_, out)
