"""A bundle becomes a model that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.bundle import Bundle, BundleError, BundleSpec
from models.layers.forward import Forward
from models.layers.packed import pack_linears, packing_helps
from models.registry import architectures, named, read_config


class LoadedModel:
    """A bundle's model on a device, in evaluation mode. Any number of threads may call `forward` at once."""

    def __init__(self, spec: BundleSpec, model: nn.Module, forward: Forward | None, device: torch.device) -> None:
        self.spec = spec
        self.model = model
        self._forward = forward
        self._device = device

    @property
    def depth(self) -> int:
        """Blocks, the length of a merge schedule."""
        return int(getattr(self.model.config, "depth", 1))

    @property
    def protected_tokens(self) -> int:
        """Special tokens, which never merge."""
        return int(getattr(self.model.config, "special_tokens", 0))

    def forward(self, arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Run one batch: arrays and answers have one row per sample. Raises BundleError where the task is `not_served`."""
        if self._forward is None:
            raise BundleError(f"{self.spec.id}: {not_served(self.spec)}")
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array).to(self._device, non_blocking=True) for name, array in arrays.items()}
            outputs = self._forward(self.model, tensors, options, self.spec.pictures)
            return {name: output.cpu().numpy() for name, output in outputs.items()}


def not_served(spec: BundleSpec) -> str | None:
    """Why `LoadedModel.forward` cannot run a bundle's task; None if it can. An unknown architecture is `load`'s to refuse."""
    architecture = architectures().get(spec.architecture)
    if architecture is None or spec.task in architecture.forwards:
        return None
    served = any(spec.task in other.forwards for other in architectures().values())
    return f"task {spec.task} is not served yet by this version" + (f" for architecture {spec.architecture}" if served else "")


def load(bundle: Bundle, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Verify a bundle's weights, build its model and load them, also of a task that is not served.

    Raises BundleError with a sentence that names the file.
    """
    spec = bundle.spec
    architecture = architectures().get(spec.architecture)
    if architecture is None:
        raise BundleError(f"{bundle.path}: architecture {spec.architecture!r} is unknown; known are {', '.join(architectures())}")
    bundle.verify()
    try:
        config = read_config(architecture.config, spec.config)
        with torch.device("meta"):
            model = architecture.build(config)
    except ValueError as error:
        raise BundleError(f"{bundle.path}: config: {error}") from error
    if architecture.open is not None:
        try:
            model = named(architecture.open)(bundle.weights_path, config, torch.device(device))
        except (ValueError, OSError) as error:
            raise BundleError(f"{bundle.weights_path}: {error}") from error
        return LoadedModel(spec, model.eval(), architecture.forward(spec.task), torch.device(device))
    try:
        weights = load_file(bundle.weights_path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{bundle.weights_path}: no safetensors file ({error})") from error
    problem = mismatch(model, weights)
    if problem:
        raise BundleError(f"{bundle.weights_path}: does not fit architecture {spec.architecture}: {problem}")
    model.load_state_dict(weights, strict=True, assign=True)
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    if packing_helps(torch.device(device), dtype):
        pack_linears(model)
    return LoadedModel(spec, model, architecture.forward(spec.task), torch.device(device))


def mismatch(model: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """Names in one line what is missing, unexpected or of another shape; None if the weights fit."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    parts = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "of another shape": [f"{name} {given[name]} for {own[name]}" for name in own if name in given and own[name] != given[name]],
    }
    return "; ".join(f"{what}: {_few(names)}" for what, names in parts.items() if names) or None


def _few(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
