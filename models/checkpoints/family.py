"""A family of published checkpoints: its key names, the facts that its files leave out, and the preparation of its images."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from models.bundle_schema import Preprocess
from models.checkpoints.key_table import KeyTable
from models.registry import resolve, systems

RGB = tuple[float, float, float]
IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)
KINETICS_MEAN: RGB = (0.45, 0.45, 0.45)
KINETICS_STD: RGB = (0.225, 0.225, 0.225)
"""Used by SlowFast and MAE-ST."""

HUGE_MODEL_HEADS = {1280: 16, 2560: 32, 4096: 32}
"""Width → heads of the models from huge on (MAE, MAWS), whose heads are wider than 64 channels."""

AUTOENCODER_HEADS = ("heads", "decoder_heads")
"""`Family.head_fields` of masked autoencoders."""

ConfigFields = dict[str, Any]
"""Fields of a config dataclass."""


@dataclass(frozen=True)
class Family:
    name: str
    architecture: str
    table: KeyTable
    config: Callable[[Mapping[str, Tensor], ConfigFields], ConfigFields]
    """Infers config fields from weights under our names and from the fields that were set by hand. Raises UnlikeFamily."""
    preprocess: Callable[[int], Preprocess]
    """Maps an image size to the preparation of images."""
    smooth: bool = False
    """Whether frames of clips that shrink are smoothed (`Clip.smooth`)."""
    defaults: ConfigFields = field(default_factory=dict)
    """Config fields that keys and shapes do not tell."""
    head_fields: tuple[str, ...] = ("heads",)
    """The fields of the config that count attention heads, which no shape depends on."""
    tidy: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda published: published
    """A file's weights as the table reads them: without wrappers in the names, without what is not the model's, in PyTorch's layouts."""
    resized: Callable[[dict[str, Tensor], Any], dict[str, Tensor]] = lambda weights, config: weights
    """Weights by our names, and a config → weights for that config's image size, where their own is another."""
    completed: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda published: published
    """Exported weights as a published file has them: in its layouts, and with what it holds twice."""
    own_size: bool = False
    """Whether the `image_size` that its files state is that of the position table, as `config` infers it from weights alone."""
    headless: bool = False
    """Whether a file without a head can be read for its features, with `classes=0`."""
    wrapper: str | None = "model"
    """The key under which the family's torch files keep the weights; None: they are the file."""
    folder: Callable[[Path, Mapping[str, Tensor]], None] | None = None
    """Writes the published weights as a folder, if that is what the family's checkpoints are."""
    describe: Callable[[Any], dict[str, Any]] = lambda config: {}
    """Writes what `described` reads. Raises ValueError for a config that a file cannot express."""
    beside: tuple[str, ...] = ()
    """Fields of the config that lie in files beside the checkpoint: an import asks for them."""
    assumed: tuple[str, ...] = ()
    """Fields of the config that `config` takes from the published sizes unless they are set by hand: an import says so."""
    left_behind: str = ""
    """Names in words what its files hold besides the model: imports drop it, exports lack it, and the published loaders do without."""
    described: Callable[[Mapping[str, Any]], ConfigFields] = lambda description: {}
    """Config fields that a file of this family states itself, `Checkpoint.description`. Raises ValueError."""

    def export(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours → published. Raises KeyError for a name that has no place in this family's files."""
        return self.completed(self.table.export(weights))


class UnlikeFamily(ValueError):
    """Weights lack what every checkpoint of a family has; the message says what."""


def decoder_fields(weights: Mapping[str, Tensor], half: str = "") -> ConfigFields:
    """Fields of a masked autoencoder's decoder. Its heads have 32 channels in the published sizes. half: prefix of the names."""
    _, small = shape_of(weights, f"{half}decoder_pred.weight", 2)
    fields: ConfigFields = {"decoder_width": small, "decoder_depth": depth_of(weights, f"{half}decoder_blocks")}
    if small % 32 == 0:
        fields["decoder_heads"] = small // 32
    return fields


def block_fields(weights: Mapping[str, Tensor], width: int) -> ConfigFields:
    """The fields about blocks and head that all our transformers share."""
    hidden, _ = shape_of(weights, "blocks.0.mlp.fc1.weight", 2)
    fields: ConfigFields = {
        "depth": depth_of(weights, "blocks"),
        "mlp_ratio": mlp_ratio_of(hidden, width),
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
    }
    if "head.weight" in weights:
        fields["classes"] = weights["head.weight"].shape[0]
    heads = published_heads(width)
    if heads is not None:
        fields["heads"] = heads
    return fields


def mlp_ratio_of(hidden: int, width: int) -> float:
    """A ratio for which `int(width * ratio)` equals `hidden`: models truncate the product, and the quotient may be slightly too low."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def depth_of(weights: Mapping[str, Tensor], blocks: str) -> int:
    """Number of blocks under a name. Raises UnlikeFamily where its tensors are fewer than the blocks would be."""
    numbers = [int(match[1]) for key in weights if (match := re.match(rf"{re.escape(blocks)}\.(\d+)\.", key))]
    depth = 1 + max(numbers, default=-1)
    if depth > len(numbers):  # a name alone would make a network of any depth
        raise UnlikeFamily(f"{blocks}.{depth - 1} is the last of its blocks, of which it has {len(set(numbers))}")
    return depth


def published_heads(width: int) -> int | None:
    """Number of heads: width // 64, except for the huge sizes. None if 64 does not divide the width."""
    if width in HUGE_MODEL_HEADS:
        return HUGE_MODEL_HEADS[width]
    return width // 64 if width % 64 == 0 else None


def shape_of(weights: Mapping[str, Tensor], key: str, dimensions: int) -> tuple[int, ...]:
    if key not in weights:
        raise UnlikeFamily(f"it lacks {key}")
    shape = tuple(weights[key].shape)
    if len(shape) != dimensions:
        raise UnlikeFamily(f"{key} has {len(shape)} dimensions, not {dimensions}")
    if 0 in shape:
        raise UnlikeFamily(f"{key} {shape} is empty")
    return shape


def side_of(patches: int) -> int:
    side = math.isqrt(max(patches, 0))
    if side == 0 or side * side != patches:
        raise UnlikeFamily(f"its position table has {patches} patches, which is no square")
    return side


def resize_and_crop(
    ratio: float, mean: RGB, std: RGB, interpolation: Literal["bicubic", "bilinear"] = "bicubic"
) -> Callable[[int], Preprocess]:
    """Short side to `ratio` times the image size, truncated; then the centre."""
    return lambda size: Preprocess(image_size=size, short_side=int(ratio * size), interpolation=interpolation, mean=mean, std=std)


def squeeze(size: int) -> Preprocess:
    """The whole image into a square, whatever its proportions."""
    return Preprocess(image_size=size, short_side=size, fit="squeeze", interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def families() -> Mapping[str, Family]:
    """All families by name. Imports the code of every system."""
    return {name: resolve(reference) for system in systems() for name, reference in system.families.items()}
