"""Patches of images and clips, and their positions: fixed sine-cosine tables, resized tables, and learned positions in time and space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Embedding of patches of images, in raster order, with timm's parameter names: (B, channels, H, W) → (B, H/p · W/p, C).

    patch_size: of squares, or height and width. padding: zeros around the image, in pixels. stride: distance of patches in pixels; None for
    adjacent patches.
    """

    def __init__(self, patch_size: int | tuple[int, int], channels: int, width: int, padding: int = 0, stride: int | None = None) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=stride or patch_size, padding=padding)
        self.side_by_side = padding == 0 and self.proj.stride == self.proj.kernel_size
        """Whether each pixel is in exactly one patch."""

    def forward(self, images: Tensor) -> Tensor:
        if self.side_by_side and images.device.type in ("cpu", "cuda") and images.dtype is torch.float32:
            return self._multiply(images)
        x: Tensor = self.proj(images)  # (B, C, H/p, W/p)
        return x.flatten(2).transpose(1, 2)

    def _multiply(self, images: Tensor) -> Tensor:
        """Embed by a matrix product: (B, channels, H, W) → (B, N, C). In float32 it is 10 to 25 % faster on a CPU than the convolution,
        and exact on a GPU, where convolutions may run in TF32."""
        (height, width), weight = self.proj.kernel_size, self.proj.weight
        rows, columns = images.shape[2] // height, images.shape[3] // width
        images = images[:, :, : rows * height, : columns * width]
        grid = images.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # type: ignore[no-untyped-call]  # (B, channels, h, p, w, p)
        patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, h·w, channels·p·p)
        return F.linear(patches, weight.flatten(1), self.proj.bias)


class TubePatchEmbed(nn.Module):
    """Embedding of patches of clips: (B, channels, T, S, S) → (B, t·h·w, C), time slowest, then row, then column."""

    def __init__(self, patch_frames: int, patch_size: int, channels: int, width: int) -> None:
        super().__init__()
        kernel = (patch_frames, patch_size, patch_size)
        self.proj = nn.Conv3d(channels, width, kernel_size=kernel, stride=kernel)

    def forward(self, clips: Tensor) -> Tensor:
        x: Tensor = self.proj(clips)  # (B, C, t, h, w)
        return x.flatten(2).transpose(1, 2)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches: (B, channels, H, W) → (B, H/p · W/p, p·p·channels). Inside a patch: row, column, channel."""
    return patchify_tubes(images.unsqueeze(2), 1, patch_size)


def unpatchify(patches: Tensor, patch_size: int, rows: int | None = None) -> Tensor:
    """Invert `patchify`: (B, L, p·p·channels) → (B, channels, H, W). rows: of patches; None for square images."""
    rows = round(patches.shape[1] ** 0.5) if rows is None else rows
    return unpatchify_tubes(patches, 1, patch_size, (1, rows)).squeeze(2)


def patchify_tubes(clips: Tensor, patch_frames: int, patch_size: int) -> Tensor:
    """Cut clips into tubes: (B, channels, T, H, W) → (B, T/u · H/p · W/p, u·p·p·channels). Inside a tube: frame, row, column, channel."""
    batch, channels, frames, height, width = clips.shape
    times, rows, columns = frames // patch_frames, height // patch_size, width // patch_size
    grid = clips.reshape(batch, channels, times, patch_frames, rows, patch_size, columns, patch_size)
    tubes = grid.permute(0, 2, 4, 6, 3, 5, 7, 1)  # (B, t, h, w, u, p, p, channels)
    return tubes.reshape(batch, times * rows * columns, patch_frames * patch_size**2 * channels)


def unpatchify_tubes(patches: Tensor, patch_frames: int, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Invert `patchify_tubes`: (B, L, u·p·p·channels) → (B, channels, T, H, W). grid: number of patches in time and from top to bottom."""
    batch, count, values = patches.shape
    (times, rows), channels = grid, values // (patch_frames * patch_size**2)
    columns = count // (times * rows)
    tubes = patches.reshape(batch, times, rows, columns, patch_frames, patch_size, patch_size, channels)
    clips = tubes.permute(0, 7, 1, 4, 2, 5, 3, 6)  # (B, channels, t, u, h, p, w, p)
    return clips.reshape(batch, channels, times * patch_frames, rows * patch_size, columns * patch_size)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each patch, by which MAE normalises its targets: (B, L, P) → (B, L, 1) twice."""
    return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()


def normalise_patches(patches: Tensor) -> Tensor:
    """Normalise each patch by its own mean and standard deviation (`norm_pix_loss`): (B, L, P) → (B, L, P)."""
    mean, std = patch_statistics(patches)
    return (patches - mean) / std


def to_pixels(normalised: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Denormalise images or clips (B, channels, ..., H, W) → uint8 (B, ..., H, W, channels), rounded."""
    channels_last = normalised.movedim(1, -1).float()
    scale, shift = (torch.tensor(values).to(normalised.device, non_blocking=True) for values in (std, mean))
    scaled = channels_last * scale + shift
    return (scaled * 255).round().clamp(0, 255).to(torch.uint8)


