"""Weights that a network starts with: of an earlier phase, a bundle or a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.bundle import WEIGHTS_FILE
from models.layers.efficientnet_lite import EfficientNetLiteEncoder, init_from_efficientnet_lite
from models.loading import weight_mismatch
from models.systems.diffmae.init_attention import init_neighbour_attention
from models.systems.diffmae.model import DiffMAE, init_from_encoder
from models.systems.image_text.flip import FLIP
from models.systems.mae.model import init_vit_from_mae as vit_from_mae
from models.systems.mae_st.init_motion import init_motion_filters
from models.systems.mae_st.model import VideoMAE
from models.systems.mae_st.model import init_video_mae_from_pretraining as video_from_mae_st
from models.systems.mae_st.pretraining import VideoMAEPretraining
from models.systems.mavil.model import MAViL
from models.systems.mavil.model import init_from_mavil_pretraining as mavil_from_pretraining
from models.systems.mavil.pretraining import MAViLPretraining, audio_weights_from_video, video_weights_from_images
from models.systems.mcc.init_attention import init_nearest_attention
from models.systems.mcc.model import MCC, init_from_mae
from models.systems.vit.model import ViT
from training.data.sampler import SampleDataset, SampleDraw
from training.data.source import SampleSource
from training.errors import TrainingError
from training.objectives.diffmae import DiffMAEObjective, fit_diffmae_head
from training.objectives.mcc import MCCObjective, fit_mcc_head
from training.objectives.protocols import Batch
from training.objectives.proxy_nca import ProxyObjective, fit_proxies, skip_blocks
from training.recipe import Initial


def _mavil_from_mae(network: MAViLPretraining, weights: Mapping[str, Tensor]) -> None:
    """Start MAViL from an image MAE. Raises ValueError for weights of another kind or size."""
    video = video_weights_from_images(weights, network.config)
    converted = video | audio_weights_from_video(video, network.config)
    current = network.state_dict()
    wrong = [name for name, value in converted.items() if name not in current or current[name].shape != value.shape]
    if wrong:
        raise ValueError(f"no image MAE of this size: {', '.join(wrong[:5])}")
    network.load_state_dict(converted, strict=False)


_FITTED_IMAGES, _FITTED_SCENES, _FITTED_THINGS = (768, 64), (256, 16), (20_000, 64)
"""Samples that the last layer is fitted to, and how many go through the network at a time. A scene has hundreds of queries."""
_FITTED_EPOCHS = 4
"""Times that each thing is met, at most, by different artists."""

_LOOKS: Mapping[Initial, tuple[type[nn.Module], Callable[[Any], None]]] = {
    Initial.NEIGHBOURS: (DiffMAE, init_neighbour_attention),
    Initial.NEAREST: (MCC, init_nearest_attention),
    Initial.MOTION: (VideoMAEPretraining, init_motion_filters),
    Initial.WHITENED: (FLIP, skip_blocks),
}

_FROM_PRETRAINING: Mapping[type[nn.Module], Callable[[Any, Mapping[str, Tensor]], object]] = {
    ViT: vit_from_mae,
    VideoMAE: video_from_mae_st,
    MAViL: mavil_from_pretraining,
    MAViLPretraining: _mavil_from_mae,
    DiffMAE: init_from_encoder,
    MCC: init_from_mae,
    EfficientNetLiteEncoder: init_from_efficientnet_lite,
}
"""Networks that start from the encoder of another."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights of a bundle's folder or a safetensors file. Raises TrainingError."""
    file = path / WEIGHTS_FILE if path.is_dir() else path
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"start: {file} cannot be read ({error})") from error


def load_start_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights of the same network, or of the one that it is pre-trained as, in place. Raises TrainingError."""
    problem = weight_mismatch(network, weights)
    if problem is None:
        network.load_state_dict(dict(weights))
        return
    convert = _FROM_PRETRAINING.get(type(network))
    if convert is None:
        raise TrainingError(f"start: the weights of {source} do not fit: {problem}")
    try:
        convert(network, {name: value.float() for name, value in weights.items()})
    except ValueError as error:
        raise TrainingError(f"start: the weights of {source} do not fit: {error}") from error


def part_of(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the weights of a part of a network, by their names in the part; empty if there is no such part."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def apply_initial(network: nn.Module, initial: Initial) -> None:
    """Set the starting values that a recipe asks for, in place: the same bits whatever the number of threads, since a run that goes on
    compares them. Raises TrainingError."""
    kind, look = _LOOKS[initial]
    if not isinstance(network, kind):
        article = "an" if kind is MCC else "a"
        raise TrainingError(f"initial: {initial.value} is for {article} {kind.__name__}, not for {type(network).__name__}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        look(network)
    except ValueError as error:
        raise TrainingError(f"initial: {initial.value} does not fit the network: {error}") from error
    finally:
        torch.set_num_threads(threads)


def fit_to_data(objective: nn.Module, source: SampleSource, seed: int, initial: Initial) -> None:
    """Fit what a phase begins with to its data, in place: proxies always, the last layer of a network that `begin` has begun where it
    answers from the start."""
    if isinstance(objective, ProxyObjective):
        batches = _batches(source, seed, *_FITTED_THINGS, epochs=_FITTED_EPOCHS)
        fit_proxies(objective, batches, whitened=initial is Initial.WHITENED)
    elif initial is Initial.RANDOM:
        return
    elif isinstance(objective, MCCObjective):
        fit_mcc_head(objective, _batches(source, seed, *_FITTED_SCENES))
    elif isinstance(objective, DiffMAEObjective):
        fit_diffmae_head(objective, _batches(source, seed, *_FITTED_IMAGES))


def _batches(source: SampleSource, seed: int, max_samples: int, batch_size: int, epochs: int = 1) -> Iterator[Batch]:
    """Yield batches of at most `max_samples` of each epoch, evenly spread over the source."""
    samples, count = SampleDataset(source, seed), min(max_samples, len(source))
    chosen = [SampleDraw(number * len(source) // count, epoch) for epoch in range(epochs) for number in range(count)]
    return (samples.__getitems__(chosen[first : first + batch_size])[0] for first in range(0, len(chosen), batch_size))
