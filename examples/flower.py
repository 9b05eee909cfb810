"""ComBat over sites that share sums only, in the shape that Flower (flwr) wants, in one process.

    python examples/flower.py

A client has the methods of ``flwr.client.NumPyClient``, and what it hands out are lists of arrays; a strategy's
``aggregate_fit`` gets these. Neither needs flwr: to run it over a network, let `SiteClient` also inherit from
``flwr.client.NumPyClient`` and call `merged` in ``aggregate_fit`` of a strategy, with
``flwr.common.parameters_to_ndarrays(result.parameters)`` of each result. One round is enough: sums don't iterate.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import residmix as rm
from residmix.data import make_sites
from residmix.errors import ResidmixWarning

FORMULA, PRESERVE = "C(site, levels={})", "age + C(sex, levels=['f', 'm']) + C(diagnosis, levels=['case', 'control'])"


def as_arrays(model: rm.Residualizer) -> list[np.ndarray]:
    """Return a model as arrays: the bytes of its file, which holds numbers and names and no code."""
    with tempfile.TemporaryDirectory() as folder:
        rm.save(model, Path(folder) / "model")
        return [np.frombuffer((Path(folder) / "model").read_bytes(), dtype=np.uint8)]


def as_model(arrays: list[np.ndarray]) -> rm.Residualizer:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model").write_bytes(arrays[0].astype(np.uint8).tobytes())
        return rm.load(Path(folder) / "model")


class SiteClient:
    """A site, whose rows never leave it."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self.rows = rows

    def get_parameters(self, config: dict) -> list[np.ndarray]:
        return []  # a fit from sums begins from nothing

    def fit(self, parameters: list[np.ndarray], config: dict) -> tuple[list[np.ndarray], int, dict]:
        """Return the sums of the site's rows, as the levels that all agreed on lay them out."""
        model = rm.Residualizer(
            config["formula"], preserve=config["preserve"], scale=True, shrinkage="eb", check_leakage=False
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResidmixWarning)  # doubts about one site alone aren't those of the whole
            model.fit(self.rows)
        if model.smallest_cell().rows < config["min_count"]:
            return [], 0, {"refused": str(model.smallest_cell())}
        return as_arrays(model), len(self.rows), {}

    def evaluate(self, parameters: list[np.ndarray], config: dict) -> tuple[float, int, dict]:
        """Harmonize the own rows by everybody's model; return how far their mean still lies from that of all rows."""
        residual = as_model(parameters).transform(self.rows)
        return float(np.abs(residual.mean(axis=0)).mean()), len(self.rows), {}


def merged(results: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Return the model that all rows together would have given: what a strategy's aggregate_fit calls."""
    models = [as_model(arrays) for arrays in results if arrays]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResidmixWarning)
        for other in models[1:]:
            models[0].merge(other)
    return as_arrays(models[0])


def main(min_count: int = 1) -> float:
    """Run a round; return the largest difference to the fit of all rows in one place."""
    table = make_sites()
    config = {
        "formula": FORMULA.format(sorted(table["site"].unique())), "preserve": PRESERVE, "min_count": min_count
    }  # fmt: skip
    clients = [SiteClient(rows) for _, rows in table.groupby("site")]
    answers = [client.fit(client.get_parameters(config), config) for client in clients]
    shared = merged([arrays for arrays, _, _ in answers])
    together, _, _ = SiteClient(table).fit([], {**config, "min_count": 0})
    difference = np.abs(as_model(shared).transform(table) - as_model(together).transform(table)).max()
    took_part = sum(rows > 0 for _, rows, _ in answers)
    print(f"{took_part} of {len(clients)} sites, {shared[0].nbytes / 1e6:.1f} MB of sums")
    print(f"differs from the fit of all rows by less than 1e-12: {difference < 1e-12}")
    return float(difference)


if __name__ == "__main__":
    main()
