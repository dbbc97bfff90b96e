"""Architecture name → config class, builder and, per task, the forward call; and the loading of a bundle into a model that runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kernels.ops import effective_r
from models.bundle import Bundle, BundleError, BundleSpec, Preprocess
from models.layers.packed import pack_linears, packing_helps
from models.merge_schedule import MergeSchedule
from models.null import Null

if TYPE_CHECKING:
    from models.vit import Classified, ViTConfig

Forward = Callable[[nn.Module, Mapping[str, Tensor], Mapping[str, Any], Preprocess], dict[str, Tensor]]
"""(model, arrays on the model's device, options, preprocess) → arrays, one row per sample."""


@dataclass(frozen=True)
class Architecture:
    """A class of `module` and, named like it with `Config` behind, its config dataclass. The module is imported when first asked for:
    a worker needs the code of its own bundles only."""

    module: str
    name: str
    tasks: Mapping[str, Forward] = field(default_factory=dict)

    @property
    def config(self) -> type:
        config: type = getattr(import_module(self.module), f"{self.name}Config")
        return config

    def build(self, config: Any) -> nn.Module:
        model: nn.Module = getattr(import_module(self.module), self.name)(config)
        return model


def classify_picture(
    model: nn.Module, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess
) -> dict[str, Tensor]:
    """pixels uint8 (B, S, S, 3); option `merge`: r per block → logits float32 (B, classes), tokens int32 (B, 2) in and out.

    Option `trace`: also `groups` int32 (B, depth, patches), which token holds each patch after each block, special tokens not counted,
    and `grid` int32 (B, 2), rows and columns of patches.
    """
    schedule, trace = MergeSchedule.of(options.get("merge", ())), bool(options.get("trace", False))
    answer = model(normalise(arrays["pixels"], preprocess, next(model.parameters()).dtype), merge=schedule, trace=trace)
    outputs = _with_tokens(answer.logits, answer.tokens_in, answer.tokens_out)
    return outputs | _groups(answer, cast("ViTConfig", model.config), schedule) if trace else outputs


def _groups(answer: Classified, config: ViTConfig, schedule: MergeSchedule) -> dict[str, Tensor]:
    batch, tokens, special = answer.logits.shape[0], answer.tokens_in, config.special_tokens
    merges = iter(answer.owners)
    owner = torch.arange(tokens, device=answer.logits.device).expand(batch, -1)
    layers = []
    for r in schedule.expand(config.depth):
        merged = effective_r(tokens, r, special)
        owner = next(merges) if merged else owner
        tokens -= merged
        layers.append(owner[:, special:] - special)  # special tokens stay in front and hold only themselves
    grid = torch.tensor(config.grid, dtype=torch.int32).expand(batch, -1)
    return {"groups": torch.stack(layers, dim=1).to(torch.int32), "grid": grid}


def classify_pooling(
    model: nn.Module, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess
) -> dict[str, Tensor]:
    """The same by a model that pools its tokens and does not merge them: `merge` changes nothing."""
    answer = model(normalise(arrays["pixels"], preprocess, next(model.parameters()).dtype))
    return _with_tokens(answer.logits, answer.tokens_in, answer.tokens_out)


def classify_nothing(
    model: nn.Module, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess
) -> dict[str, Tensor]:
    assert isinstance(model, Null)
    return _with_tokens(model(arrays["pixels"]), model.config.tokens, model.config.tokens)


def normalise(pixels: Tensor, preprocess: Preprocess, dtype: torch.dtype) -> Tensor:
    """uint8 (B, H, W, 3) → (B, 3, H, W) in `dtype`: scaled to [0, 1], the mean taken off, divided by the deviation."""
    mean = torch.tensor(preprocess.mean, device=pixels.device)
    std = torch.tensor(preprocess.std, device=pixels.device)
    return ((pixels.float() / 255 - mean) / std).to(dtype).permute(0, 3, 1, 2)


def _with_tokens(logits: Tensor, tokens_in: int, tokens_out: int) -> dict[str, Tensor]:
    tokens = torch.tensor([[tokens_in, tokens_out]], dtype=torch.int32)
    return {"logits": logits.float(), "tokens": tokens.expand(logits.shape[0], -1)}


ARCHITECTURES: Mapping[str, Architecture] = {
    "vit": Architecture("models.vit", "ViT", {"classify": classify_picture}),
    "mae": Architecture("models.mae", "MAE"),
    "video_mae": Architecture("models.video_mae", "VideoMAE"),
    "mavil": Architecture("models.mavil", "MAViL"),
    "mavil_pretraining": Architecture("models.mavil_pretraining", "MAViLPretraining"),
    "audio_mae": Architecture("models.audio_mae", "AudioMAE"),
    "video_mae_pretraining": Architecture("models.video_mae_pretraining", "VideoMAEPretraining"),
    "mcc": Architecture("models.mcc", "MCC"),
    "diffmae": Architecture("models.diffmae", "DiffMAE"),
    "hmr2": Architecture("models.hmr2", "HMR2"),
    "lart": Architecture("models.lart", "LART"),
    "phalp_appearance": Architecture("models.phalp_appearance", "AppearanceNet"),
    "phalp_pose": Architecture("models.phalp_pose", "PosePredictor"),
    "mvit": Architecture("models.mvit", "MViT", {"classify": classify_pooling}),
    "rev_mvit": Architecture("models.mvit_reversible", "RevMViT", {"classify": classify_pooling}),
    "maws_clip": Architecture("models.maws", "MAWSClip"),
    "flip": Architecture("models.flip", "FLIP"),
    "cit": Architecture("models.cit", "CiT"),
    "null": Architecture("models.null", "Null", {"classify": classify_nothing}),
}


def read_config(config: type, fields: Mapping[str, Any]) -> Any:
    """A config dataclass from JSON. Raises ValueError that names the field."""
    known = [field.name for field in dataclasses.fields(config)]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: unknown; the fields are {', '.join(known)}")
    try:
        return TypeAdapter(config).validate_python(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'config'}: {first['msg'].removeprefix('Value error, ')}") from error


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
    architecture = ARCHITECTURES.get(spec.architecture)
    if architecture is None or spec.task in architecture.tasks:
        return None
    served = any(spec.task in other.tasks for other in ARCHITECTURES.values())
    return f"task {spec.task} is not served yet by this version" + (f" for architecture {spec.architecture}" if served else "")


def load(bundle: Bundle, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Verify a bundle's weights, build its model and load them, also of a task that is not served.

    Raises BundleError with a sentence that names the file.
    """
    spec = bundle.spec
    architecture = ARCHITECTURES.get(spec.architecture)
    if architecture is None:
        raise BundleError(f"{bundle.path}: architecture {spec.architecture!r} is unknown; known are {', '.join(ARCHITECTURES)}")
    bundle.verify()
    try:
        with torch.device("meta"):
            model = architecture.build(read_config(architecture.config, spec.config))
    except ValueError as error:
        raise BundleError(f"{bundle.path}: config: {error}") from error
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
    return LoadedModel(spec, model, architecture.tasks.get(spec.task), torch.device(device))


def mismatch(model: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """What is missing, unexpected or of another shape, in one line; None if the weights fit."""
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
