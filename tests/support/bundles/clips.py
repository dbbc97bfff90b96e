"""Classifiers of clips as bundles, the recorded networks of every architecture, and their answers to videos by the papers' rules.

The rules are written here, without Opsin's code."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import Bundle, BundleSpec
from models.bundle_schema import Clip, Preprocess, Sound, TaskName
from models.systems.mavil.model import MAViL, MAViLConfig
from models.systems.mavil.system import AUDIOSET
from tests.golden.case import GOLDEN, Case, read_case
from tests.golden.checks import recorded_network
from tests.support.bundles.vit import UNSEALED, seal
from tests.support.videos import clip, every

SIDE, SHORT_SIDE = 32, 36
STRIDE, RATE = 4, 30.0
MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)


@dataclass(frozen=True)
class RecordedNetwork:
    """A recorded network and what its published test does."""

    folder: str
    architecture: str
    views: int
    crops: int
    offset: bool
    """Whether whole steps lie between views."""

    @property
    def case(self) -> Case:
        return read_case(GOLDEN / self.folder)

    def model(self) -> Any:
        """Build the network, with its `config`."""
        return recorded_network(self.case)


NETWORKS = {
    "mae-st": RecordedNetwork("mae_st/finetune_sep_cls", "video_mae", 7, 3, True),
    "mvit2": RecordedNetwork("mvit/mvitv2_cls_tiny", "mvit", 5, 1, True),
    "mvit1": RecordedNetwork("mvit/mvitv1_mlp_expand_tiny", "mvit", 5, 1, False),
    "rev-mvit": RecordedNetwork("rev/rev_mvit_video_tiny", "rev_mvit", 5, 1, False),
}
"""The recorded networks by the names of their bundles."""


OF_SOUND = {"both": "mavil/finetune_av", "apart": "mavil/finetune_uni"}
"""MAViLs by the names of their bundles: one goes by sound and sight together, one by either."""
LOUDNESS = AUDIOSET


def mavil(name: str) -> MAViL:
    model: MAViL = recorded_network(read_case(GOLDEN / OF_SOUND[name]))
    return model


HEARING = MAViLConfig(audio_frames=64, mel_bins=32, width=32, depth=2, heads=4, fusion_depth=0, sees=False, multi_label=False, classes=5)


def hearing() -> MAViL:
    """Build a network of sound alone, with weights of its own."""
    torch.manual_seed(0)
    model = MAViL(HEARING)
    torch.nn.init.normal_(model.head["a"].weight)
    return model.eval()


def write_hearing(root: Path) -> Bundle:
    sound = Sound(frames=HEARING.audio_frames, mel_bins=HEARING.mel_bins, mean=LOUDNESS.mean, std=LOUDNESS.std)
    return _write_file(root, "sound-alone", "audio-visual", "mavil", hearing(), None, None, sound)


def write_recorded(root: Path, name: str) -> Bundle:
    recorded = NETWORKS[name]
    prepare = Preprocess(image_size=SIDE, short_side=SHORT_SIDE, interpolation="bilinear", mean=MEAN, std=STD)
    model = recorded.model()
    return _write_file(root, name, "actions", recorded.architecture, model, prepare, Clip(frames=model.config.frames, stride=4))


def write_mavil(root: Path, name: str) -> Bundle:
    model = mavil(name)
    config = model.config
    side, sound = config.image_size, Sound(frames=config.audio_frames, mel_bins=config.mel_bins, mean=LOUDNESS.mean, std=LOUDNESS.std)
    prepare = Preprocess(image_size=side, short_side=side, fit="squeeze", interpolation="bilinear", mean=MEAN, std=STD)
    return _write_file(root, name, "audio-visual", "mavil", model, prepare, Clip(frames=config.frames, stride=1, rate=2), sound)


def _write_file(
    root: Path,
    name: str,
    task: TaskName,
    architecture: str,
    model: Any,
    prepare: Preprocess | None,
    clip: Clip | None,
    sound: Sound | None = None,
) -> Bundle:
    spec = BundleSpec(
        name=name,
        version="1",
        task=task,
        architecture=architecture,
        config=dataclasses.asdict(model.config),
        preprocess=prepare,
        clip=clip,
        sound=sound,
        labels=[f"action {index}" for index in range(model.config.classes)],
        license="CC0-1.0",
        weights=UNSEALED,
    )
    return seal(root, spec, {key: value.contiguous() for key, value in model.state_dict().items()})


@functools.cache
def frames(count: int, height: int = 48, width: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """Draw frames that all differ: (count, height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


@functools.cache
def video(count: int, fps: float = 10.0, height: int = 48, width: int = 64, seed: int = 0) -> bytes:
    images = frames(count, height, width, seed)
    return clip(every(count, fps), container="matroska", codec="ffv1", pixels="bgr0", size=(height, width), frames=list(images))


def view_numbers(total: int, fps: float, count: int, views: int, *, offset: bool) -> NDArray[np.int64]:
    """Return (views, count): truncated numbers of frames, evenly from the first to the last of a span."""
    length = STRIDE * count / RATE * fps
    left = max(total - length, 0.0)
    if not offset:
        starts = [left * view / views for view in range(views)]
    elif views == 1:
        starts = [math.floor(left / 2)]
    else:
        starts = [view * math.floor(left / (views - 1)) for view in range(views)]
    spans = np.array([np.linspace(start, start + length - 1, count) for start in starts], np.float32)
    return np.clip(spans, 0, total - 1).astype(np.int64)


def squares(images: NDArray[np.uint8], crops: int) -> list[Tensor]:
    """Cut (T, H, W, 3) into `crops` of (3, T, S, S), normalised first, as published."""
    pixels = ((torch.from_numpy(images).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    short, (height, width) = SHORT_SIDE if crops == 1 else SIDE, images.shape[1:3]
    long = math.floor(max(height, width) / min(height, width) * short)
    size = (long, short) if height > width else (short, long)
    if min(height, width) != short:
        pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
    rows, columns = pixels.shape[2:]
    middle = math.ceil((rows - SIDE) / 2), math.ceil((columns - SIDE) / 2)
    if crops == 1:
        corners = [middle]
    elif height > width:
        corners = [(0, middle[1]), middle, (rows - SIDE, middle[1])]
    else:
        corners = [(middle[0], 0), middle, (middle[0], columns - SIDE)]
    return [pixels[:, :, top : top + SIDE, left : left + SIDE].transpose(0, 1) for top, left in corners]


def expect(
    recorded: RecordedNetwork, images: NDArray[np.uint8], fps: float, views: int | None = None, crops: int | None = None
) -> NDArray[np.float32]:
    """Return the mean of the softmax over all views and crops: (classes,)."""
    model = recorded.model()
    numbers = view_numbers(len(images), fps, model.config.frames, views or recorded.views, offset=recorded.offset)
    seen = torch.stack([square for rows in numbers for square in squares(images[rows], crops or recorded.crops)])
    with torch.inference_mode():
        scores: NDArray[np.float32] = model(seen).logits.softmax(dim=-1).mean(dim=0).numpy()
    return scores
