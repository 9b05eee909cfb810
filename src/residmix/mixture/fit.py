"""How mixtures are fitted, with and without metadata: starts, runs, selection, warnings."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from residmix.em.callbacks import CallbackSupportMixin, FitTasks
from residmix.em.loop import EMState, run_em
from residmix.em.observers import Progress
from residmix.em.runs import run_starts
from residmix.errors import note
from residmix.mixture.after.keeping import MixtureKept
from residmix.mixture.doubts.hints import spikes_amid
from residmix.mixture.families.family import COVARIANCE_TYPES, FACTOR, family
from residmix.mixture.iteration.refreshed import run_near
from residmix.mixture.iteration.step import MixtureEM, log_prior_density
from residmix.mixture.iteration.watched import run_watched
from residmix.mixture.params import MixtureParams, SingularCovarianceError, params_as
from residmix.mixture.robust.aside import run_aside
from residmix.mixture.robust.cells import penalties_of
from residmix.mixture.robust.gaps import single_normal, without_gaps
from residmix.mixture.robust.margins import Margins
from residmix.mixture.robust.settings import MixtureSettings
from residmix.mixture.robust.starts import tail_starts
from residmix.mixture.selection.candidates import NoneFittedError, is_search, sizes
from residmix.mixture.selection.path import merged_starts
from residmix.mixture.selection.search import Candidate, doubt, held_out, is_spike, table
from residmix.mixture.starts import INIT_PARAMS, check_given, find_start, subsample
from residmix.mixture.starts.labels import check_labels, params_of_labels
from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows, Rows

__all__ = ["MixtureFit"]

Floats = NDArray[np.float64]
State = EMState[MixtureParams]


# Folds of the cross-validated likelihood.
N_FOLDS = 5

# Runs that end within this many times `tol` of another's likelihood have found nothing more.
SAME = 25.0


def _weight(block: Block) -> float:
    return float(block.n_rows if block.weight is None else block.weight.sum())


class MixtureFit(CallbackSupportMixin, MixtureSettings, MixtureKept):
    """The part of a mixture's estimator that runs EM."""

    criterion: str
    noise: bool
    distribution: str
    tol: float
    max_iter: int
    n_init: int
    init_params: str
    search: str | int
    weights_init: ArrayLike | None
    means_init: ArrayLike | None
    precisions_init: ArrayLike | None
    labels_init: ArrayLike | None
    accelerate: bool
    warm_start: bool
    verbose: int
    verbose_interval: int
    checkpoint: str | PathLike[str] | None

    _parameter_constraints: dict[str, list[Any]] = MixtureSettings._settings_constraints | {
        "n_components": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"}), "array-like"],
        "covariance_type": [StrOptions({*COVARIANCE_TYPES, "auto"}), "array-like"],
        "noise": ["boolean"],
        "distribution": [StrOptions({"gaussian", "t"})],
        "criterion": [StrOptions({"bic", "icl", "aic", "cv"})],
        "tol": [Interval(Real, 0.0, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "init_params": [StrOptions(set(INIT_PARAMS))],
        "search": [StrOptions({"all", "nearest"}), Interval(Integral, 1, None, closed="left")],
        "weights_init": ["array-like", None],
        "means_init": ["array-like", None],
        "precisions_init": ["array-like", None],
        "labels_init": ["array-like", None],
        "accelerate": ["boolean"],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
        "verbose_interval": [Interval(Integral, 1, None, closed="left")],
        "checkpoint": [str, PathLike, None],
    }

    @property
    def _quiet(self) -> bool:
        """Whether progress is shown elsewhere."""
        return bool(self.verbose) or bool(getattr(self, "_skl_callbacks", None))

    @property
    def _coarse(self) -> bool:
        """Whether stopping can't see the errors of single precision in a log-likelihood."""
        return not 0 < self.tol < 1e-8

    def _given_start(self, n_features: int) -> dict[str, Floats | None]:
        """Return the user's starting values, checked."""
        values = self.weights_init, self.means_init, self.precisions_init
        return check_given(*values, self.covariance_type, self.n_components, n_features)

    def _is_search(self) -> bool:
        return is_search(self.n_components, self.covariance_type) or self._kind() == FACTOR

    def _labelled(self, rows: Rows, K: int, kind: str) -> MixtureParams:
        """Return the M-step's answer to the user's labels."""
        if any(value is not None for value in (self.weights_init, self.means_init, self.precisions_init)):
            raise ValueError("labels_init can't be combined with weights_init, means_init or precisions_init; use one")
        labels = check_labels(self.labels_init, rows.n_rows, K)
        whole, bound = self._whole(rows), self._restraint_of(K)
        return params_of_labels(whole, labels, K, covariance_type=kind, reg_covar=self._floor, restraint=bound)

    def _best(
        self,
        em: MixtureEM,
        starts: Callable[[], Iterable[MixtureParams]],
        tasks: FitTasks,
        fingerprint: str,
        history: tuple[float, ...] = (),
        wanted: int | None = None,
        race: bool = False,
    ) -> State:
        """Run every start to the end; return the likeliest without spikes. Those after the number `wanted` are run only
        as long as all have some. In a race, those that seem to end behind an earlier one aren't looked at further.
        """
        bar = -np.inf

        def run(i: int, start: MixtureParams | State, keep: Callable[[State], Any] | None) -> State:
            nonlocal bar
            report = Progress(self.verbose, self.verbose_interval, i)

            def callback(state: State) -> bool:
                report(state)
                if keep is not None:
                    keep(state)
                return iterated(state)

            told = nullcontext(lambda state: False) if wanted is not None and i >= wanted else None
            with told or tasks.start(self.max_iter) as iterated:
                try:
                    ended = self._run(em, start, callback, history, bar)
                except SingularCovarianceError:
                    self._failed += 1
                    raise
            report.end(ended)
            if race and ended.converged and not spiky(ended):
                bar = max(bar, ended.log_likelihood + SAME * self.tol)
            return ended

        begin = partial(self._tail_starts, em.rows, starts) if self._has_tails() else starts
        path = self.checkpoint

        def spiky(state: State) -> bool:
            return bool(spikes_amid(em.rows, self._whole(em.rows), state.params, self._floor))

        def spare(i: int, ended: list[State]) -> bool:
            if wanted is None or i < wanted:
                return False
            return bool(ended) and not all(state.converged and spiky(state) for state in ended)

        failure = SingularCovarianceError
        ended = run_starts(em, begin, run, failure=failure, path=path, fingerprint=fingerprint, spare=spare)
        self._weight_seen = em.total or float(em.rows.n_rows)
        clean = []
        if len(ended) > 1 and all(state.converged for state, _ in ended):
            clean = [(state, revived) for state, revived in ended if not spiky(state)]
        # the first of equals, so that more starts never change a result they don't improve
        state, em.revived[:] = max(clean or ended, key=lambda one: one[0].log_likelihood)
        return state

    def _has_tails(self) -> bool:
        special = bool(self.noise or self.trim) or self.distribution == "t" or self._restraint is not None
        return special or self._has_gaps()

    def _whole(self, rows: Rows) -> Rows:
        """Return rows without gaps, where starts are looked for: one normal fills them."""
        if not self._has_gaps():
            return rows
        return self._filled(rows.mapped(self._margins(rows).rare(self.cells)) if self.cells else rows)

    def _margins(self, rows: Rows) -> Margins:
        return Margins.of(subsample(rows, 1, check_random_state(0)))

    def _filled(self, rows: Rows) -> Rows:
        """Return rows whose gaps one normal fills."""
        block = subsample(rows, 1, check_random_state(0))
        start = replace(single_normal(np.asarray(block.X, float), block.weight, self._floor), missing=True)
        few = ArrayRows(block.X, weight=block.weight)
        return without_gaps(rows, run_em(MixtureEM(few, self._floor), start, tol=1e-4, max_iter=20).params)

    def _tail_starts(self, rows: Rows, starts: Callable[[], Iterable[MixtureParams]]) -> Iterator[MixtureParams]:
        near = rows.mapped(self._margins(rows).far(self.cells)) if self.cells else rows
        return tail_starts(
            near,
            self._filled(near) if self.cells else self._whole(rows),
            starts(),
            noise=self.noise,
            student=self.distribution == "t",
            missing=self._has_gaps(),
            trim=self.trim,
            cells=bool(self.cells),
            search=self.labels_init is None
            and any(given is None for given in (self.weights_init, self.means_init, self.precisions_init)),
            restraint=self._restraint_of,
            reg_covar=self._start_floor,
            random_state=check_random_state(self.random_state),
        )

    def _run(
        self,
        em: MixtureEM,
        start: MixtureParams | State,
        callback: Callable[[State], Any] | None = None,
        history: tuple[float, ...] = (),
        bar: float = -np.inf,
    ) -> State:
        how: dict[str, Any] = {
            "tol": self.tol,
            "max_iter": self.max_iter,
            "moves": self.accelerate,
            "quiet": self._quiet,
            "callback": callback,
        }
        if self.cells and isinstance(start, MixtureParams):
            penalties = self._margins(em.rows).penalties()
            return run_aside(em, start, penalties, self.cells, run_watched, **how)[0]
        if self._n_near and isinstance(start, MixtureParams):
            return run_near(em, start, self._n_near, **how)
        return run_watched(em, start, history=history, bar=bar, **how)

    def _with_own_penalties(self, em: MixtureEM, state: State) -> State:
        """Return where the fit ends if values are set aside at the prices that belong to it; the same if none are.

        Until then prices are those of features by themselves, so that all starts and candidates have the same.
        """
        self.__dict__.pop("cell_shares_", None)
        if not self.cells:
            return state
        how: dict[str, Any] = {"tol": self.tol, "max_iter": self.max_iter, "moves": self.accelerate, "quiet": True}
        state, choice = run_aside(em, state.params, penalties_of(state.params), self.cells, run_watched, **how)
        self.cell_shares_ = choice.shares
        return state

    # ---- choosing ----------------------------------------------------------------------------------------------------

    def _search(self, rows: Rows, tasks: FitTasks, **options: Any) -> tuple[State, list[list[int]]]:
        """Fit every candidate, set `selection_`, and return how the best one ended; `options` go to `MixtureEM`."""
        self._refuse_search()
        total = float(rows.fold(_weight, operator.add))
        wanted = sizes(self.n_components)
        if self.n_components == "auto":
            wanted = tuple(K for K in wanted if rows.n_rows >= K)
        begun = self._search_starts(rows, wanted)
        tried = [
            self._tried(rows, K, kind, begun.get(K, []), tasks, total, **options)
            for kind in self._kinds(rows.n_features)
            for K in wanted
        ]
        self.selection_ = table(tried)
        best = min(tried, key=lambda one: one.value(self.criterion))
        if best.state is None or best.spike:
            raise NoneFittedError(
                f"none of the {len(tried)} candidates could be fitted, because a component was singular or sat on a "
                "few nearly equal rows; use fewer components, raise reg_covar, or remove repeated rows"
            )
        left = [one for one in tried if one.state is None or one.spike]
        if left:
            shown = ", ".join(f"{family(one.covariance_type).name},{one.n_components}" for one in left[:10])
            note(
                "candidates-left-out",
                f"{len(left)} of {len(tried)} candidates were left out, because a component was singular or sat on a "
                f"few nearly equal rows: {shown}{', ...' if len(left) > 10 else ''}",
                count=len(left),
                tried=len(tried),
            )
        if len(wanted) > 1 and best.n_components == wanted[-1]:
            note(
                "largest-size-chosen",
                f"the largest n_components tried, {wanted[-1]}, has the best {self.criterion}. Try larger values",
                n_components=wanted[-1],
            )
        return best.state, list(best.revived)

    def _refuse_search(self) -> None:
        given = ("weights_init", "means_init", "precisions_init", "checkpoint")
        for name in given:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} needs a single n_components and a single covariance_type")
        if self.warm_start:
            raise ValueError("warm_start needs a single n_components and a single covariance_type")
        if self.labels_init is not None and len(sizes(self.n_components)) > 1:
            raise ValueError("labels_init needs a single n_components")

    def _search_starts(self, rows: Rows, wanted: tuple[int, ...]) -> dict[int, list[MixtureParams]]:
        """Return where the fits of each size begin, whatever their family."""
        if self.labels_init is not None:
            return {}
        random_state = check_random_state(self.random_state)
        rows = self._whole(rows)
        merged = merged_starts(rows, wanted, random_state, self._floor)
        begun: dict[int, list[MixtureParams]] = {}
        for K in wanted:
            enough = rows.n_rows >= 4 * K * (rows.n_features + 1)
            begun[K] = [merged[K]] if K in merged else []
            for _ in range(self.n_init):
                with suppress(SingularCovarianceError):
                    start = find_start(
                        rows,
                        K,
                        covariance_type="full" if enough else "diag",
                        reg_covar=self._start_floor,
                        init_params=self.init_params,
                        random_state=random_state,
                    )
                    begun[K].append(start)
        return begun

    def _candidate_starts(self, rows: Rows, K: int, kind: str, begun: list[MixtureParams]) -> Iterator[MixtureParams]:
        """Yield where a candidate's fit begins."""
        if self.labels_init is not None:
            yield self._labelled(rows, K, kind)
        for start in begun:
            with suppress(SingularCovarianceError):
                yield params_as(start, kind)

    def _tried(
        self,
        rows: Rows,
        K: int,
        kind: str,
        begun: list[MixtureParams],
        tasks: FitTasks,
        total: float,
        **options: Any,
    ) -> Candidate:
        em = MixtureEM(rows, self._floor, **options)
        n_parameters = self._count(K, kind, rows.n_features)
        try:
            starts = list(self._candidate_starts(rows, K, kind, begun))
            state = self._best(em, lambda: starts, tasks, "", race=True) if starts else None
        except SingularCovarianceError:
            state = None
        total *= 1 - self.trim
        if state is None:
            return Candidate(K, kind, None, n_parameters, total)
        if state.params.by_group is not None:
            groups = state.params.by_group.n_groups
            n_parameters += (groups - 1) * family(kind).n_parameters(K, rows.n_features)
        held = self._held_out(rows, state.params, **options) if self.criterion == "cv" else None
        spike = is_spike(state.params, total)
        unsure = doubt(em.kept(state.params)[0], state.params, em.errors)
        prior = log_prior_density(state.params)
        return Candidate(K, kind, state, n_parameters, total, unsure, held, spike, tuple(em.revived), prior)

    def _held_out(self, rows: Rows, start: MixtureParams, **options: Any) -> float | None:
        """Return the log-likelihood of each fold under a mixture fitted to the others, begun at `start`."""
        total = 0.0
        for fold in range(N_FOLDS):
            others, mine = held_out(rows, fold, N_FOLDS)
            try:
                params = self._run(MixtureEM(others, self._floor, **options), start).params
            except SingularCovarianceError:
                return None
            total += MixtureEM(mine, self._floor, **options).moments(params, with_moments=False).log_likelihood
        return total
