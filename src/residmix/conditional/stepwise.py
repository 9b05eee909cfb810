"""Which metadata a mixture given metadata needs, and how they act on it: chosen step by step."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import product
from numbers import Integral
from typing import Any

from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.utils._param_validation import Interval, StrOptions

from residmix.conditional.residual_mixture import ResidualMixture
from residmix.design.formula.parser import parse_formula
from residmix.errors import check_arguments, unnoted
from residmix.mixture.selection.candidates import NoneFittedError

__all__ = ["stepwise"]

# A term as the names of its factors; a state as terms, gating (its own terms, where it has some) and effects.
Term = frozenset[str]
Gate = str | frozenset[Term]
State = tuple[frozenset[Term], Gate, str]


def stepwise(
    model: ResidualMixture,
    X: Any,
    *,
    metadata: Any = None,
    sample_weight: ArrayLike | None = None,
    gating: Sequence[str] | None = None,
    effects: Sequence[str] | None = None,
    max_steps: int = 50,
) -> ResidualMixture:
    r"""Choose the terms of a mixture's formula, its gate and its effects by the criterion, one step at a time.

    From the model as it is, the steps are: a term of its formula less; a term that isn't there any more, again; the
    weights depending on the metadata or not; effects shared or by component. The one that lowers the criterion most is
    taken, until none lowers it. A term stays as long as an interaction has it; the factor of `covariance_by` stays.
    Where the gate has a formula of its own, or ``gating=["formula"]``, its terms are chosen apart from those of the
    effects: a term of the gate less, or one more.

    Parameters
    ----------
    model : ResidualMixture
        Not changed. Its formula has all terms that may be chosen; n_components and covariance_type may be lists, which
        are searched at each step. `criterion` is "bic", "icl" or "aic".
    X, metadata, sample_weight
        As for :meth:`residmix.ResidualMixture.fit`.
    gating : sequence of str, optional
        What may be chosen, of "constant" and "metadata" (the terms of the effects); one value to keep it. Or "formula":
        any terms that the model's gating has, or its formula, where the gating is "constant" or "metadata". Default:
        "formula" where the model's gating is one, else the other two.
    effects : sequence of str, optional
        What may be chosen, of "shared" and "by-component"; one value to keep it. Default: both, or "shared" alone where
        the model has `cells`, which effects by component don't go with.
    max_steps : int, default=50

    Returns
    -------
    ResidualMixture
        Fitted, its formula, gating and effects those chosen; formula is "1" if no term is worth its parameters, and
        gating "constant".
        `selection_` has all fits, with the columns formula, gating and effects before the usual ones.

    Raises
    ------
    ValueError
        Without a formula, or for a criterion that takes other rows into account; if no model that was tried could be
        fitted.

    Notes
    -----
    Warnings of fits that aren't chosen aren't shown; those of the chosen one are in its `notes_`. Criteria of a model
    that couldn't be fitted are infinite.

    References
    ----------
    Murphy and Murphy (2020), "Gaussian parsimonious clustering models with covariates and a noise component", Adv. Data
    Anal. Classif. 14:293 (stepwise choice of covariates by BIC).

    Examples
    --------
    >>> import residmix as rm
    >>> from residmix.data import penguins
    >>> table = penguins()
    >>> features = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
    >>> model = rm.ResidualMixture(1, formula="C(sex) + year", features=features)
    >>> chosen = rm.stepwise(model, table, gating=["constant"], effects=["shared"])
    >>> chosen.formula, len(chosen.selection_["bic"])
    ('C(sex) + year', 3)
    """
    if gating is None:
        gating = GATES[:2] if model.gating in GATES[:2] else GATES[2:]
    if effects is None:
        effects = EFFECTS[:1] if model.cells else EFFECTS
    check_arguments("stepwise", max_steps=([Interval(Integral, 1, None, closed="left")], max_steps))
    for name, values, known in (("gating", gating, GATES), ("effects", effects, EFFECTS)):
        for value in values:
            check_arguments("stepwise", **{name: ([StrOptions(set(known))], value)})
    if model.formula is None:
        raise ValueError("stepwise chooses terms of a formula, and the model has none; give all that may be chosen")
    if model.criterion == "cv":
        raise ValueError('stepwise chooses by "bic", "icl" or "aic"; the model has criterion="cv"')
    if "formula" in gating and len(gating) > 1:
        raise ValueError(
            f'gating={list(gating)!r}: with "formula" the weights may be constant, or have the terms of the effects, '
            "as well; leave the others out"
        )
    return _Steps(model, (X, metadata, sample_weight), tuple(gating), tuple(effects)).run(max_steps)


GATES, EFFECTS = ("constant", "metadata", "formula"), ("shared", "by-component")


class _Steps:
    """Fits so far, by state."""

    def __init__(
        self, model: ResidualMixture, data: tuple[Any, Any, Any], gating: tuple[str, ...], effects: tuple[str, ...]
    ) -> None:
        self.model, self.data, self.gating, self.effects = model, data, gating, effects
        self.terms = _by_factors(str(model.formula))
        self.apart = gating == ("formula",)
        self.of_gate = self.terms if model.gating in GATES[:2] else _by_factors(model.gating)
        self.features: Any = model.features
        self.fits: dict[State, ResidualMixture] = {}
        self.failed: dict[State, NoneFittedError] = {}
        # one component has one weight, and effects that nobody could share
        self.single = model.n_components in (1, [1])

    def run(self, max_steps: int) -> ResidualMixture:
        model = self.model
        first: Gate = model.gating if model.gating in self.gating else self.gating[0]
        if self.apart:
            first = frozenset() if model.gating == "constant" else frozenset(self.of_gate)
        own = model.effects if model.effects in self.effects else self.effects[0]
        state = self._plain(frozenset(self.terms), first, own)
        value = self._value(state)
        for _ in range(max_steps):
            tried = {step: self._value(step) for step in self._steps(state)}
            best = min(tried, key=lambda step: tried[step], default=state)
            if not tried or not tried[best] < value:
                break
            state, value = best, tried[best]
        if state in self.failed:
            raise self.failed[state]
        chosen = self.fits[state]
        chosen.set_params(n_components=model.n_components)  # a list of one while it was tried
        chosen.selection_ = self._table()
        return chosen

    def _plain(self, terms: frozenset[Term], gating: Gate, effects: str) -> State:
        """Return a state; without terms or several components nothing depends on gate and effects."""
        none: Gate = frozenset() if self.apart else GATES[0]
        if self.single or not terms:
            return terms, gating if self.apart and not self.single else none, EFFECTS[0]
        return terms, gating, effects

    def _steps(self, state: State) -> Iterator[State]:
        terms, gating, effects = state
        kept = self.model.covariance_by
        for term, following in _changed(self.terms, terms):
            by = kept is not None and any(kept in factor.columns() for factor in self.terms[term])
            if not by:
                yield self._plain(following, gating, effects)
        if isinstance(gating, frozenset) and not self.single:
            for _, others in _changed(self.of_gate, gating):
                yield terms, others, effects
        for gate, own in product((gating,) if self.apart else self.gating, self.effects):
            # one of the two at a time
            if terms and not self.single and (gate == gating) != (own == effects):
                yield terms, gate, own

    def _value(self, state: State) -> float:
        if state not in self.fits:
            self.fits[state] = self._fitted(state)
        found = self.fits[state].selection_
        return float(min(found[self.model.criterion]))

    def _fitted(self, state: State) -> ResidualMixture:
        terms, gating, effects = state
        X, metadata, weight = self.data
        model: ResidualMixture = clone(self.model)
        size = model.n_components
        model.set_params(
            formula=self._formula(terms),
            gating=self._gating(gating),
            effects=effects,
            features=self.features,
            # so that each fit tells its criteria
            n_components=[size] if isinstance(size, Integral) else size,
        )
        with warnings.catch_warnings(), unnoted():
            warnings.simplefilter("ignore")
            try:
                model.fit(X, metadata=metadata, sample_weight=weight)
            except NoneFittedError as error:
                self.failed[state] = error
        if metadata is None and self.features is None:
            # metadata that a later formula leaves out don't become features
            self.features = list(model.residualizer_.features_)
        return model

    def _formula(self, terms: frozenset[Term]) -> str:
        return _written(self.terms, terms) or "1"

    def _gating(self, gating: Gate) -> str:
        return gating if isinstance(gating, str) else _written(self.of_gate, gating) or GATES[0]

    def _table(self) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {}
        for (terms, gating, effects), model in self.fits.items():
            found = model.selection_
            for _ in found["bic"]:
                kind = {"formula": self._formula(terms), "gating": self._gating(gating), "effects": effects}
                for name, value in kind.items():
                    columns.setdefault(name, []).append(value)
            for name, values in found.items():
                columns.setdefault(name, []).extend(values)
        return columns


def _by_factors(formula: str) -> dict[Term, Any]:
    return {frozenset(factor.text for factor in term): term for term in parse_formula(formula)}


def _written(every: dict[Term, Any], terms: frozenset[Term]) -> str:
    return " + ".join(":".join(factor.text for factor in own) for term, own in every.items() if term in terms)


def _changed(every: dict[Term, Any], terms: frozenset[Term]) -> Iterator[tuple[Term, frozenset[Term]]]:
    """Yield which term may go or come, and the terms then: an interaction comes after its parts, and goes first."""
    for term in every:
        if term in terms:
            if not any(term < other for other in terms):
                yield term, terms - {term}
        elif all(part in terms for part in every if part < term):
            yield term, terms | {term}
