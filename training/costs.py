"""Cost of a step of a phase, counted on tensors that have shapes but no storage: at any size within seconds.

FLOPs are those of the matrix products, convolutions and attentions of the forward and the backward pass, a multiply-add as two; blocks that
are computed again count again. Activations are the most bytes that tensors of both passes hold at a time, with fused attention and in the
recipe's precision; gradients of weights, and the copies of weights that a shorter precision computes with, are none.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from models.registry import architectures
from models.systems.depth.model import LiteDepthConfig
from models.systems.mavil.pretraining import MAViLPretraining
from training import collectives
from training.data.source import Sample, SamplePreparation
from training.distributed import TYPES, recompute_blocks
from training.errors import RecipeError
from training.objectives.mavil import MAViLPretrainingObjective
from training.objectives.protocols import Batch, ObjectiveContext
from training.objectives.proxy_nca import ProxiesSettings
from training.phase_runner import preparation
from training.recipe import Phase, Recipe

_SAMPLES = 31
"""Samples of the batch that is counted: a prime, so that activations differ from weights in their number of elements."""
_SURFACE = 100
"""True points of a scene: they are looked up outside of the network."""
_BYTES = 4

_aten = torch.ops.aten
_sdpa: Callable[..., int] = sdpa_flop_count
_sdpa_backward: Callable[..., int] = sdpa_backward_flop_count
_FLOPS: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda *args, **_: _sdpa(*(each.shape for each in args[:3])),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *args, **_: _sdpa_backward(*(each.shape for each in args[:4])),
}
_INDEXING = (_aten.index.Tensor, _aten.index_put.default, _aten._index_put_impl_.default)


@dataclass(frozen=True)
class StepCost:
    """Cost of a step, in bytes of one process that has all weights, and FLOPs."""

    objective: str
    parameters: int
    trained: int
    weights: int
    gradients: int
    optimiser: int
    """Including the moving average of the weights."""
    activations: float
    """Activations per sample."""
    flops: float
    """FLOPs of a sample, forward and backward."""

    @property
    def fixed(self) -> int:
        """Bytes that do not depend on the batch."""
        return self.weights + self.gradients + self.optimiser


class _OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counter of the FLOPs and of the bytes of tensors of operations that run in its context.

    One-dimensional bool indices, whose number of results depends on values, select all rows.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.peak = self._now = 0
        self._alive: dict[int, int] = {}
        self._weights = {weight.numel() for weight in weights}
        """Numbers of elements: tensors of as many are copies or gradients of weights."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if function in _INDEXING and isinstance(args[0], FakeTensor):
            args = (args[0], [_all_rows(index) for index in args[1]], *args[2:])
        result = function(*args, **kwargs)
        count = _FLOPS.get(function.overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.numel() not in self._weights:
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self._now -= self._alive.pop(key)


def count(recipe: Recipe, phase: Phase, labels: int, sample: Sample | None = None) -> StepCost:
    """Count the cost of a step. `labels` is the number of classes, 0 without classes.

    Objectives of other packages may need further tensors: they are taken from `sample`, if the data can be read. Raises TrainingError.
    """
    inputs = preparation(recipe, phase, Path())
    with torch.device("meta"):
        objective = _objective(recipe, phase, labels, inputs)
    shapes = FakeTensorMode(allow_non_fake_inputs=True)
    with shapes:
        for module in objective.modules():  # each once, where one is a part of two others
            module.to_empty(device="cpu", recurse=False)
    objective.train()
    if phase.loop.checkpoint_activations:
        recompute_blocks(objective)
    parameters = list(objective.parameters())
    config = recipe.model_of(phase).resolve(labels)
    people = getattr(phase.data or recipe.data, "people", 1)
    batch = _batch(config, inputs, people, shapes)
    if "words" in batch and isinstance(phase.objective, ProxiesSettings):
        batch |= {"words": batch["words"].unsqueeze(1), "label": torch.zeros(_SAMPLES, dtype=torch.int64)}  # one text at least
    batch |= {name: torch.stack([value] * _SAMPLES) for name, value in (sample or {}).items() if name not in batch or name == "words"}
    counted = _count_step(objective, batch, phase)
    total, trained = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
    states = (2 if phase.optimiser.kind == "adamw" else 1) + bool(phase.loop.ema)
    return StepCost(
        objective=type(objective).__name__,
        parameters=total,
        trained=trained,
        weights=_BYTES * total,
        gradients=_BYTES * trained,
        optimiser=_BYTES * trained * states,
        activations=counted.peak / _SAMPLES,
        flops=counted.flops / _SAMPLES,
    )


def _objective(recipe: Recipe, phase: Phase, labels: int, inputs: SamplePreparation) -> nn.Module:
    """Build the phase's objective without what it reads from files: teachers, weights of packages, the selection of captions.

    Raises RecipeError.
    """
    settings, model = phase.objective, recipe.model_of(phase)
    network = architectures()[model.architecture].build(model.resolve(labels))
    if isinstance(network, MAViLPretraining) and network.config.predict_features:
        return MAViLPretrainingObjective(network, MAViLPretraining(replace(network.config, predict_features=False)))
    if "curation" in type(settings).model_fields:
        settings = settings.model_copy(update={"curation": None})
    try:
        return settings.build(network, ObjectiveContext(("",) * labels, inputs.preprocess, inputs.clip, inputs.sound))
    except ValueError as error:
        field = f"phases.{[other.name for other in recipe.phases].index(phase.name)}"
        raise RecipeError(f"{field}.objective: {error}") from error


def _count_step(objective: nn.Module, batch: Batch, phase: Phase) -> _OperationCounter:
    """Count one forward and one backward pass of a single process."""
    precision = phase.loop.precision
    halved = nullcontext() if precision == "fp32" else torch.autocast("cpu", TYPES[precision])
    fused = sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
    counted = _OperationCounter(objective.parameters())
    with collectives.alone(), counted, fused:
        with halved:
            loss = objective(batch)["loss"]
        loss.backward()
    return counted


def _batch(config: Any, inputs: SamplePreparation, people: int, shapes: FakeTensorMode) -> dict[str, Tensor]:
    """Everything that an objective may read. Only what decides how many patches or points are computed has values."""

    def blank(*shape: int) -> Tensor:
        with shapes:
            return torch.empty(_SAMPLES, *shape)

    batch = {"draw": torch.arange(_SAMPLES)}
    if inputs.preprocess:
        side = inputs.preprocess.image_size
        batch["pixels"] = blank(3, side, side)
        if inputs.clip:
            batch["clip"] = blank(3, inputs.clip.frames, side, side)
    if inputs.sound:
        batch["spectrogram"] = blank(1, inputs.sound.frames, inputs.sound.mel_bins)
    if inputs.words:
        batch["words"] = blank(inputs.words).long()
    classes = getattr(config, "classes", 0)
    if classes:
        batch |= {"label": torch.zeros(_SAMPLES, dtype=torch.int64), "labels": torch.zeros(_SAMPLES, classes)}
    if hasattr(config, "window_depth"):  # MCC
        seen = config.side * config.window
        batch |= {"points": blank(seen, seen, 3), "valid": torch.ones(_SAMPLES, seen, seen, dtype=torch.bool)}
        batch |= {"surface": torch.zeros(_SAMPLES, _SURFACE, 3), "colours": torch.zeros(_SAMPLES, _SURFACE, 3)}
        batch |= {"back": blank(seen, seen, 3), "back_colours": blank(seen, seen, 3)}
    if inputs.preprocess and isinstance(config, LiteDepthConfig):
        batch |= {"points": blank(side, side, 3), "valid": torch.ones(_SAMPLES, side, side, dtype=torch.bool)}
    if hasattr(config, "kinetics_classes"):  # LART
        batch |= _tracks(config, people, blank)
    return batch


def _tracks(config: Any, people: int, blank: Callable[..., Tensor]) -> dict[str, Tensor]:
    everywhere = (config.frames, people)
    detected = torch.ones(_SAMPLES, *everywhere, 1)
    features = {name: getattr(config, name) for name in ("pose", "joints", "appearance")}
    tracks = {name: blank(*everywhere, feature.values) for name, feature in features.items() if feature}
    return tracks | {
        "detected": detected,
        "labelled": 2 * detected,
        "actions": blank(*everywhere, config.actions),
        "raw_pose": tracks["pose"],
    }


def _all_rows(index: Tensor | None) -> Tensor | None:
    return torch.arange(len(index)) if index is not None and index.dtype is torch.bool and index.dim() == 1 else index


def amount(number: float, unit: str) -> str:
    """Format a number with a prefix: 1.23e15, "FLOP" → "1.23 PFLOP"."""
    power = min(max(0, int(math.log10(max(number, 1))) // 3), 7)
    return f"{number / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P', 'E', 'Z'][power]}{unit}"
