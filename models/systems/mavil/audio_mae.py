"""Audio-MAE (arXiv 2207.06405), the parent of MAViL's audio half: a masked autoencoder of spectrograms with local attention in its
decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from models.layers.masked_autoencoder import DecoderSpec, MAEOutput, MaskedAutoencoder
from models.layers.patches import PatchEmbed, normalise_patches, patchify, require_spectrogram_patches
from models.layers.position_embeddings import sincos_table
from models.systems.mavil.window_attention import WindowBlock


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
