"""How long `MDNRegressor` takes on 50,000 rows of 10 features, with its own choice of threads, one, two; and NGBoost.

    python benchmarks/mdn_speed.py --rows 50000 --rounds 3 --whole

An epoch of the default ensemble of five, timed in turn (the median of the rounds; ratios to the better of one and two
threads), then with --whole the fit to its end, with its score on 5,000 held-out rows, and NGBoost (pip install ngboost)
beside it, stopped early on 15 % of the rows. --busy starts so many processes that only compute, as other people's do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from residmix.nn import MDNRegressor
from residmix.nn.regressor import fitting, training


def table(rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, 10))
    noise = 0.5 * np.exp(0.3 * X[:, 3]) * rng.normal(size=rows)
    return X, np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2] + noise + np.where(rng.random(rows) < 0.3, 2.0, 0.0)


def spin() -> None:
    while True:
        np.sort(np.random.default_rng(0).normal(size=100_000))


@contextmanager
def busy(processes: int) -> Iterator[None]:
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(processes)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.terminate()


def seconds(X: np.ndarray, y: np.ndarray, threads: int | None, epochs: int) -> float:
    """One epoch of training, without what a fit does before and after; with `threads`, of all members together."""
    names = ("train", "train_apart", "_threads", "_apart")
    before, taken = {name: getattr(fitting, name) for name in names}, []

    def timed(train: Callable[..., training.History], *given: object, **how: object) -> training.History:
        start = time.perf_counter()
        history = train(*given, **how)
        taken.append((time.perf_counter() - start) / history.n_epochs)
        return history

    for name in ("train", "train_apart"):
        setattr(fitting, name, partial(timed, before[name]))
    if threads is not None:
        fitting._threads, fitting._apart = lambda *_: threads, lambda *_: False  # type: ignore[assignment]
    try:
        MDNRegressor(max_epochs=epochs, random_state=0).fit(X, y)
    finally:
        for name, function in before.items():
            setattr(fitting, name, function)
    return taken[0]


def whole(X: np.ndarray, y: np.ndarray) -> None:
    held = len(X) // 10
    start = time.perf_counter()
    model = MDNRegressor(random_state=0).fit(X[held:], y[held:])
    took = time.perf_counter() - start
    epochs = model.diagnostics_["n_epochs"]
    print(f"MDNRegressor, whole fit   {took:7.1f} s  {epochs} epochs  score {model.score(X[:held], y[:held]):.4f}")
    try:
        from ngboost import NGBRegressor
    except ImportError:
        print("NGBoost                   not installed")
        return
    cut = held + round(0.15 * (len(X) - held))
    start = time.perf_counter()
    peer = NGBRegressor(n_estimators=2000, verbose=False, random_state=0)
    peer.fit(X[cut:], y[cut:], X_val=X[held:cut], Y_val=y[held:cut], early_stopping_rounds=40)
    took = time.perf_counter() - start
    score = float(np.mean(peer.pred_dist(X[:held]).logpdf(y[:held])))
    print(f"NGBoost, whole fit        {took:7.1f} s  {peer.best_val_loss_itr} trees  score {score:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--whole", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    X, y = table(options.rows)
    print(f"{options.rows} rows, torch has {torch.get_num_threads()} threads, {options.busy} other processes")
    with busy(options.busy):
        variants = {"own choice": None, "one thread": 1, "two threads": 2}
        taken = {name: [] for name in variants}
        for _ in range(options.rounds):
            for name, threads in variants.items():
                taken[name].append(seconds(X, y, threads, options.epochs))
        median = {name: float(np.median(values)) for name, values in taken.items()}
        best = min(median["one thread"], median["two threads"])
        for name, value in median.items():
            print(f"epoch, {name:12s} {value:7.2f} s  {value / best:5.2f} of the better")
        if options.whole:
            whole(X, y)


if __name__ == "__main__":
    main()
