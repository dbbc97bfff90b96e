"""PHALP's appearance network (HMAR, arXiv 2112.04477): unwraps a crop into a texture, and encodes textures for comparison.

No recorded case covers it. The order in which the decoder concatenates its maps and `align_corners=False` follow the description of the
published code; the residual network is torchvision's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.systems.phalp.association_cost import normalise_texture


@dataclass(frozen=True)
class AppearanceNetConfig:
    """Config of the only published size, for crops of 256 px."""

    size: int = 256


PUBLISHED: Mapping[str, AppearanceNetConfig] = {"phalp_appearance": AppearanceNetConfig()}


class AppearanceNet(nn.Module):
    """HMAR without its body regressor. Parameter names are the published ones."""

    def __init__(self, config: AppearanceNetConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet50()
        self.texture_head = nn.Module()
        self.texture_head.decoder = FlowDecoder()
        self.encoding_head = TextureEncoder()

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Unwrap and encode crops (B, 4, S, S), normalised RGB and a mask of 0..255 → textures (B, 4, S, S), normalised, and codes (B,
        4096)."""
        textures = self.unwrap(crops)
        return textures, self.encoding_head(textures)

    def unwrap(self, crops: Tensor) -> Tensor:
        """Unwrap crops into normalised textures: (B, 4, S, S) → (B, 4, S, S)."""
        flow = torch.tanh(self.texture_head.decoder(self.backbone(crops[:, :3])))  # type: ignore[operator]
        return normalise_texture(F.grid_sample(crops, flow.permute(0, 2, 3, 1), align_corners=False))


class ResNet50(nn.Module):
    """ResNet-50 (arXiv 1512.03385) with the stride in the 3 x 3 convolutions, without pooling and head."""

    DEPTHS = (3, 4, 6, 3)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        for stage, depth in enumerate(self.DEPTHS):
            width = 64 << stage
            first = Bottleneck(4 * width // 2 if stage else 64, width, stride=2 if stage else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, *(Bottleneck(4 * width, width) for _ in range(depth - 1))))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return four feature maps, (B, 256, S/4, S/4) to (B, 2048, S/32, S/32), of images (B, 3, S, S)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)
        maps = []
        for stage in range(len(self.DEPTHS)):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            maps.append(x)
        return maps


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        same = stride == 1 and channels == 4 * width
        self.downsample = (
            None if same else nn.Sequential(nn.Conv2d(channels, 4 * width, 1, stride=stride, bias=False), nn.BatchNorm2d(4 * width))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class FlowDecoder(nn.Module):
    """Decoder of the backbone's maps → position in the crop of each texel, (B, 2, S, S) in (-1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.G_middle_0 = SpectralResidualBlock(2048, 64)
        self.G_middle_1 = SpectralResidualBlock(64, 64)
        self.G_middle_2 = SpectralResidualBlock(1024, 64)
        self.G_middle_2_1 = SpectralResidualBlock(128, 64)
        self.G_middle_3 = SpectralResidualBlock(512, 64)
        self.G_middle_3_1 = SpectralResidualBlock(128, 64)
        self.G_middle_4 = SpectralResidualBlock(256, 32)
        self.G_middle_4_1 = SpectralResidualBlock(64, 32)
        self.up_0 = SpectralResidualBlock(64, 32)
        self.up_1 = SpectralResidualBlock(32, 32)
        self.up_2 = SpectralResidualBlock(32, 16)
        self.up_3 = SpectralResidualBlock(16, 8)
        self.conv_img = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x1, x2, x3, x4 = maps
        x = _upsample_2x(self.G_middle_0(x4))
        x = self.G_middle_2_1(torch.cat([x, self.G_middle_2(x3)], dim=1))
        x = _upsample_2x(self.G_middle_1(x))
        x = self.G_middle_3_1(torch.cat([x, self.G_middle_3(x2)], dim=1))
        x = _upsample_2x(self.up_0(x))
        x = self.G_middle_4_1(torch.cat([x, self.G_middle_4(x1)], dim=1))
        x = _upsample_2x(self.up_1(x))
        x = _upsample_2x(self.up_2(x))
        return torch.tanh(self.conv_img(F.leaky_relu(self.up_3(x), 0.2)))


def _upsample_2x(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class SpectralResidualBlock(nn.Module):
    """A pre-activation residual block with spectrally normalised convolutions."""

    def __init__(self, channels: int, channels_out: int) -> None:
        super().__init__()
        middle = min(channels, channels_out)
        self.norm_0 = nn.BatchNorm2d(channels)
        self.conv_0 = SpectralConv(channels, middle, 3)
        self.norm_1 = nn.BatchNorm2d(middle)
        self.conv_1 = SpectralConv(middle, channels_out, 3)
        self.changes_width = channels != channels_out
        if self.changes_width:
            self.norm_s = nn.BatchNorm2d(channels)
            self.conv_s = SpectralConv(channels, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.conv_s(self.norm_s(x)) if self.changes_width else x
        y = self.conv_0(F.leaky_relu(self.norm_0(x), 0.2))
        y = self.conv_1(F.leaky_relu(self.norm_1(y), 0.2))
        output: Tensor = shortcut + y
        return output


class SpectralConv(nn.Module):
    """A convolution of largest singular value 1 (arXiv 1802.05957), with the vectors of training: for inference."""

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, channels: int, channels_out: int, size: int, bias: bool = True) -> None:
        super().__init__()
        self.weight_orig = nn.Parameter(torch.empty(channels_out, channels, size, size))
        self.bias = nn.Parameter(torch.zeros(channels_out)) if bias else None
        self.register_buffer("weight_u", F.normalize(torch.randn(channels_out), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(channels * size * size), dim=0))
        nn.init.xavier_normal_(self.weight_orig)

    def forward(self, x: Tensor) -> Tensor:
        largest = self.weight_u @ self.weight_orig.flatten(1) @ self.weight_v
        return F.conv2d(x, self.weight_orig / largest, self.bias, padding=self.weight_orig.shape[-1] // 2)


class TextureEncoder(nn.Module):
    """Encoder of textures (B, 4, S, S) → codes (B, 16 · (S / 16)²)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1x = nn.Conv2d(4, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1)
        self.conv4 = nn.Conv2d(128, 256, 3, padding=1)
        self.conv5 = nn.Conv2d(256, 256, 3, padding=1)
        self.conv5_1 = nn.Conv2d(256, 16, 3, padding=1)

    def forward(self, textures: Tensor) -> Tensor:
        x = textures
        for convolution in (self.conv1x, self.conv2, self.conv3, self.conv4):
            x = F.max_pool2d(F.relu(convolution(x)), 2)
        return F.relu(self.conv5_1(F.relu(self.conv5(x)))).flatten(1)
