"""The encoder of EfficientNet-Lite0 (arXiv 1905.11946), whose normalisation is part of its convolutions, and patches of what it sees."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS, STEM = 3, 32
"""Channels of an image, and of what the first convolution sees."""
STAGES = ((16, 1, 3, 1, 1), (24, 2, 3, 2, 6), (40, 2, 5, 2, 6), (80, 3, 3, 2, 6), (112, 3, 5, 1, 6), (192, 4, 5, 2, 6), (320, 1, 3, 1, 6))
"""Channels, blocks, side of the kernel, stride of the first block, and how many times wider it is inside."""
EPSILON = 1e-3
"""This was added to variances by the normalisations that the convolutions have taken in."""
PATCH_STAGES, PATCH = 5, 16
"""Stages whose output is a patch of an image each, and pixels along the side of these."""


class SamePadConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow does: what is left over goes to the right and to the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        over = self.kernel_size[0] - self.stride[0]
        return F.conv2d(F.pad(x, (over // 2, over - over // 2) * 2), self.weight, self.bias, self.stride, 0, 1, self.groups)


class InvertedResidual(nn.Module):
    """An inverted residual."""

    def __init__(self, channels: int, out: int, side: int, stride: int, wider: int) -> None:
        super().__init__()
        inner = channels * wider
        self.expand = nn.Conv2d(channels, inner, 1) if wider > 1 else None
        self.depthwise = SamePadConv2d(inner, inner, side, stride, groups=inner)
        self.project = nn.Conv2d(inner, out, 1)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        inside = x if self.expand is None else F.relu6(self.expand(x))
        out: Tensor = self.project(F.relu6(self.depthwise(inside)))
        return x + out if self.residual else out


class EfficientNetLiteEncoder(nn.Module):
    def __init__(self, stages: int = len(STAGES)) -> None:
        super().__init__()
        self.stem = SamePadConv2d(CHANNELS, STEM, 3, 2)
        built, channels = [], STEM
        for out, count, side, stride, wider in STAGES[:stages]:
            blocks = [InvertedResidual(channels if i == 0 else out, out, side, stride if i == 0 else 1, wider) for i in range(count)]
            built.append(nn.Sequential(*blocks))
            channels = out
        self.stages = nn.Sequential(*built)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → what each stage sees: a half of the resolution, a quarter, an eighth, twice a 16th, twice a 32nd."""
        x, seen = F.relu6(self.stem(images)), []
        for stage in self.stages:
            x = stage(x)
            seen.append(x)
        return seen


class LitePatches(nn.Module):
    """(B, 3, H, W) → (B, H/16 · W/16, C): what the first stages see of an image, for a transformer (the hybrid of arXiv 2010.11929,
    section 3.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = EfficientNetLiteEncoder(PATCH_STAGES)
        self.proj = nn.Conv2d(STAGES[PATCH_STAGES - 1][0], width, 1)
        self.frozen = 0
        """Stages that training leaves as they are, with all before them."""

    def freeze(self, stages: int) -> None:
        """Train only what comes behind so many stages."""
        self.frozen = stages
        if stages:
            self.encoder.stem.requires_grad_(False)
            self.encoder.stages[:stages].requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        # CPUs are faster with channels last; an exported graph cannot say so of a batch of any size
        x = images if torch.compiler.is_compiling() else images.contiguous(memory_format=torch.channels_last)
        x = self.encoder.stages[: self.frozen](F.relu6(self.encoder.stem(x)))
        learning = self.encoder.stages[self.frozen :]
        if self.training and images.device.type == "cpu":
            # Backwards, bf16 takes a CPU twice as long for convolutions of single channels
            with torch.autocast("cpu", enabled=False):
                x = learning(x.float())
        else:
            x = learning(x)
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


def init_from_efficientnet_lite(encoder: EfficientNetLiteEncoder, weights: Mapping[str, Tensor]) -> None:
    """Load the published classifier, whose tensors have timm's names, in place. Raises ValueError for one that lacks something."""
    state = {}
    try:
        for name, (convolution, normalisation) in _timm_names(encoder).items():
            kinds = ("weight", "bias", "running_mean", "running_var")
            weight, bias, mean, variance = (weights[f"{normalisation}.{kind}"] for kind in kinds)
            scale = weight / torch.sqrt(variance + EPSILON)
            state[f"{name}.weight"] = weights[f"{convolution}.weight"] * scale.view(-1, 1, 1, 1)
            state[f"{name}.bias"] = bias - mean * scale
    except KeyError as error:
        raise ValueError(f"no EfficientNet-Lite0: {error} is missing") from error
    encoder.load_state_dict(state)


def _timm_names(encoder: EfficientNetLiteEncoder) -> dict[str, tuple[str, str]]:
    """Return timm's names of each convolution and of the normalisation behind it, by our own."""
    found = {"stem": ("conv_stem", "bn1")}
    for name, module in encoder.named_modules():
        if isinstance(module, InvertedResidual):
            there = name.replace("stages", "blocks")
            parts = [("expand", "conv_pw"), ("depthwise", "conv_dw"), ("project", "conv_pwl")]
            if module.expand is None:
                parts = [("depthwise", "conv_dw"), ("project", "conv_pw")]
            for number, (own, theirs) in enumerate(parts, 1):
                found[f"{name}.{own}"] = (f"{there}.{theirs}", f"{there}.bn{number}")
    return found
