"""Audio-MAE (arXiv 2207.06405), the parent of MAViL's audio half: a masked autoencoder of spectrograms with local attention in its
decoder, shifted windows as in Swin v2 (arXiv 2111.09883)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.block import Attention, Mlp
from models.layers.masked_encoder import DecoderSpec, MAEOutput, MaskedAutoencoder
from models.layers.patches import PatchEmbed, normalise_patches, patchify, require_spectrogram_patches, sincos_table

MASKED_SCORE = -100.0
"""Added to the scores of tokens that are neighbours only because the map was rolled."""

MIN_TEMPERATURE = 0.01


class PositionBias(nn.Module):
    """Bias of each head's score by the distance of query and key, computed by a small network from its logarithm."""

    def __init__(self, heads: int, window: tuple[int, int], hidden: int = 384, dropout: float = 0.1) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, hidden)
        self.fc2 = nn.Linear(hidden, heads)
        self.window, self.dropout = window, dropout

    def forward(self) -> Tensor:
        """Compute the biases (heads, w, w) of windows of w tokens."""
        axes = [torch.arange(size, dtype=self.fc1.weight.dtype, device=self.fc1.weight.device) for size in self.window]
        positions = torch.cartesian_prod(*axes)  # (w, 2), row and column
        distances = positions.unsqueeze(1) - positions.unsqueeze(0)  # (w, w, 2), query minus key
        hidden = F.relu(self.fc1(distances.sign() * distances.abs().log1p()))
        bias: Tensor = self.fc2(F.dropout(hidden, self.dropout, self.training))
        return bias.permute(2, 0, 1)


