"""MAViL's pre-training (arXiv 2212.08071): masked sound and video rebuild themselves and find each other.

No code and no weights of it were published. The blocks are those of the authors' inference code and of Audio-MAE; how they are put
together, the losses and their weights are read from the paper, and what it leaves open is our definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.masked_autoencoder import DecoderPlan, MaskedAutoencoder
from models.layers.masked_encoder import initialise_linears
from models.layers.masking import Masking, take
from models.layers.patches import PatchEmbed, TubePatchEmbed, normalise_patches, patchify, patchify_tubes
from models.layers.token_merging import Tokens
from models.systems.mavil.model import TowersConfig, fuse


@dataclass(frozen=True)
class MAViLPretrainingConfig(TowersConfig):
    """The defaults are the base size, which learns from raw input (stage 1)."""

    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    mask_ratio: float = 0.8
    normalise_targets: bool = True
    predict_features: bool = False
    """Stage 2: the decoders predict what a teacher makes of each patch, `width` values, in place of the patch."""
    inter_weight: float = 0.1
    intra_weight: float = 0.01
    inter_temperature: float = 0.1
    intra_temperature: float = 1.0

    @property
    def audio_values(self) -> int:
        """Number of values predicted for each patch of sound."""
        return self.width if self.predict_features else self.audio_patch_size**2

    @property
    def video_values(self) -> int:
        return self.width if self.predict_features else self.patch_frames * self.patch_size**2 * 3

    def visible(self, patches: int) -> int:
        """Number of patches that the encoder sees; the product is truncated, not rounded."""
        return int(patches * (1 - self.mask_ratio))


PRETRAINING_SIZES: Mapping[str, MAViLPretrainingConfig] = {
    "mavil_pretraining_base": MAViLPretrainingConfig(),
    "mavil_pretraining_large": MAViLPretrainingConfig(width=1024, depth=24, heads=16),
}


@dataclass(frozen=True)
class Noise:
    """Uniform, (B, L) each: the caller owns the randomness. The second views are for the contrast with the first alone."""

    audio: tuple[Tensor, Tensor]
    video: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Features:
    """Normalised features of unmasked patches: targets for the student of stage 2."""

    audio: Tensor
    """(B, L, C)."""
    video: Tensor


@dataclass(frozen=True)
class Half:
    """Output of one modality; everything but the second embedding is of its first view."""

    predicted: Tensor
    """(B, L, values)."""
    mask: Tensor
    """(B, L) 1 where a patch was removed."""
    embeddings: tuple[Tensor, Tensor]
    """(B, C) of length 1, of both views."""
    fused: Tensor
    """(B, 1 + visible, C), after the fusion blocks and the norm."""
    loss: Tensor
    """Mean squared error over the removed patches of the whole batch."""


@dataclass(frozen=True)
class Learned:
    loss: Tensor
    audio: Half
    video: Half
    inter: Tensor
    """Contrast of sound and video."""
    intra: Tensor
    """Contrast of two views of the same: the mean over sound and video."""


class MAViLPretraining(nn.Module):
    def __init__(self, config: MAViLPretrainingConfig) -> None:
        super().__init__()
        self.config = config
        self.audio = _autoencoder(
            config,
            PatchEmbed(config.audio_patch_size, 1, config.width),
            config.audio_table(config.width),
            config.audio_table(config.decoder_width),
            config.audio_values,
        )
        self.video = _autoencoder(
            config,
            TubePatchEmbed(config.patch_frames, config.patch_size, 3, config.width),
            config.video_table(config.width),
            config.video_table(config.decoder_width),
            config.video_values,
        )
        self.blocks_av = config.fusion_blocks()
        initialise_linears(self.blocks_av)

    def forward(self, audio: Tensor, video: Tensor, noise: Noise, features: Features | None = None) -> Learned:
        """Normalised spectrograms (B, 1, times, mel bins) and clips (B, 3, T, S, S). features: the teacher's, in stage 2."""
        config = self.config
        if (features is not None) != config.predict_features:
            raise ValueError("features: needed in stage 2, where predict_features is set, and only there")
        audio, video = config.checked_sound(audio), config.first_frames(video)
        targets = self._patches(audio, video) if features is None else features
        heard_masks = [Masking.by_noise(view, config.visible(config.audio_patches)) for view in noise.audio]
        seen_masks = [Masking.by_noise(view, config.visible(config.video_patches)) for view in noise.video]
        heard, heard_as = _views(self.audio, audio, heard_masks)
        seen, seen_as = _views(self.video, video, seen_masks)
        fused_heard, fused_seen = fuse(self.blocks_av, Tokens(heard), Tokens(seen))
        audio_half = _rebuild(self.audio, fused_heard.x, heard_masks[0], heard_as, targets.audio)
        video_half = _rebuild(self.video, fused_seen.x, seen_masks[0], seen_as, targets.video)
        inter = info_nce(heard_as[0], seen_as[0], config.inter_temperature)
        intra = (info_nce(*heard_as, config.intra_temperature) + info_nce(*seen_as, config.intra_temperature)) / 2
        loss = audio_half.loss + video_half.loss + config.inter_weight * inter + config.intra_weight * intra
        return Learned(loss, audio_half, video_half, inter, intra)

    def features(self, audio: Tensor, video: Tensor) -> Features:
        """Features of unmasked sound and video from this model as a teacher: each patch after the fusion blocks and the norm."""
        heard, seen = (
            half.run(Tokens(half.with_class_token(half.embed(pixels))))
            for half, pixels in ((self.audio, self.config.checked_sound(audio)), (self.video, self.config.first_frames(video)))
        )
        heard, seen = fuse(self.blocks_av, heard, seen)
        return Features(self.audio.norm(heard.x[:, 1:]), self.video.norm(seen.x[:, 1:]))

    def _patches(self, audio: Tensor, video: Tensor) -> Features:
        """Targets of stage 1: sound in patches of times and bins, images in frames, rows, columns and colours."""
        config = self.config
        heard = patchify(audio, config.audio_patch_size)
        seen = patchify_tubes(video, config.patch_frames, config.patch_size)
        return Features(normalise_patches(heard), normalise_patches(seen)) if config.normalise_targets else Features(heard, seen)