def require_shape(name: str, pixels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the pixels (B, *shape). Raises ValueError for another shape."""
    if pixels.dim() != 1 + len(shape) or pixels.shape[1:] != shape:
        raise ValueError(f"{name}: shape {tuple(pixels.shape)}; (batch, {', '.join(map(str, shape))}) is needed")
    return pixels


def require_image_patches(image_size: int, patch_size: int) -> None:
    """Raise ValueError unless a square image can be cut into patches."""
    if image_size % patch_size:
        raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")


def require_clip_patches(frames: int, patch_frames: int, image_size: int, patch_size: int) -> None:
    """Raise ValueError unless a clip can be cut into patches."""
    if image_size % patch_size or frames % patch_frames:
        raise ValueError(
            f"a clip of {frames} frames of {image_size} px cannot be cut into patches of {patch_frames} frames of {patch_size} px"
        )


def require_spectrogram_patches(frames: int, mel_bins: int, patch_size: int) -> None:
    """Raise ValueError unless a spectrogram can be cut into patches."""
    if frames % patch_size or mel_bins % patch_size:
        raise ValueError(f"a spectrogram of {frames} × {mel_bins} cannot be cut into patches of {patch_size}")


Grid = tuple[int, int, int]
"""Times, rows and columns."""


def sincos_table(width: int, rows: int, columns: int | None = None) -> Tensor:
    """Return the sine-cosine table float32 (1, 1 + rows · columns, width): zeros for the class token, then the grid in raster order.

    columns: None for as many as rows. The first half of the channels encodes the column, the second the row; each half is a `sincos_line`.
    Section A.1 of MAE (arXiv 2111.06377) calls it "the sine-cosine version". Channels beyond a multiple of 4 are 0: models of any width can
    be built, since most read their tables from a file.
    """
    columns = rows if columns is None else columns
    half = width // 4 * 2
    column = sincos_line(half, columns).expand(rows, -1, -1)
    row = sincos_line(half, rows).unsqueeze(1).expand(-1, columns, -1)
    grid = torch.cat([column, row], dim=2).reshape(1, rows * columns, 2 * half)
    return F.pad(grid, (0, width - 2 * half, 1, 0)).float()


def sincos_line(width: int, length: int) -> Tensor:
    """Return sines, then cosines, of position · 10000^(-k / (width / 2)), for an even width: float64 (length, width)."""
    # on the CPU also for models on the meta device: there its power would import torch's compiler, a second of work
    frequencies = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64, device="cpu") / (width // 2))
    angles = torch.arange(length, dtype=torch.float64, device="cpu").unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def space_time_table(width: int, times: int, rows: int, columns: int) -> Tensor:
    """Return a `sincos_line` in time plus a `sincos_table` in space: float32 (1, 1 + times · rows · columns, width), time slowest."""
    space = sincos_table(width, rows, columns)
    time = sincos_line(width, times).float().unsqueeze(1)
    return torch.cat([space[:, :1], (time + space[:, 1:]).reshape(1, times * rows * columns, width)], dim=1)


def tiled_table(width: int, times: int, rows: int, columns: int) -> Tensor:
    """Return a `sincos_table` that is the same at all times (MAViL): float32 (1, 1 + times · rows · columns, width)."""
    return repeat_in_time(sincos_table(width, rows, columns), times)


def repeat_in_time(table: Tensor, times: int) -> Tensor:
    """Repeat a table (1, 1 + L, C) in time → (1, 1 + times · L, C), the class token's row first."""
    return torch.cat([table[:, :1], table[:, 1:].repeat(1, times, 1)], dim=1)


def resize_table(table: Tensor, patches: int, *, special: int, align_corners: bool = False) -> Tensor:
    """Resize a square grid bicubically, without antialiasing: (1, special + old², C) → (1, special + patches, C), special tokens unchanged.

    MAE, DeiT and timm resize with `align_corners=False`, SWAG with True.
    """
    if table.shape[1] - special == patches:
        return table
    old, new = round((table.shape[1] - special) ** 0.5), round(patches**0.5)
    if old * old + special != table.shape[1] or new * new != patches:
        raise ValueError(f"a position table of {table.shape[1] - special} patches cannot become one of {patches}: both must be squares")
    grid = table[:, special:].reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1, C, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=align_corners)
    return torch.cat([table[:, :special], grid.permute(0, 2, 3, 1).reshape(1, patches, -1)], dim=1)


class SpaceTimePositions(nn.Module):
    """Learned positions of clips and images: one table, or one of places and one of times, which are added."""

    def __init__(self, width: int, grid: Grid, *, class_token: bool, separate: bool) -> None:
        """grid: patches of an input of the configured size. separate: a table of places and one of times."""
        super().__init__()
        times, rows, columns = grid
        self.grid, self.class_token, self.separate = grid, class_token, separate
        if separate:
            self.spatial = nn.Parameter(torch.zeros(1, rows * columns, width))
            self.temporal = nn.Parameter(torch.zeros(1, times, width))
            self.first = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        else:
            self.joint = nn.Parameter(torch.zeros(1, int(class_token) + times * rows * columns, width))

    def forward(self, grid: Grid | None = None) -> Tensor:
        """Return positions (1, special + t·h·w, C), time slowest, the class token's first; interpolated trilinearly for another grid."""
        if self.separate:
            table = (self.temporal.unsqueeze(2) + self.spatial.unsqueeze(1)).flatten(1, 2)
            front = table[:, :0] if self.first is None else self.first
        else:
            front, table = self.joint[:, : int(self.class_token)], self.joint[:, int(self.class_token) :]
        if grid is not None and grid != self.grid:
            volume = table.transpose(1, 2).reshape(1, -1, *self.grid)  # (1, C, t, h, w)
            table = F.interpolate(volume, size=grid, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)
        return torch.cat([front, table], dim=1)
