"""A small network on pooled synthetic images: what do residualizing layers leave of the confounder?

    python benchmarks/nn_surrogate.py --batches 20 200 1000 --seeds 0 1 2

64 inputs -> 128 -> layer -> ReLU -> 84 -> layer -> ReLU -> logit, Adam. Best balanced accuracy without the confounder:
.833, with it .944. Columns: training loss of the last epoch; balanced accuracy on confounded and on de-confounded test
data; squared distance correlation within classes; R^2 of a linear probe of the confounder given the class (by chance
.042); then the same after refitting the coefficients on the encoder (`finalize`), with the probe on the training data.
`until` trains to a given training loss instead of a number of epochs: the matched comparison.
"""

from __future__ import annotations

import argparse
import importlib
import time
import warnings
from collections.abc import Callable

import nn_data
import numpy as np
import torch
from torch import Tensor, nn

from residmix.errors import LeakageWarning
from residmix.nn import MetadataSequential, Residualize, finalize

Columns = tuple[Tensor, Tensor, Tensor]
EPOCHS = {20: 20, 200: 100, 1000: 300}


def published(name: str, d: int, **options: Tensor) -> nn.Module:
    layer: nn.Module = getattr(importlib.import_module("nn_published"), f"Published{name}")(d, 1, **options)
    return layer


METHODS: dict[str, Callable[..., nn.Module]] = {
    "baseline": lambda d, design, maps: nn.Identity(),
    "batch norm": lambda d, design, maps: nn.BatchNorm2d(d) if maps == "channel" else nn.BatchNorm1d(d),
    "MDN (published)": lambda d, design, maps: published("MDN", d, design=design),
    "PMDN (published)": lambda d, design, maps: published("PMDN", d),
    "R-MDN (published)": lambda d, design, maps: published("RMDN", d),
    "batch, through": lambda d, design, maps: Residualize(
        d, 1, num_protected=1, estimator="batch", grad="through", maps=maps
    ),
    "batch, stop": lambda d, design, maps: Residualize(
        d, 1, num_protected=1, estimator="batch", grad="stop", maps=maps
    ),
    "prior, stop": lambda d, design, maps: Residualize(d, 1, num_protected=1, grad="stop", maps=maps),
    "prior (default)": lambda d, design, maps: Residualize(d, 1, num_protected=1, maps=maps),
}


def tensors(pictures: np.ndarray, confound: np.ndarray, y: np.ndarray) -> Columns:
    return tuple(torch.tensor(part, dtype=torch.float32) for part in (pictures, confound, y))  # type: ignore[return-value]


def surrogate(method: str, design: Tensor) -> MetadataSequential:
    layer = METHODS[method]
    return MetadataSequential(
        nn.Linear(64, 128), layer(128, design, "element"), nn.ReLU(), nn.Linear(128, 84),
        layer(84, design, "element"), nn.ReLU(), nn.Linear(84, 1),
    )  # fmt: skip


def train(
    net: MetadataSequential, columns: Columns, *, batch: int, epochs: int, rate: float, seed: int, until: float = 0.0
) -> tuple[float, int]:
    """Training loss of the last epoch, and how many there were."""
    x, m, y = columns
    betas = [p for name, p in net.named_parameters() if name.endswith("beta")]
    others = [p for name, p in net.named_parameters() if not name.endswith("beta")]
    groups = [{"params": others}] + ([{"params": betas, "lr": 0.045}] if betas else [])
    optimiser = torch.optim.Adam(groups, lr=rate)
    generator = torch.Generator().manual_seed(seed)
    criterion, loss, epoch = nn.BCEWithLogitsLoss(), np.inf, 0
    net.train()
    while epoch < epochs and loss > until:
        total = 0.0
        for part in torch.randperm(len(x), generator=generator).split(batch):
            optimiser.zero_grad()
            value = criterion(net(x[part], m[part], y[part]).squeeze(1), y[part])
            penalties = [layer.penalty for layer in net if type(layer).__name__ == "PublishedPMDN"]
            (value + sum(penalties) if penalties else value).backward()
            optimiser.step()
            total += float(value.detach()) * len(part)
        loss, epoch = total / len(x), epoch + 1
    return loss, epoch


def features(net: MetadataSequential, x: Tensor, m: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What enters the last ReLU, and the logit."""
    net.eval()
    with torch.no_grad():
        hidden = net[:-2](x, m)
        return hidden.flatten(1).numpy(), net[-2:](hidden).squeeze(1).numpy()


def figures(net: MetadataSequential, train_set: Columns, test: Columns, fair: Columns) -> dict[str, float]:
    hidden, logit = features(net, *test[:2])
    m, y = test[1].numpy(), test[2].numpy()
    return {
        "test": nn_data.balanced_accuracy(logit, y),
        "fair": nn_data.balanced_accuracy(features(net, *fair[:2])[1], fair[2].numpy()),
        "dcor2": nn_data.dcor2(hidden, m, y),
        "probe": nn_data.probe(hidden, m, y),
        "train probe": nn_data.probe(features(net, *train_set[:2])[0], train_set[1].numpy(), train_set[2].numpy()),
    }


def refit(net: MetadataSequential, train_set: Columns) -> bool:
    if not any(isinstance(layer, Residualize) for layer in net):
        return False
    finalize(net, [train_set])
    return True


def report(
    label: str, loss: float, epochs: int, before: dict[str, float], after: dict[str, float] | None, t: float
) -> None:
    keys = ("test", "fair", "dcor2", "probe")
    row = f"{label:34s} {epochs:4d} {loss:6.3f} | " + " ".join(f"{before[key]:6.3f}" for key in keys) + " | "
    if after:
        row += " ".join(f"{after[key]:6.3f}" for key in keys) + f" {after['train probe']:8.1e}"
    print(f"{row}  {t:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[20, 200, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--until", type=float, default=0.0, help="stop at this training loss")
    options = parser.parse_args()
    warnings.simplefilter("ignore", LeakageWarning)
    torch.set_num_threads(1)
    sets = []
    for seed, fair in ((1234, False), (1237, False), (1311, True)):
        pictures, confound, y = nn_data.images(seed, deconfounded=fair)
        sets.append(tensors(nn_data.pool(pictures), confound, y))
    design = torch.stack(sets[0][2:0:-1], 1)
    print(f"{'method, batch, seed':34s} epoch  loss |   test   fair  dcor2  probe |  after finalize, probe on train")
    for batch in options.batches:
        for method in options.methods:
            for seed in options.seeds:
                torch.manual_seed(seed)
                start, net = time.perf_counter(), surrogate(method, design)
                epochs = EPOCHS.get(batch, 100) * (3 if options.until else 1)
                loss, ran = train(
                    net, sets[0], batch=batch, epochs=epochs, rate=options.rate, seed=seed, until=options.until
                )
                before = figures(net, *sets)
                after = figures(net, *sets) if refit(net, sets[0]) else None
                report(f"{method}, {batch}, {seed}", loss, ran, before, after, time.perf_counter() - start)


if __name__ == "__main__":
    main()