def _autoencoder(
    config: MAViLPretrainingConfig, patch_embed: nn.Module, positions: Tensor, decoder_positions: Tensor, values: int
) -> MaskedAutoencoder:
    return MaskedAutoencoder(
        patch_embed,
        positions,
        DecoderPlan(decoder_positions, config.decoder_depth, config.decoder_heads, values),
        depth=config.depth,
        heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias,
        norm_eps=config.norm_eps,
    )


def _views(half: MaskedAutoencoder, pixels: Tensor, masks: list[Masking]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Both views in one batch → the first (B, 1 + visible, C), not normalised, and the embeddings (B, C) of both."""
    patches = half.embed(pixels)
    visible = torch.cat([take(patches, masking.kept) for masking in masks])  # (2B, visible, C)
    encoded = half.run(Tokens(half.with_class_token(visible))).x
    first, second = F.normalize(half.norm(encoded[:, 1:]).mean(dim=1), dim=-1).chunk(2)
    return encoded[: len(pixels)], (first, second)


def _rebuild(half: MaskedAutoencoder, fused: Tensor, masking: Masking, embeddings: tuple[Tensor, Tensor], targets: Tensor) -> Half:
    fused = half.norm(fused)
    predicted = half.decode(fused, masking)
    loss = masking.mean_removed((predicted - targets).square().mean(dim=-1))
    return Half(predicted, masking.mask, embeddings, fused, loss)


def info_nce(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """(B, C) of length 1 twice: each is to be nearest to its partner among all of the other kind, both ways."""
    scores = x @ y.T / temperature
    partner = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(scores, partner) + F.cross_entropy(scores.T, partner)) / 2
