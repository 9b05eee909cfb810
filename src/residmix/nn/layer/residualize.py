"""`Residualize`: the layer that removes the effects of metadata from a tensor."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from residmix.errors import LeakageWarning, did_you_mean, warn
from residmix.nn import _fast
from residmix.nn._fast.gradient import subtract as subtract_fast
from residmix.nn._fast.light import is_light, light_step
from residmix.nn.layer import maps as mapping
from residmix.nn.layer.batch import Batch, assemble, check_width, not_finite
from residmix.nn.layer.erase import erased, eraser_factors
from residmix.nn.layer.gradient import minus, projection, subtract
from residmix.nn.layer.moments import Moments, Solution, merge, solve
from residmix.nn.layer.recall import Recall, mark_of, may_return
from residmix.nn.layer.state import Fit, MomentState

__all__ = ["Residualize"]


class Residualize(MomentState):
    r"""Residual of a tensor on metadata, with coefficients from earlier batches.

    .. math::

        R = x - (m - \bar m) B_m, \qquad
        [B_Y; B_m; b_0] = \arg\min \sum_i w_i \lVert x_i - Y_i B_Y - m_i B_m - b_0 \rVert^2

    `Y` are *protected* columns (labels, a regression target): their effect is estimated, so that `B_m` is adjusted for
    it, and kept in `R`. With ``estimator="prior"`` the sum runs over about the last `horizon` samples **before** this
    batch. So the output of a sample doesn't depend on other samples of its batch, batches of one sample work, and
    training and evaluation use the same formula.

    The guarantee, after `residmix.nn.finalize`: on the data of `finalize`, no linear model predicts `m` from `R` better
    than from `Y` alone; without protected columns, not at all. It covers linear effects of the given columns (add
    splines or interactions as columns) on this tensor, not on the output of later nonlinear layers.

    Parameters
    ----------
    num_features : int or tuple of int
        d: the size of the last axis (``maps="token"``), of axis 1 (``"channel"``), or a sample's shape (``"element"``).
    num_metadata : int
        k, columns to remove. Collinear ones (all levels of a site) are fine.
    num_protected : int, default 0
        p, columns to protect; passed to `forward` in training only.
    space : {"sample", "feature"}
        ``"sample"`` subtracts a function of `m` and needs metadata at inference. ``"feature"`` applies an affine map of
        `x` and needs none: it removes the covariance with `m` given `Y`, and keeps that with `Y`.
    estimator : {"prior", "posterior", "batch", "learned", "frozen"}
        Coefficients used in training. ``"prior"``: from earlier batches. ``"posterior"``: also from the current batch;
        ``"batch"``: from the current batch alone (both leak labels with small batches). ``"learned"``: parameters that
        are trained by adding ``layer.penalty`` to the loss. ``"frozen"``: never updated. Evaluation uses the stored
        moments (or the learned parameters).
    horizon : float or None, default 4096
        Memory in samples: a row that is a samples old has weight (1 - 1/horizon)^a. None means no forgetting.
    grad : {"project", "stop", "through"}, optional
        The gradient for the encoder. ``"stop"`` (default in feature space): coefficients are constants. ``"project"``
        (default in sample space): the part along the metadata, which the layer removes, is projected out of the
        gradient, see `residmix.nn.layer.gradient`. ``"through"`` (posterior, batch): differentiate through the batch's
        part of the fit.
    center : {"metadata", "features", "none"}
        ``"metadata"`` keeps the features' means; ``"features"`` sets them to 0; ``"none"`` subtracts `m B_m` without
        centring.
    maps : {"element", "channel", "token"}
        One regression per element, per channel ((n, C, ...), position means), or per channel of tokens ((n, ..., C)).
    missing : {"error", "mean"}
        With NaN in metadata: raise, or make no correction for that column and leave the row out of the moments.
    warmup : int, optional
        Effective rows before the coefficients of an accumulating layer are used; default 10 (p + k + 1).
    ridge, rtol : float
        Ridge penalty as a fraction of each column's variance; tolerance below which directions of `m` count as
        collinear.
    shrink : float, default 16
        For the "prior" estimator in training: slopes of a feature on the metadata are multiplied by (1 - shrink / F)+,
        with F their F statistic given the protected columns. So a slope within 4 standard errors of 0 is set to 0. With
        0 every slope is removed in full, as in `finalize`, `accumulate` and `merge`.
    inplace : bool, optional
        Overwrite `x`, as ``torch.nn.ReLU(inplace=True)`` does, which saves memory and time on large maps. If `x` is
        needed elsewhere, torch raises an error in the backward pass. Default: only in a `MetadataSequential`, directly
        after a linear layer or a convolution, where nothing else uses `x`.
    sync : bool, default True
        Sum the moments of batches over the processes of an initialised ``torch.distributed`` with one all_reduce.
    process_group : ProcessGroup, optional

    Raises
    ------
    ValueError
        For a wrong width, missing metadata, missing protected columns in training, non-finite metadata, protected
        columns or weights, and unknown options.

    Warns
    -----
    LeakageWarning
        If a layer that has not seen rows enough is evaluated, or an estimator fits a batch with few rows.

    Notes
    -----
    Before `finalize` the coefficients lag behind the encoder, so a linear probe can predict metadata from R, the better
    the more and the larger steps there are within a horizon. Measured (``benchmarks/nn_probe.py``: 2,000 rows, 8
    features, 20 epochs of Adam, five seeds) as R^2 of the metadata given the label, by chance .004: at batch 20 .44
    (.17 to .83) with learning rate 1e-2 and .046 (.010 to .081) with 1e-3, at batch 200 .034 (.016 to .055) and .007
    (.004 to .011). After `finalize` it was at most 3e-15.

    Metadata are arguments of `forward`, never attributes. All state is in float64 buffers, also after
    ``.half()``. In compiled graphs NaN metadata give NaN instead of an error.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> age, noise = torch.randn(512, 1), torch.randn(512, 2)
    >>> layer = Residualize(2, 1, horizon=None)
    >>> layer.accumulate(noise + 3 * age, age)
    >>> residual = layer.eval()(noise + 3 * age, age)
    >>> abs(float(torch.corrcoef(torch.cat([residual, age], 1).T)[0, 2])) < 1e-5
    True
    """

    takes_metadata = True
    penalty: Tensor | None

    def __init__(
        self,
        num_features: int | tuple[int, ...],
        num_metadata: int,
        *,
        num_protected: int = 0,
        space: str = "sample",
        estimator: str = "prior",
        horizon: float | None = 4096,
        grad: str | None = None,
        center: str = "metadata",
        maps: str = "element",
        missing: str = "error",
        warmup: int | None = None,
        ridge: float = 0.0,
        rtol: float = 1e-10,
        shrink: float = 16.0,
        inplace: bool | None = None,
        sync: bool = True,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            num_features, num_metadata, num_protected, full=space == "feature", horizon=horizon, warmup=warmup,
            ridge=ridge, rtol=rtol, shrink=shrink, sync=sync, process_group=process_group,
        )  # fmt: skip
        grad = grad or ("project" if space == "sample" else "stop")
        for name, value, known in (
            ("space", space, ("sample", "feature")),
            ("estimator", estimator, ("prior", "posterior", "batch", "learned", "frozen")),
            ("grad", grad, ("project", "stop", "through")),
            ("center", center, ("metadata", "features", "none")),
            ("maps", maps, mapping.MAPS),
            ("missing", missing, ("error", "mean")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}{did_you_mean(value, known)}")
        if grad == "through" and estimator not in ("posterior", "batch"):
            raise ValueError(f"grad='through' needs estimator='posterior' or 'batch', not {estimator!r}")
        if space == "feature" and (estimator in ("batch", "learned") or grad != "stop"):
            raise ValueError("space='feature' needs estimator='prior', 'posterior' or 'frozen', and grad='stop'")
        self.space, self.estimator, self.grad = space, estimator, grad
        self.center, self.maps, self.missing, self.inplace = center, maps, missing, inplace
        if estimator == "learned":
            self.standard_coef = nn.Parameter(torch.zeros(num_protected + num_metadata, self.num_features))
        self.frozen = estimator == "frozen"
        self._warned = False
        self.penalty = None
        # With a covariance of all features, what a batch is corrected with is large.
        self.latest: Recall[Any] = Recall(4 if self.full else 16)

    def __getstate__(self) -> dict[str, Any]:
        # Copies start without what only backward passes under way need; a penalty with its graph can't be copied.
        return self.__dict__ | {"penalty": None, "latest": Recall(self.latest.most)}

    # -- state of the learned estimator --------------------------------------------------------------------------

    def refresh(self) -> None:
        """Solve for the coefficients from the stored moments, even with few rows."""
        super().refresh()
        if self.estimator == "learned":
            joint = solve(self.moments, 0, ridge=self.ridge, rtol=self.rtol).coef
            joint[self.num_protected :] = self._solution().coef
            with torch.no_grad():
                self.standard_coef.copy_(joint * self._scale(self.moments)[:, None])

    def reset(self) -> None:
        """Discard all moments, as after construction."""
        super().reset()
        self.speaks = True
        if self.estimator == "learned":
            nn.init.zeros_(self.standard_coef)

    def freeze(self, frozen: bool = True) -> None:
        """Stop (or resume) updating in training."""
        super().freeze(frozen)
        if self.estimator == "learned":
            self.standard_coef.requires_grad_(not frozen)

    @staticmethod
    def _scale(moments: Moments) -> Tensor:
        """Standard deviations of the design columns, (q,)."""
        return (moments.design_scatter.diagonal() / moments.weight.clamp_min(1e-300)).sqrt()

    def _learned(self, solution: Solution, moments: Moments, batch: Batch | None) -> Solution:
        """Coefficients from the parameters; with a batch, also the penalty that trains them."""
        scale = self._scale(moments)
        scale = torch.where(scale > 0, 1.0 / scale.clamp_min(1e-300), 0.0)
        if batch is not None:
            design = (batch.design - moments.design_mean) * scale
            weight = batch.weight / batch.weight.sum().clamp_min(1e-300)
            error = batch.features().detach() - moments.feature_mean - design @ self.standard_coef.double()
            self.penalty = torch.einsum("nd,nd,n->", error, error, weight) / 2
        coef = (scale[:, None] * self.standard_coef.detach().double())[self.num_protected :]
        return replace(solution, coef=coef)

    def coefficients(self) -> Tensor:
        """B_m by least squares (or learned), float64 (k, d), in units of x per unit of metadata."""
        if self.estimator == "learned":
            return self._learned(self._solution(), self.moments, None).coef
        return super().coefficients()

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, {self.num_metadata}, num_protected={self.num_protected}, space={self.space!r}, "
            f"estimator={self.estimator!r}, horizon={self.horizon}, grad={self.grad!r}, maps={self.maps!r}"
        )

    # -- one batch -----------------------------------------------------------------------------------------------

    def read(
        self, x: Tensor, metadata: Tensor | None, protected: Tensor | None = None, sample_weight: Tensor | None = None,
        mask: Tensor | None = None, *, fit: bool = True,
    ) -> Batch:  # fmt: skip
        """Check the arguments of `forward` and turn them into rows; with `fit`, protected columns are needed."""
        check_width(x, self.maps, self.num_features)
        batch = assemble(
            x, metadata, protected if fit else None, sample_weight, mask, maps=self.maps,
            widths=(self.num_metadata, self.num_protected if fit else 0), flatten=self.space == "feature",
        )  # fmt: skip
        if self.missing == "mean":
            batch = batch.filled(self.moments.design_mean[self.num_protected :])
        if not torch.compiler.is_compiling() and not math.isfinite(float(batch.design.sum())):
            raise not_finite(batch.design.cpu(), batch.num_protected)
        return batch

    def _training_step(self, batch: Batch, inplace: bool) -> Tensor:
        # Activation checkpointing runs the forward pass a second time: same coefficients, nothing counted twice.
        again = self.latest.again
        if again:
            before = self.latest.find(mark_of(batch.x, batch.design))
            assert isinstance(before, Fit)
        else:
            before = self._snapshot()
            if may_return():
                self.latest.keep(mark_of(batch.x, batch.design), before)
        local = self.estimator in ("posterior", "batch")
        if local or not again:
            new, old = self._observed(
                batch, before.moments, differentiable=self.grad == "through", level=self.estimator == "batch"
            )
            merged = merge(old, new)
        if not again:
            kept = merged.detached() if self.grad == "through" else merged
            self._store(kept)
            prior = self.estimator == "prior" and not self.full
            self._solve_from(kept, kept.effective_rows >= self.warmup, self.shrink if prior else 0.0)
        fit = before
        if local:
            fit = self._local_fit(new if self.estimator == "batch" else merged)
        if fit.erasure is not None:
            left, right = fit.erasure
            level = fit.moments.feature_mean if self.center == "features" else None
            return erased(batch.x, batch.maps, left, right, fit.moments.feature_mean, level, inplace)
        if self.estimator == "learned":
            fit = replace(fit, solution=self._learned(fit.solution, fit.moments, batch))
        return self._removed(batch, fit, inplace, train=True)

    def _local_fit(self, moments: Moments) -> Fit:
        """What the posterior and the batch's own estimator correct with."""
        self._warn_of_leakage(moments)
        solution = solve(moments, self.num_protected, ridge=self.ridge, rtol=self.rtol)
        erasure = eraser_factors(moments, self.num_protected, rtol=self.rtol) if self.full else None
        return Fit(moments, solution, torch.ones_like(self.ready[0]), erasure)

    @torch.no_grad()
    def observe(
        self,
        x: Tensor,
        metadata: Tensor | None = None,
        protected: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Add rows to this process's moments, without forgetting; call `refresh` to solve for the coefficients."""
        self._add(self.read(x, metadata, protected, sample_weight, mask))

    def accumulate(
        self, x: Tensor, metadata: Tensor, protected: Tensor | None = None, **options: Tensor | None
    ) -> None:
        """`observe`, then `refresh`."""
        self.observe(x, metadata, protected, **options)
        self.refresh()

    def forward(
        self,
        x: Tensor,
        metadata: Tensor | None = None,
        protected: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        mask: Tensor | None = None,
        update: bool | None = None,
        inplace: bool | None = None,
    ) -> Tensor:
        """Residual of `x`, same shape and dtype.

        Parameters
        ----------
        x : Tensor
            See ``maps``.
        metadata : Tensor, shape (n, k) or (n,); for tokens also (n, ..., k)
            Not needed for ``space="feature"`` in evaluation.
        protected : Tensor, shape (n, p) or (n,), optional
            Required in training when ``num_protected > 0``; ignored otherwise.
        sample_weight : Tensor, shape (n,), optional
            Weights in the moments; 0 leaves a row out.
        mask : Tensor, optional
            Which positions count: (n, positions) without the channel axis.
        update : bool, optional
            Whether this batch enters the moments; default ``self.training``. A frozen layer never updates.
        inplace : bool, optional
            Whether to overwrite `x`, unless set in the layer.
        """
        inplace = bool(inplace if self.inplace is None else self.inplace)
        update = (self.training if update is None else update) and not self.frozen
        if not update and self.speaks:
            self._warn_if_unfitted()
        if self.space == "feature" and not update:
            check_width(x, self.maps, self.num_features)
            level = self.moments.feature_mean if self.center == "features" else None
            return erased(x, self.maps, self.left, self.right, self.moments.feature_mean, level, inplace)
        if self.erases and update:
            # Training goes on from the moments, whose coefficients are subtracted.
            self._solve_from(self.moments, torch.ones_like(self.ready[0], dtype=torch.bool), self.shrink)
        elif self.erases:
            check_width(x, self.maps, self.num_features)
            x = erased(x, self.maps, self.left, self.right, self.moments.feature_mean, None, inplace)
        if update and _fast.enabled() and is_light(self, x, metadata, protected):
            return light_step(self, x, metadata, protected, sample_weight, mask, inplace)
        batch = self.read(x, metadata, protected, sample_weight, mask, fit=update)
        if not update:
            solution = self._solution()
            if self.estimator == "learned":
                solution = self._learned(solution, self.moments, None)
            fit = Fit(self.moments, solution, self.ready[0], None)
            return self._removed(batch, fit, inplace, train=False).view(x.shape)
        return self._training_step(batch, inplace).view(x.shape)

    def _removed(self, batch: Batch, fit: Fit, inplace: bool, *, train: bool) -> Tensor:
        p, x, moments, solution = self.num_protected, batch.x, fit.moments, fit.solution
        metadata = batch.metadata_or(moments.design_mean[p:])
        centred = metadata - moments.design_mean[p:]
        change = metadata if self.center == "none" else centred
        rows = change @ (solution.coef * solution.kept)
        if self.center == "features":
            rows = rows + moments.feature_mean * fit.ready
        # Float32 for half-precision x: the subtraction is then rounded once.
        removed = mapping.broadcast(rows.to(torch.promote_types(x.dtype, torch.float32)), x, batch.maps)
        if not train or self.grad != "project":
            return minus(x, removed, inplace)
        remainder = centred
        if p:
            remainder = centred - (batch.protected - moments.design_mean[:p]) @ solution.slope
        per_row = 1.0 / (moments.weight + (moments.weight == 0))
        scatter = solution.remainder * (0.0 if self.estimator == "batch" else self.num_metadata * per_row)
        variance = moments.scatter.diagonal()[p:] * per_row
        centre = self.center == "features"
        loss = projection(change, remainder, scatter, variance, batch.weight, fit.ready, solution.kept, centre=centre)
        if _fast.enabled():
            return subtract_fast(x, removed, loss, batch.mask, batch.maps, inplace=inplace)
        return subtract(x, removed, loss, batch.mask, batch.maps)

    def _warn_of_leakage(self, moments: Moments) -> None:
        rows, needed = float(moments.effective_rows), 10 * (self.num_metadata + self.num_protected + 1)
        if rows < needed and not self._warned:
            self._warned = True
            warn(
                f"estimator={self.estimator!r} fits {needed // 10} coefficients to the {rows:.0f} rows of the batch, "
                f"so residuals leak protected labels. Use estimator='prior', or batches of {needed}",
                LeakageWarning,
            )
