"""scikit-learn's callbacks (1.9 and later): tasks for a fit, its starts and their iterations.

With an older scikit-learn there's no `set_callbacks`, and everything here does nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from residmix.em.loop import EMState

if TYPE_CHECKING:

    class CallbackSupportMixin:
        """Adds `set_callbacks`."""

    F = TypeVar("F", bound=Callable[..., Any])

    def with_callbacks(method: F) -> F: ...

else:
    try:
        from sklearn.callback import CallbackSupportMixin, with_callbacks
    except ImportError:

        class CallbackSupportMixin:
            """Nothing, as there are no callbacks in this scikit-learn."""

        def with_callbacks(method):
            return method


__all__ = ["CallbackSupportMixin", "FitTasks", "with_callbacks"]


class FitTasks:
    """Tells an estimator's callbacks of the tasks of a fit: "fit", in it each "start", in that each "iteration".

    The method that makes one must be decorated by `with_callbacks`.

    Parameters
    ----------
    estimator : estimator
    keep : callable
        ``keep(estimator, state)`` sets the fitted attributes; callbacks that ask for a `fitted_estimator` get a copy
        that it was called on.
    n_starts : int or None
        How many starts there will be at most, if known.
    X, y, **metadata
        As `fit` got them; what is None is left out.
    """

    def __init__(
        self,
        estimator: Any,
        keep: Callable[[Any, EMState[Any]], None],
        *,
        n_starts: int | None,
        X: Any = None,
        y: Any = None,
        **metadata: Any,
    ) -> None:
        given = {name: value for name, value in metadata.items() if value is not None}
        data = {"X": X, "y": y, "metadata": given}
        self._estimator, self._keep, self._data = estimator, keep, data
        self._fit: Any = None
        if self.heard:
            self._fit = estimator._init_callback_context(max_subtasks=n_starts)
            self._fit.call_on_fit_task_begin(estimator=estimator, **data)

    @property
    def heard(self) -> bool:
        """Whether there are callbacks."""
        return bool(getattr(self._estimator, "_skl_callbacks", None))

    @contextmanager
    def start(self, max_iter: int) -> Iterator[Callable[[EMState[Any]], bool]]:
        """Begin a start, end it, and give what is to be called after each iteration; it returns whether to stop.

        The pass that finds that EM has converged is no iteration: its task ends without a fitted estimator, as
        scikit-learn's own left-over ones do.
        """
        if self._fit is None:
            yield lambda state: False
            return
        task = self._fit.subcontext(task_name="start", max_subtasks=max_iter)
        task.call_on_fit_task_begin(estimator=self._estimator, **self._data)
        iterations: list[Any] = []
        last: list[EMState[Any]] = []

        def begin(done: int) -> None:
            if done < max_iter:
                iterations.append(task.subcontext(task_name="iteration"))
                iterations[-1].call_on_fit_task_begin(estimator=self._estimator, **self._data)

        def iterated(state: EMState[Any]) -> bool:
            last[:] = [state]
            stop = bool(self._end(iterations.pop(), state))
            if not stop:
                begin(state.iteration)
            return stop

        begin(0)
        try:
            yield iterated
        finally:
            if iterations:
                iterations.pop().call_on_fit_task_end(estimator=self._estimator)
            self._end(task, last[0] if last else None)

    def end(self) -> None:
        """End the fit; the attributes are those that the estimator has."""
        if self._fit is not None:
            self._fit.call_on_fit_task_end(estimator=self._estimator, reconstruction_attributes={}, **self._data)

    def _end(self, task: Any, state: EMState[Any] | None) -> Any:
        attributes = None if state is None else lambda: self._attributes(state)
        return task.call_on_fit_task_end(estimator=self._estimator, reconstruction_attributes=attributes, **self._data)

    def _attributes(self, state: EMState[Any]) -> dict[str, Any]:
        fitted = copy.copy(self._estimator)
        self._keep(fitted, state)
        before = vars(self._estimator)
        return {name: value for name, value in vars(fitted).items() if before.get(name) is not value}