class WindowAttention(Attention):
    """Attention by cosine similarity, with a temperature per head, within each window of a grid.

    grid, window: rows and columns; a window is not larger than the grid. shift: number of rows by which the map is rolled; no effect if one
    window holds all rows.
    """

    def __init__(self, width: int, heads: int, *, grid: tuple[int, int], window: tuple[int, int], shift: int) -> None:
        super().__init__(width, heads)
        rows, columns = (min(size, limit) for size, limit in zip(window, grid, strict=True))
        if grid[0] % rows or grid[1] % columns:
            raise ValueError(f"a grid of {grid[0]} × {grid[1]} cannot be cut into windows of {rows} × {columns}")
        self.grid, self.window = grid, (rows, columns)
        self.shift = shift if grid[0] > rows else 0
        self.tau = nn.Parameter(torch.ones(heads))
        self.meta_mlp = PositionBias(heads, self.window)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Attend within windows: (B, L, C) → (B, L, C).

        The published code divides scores by max(|q|·|k|, 1e-6); here q and k are scaled separately, which is the same unless a vector
        vanishes.
        """
        batch, _, width = x.shape
        maps = x.view(batch, *self.grid, width).roll(-self.shift, dims=1)  # (B, rows, columns, C)
        windows = self._split_windows(maps)  # (B · windows, w, C)
        q, k, v = (part.view(batch, -1, *part.shape[1:]) for part in self.project(windows))  # (B, windows, H, w, D) each
        bias = self.meta_mlp()
        if self.shift:
            bias = bias + self._shift_mask(bias).unsqueeze(1)  # (windows, H, w, w)
        temperature = self.tau.clamp(min=MIN_TEMPERATURE).view(-1, 1, 1)
        q, k = F.normalize(q, dim=-1) / temperature, F.normalize(k, dim=-1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self._merge_windows(self.join_heads(attended.flatten(0, 1)), batch).roll(self.shift, dims=1).flatten(1, 2)

    def _split_windows(self, maps: Tensor) -> Tensor:
        """Split maps (B, rows, columns, C) into windows (B · windows, w, C), those of a map consecutive."""
        (rows, columns), (height, width), channels = self.window, self.grid, maps.shape[-1]
        tiles = maps.reshape(-1, height // rows, rows, width // columns, columns, channels).transpose(2, 3)
        return tiles.reshape(-1, rows * columns, channels)

    def _merge_windows(self, windows: Tensor, batch: int) -> Tensor:
        """Merge windows into maps, the inverse of `_split_windows`."""
        (rows, columns), (height, width) = self.window, self.grid
        tiles = windows.view(batch, height // rows, width // columns, rows, columns, -1).transpose(2, 3)
        return tiles.reshape(batch, height, width, -1)

    def _shift_mask(self, like: Tensor) -> Tensor:
        """Return (windows, w, w), MASKED_SCORE for pairs from different ends of the rolled map."""
        region = torch.zeros(self.grid[0], dtype=like.dtype, device=like.device)
        region[-self.window[0] :], region[-self.shift :] = 1, 2
        labels = self._split_windows(region.view(1, -1, 1, 1).expand(1, *self.grid, 1)).squeeze(-1)  # (windows, w)
        differ: Tensor = labels.unsqueeze(1) != labels.unsqueeze(2)
        return differ.to(like.dtype) * MASKED_SCORE


class WindowBlock(nn.Module):
    """A post-norm block: each branch is normalised before it is added."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        grid: tuple[int, int],
        window: tuple[int, int],
        shift: int,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.attn = WindowAttention(width, heads, grid=grid, window=window, shift=shift)
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Apply attention and MLP: (B, L, C) → (B, L, C)."""
        x = x + self.norm1(self.attn(x))
        return x + self.norm2(self.mlp(x))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class AudioMAEConfig:
    """Config of Audio-MAE. The defaults are ViT-B on ten seconds of audio, with the published decoder."""

    audio_frames: int = 1024
    mel_bins: int = 128
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    decoder_width: int = 512
    decoder_depth: int = 16
    decoder_heads: int = 16
    window: tuple[int, int] | None = (4, 4)
    """Size of the decoder's attention windows in patches, time and mel bins; None: global attention."""
    window_shift: int = 2
    """Shift in time, in every second block of the decoder."""
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    mask_ratio: float = 0.8
    normalise_targets: bool = True

    def __post_init__(self) -> None:
        require_spectrogram_patches(self.audio_frames, self.mel_bins, self.patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches in time and over the mel bins."""
        return self.audio_frames // self.patch_size, self.mel_bins // self.patch_size

    @property
    def patches(self) -> int:
        times, bins = self.grid
        return times * bins

    @property
    def visible(self) -> int:
        """Number of patches that the encoder takes; the product is truncated, not rounded."""
        return int(self.patches * (1 - self.mask_ratio))


SIZES: Mapping[str, AudioMAEConfig] = {"audio_mae_vit_base_patch16": AudioMAEConfig()}


class AudioMAE(MaskedAutoencoder):
    def __init__(self, config: AudioMAEConfig) -> None:
        decoder_width = config.decoder_width
        super().__init__(
            PatchEmbed(config.patch_size, 1, config.width),
            sincos_table(config.width, *config.grid),
            DecoderSpec(
                positions=sincos_table(decoder_width, *config.grid),
                depth=config.decoder_depth,
                heads=config.decoder_heads,
                values=config.patch_size**2,
            ),
            depth=config.depth,
            heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=config.qkv_bias,
            norm_eps=config.norm_eps,
        )
        self.config = config
        if config.window is not None:
            self.decoder_blocks = nn.ModuleList(
                WindowBlock(
                    decoder_width,
                    config.decoder_heads,
                    int(decoder_width * config.mlp_ratio),
                    grid=config.grid,
                    window=config.window,
                    shift=config.window_shift if index % 2 else 0,
                    norm_eps=config.norm_eps,
                )
                for index in range(config.decoder_depth)
            )
            self.initialise(self.mask_token)

    def forward(self, audio: Tensor, noise: Tensor) -> MAEOutput:
        """Reconstruct normalised spectrograms (B, 1, times, mel bins). noise: (B, L), uniform, drawn by the caller."""
        patches = self.target_patches(audio)
        targets = normalise_patches(patches) if self.config.normalise_targets else patches
        return self.reconstruct(audio, noise, self.config.visible, targets)

    def target_patches(self, audio: Tensor) -> Tensor:
        """Split spectrograms into raw patches (B, L, p·p). Inside a patch: time, then mel bin."""
        return patchify(audio, self.config.patch_size)

    def run_decoder(self, x: Tensor) -> Tensor:
        """Decode tokens (B, 1 + L, Cd) → (B, L, Cd). Windows hold patches only: the class token, whose position was added, is dropped."""
        if self.config.window is None:
            return super().run_decoder(x)
        x = x[:, 1:]
        for block in self.decoder_blocks:
            x = block(x)
        return x
