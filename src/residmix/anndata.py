"""AnnData: ``obs`` as metadata, ``X``, a layer or an embedding as features; results under one name.

Backed and sparse matrices are read and densified a block of rows at a time, so fitting holds one block beyond the
object. scanpy isn't needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from residmix.atomic import atomic_path
from residmix.design.formula.parser import formula_columns
from residmix.errors import did_you_mean, require_extra
from residmix.sources.open import as_table
from residmix.sources.table import Table

if TYPE_CHECKING:
    from residmix.conditional.residual_mixture import ResidualMixture
    from residmix.removal.residualizer import Residualizer

__all__ = ["from_anndata", "mixture", "read_h5ad", "residualize", "write_h5ad"]

BATCH_BYTES = 1 << 26  # of a densified block


def from_anndata(
    adata: Any, formula: str | None = None, *, layer: str | None = None, basis: str | None = None
) -> Table:
    """Return a view of an AnnData object that every estimator takes: ``estimator.fit(from_anndata(adata, ...))``.

    Parameters
    ----------
    adata : AnnData
        In memory or backed, or some rows and genes of one, ``adata[rows, genes]``.
    formula : str, optional
        Only the columns of ``obs`` that it names are read. Default: all of them.
    layer : str, optional
        Features are ``adata.layers[layer]``; default ``adata.X``.
    basis : str, optional
        Features are ``adata.obsm[basis]``, for example "X_pca".

    Returns
    -------
    Table
        Features are called as ``adata.var_names`` are, where these are unique, so that a model finds them in another
        object by their names.

    Raises
    ------
    MissingExtraError
        If anndata isn't installed.
    TypeError, ValueError
        If `adata` is something else, or has no such layer, embedding or column.

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd, residmix as rm
    >>> from residmix.anndata import from_anndata
    >>> obs = pd.DataFrame({"batch": ["a", "b"] * 50}, index=[f"cell{i}" for i in range(100)])
    >>> cells = anndata.AnnData(np.random.default_rng(0).normal(size=(100, 3)), obs=obs)
    >>> rm.Residualizer("C(batch)").fit(from_anndata(cells)).r2_.shape
    (3,)
    """
    adata = _checked(adata)
    matrix = _matrix(adata, layer, basis)
    obs = adata.obs
    if formula is not None:
        columns = formula_columns(formula)
        for name in columns:
            if name not in obs:
                raise ValueError(f"unknown column {name!r} in obs{did_you_mean(name, obs.columns)}")
        obs = obs[list(columns)]
    rows = int(max(256, BATCH_BYTES // (8 * max(matrix.shape[1], 1))))
    names = _names(adata, matrix, basis)

    def batches() -> Iterator[tuple[Any, Any]]:
        for start in range(0, adata.n_obs, rows):
            part = slice(start, start + rows)
            yield _named(matrix[part], names), obs.iloc[part]

    return as_table(batches)


def residualize(
    adata: Any,
    formula: str,
    *,
    preserve: str | None = None,
    layer: str | None = None,
    basis: str | None = None,
    key: str = "residual",
    **options: Any,
) -> Residualizer:
    """Remove the effects of `formula` from the features; write the residuals into `adata`.

    Parameters
    ----------
    adata : AnnData
        Changed: gets ``layers[key]`` (or, with `basis`, ``obsm[basis + "_" + key]``), NaN where ``features=`` doesn't
        ask for a feature, and ``uns[key]`` with formula, names, R2, design (JSON) and coefficients if there are some.
        With ``residuals="cross-fitted"`` the features are held in memory as a whole, else a block at a time.
    formula, preserve : str
        Of columns of ``obs``; see :class:`residmix.Residualizer`.
    layer, basis : str, optional
        See :func:`from_anndata`.
    key : str
    **options
        Of :class:`residmix.Residualizer`.

    Returns
    -------
    Residualizer
        Fitted.

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd
    >>> from residmix.anndata import residualize
    >>> obs = pd.DataFrame({"batch": ["a", "b"] * 50}, index=[f"cell{i}" for i in range(100)])
    >>> cells = anndata.AnnData(np.random.default_rng(0).normal(size=(100, 3)), obs=obs)
    >>> model = residualize(cells, "C(batch)", key="clean")
    >>> cells.layers["clean"].shape
    (100, 3)
    """
    from residmix.removal.residualizer import Residualizer

    adata = _checked(adata, writing=True)
    table = from_anndata(adata, _both(formula, preserve), layer=layer, basis=basis)
    model = Residualizer(formula, preserve=preserve, **options)
    if model.residuals == "cross-fitted" and model.estimator is None:
        # folds take rows out of order, and so want them in memory
        matrix = _matrix(adata, layer, basis)
        own = _named(matrix[:], _names(adata, matrix, basis))
        residual = model.fit_transform(own, metadata=adata.obs[list(formula_columns(_both(formula, preserve)))])
    else:
        residual = model.fit_transform(table)
    matrix = _matrix(adata, layer, basis)
    residual = _of_all_features(residual, model, _names(adata, matrix, basis), matrix.shape[1])
    if basis is None:
        adata.layers[key] = residual
    else:
        adata.obsm[f"{basis}_{key}"] = residual
    adata.uns[key] = {
        **_described(formula, preserve, layer, basis),
        "names": np.asarray(model.features_, dtype=str).astype(object),
        "r2": np.asarray(model.r2_),
        "design": json.dumps(model.design_.to_dict()),
    }
    if model.estimator is None:
        adata.uns[key] |= {
            "intercept": np.asarray(model.intercept_),
            "coef": np.asarray(model.coef_),
            "design_columns": np.asarray(model.design_columns_, dtype=object),
        }
    return model


def mixture(
    adata: Any,
    formula: str,
    n_components: int = 3,
    *,
    preserve: str | None = None,
    layer: str | None = None,
    basis: str | None = None,
    key: str = "residmix",
    **options: Any,
) -> ResidualMixture:
    """Remove the effects of `formula`, fit a mixture to the residuals, and write the components into `adata`.

    Parameters
    ----------
    adata : AnnData
        Changed: gets ``obs[key]`` (the component, categorical), ``obsm["X_" + key]`` (the probability of each
        component) and ``uns[key]`` (formula, weights, means, log-likelihood per row).
    formula, preserve, layer, basis
        As in :func:`residualize`.
    n_components : int
    key : str
    **options
        Of :class:`residmix.ResidualMixture`.

    Returns
    -------
    ResidualMixture
        Fitted.

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd
    >>> from residmix.anndata import mixture
    >>> obs = pd.DataFrame({"batch": ["a", "b"] * 50}, index=[f"cell{i}" for i in range(100)])
    >>> X = np.random.default_rng(0).normal(size=(100, 2)) + 9.0 * (np.arange(100) < 50)[:, None]
    >>> cells = anndata.AnnData(X, obs=obs)
    >>> model = mixture(cells, "C(batch)", 2, random_state=0)
    >>> sorted(cells.obs["residmix"].value_counts())
    [50, 50]
    """
    import pandas as pd

    from residmix.conditional.residual_mixture import ResidualMixture

    adata = _checked(adata, writing=True)
    table = from_anndata(adata, _both(formula, preserve), layer=layer, basis=basis)
    model: ResidualMixture = ResidualMixture(n_components, formula=formula, preserve=preserve, **options).fit(table)
    probabilities = model.predict_proba(table)
    names = [str(k) for k in range(probabilities.shape[1])]
    adata.obs[key] = pd.Categorical.from_codes(np.argmax(probabilities, axis=1), categories=pd.Index(names))
    adata.obsm[f"X_{key}"] = probabilities
    adata.uns[key] = {
        **_described(formula, preserve, layer, basis),
        "weights": np.asarray(model.weights_),
        "means": np.asarray(model.residual_means_),
        "log_likelihood": float(model.lower_bound_),
    }
    return model


def read_h5ad(path: Any, *, layer: str | None = None, basis: str | None = None) -> tuple[Table, tuple[str, ...]]:
    """Return an .h5ad file as one table, with the columns of ``obs`` and of the matrix, and the names of the features.

    The matrix is read a block of rows at a time. Columns of an embedding are called ``X_pca_0``, ``X_pca_1``, ...

    Parameters
    ----------
    path : path
    layer, basis : str, optional
        See :func:`from_anndata`.

    Raises
    ------
    MissingExtraError
        If anndata isn't installed.
    OSError, ValueError
        If the file can't be read, or a gene and a column of ``obs`` share a name.

    Examples
    --------
    >>> import os, tempfile, anndata, numpy as np
    >>> from residmix.anndata import read_h5ad
    >>> path = os.path.join(tempfile.mkdtemp(), "cells.h5ad")
    >>> anndata.AnnData(np.eye(4)[:, :2]).write_h5ad(path)
    >>> read_h5ad(path)[1]
    ('0', '1')
    """
    import pandas as pd

    adata = _opened(path)
    matrix = _matrix(adata, layer, basis)
    known = _names(adata, matrix, basis)
    if known is None and basis is None:
        raise ValueError(f"{str(path)!r} repeats gene names; call adata.var_names_make_unique() and write it again")
    names = [f"{basis}_{j}" for j in range(matrix.shape[1])] if known is None else [str(name) for name in known]
    obs = adata.obs
    for name in names:
        if name in obs:
            raise ValueError(f"{name!r} is both a column of obs and a feature in {str(path)!r}; rename one")
    rows = int(max(256, BATCH_BYTES // (8 * max(matrix.shape[1], 1))))

    def batches() -> Iterator[Any]:
        for start in range(0, adata.n_obs, rows):
            part = slice(start, start + rows)
            values = _named(matrix[part], pd.Index(names))
            values.index = pd.RangeIndex(len(values))
            yield pd.concat([obs.iloc[part].reset_index(drop=True), values], axis=1)

    return as_table(batches), tuple(names)


def write_h5ad(
    source: Any,
    path: Any,
    *,
    residual: Any = None,
    labels: Any = None,
    layer: str | None = None,
    basis: str | None = None,
) -> None:
    """Write a copy of an .h5ad file with residuals or components added.

    Parameters
    ----------
    source, path : path
        The file to read and the file to write.
    residual : ndarray (n, d), optional
        Goes to ``layers["residual"]``, or with `basis` to ``obsm[basis + "_residual"]``.
    labels : ndarray (n,), optional
        Go to ``obs["residmix"]``, as categories.

    Examples
    --------
    >>> import os, tempfile, anndata, numpy as np
    >>> from residmix.anndata import write_h5ad
    >>> path = os.path.join(tempfile.mkdtemp(), "cells.h5ad")
    >>> anndata.AnnData(np.eye(4)).write_h5ad(path)
    >>> write_h5ad(path, path + ".new", labels=[0, 1, 1, 0])
    >>> list(anndata.read_h5ad(path + ".new").obs["residmix"])
    ['0', '1', '1', '0']
    """
    import pandas as pd

    adata = _opened(source, backed=False)
    if residual is not None and basis is None:
        adata.layers["residual"] = residual
    elif residual is not None:
        adata.obsm[f"{basis}_residual"] = residual
    if labels is not None:
        adata.obs["residmix"] = pd.Categorical([str(label) for label in labels])
    with atomic_path(path) as temporary:
        adata.write_h5ad(temporary)


def _opened(path: Any, *, backed: bool = True) -> Any:
    try:
        from anndata import read_h5ad as read
    except ImportError:
        raise require_extra("anndata", "anndata", "reading .h5ad files") from None
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no file matches {str(path)!r}")
    try:
        return read(path, backed="r" if backed else None)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise OSError(f"can't read {str(path)!r}: {error}") from error


def _both(formula: str, preserve: str | None) -> str:
    return formula if preserve is None else f"{formula} + {preserve}"


def _described(formula: str, preserve: str | None, layer: str | None, basis: str | None) -> dict[str, str]:
    """Return what was done, in values that h5ad files hold."""
    from residmix import __version__

    return {
        "formula": formula,
        "preserve": preserve or "",
        "features": f"obsm/{basis}" if basis else f"layers/{layer}" if layer else "X",
        "version": __version__,
    }


def _checked(adata: Any, *, writing: bool = False) -> Any:
    try:
        from anndata import AnnData
    except ImportError:
        raise require_extra("anndata", "anndata", "reading AnnData objects") from None
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData object, not {type(adata).__name__}")
    if writing and adata.is_view and adata.isbacked:
        raise ValueError("adata is a part of a backed object, which nothing can be written to; use adata.to_memory()")
    return adata


def _matrix(adata: Any, layer: str | None, basis: str | None) -> Any:
    if layer is not None and basis is not None:
        raise ValueError(f"give layer or basis, not both: layer={layer!r}, basis={basis!r}")
    for kind, name, known in (("layer", layer, adata.layers), ("basis", basis, adata.obsm)):
        if name is not None:
            if name not in known:
                there = ", ".join(map(repr, known)) or "none"
                raise ValueError(f"there is no {kind} {name!r}{did_you_mean(name, known)}; there are: {there}")
            return known[name]
    if adata.X is None:
        raise ValueError("adata.X is empty; set layer= or basis=")
    return adata.X


def _names(adata: Any, matrix: Any, basis: str | None) -> Any:
    """Return the names of the features: those of the genes if they are unique, none for embeddings."""
    if basis is not None:
        return getattr(matrix, "columns", None)
    return adata.var_names if adata.var_names.is_unique else None


def _of_all_features(residual: Any, model: Residualizer, names: Any, n_features: int) -> Any:
    """Return residuals with a column for each feature of the matrix, NaN for features that weren't selected."""
    residual = np.asarray(residual)
    known = [f"x{j}" for j in range(n_features)] if names is None else [str(name) for name in names]
    if list(map(str, model.features_)) == known:
        return residual
    place = {name: j for j, name in enumerate(known)}
    whole = np.full((len(residual), n_features), np.nan, dtype=residual.dtype)
    whole[:, [place[str(name)] for name in model.features_]] = residual
    return whole


def _named(block: Any, names: Any) -> Any:
    """Return some rows as a dense matrix, or as a frame if its columns have names."""
    dense = np.asarray(block.toarray() if hasattr(block, "toarray") else block)
    if names is None:
        return dense
    import pandas as pd

    dense = dense if dense.dtype in (np.float32, np.float64) else dense.astype(np.float64)
    return pd.DataFrame(dense, columns=names.astype(str), copy=False)
