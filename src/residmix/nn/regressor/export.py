"""A trained ensemble as an ONNX file: features in, parameters of the predictive density out, without torch."""

from __future__ import annotations

import importlib
import math
import os
import warnings

import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from residmix.atomic import atomic_path
from residmix.design.fit import Design
from residmix.errors import require_extra
from residmix.nn.density.network import MixtureDensityNetwork
from residmix.nn.regressor.fitting import Plan
from residmix.nn.regressor.targets import Scaling

__all__ = ["OnnxExport"]


class _InUnits(nn.Module):
    """The network between units: raw features (and design columns) in, the pooled density in the units of y out."""

    def __init__(self, network: MixtureDensityNetwork, *scalings: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.network = network
        self.n_inputs = len(scalings) - 1
        members = network.head.members or 1
        # A buffer: numbers in the code become float32 constants in the file.
        self.register_buffer("log_share", torch.full((members,), -math.log(members), dtype=torch.float64))
        for i, (mean, scale) in enumerate(scalings):
            self.register_buffer(f"mean_{i}", mean)
            self.register_buffer(f"scale_{i}", scale)

    def forward(self, x: Tensor, metadata: Tensor | None = None) -> tuple[Tensor, ...]:
        given = [part for part in (x, metadata) if part is not None]
        standard = [
            (part - self.get_buffer(f"mean_{i}")) / self.get_buffer(f"scale_{i}") for i, part in enumerate(given)
        ]
        shift, unit = (self.get_buffer(f"{name}_{self.n_inputs}") for name in ("mean", "scale"))
        density = self.network(*standard).affine(shift, unit).pooled(self.get_buffer("log_share"))
        spread = (density.scale, density.scale_tril, density.factor)
        return (density.logits, density.means, *(part for part in spread if part is not None))


def _softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    # onnxruntime has the operator Softplus for float32 only.
    return x.clamp_min(0.0) + torch.log1p(torch.exp(-x.abs()))


class OnnxExport:
    """`to_onnx` for an estimator that holds a trained `MixtureDensityNetwork`."""

    network_: MixtureDensityNetwork
    design_: Design | None
    space: str
    _plan: Plan
    _x_scaling: Scaling
    _y_scaling: Scaling
    _m_scaling: Scaling

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write the ensemble to one ONNX file; any number of rows goes in. Needs ``pip install 'residmix[onnx]'``.

        Everything is float64, and in the units of the data.

        Inputs: ``x`` (n, d); with metadata and ``space="sample"`` also ``metadata`` (n, q), the design columns
        ``design_.matrix(metadata).dense``.

        Outputs: ``logits`` (n, M K), the log weights of all components of all members; ``means`` (n, M K, D);
        ``scales`` (n, M K, D), or for a full covariance ``scale_tril`` (n, M K, D, D); for a low-rank one also
        ``factor`` (n, M K, D, R). They are the parameters of `predict_distribution`.

        Parameters
        ----------
        path : str or path-like
            An existing file is replaced when the new one is complete.

        Raises
        ------
        MissingExtraError
            Without onnx and onnxscript.
        """
        check_is_fitted(self, "network_")
        for module in ("onnx", "onnxscript"):
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as absent:
                raise require_extra(module, "onnx", "to_onnx") from absent
        inputs, widths = ["x"], [self._plan.n_features]
        scalings = [(self._x_scaling.mean, self._x_scaling.scale)]
        if self._plan.removal is not None and self.space == "sample":
            q = self._plan.removal.n_metadata
            inputs, widths = [*inputs, "metadata"], [*widths, q]
            scalings.append((self._m_scaling.mean[:q], self._m_scaling.scale[:q]))
        scalings.append((self._y_scaling.mean, self._y_scaling.scale))
        tensors = [(torch.from_numpy(mean), torch.from_numpy(scale)) for mean, scale in scalings]
        spread = {"full": ["scale_tril"], "low-rank": ["scales", "factor"]}.get(self._plan.covariance, ["scales"])
        rows = torch.export.Dim("n")
        with warnings.catch_warnings():
            # torch copies a deprecated class of its own.
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            graph = torch.export.export(
                _InUnits(self.network_, *tensors).eval(),
                # Two rows: a batch of one would be taken for a constant.
                tuple(torch.zeros(2, width, dtype=torch.float64) for width in widths),
                dynamic_shapes=tuple({0: rows} for _ in widths),
            )
            program = torch.onnx.export(
                graph.run_decompositions({torch.ops.aten.softplus.default: _softplus}),
                input_names=inputs,
                output_names=["logits", "means", *spread],
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        with atomic_path(path) as temporary:
            program.save(temporary, external_data=False)
