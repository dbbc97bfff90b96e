"""EfficientNet-Lite0 (arXiv 1905.11946) as an encoder, with normalisation folded into its convolutions, and as an embedding of patches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS, STEM = 3, 32
"""Channels of an image, and of the first convolution's output."""
STAGES = ((16, 1, 3, 1, 1), (24, 2, 3, 2, 6), (40, 2, 5, 2, 6), (80, 3, 3, 2, 6), (112, 3, 5, 1, 6), (192, 4, 5, 2, 6), (320, 1, 3, 1, 6))
"""Output channels, number of blocks, kernel size, stride of the first block, and expansion ratio of each stage."""
EPSILON = 1e-3
"""Epsilon of the normalisations that were folded into the convolutions."""
PATCH_STAGES, PATCH = 5, 16
"""Number of stages before the patches, and size of a patch in pixels."""


class SamePadConv2d(nn.Conv2d):
    """A convolution padded as in TensorFlow: an odd row or column of padding is at the bottom or at the right."""

    def forward(self, x: Tensor) -> Tensor:
        padding = self.kernel_size[0] - self.stride[0]
        return F.conv2d(F.pad(x, (padding // 2, padding - padding // 2) * 2), self.weight, self.bias, self.stride, 0, 1, self.groups)


class InvertedResidual(nn.Module):
    """Inverted residual block (arXiv 1801.04381)."""

    def __init__(self, channels: int, out: int, kernel_size: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = nn.Conv2d(channels, inner, 1) if expansion > 1 else None
        self.depthwise = SamePadConv2d(inner, inner, kernel_size, stride, groups=inner)
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
        for out, count, kernel_size, stride, expansion in STAGES[:stages]:
            blocks = [
                InvertedResidual(channels if i == 0 else out, out, kernel_size, stride if i == 0 else 1, expansion) for i in range(count)
            ]
            built.append(nn.Sequential(*blocks))
            channels = out
        self.stages = nn.Sequential(*built)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encode images (B, 3, H, W) → the output of each stage, at resolutions 1/2, 1/4, 1/8, twice 1/16, twice 1/32."""
        x, outputs = F.relu6(self.stem(images)), []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class LitePatches(nn.Module):
    """Patches by the first stages, (B, 3, H, W) → (B, H/16 · W/16, C), for a transformer: the hybrid of arXiv 2010.11929, section 3.1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = EfficientNetLiteEncoder(PATCH_STAGES)
        self.proj = nn.Conv2d(STAGES[PATCH_STAGES - 1][0], width, 1)
        self.frozen = 0
        """Number of leading stages that are not trained."""

    def freeze(self, stages: int) -> None:
        self.frozen = stages
        if stages:
            self.encoder.stem.requires_grad_(False)
            self.encoder.stages[:stages].requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        # CPUs are faster with channels last; an exported graph of any batch size cannot express that
        x = images if torch.compiler.is_compiling() else images.contiguous(memory_format=torch.channels_last)
        x = self.encoder.stages[: self.frozen](F.relu6(self.encoder.stem(x)))
        trained_stages = self.encoder.stages[self.frozen :]
        if self.training and images.device.type == "cpu":
            # In the backward pass, bf16 takes a CPU twice as long for convolutions of single channels
            with torch.autocast("cpu", enabled=False):
                x = trained_stages(x.float())
        else:
            x = trained_stages(x)
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


def init_from_efficientnet_lite(encoder: EfficientNetLiteEncoder, weights: Mapping[str, Tensor]) -> None:
    """Load the published classifier, whose tensors have timm's names, in place. Raises ValueError if a tensor is missing."""
    state = {}
    try:
        for name, (convolution, normalisation) in _timm_names(encoder).items():
            kinds = ("weight", "bias", "running_mean", "running_var")
            weight, bias, mean, variance = (weights[f"{normalisation}.{kind}"] for kind in kinds)
            scale = weight / torch.sqrt(variance + EPSILON)
            state[f"{name}.weight"] = weights[f"{convolution}.weight"] * scale.view(-1, 1, 1, 1)
            state[f"{name}.bias"] = bias - mean * scale
    except KeyError as error:
        raise ValueError(f"not an EfficientNet-Lite0: {error} is missing") from error
    encoder.load_state_dict(state)


def _timm_names(encoder: EfficientNetLiteEncoder) -> dict[str, tuple[str, str]]:
    """Return, for each convolution's name here, timm's names of it and of the normalisation after it."""
    names = {"stem": ("conv_stem", "bn1")}
    for name, module in encoder.named_modules():
        if isinstance(module, InvertedResidual):
            block = name.replace("stages", "blocks")
            parts = [("expand", "conv_pw"), ("depthwise", "conv_dw"), ("project", "conv_pwl")]
            if module.expand is None:
                parts = [("depthwise", "conv_dw"), ("project", "conv_pw")]
            for index, (key, timm_key) in enumerate(parts, 1):
                names[f"{name}.{key}"] = (f"{block}.{timm_key}", f"{block}.bn{index}")
    return names
