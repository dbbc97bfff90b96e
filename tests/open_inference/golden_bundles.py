"""Recorded networks as bundles whose answers to recorded inputs can be asked for through the service.

Recorded inputs are float32, and pixels have 8 bits: each value becomes 2 × 2 pixels, three of which hold its digits to the base of 256. The
first convolution is spread over twice as many rows and columns, and weights the digits, so that it sees the recorded values again. Recorded
spectrograms become sounds that have them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solveh_banded
from torch import Tensor, nn

from models.bundle import BundleSpec
from models.bundle_schema import Clip, Preprocess, Sound, TaskName
from models.media.fbank import FbankConfig, log_mel
from models.systems.mavil.system import LogMelStats
from tests.golden.case import GOLDEN, Case, find_cases, read_case
from tests.golden.checks import recorded_network
from tests.support.bundles.vit import UNSEALED, seal

DIGITS = {(0, 0): 2.0**-4, (0, 1): 2.0**-12, (1, 0): 2.0**-20}
"""Place among the 2 × 2 pixels of a value → the weight of its digit, -128 to 127: values below 8 are exact to 5e-7."""
ZERO = 128
"""The pixel that stands for the digit 0, as the padding of a convolution does."""
LOUDNESS = LogMelStats(mean=-4.0, std=0.1)
"""Mean and deviation of recorded spectrograms: so close to those of steady noise that a sound can have them."""
ARCHITECTURES = {"VideoMAE": "video_mae", "MViT": "mvit", "RevMViT": "rev_mvit", "ViT": "vit", "MAViL": "mavil"}


@dataclass(frozen=True)
class Head:
    """A recorded answer that the service can be asked for."""

    case: str
    """Folder of the case in tests/golden."""
    parts: tuple[str, ...]
    """Names of the parts of a request."""
    output: str
    """Name of the recorded output."""

    @property
    def bundle(self) -> str:
        return self.case.replace("/", "-").replace("_", "-")


def heads() -> Iterator[Head]:
    """Yield every classification that was recorded of MAE-ST, MViT, Rev-ViT, Rev-MViT and MAViL."""
    for folder in find_cases(*(GOLDEN / system for system in ("mae_st", "mvit", "rev", "mavil"))):
        case, name = read_case(folder), f"{folder.parent.name}/{folder.name}"
        if "boxes" in case.inputs:
            continue  # people in a clip, which pipelines ask about
        for suffix, parts in {"_audio": ("audio",), "_video": ("video",), "_av": ("video", "audio"), "": ()}.items():
            output = next((kind + suffix for kind in ("probs", "logits") if kind + suffix in case.outputs), None)
            if output is not None:
                yield Head(name, parts or ("image" if pictures(case).dim() == 4 else "video",), output)


def pictures(case: Case) -> Tensor:
    """Images (B, 3, H, W) or clips (B, 3, T, H, W)."""
    return case.inputs["video" if "video" in case.inputs else "x"]


def expected_scores(case: Case, output: str) -> Tensor:
    """Return the recorded scores: (B, classes), float64."""
    recorded = case.outputs[output].double()
    if output.startswith("probs"):
        return recorded
    return recorded.sigmoid() if case.system == "mavil" else recorded.softmax(dim=-1)


def to_pixels(values: Tensor) -> NDArray[np.uint8]:
    """Write values as pixels, three digits each: (…, H, W) → (…, 2H, 2W)."""
    left = (values.double() / min(DIGITS.values())).round().long()
    pixels = torch.full((*values.shape[:-2], 2 * values.shape[-2], 2 * values.shape[-1]), ZERO, dtype=torch.uint8)
    for row, column in reversed(DIGITS):
        digit = (left + ZERO) % 256 - ZERO
        pixels[..., row::2, column::2] = (digit + ZERO).to(torch.uint8)
        left = (left - digit) // 256
    assert not left.any(), "values are too large for three digits"
    return pixels.numpy()


def to_sounds(spectrograms: Tensor) -> NDArray[np.float32]:
    """Spectrograms (B, 1, frames, mel bins) → sounds (B, samples) that have them."""
    return np.stack([_to_sound(one[0].double() * 2 * LOUDNESS.std + LOUDNESS.mean) for one in spectrograms])


def _to_sound(target: Tensor) -> NDArray[np.float32]:
    """Solve for a sound with this log-mel spectrogram: (frames, mel bins) → (samples,).

    Gauss-Newton steps of least length, from noise: there are five samples to a number.
    A frame sees its own window alone, so the normal equations have a band: windows overlap with those of two frames before and behind."""
    (frames, bins), config = target.shape, FbankConfig(mel_bins=target.shape[1])
    hop, window = config.hop, config.window
    generator = torch.Generator().manual_seed(0)
    sound = 0.02 * torch.randn((frames - 1) * hop + window, generator=generator, dtype=torch.float64)
    for _ in range(40):
        windows = sound.unfold(0, window, hop).clone().requires_grad_()
        mels = log_mel(windows, config)[:, 0]
        error = (target - mels.detach()).clamp(-1, 1)
        if error.abs().max() < 1e-7:
            break
        slopes = torch.stack(
            [torch.autograd.grad(one.sum(), windows, retain_graph=True)[0] for one in mels.T], dim=1
        )  # (frames, bins, window)
        normal = torch.zeros(frames, bins, frames, bins, dtype=torch.float64)
        for offset in range(math.ceil(window / hop)):
            ahead, behind = slopes[: frames - offset, :, offset * hop :], slopes[offset:, :, : window - offset * hop]
            at = torch.arange(frames - offset)
            normal[at + offset, :, at] = behind @ ahead.transpose(1, 2)
        rows = normal.view(frames * bins, -1).numpy()
        band = np.stack([np.pad(np.diagonal(rows, -below), (0, below)) for below in range(3 * bins)])
        band[0] *= 1 + 1e-9
        factors = torch.from_numpy(solveh_banded(band, error.flatten().numpy(), lower=True)).view(frames, 1, bins)
        for frame, change in enumerate((factors @ slopes)[:, 0]):
            sound[frame * hop : frame * hop + window] += change
    return sound.float().numpy()


def write_recorded(root: Path, folder: str) -> None:
    """Write the bundle of a recorded network."""
    case = read_case(GOLDEN / folder)
    network = recorded_network(case)
    weights, config = _spread(network), dataclasses.asdict(network.config)
    images = pictures(case)
    side = 2 * images.shape[-1]
    config |= {"image_size": side} | {name: _double(config[name]) for name in _patches(config)}
    task: TaskName = "classify" if images.dim() == 4 else "audio-visual" if case.system == "mavil" else "actions"
    clip = None if images.dim() == 4 else Clip(frames=images.shape[2], stride=1, rate=2 if case.system == "mavil" else 10)
    audio = case.inputs.get("audio")
    level = ZERO / 255
    spec = BundleSpec(
        name=Head(folder, (), "").bundle,
        version="1",
        task=task,
        architecture=ARCHITECTURES[type(network).__name__],
        config=config,
        preprocess=Preprocess(image_size=side, short_side=side, interpolation="bilinear", mean=(level,) * 3, std=(1 / 255,) * 3),
        clip=clip,
        sound=None if audio is None else Sound(frames=audio.shape[2], mel_bins=audio.shape[3], mean=LOUDNESS.mean, std=LOUDNESS.std),
        labels=[f"class {index}" for index in range(network.config.classes)],
        license="CC0-1.0",
        weights=UNSEALED,
    )
    seal(root, spec, weights)


def _spread(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights, the first convolution over pixels as one over digits."""
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    (name,) = (name for name, value in weights.items() if name.endswith("patch_embed.proj.weight") and value.shape[1] == 3)
    kernel = weights[name]
    wide = kernel.new_zeros(*kernel.shape[:-2], 2 * kernel.shape[-2], 2 * kernel.shape[-1])
    for (row, column), weight in DIGITS.items():
        wide[..., row::2, column::2] = kernel * weight
    return weights | {name: wide}


def _patches(config: dict[str, Any]) -> Iterator[str]:
    yield from (name for name in ("patch_size", "patch_kernel", "patch_stride", "patch_padding") if config.get(name) is not None)
    yield from (name for name in ("image_width", "patch_width") if config.get(name) is not None)


def _double(size: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """Double a side, or rows and columns, which stand at the end."""
    return 2 * size if isinstance(size, int) else (*size[:-2], 2 * size[-2], 2 * size[-1])
