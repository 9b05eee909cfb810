"""From standardised rows to a trained ensemble: start, train, choose the number of components, settle the residuals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn

from residmix.nn import _fast
from residmix.nn._fast.trainer import SideBySide
from residmix.nn.density.head import MixtureDensityHead
from residmix.nn.density.network import DenseTrunk, MemberWise, MixtureDensityNetwork
from residmix.nn.layer.residualize import Residualize
from residmix.nn.regressor.apart import train_apart
from residmix.nn.regressor.training import (
    History,
    Running,
    Sample,
    Schedule,
    hold_out,
    rng_scope,
    thread_scope,
    train,
)
from residmix.rows.threads import n_threads

__all__ = ["CANDIDATES", "Plan", "Removal", "fit_best", "fit_ensemble", "linear_start", "plan_network", "restored"]

Array = NDArray[np.float64]

# Candidates of n_components="auto".
CANDIDATES = (1, 2, 3, 5)

# Buffers that files don't hold, each no larger than the coefficients, which they do.
_DERIVED = (".kept", ".left", ".right")


@dataclass(frozen=True)
class Removal:
    """How the representation is residualized: metadata columns q, protected columns p, options of the layer."""

    n_metadata: int
    n_protected: int
    space: str = "sample"
    estimator: str = "prior"
    horizon: float | None = 4096

    def layer(self, features: int) -> Residualize:
        layer = Residualize(
            features,
            self.n_metadata,
            num_protected=self.n_protected,
            space=self.space,
            estimator=self.estimator,
            horizon=self.horizon,
            sync=False,
        )
        # Held-out rows are judged before the first step, too.
        layer.speaks = False
        return layer


@dataclass(frozen=True)
class Plan:
    """Everything that fixes the architecture, so that a saved network can be built again."""

    n_features: int
    n_targets: int
    n_components: int
    covariance: str
    rank: int
    hidden: tuple[int, ...]
    dropout: float
    members: int
    min_scale: tuple[float, ...]
    removal: Removal | None = None


def plan_network(plan: Plan) -> MixtureDensityNetwork:
    """Build the network of `plan`, its members side by side."""
    trunk = DenseTrunk(plan.n_features, plan.hidden, dropout=plan.dropout, members=plan.members)
    head = MixtureDensityHead(
        trunk.out_features,
        plan.n_targets,
        plan.n_components,
        covariance=plan.covariance,  # type: ignore[arg-type]  # the head checks the name
        rank=plan.rank,
        min_scale=plan.min_scale,
        members=plan.members,
    )
    layer: nn.Module | None = None
    if plan.removal is not None:
        layer = MemberWise([plan.removal.layer(trunk.out_features) for _ in range(plan.members)])
    return MixtureDensityNetwork(trunk, head, layer)


def restored(plan: Plan, arrays: dict[str, NDArray[np.generic]]) -> MixtureDensityNetwork:
    """Build the network of `plan` from the arrays of a file; no larger than they are, whatever `plan` says.

    Raises
    ------
    ValueError
        If they don't match.
    """
    members = plan.members if plan.removal is not None else 1
    if max(len(plan.hidden), members) > len(arrays) or len(plan.min_scale) != plan.n_targets:
        raise ValueError("its description of the network doesn't match its arrays")
    with torch.device("meta"):  # shapes without memory
        network = plan_network(plan).double()
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for name, planned in (*network.named_parameters(), *network.named_buffers()):
        if name not in tensors and name.endswith(_DERIVED):
            continue
        if name not in tensors or tensors[name].shape != planned.shape:
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise ValueError(f"its description has {name} of shape {tuple(planned.shape)}, but the file has {found}")
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, Residualize):
            module.reset()
    network.load_state_dict(tensors)
    return network.eval()


def linear_start(X: Array, y: Array, weight: Array) -> tuple[Array, Array]:
    """Ridge coefficients (d, D) and residuals (n, D); the penalty by generalised cross-validation, per target."""
    slope = np.zeros((X.shape[1], y.shape[1]))
    residual = np.array(y)
    for j, column in enumerate(y.T):
        known = ~np.isnan(column)
        if known.sum() < 3:
            continue
        line = RidgeCV(np.logspace(-3, 5, 17)).fit(X[known], column[known], sample_weight=weight[known])
        slope[:, j] = line.coef_
        residual[:, j] = column - line.predict(X)
    return slope, residual


def _start(network: MixtureDensityNetwork, sample: Sample, held_out: NDArray[np.bool_], seed: int) -> None:
    """Start every member from its own training rows, in one of two ways by turns.

    Even members start as the linear model, with a mixture for its residuals: right where the target is a function of
    the features plus noise. Odd ones start at a mixture of the targets themselves: right where it has several branches.
    An ensemble of both is more varied than one of either.
    """
    X, y, weight = (t.double().cpu().numpy() for t in (sample.X, sample.y, sample.weight))
    for m, held in enumerate(held_out):
        rows = ~held
        slope, target = None, y[rows]
        if m % 2 == 0:
            slope, target = linear_start(X[rows], y[rows], weight[rows])
        network.head.initialise(target, sample_weight=weight[rows], slope=slope, random_state=seed + m, member=m)


@torch.no_grad()
def _settle(network: MixtureDensityNetwork, sample: Sample) -> Tensor:
    """Fit the residualizing layers exactly on the frozen trunk over all rows; return what enters the head."""
    network.eval()
    layers = network.residualize
    assert isinstance(layers, MemberWise) and sample.metadata is not None
    h = network.backbone(sample.X)
    for m, layer in enumerate(layers.layers):
        assert isinstance(layer, Residualize)
        layer.horizon = None
        layer.reset()
        layer.accumulate(h[m], sample.metadata, sample.protected, sample_weight=sample.weight)
        layer.freeze()
    out: Tensor = layers(h, sample.metadata, sample.protected)
    return out


def fit_ensemble(
    plan: Plan, sample: Sample, schedule: Schedule, *, validation_fraction: float, seed: int, hands: int
) -> tuple[MixtureDensityNetwork, list[History]]:
    """Train an ensemble, by at most so many threads; with metadata, then refit its residuals exactly and its head.

    Returns the history of each of these one or two stages.
    """
    rng = np.random.default_rng(seed)
    held_out = hold_out(len(sample.X), plan.members, validation_fraction, rng)
    with rng_scope(seed):
        # As the rows: in float32, whatever torch's default is.
        network = plan_network(plan).to(sample.X)
    _start(network, sample, held_out, seed)
    seeds = np.random.SeedSequence(seed).generate_state(2 * plan.members).tolist()
    running = SideBySide if _fast.enabled() else Running
    learn = partial(train_apart, hands=hands) if _apart(plan, schedule, sample) else train
    stages = [(train if plan.removal else learn)(network, sample, held_out, schedule, seeds[: plan.members], running)]
    if plan.removal is not None:
        # The trunk moved while the coefficients were learned, so they lag behind it. With the trunk frozen they are
        # exact, and the head learns what they leave.
        h = _settle(network, sample)
        tail = MixtureDensityNetwork(nn.Identity(), network.head)
        rest = replace(sample, X=h, metadata=None, protected=None)
        stages.append(learn(tail, rest, held_out, schedule, seeds[plan.members :], running))
        network.eval()
    return network, stages


def fit_best(
    plan: Plan,
    candidates: Sequence[int],
    sample: Sample,
    schedule: Schedule,
    *,
    validation_fraction: float,
    seed: int,
) -> tuple[MixtureDensityNetwork, list[History], dict[int, float]]:
    """Fit an ensemble for every number of components; keep the one with the lowest mean held-out loss.

    Every candidate gets the same seed, so the same held-out rows. Returns the losses of all as well.
    """
    fitted, loss = {}, {}
    for k in candidates:
        hands = min(n_threads(), torch.get_num_threads())
        with thread_scope(_threads(plan, schedule.batch_size)):
            own, how = replace(plan, n_components=k), {"seed": seed, "hands": hands}
            fitted[k] = fit_ensemble(own, sample, schedule, validation_fraction=validation_fraction, **how)
        loss[k] = float(np.mean(fitted[k][1][-1].best_loss))
    return (*fitted[min(loss, key=lambda k: loss[k])], loss)


def _threads(plan: Plan, batch: int) -> int:
    """Threads worth having in each operation: one, unless the products of a step are so large that they take most of
    its time.

    Of many small operations, threads mostly wait for each other; where other processes want the cores, they wait for
    the scheduler, twenty times as long as the work takes.
    """
    return 1 if plan.members * batch * _widest(plan) < 2e8 else n_threads()


def _apart(plan: Plan, schedule: Schedule, sample: Sample) -> bool:
    """Tell whether members may be trained apart: where Python, which threads share, isn't most of an operation, and one
    thread is all an operation gets.
    """
    one = _threads(plan, schedule.batch_size) == 1 and sample.X.device.type == "cpu"
    return one and schedule.batch_size * _widest(plan) >= 5e5


def _widest(plan: Plan) -> int:
    return max(plan.hidden, default=1) * max((plan.n_features, *plan.hidden))
