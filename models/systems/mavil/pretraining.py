"""MAViL's pre-training (arXiv 2212.08071): reconstruction of masked audio and video, and contrastive losses between them.

Neither code nor weights of it were published. The blocks are those of the authors' inference code and of Audio-MAE; their composition, the
losses and their weights follow the paper, and where it is silent they are defined here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.masked_encoder import DecoderSpec, MaskedAutoencoder, Masking, gather_tokens, initialise_linears
from models.layers.patches import PatchEmbed, TubePatchEmbed, normalise_patches, patchify, patchify_tubes, repeat_in_time
from models.layers.token_merging import Tokens
from models.registry import ForwardCall, InputMaker
from models.systems.mavil.model import TowersConfig, fuse


@dataclass(frozen=True)
class MAViLPretrainingConfig(TowersConfig):
    """Config of pre-training. The defaults are the base size in stage 1, which reconstructs raw input."""

    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    mask_ratio: float = 0.8
    normalise_targets: bool = True
    predict_features: bool = False
    """Whether the decoders predict a teacher's features of each patch, `width` values, instead of the patch (stage 2)."""
    inter_weight: float = 0.1
    intra_weight: float = 0.01
    inter_temperature: float = 0.1
    intra_temperature: float = 1.0

    @property
    def audio_values(self) -> int:
        return self.width if self.predict_features else self.audio_patch_size**2

    @property
    def video_values(self) -> int:
        return self.width if self.predict_features else self.patch_frames * self.patch_size**2 * 3

    def visible(self, patches: int) -> int:
        """Return the number of patches that the encoder takes; the product is truncated, not rounded."""
        return int(patches * (1 - self.mask_ratio))


PRETRAINING_SIZES: Mapping[str, MAViLPretrainingConfig] = {
    "mavil_pretraining_base": MAViLPretrainingConfig(),
    "mavil_pretraining_large": MAViLPretrainingConfig(width=1024, depth=24, heads=16),
}


@dataclass(frozen=True)
class MaskNoise:
    """Uniform noise for masks, (B, L) each, drawn by the caller. The second views are used only in the contrast with the first."""

    audio: tuple[Tensor, Tensor]
    video: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TargetFeatures:
    """Normalised features of unmasked patches: targets for the student of stage 2."""

    audio: Tensor
    """(B, L, C)."""
    video: Tensor


@dataclass(frozen=True)
class ModalityOutput:
    """Output of one modality, of its first view except for the second embedding."""

    predicted: Tensor
    """(B, L, values)."""
    mask: Tensor
    """(B, L), 1 for removed patches."""
    embeddings: tuple[Tensor, Tensor]
    """(B, C) of length 1, of both views."""
    fused: Tensor
    """(B, 1 + visible, C), after the fusion blocks and the norm."""
    loss: Tensor
    """Mean squared error over the removed patches of the whole batch."""


@dataclass(frozen=True)
class MAViLPretrainingOutput:
    loss: Tensor
    audio: ModalityOutput
    video: ModalityOutput
    inter: Tensor
    """Contrastive loss of audio and video."""
    intra: Tensor
    """Contrastive loss of two views of the same input: the mean over audio and video."""


class MAViLPretraining(nn.Module):
    def __init__(self, config: MAViLPretrainingConfig) -> None:
        super().__init__()
        self.config = config
        self.audio = _build_autoencoder(
            config,
            PatchEmbed(config.audio_patch_size, 1, config.width),
            config.audio_positions(config.width),
            config.audio_positions(config.decoder_width),
            config.audio_values,
        )
        self.video = _build_autoencoder(
            config,
            TubePatchEmbed(config.patch_frames, config.patch_size, 3, config.width),
            config.video_positions(config.width),
            config.video_positions(config.decoder_width),
            config.video_values,
        )
        self.blocks_av = config.build_fusion_blocks()
        initialise_linears(self.blocks_av)

    def forward(self, audio: Tensor, video: Tensor, noise: MaskNoise, features: TargetFeatures | None = None) -> MAViLPretrainingOutput:
        """Compute the losses of normalised spectrograms (B, 1, times, mel bins) and clips (B, 3, T, S, S).

        features: the teacher's, in stage 2.
        """
        config = self.config
        if (features is not None) != config.predict_features:
            raise ValueError("features: needed in stage 2, where predict_features is set, and only there")
        audio, video = config.check_audio(audio), config.trim_video(video)
        targets = self._patch_targets(audio, video) if features is None else features
        audio_masks = [Masking.from_noise(view, config.visible(config.audio_patches)) for view in noise.audio]
        video_masks = [Masking.from_noise(view, config.visible(config.video_patches)) for view in noise.video]
        audio_visible, audio_embeddings = _encode_views(self.audio, audio, audio_masks)
        video_visible, video_embeddings = _encode_views(self.video, video, video_masks)
        fused_audio, fused_video = fuse(self.blocks_av, Tokens(audio_visible), Tokens(video_visible))
        audio_output = _reconstruct(self.audio, fused_audio.x, audio_masks[0], audio_embeddings, targets.audio)
        video_output = _reconstruct(self.video, fused_video.x, video_masks[0], video_embeddings, targets.video)
        inter = info_nce(audio_embeddings[0], video_embeddings[0], config.inter_temperature)
        intra = (info_nce(*audio_embeddings, config.intra_temperature) + info_nce(*video_embeddings, config.intra_temperature)) / 2
        loss = audio_output.loss + video_output.loss + config.inter_weight * inter + config.intra_weight * intra
        return MAViLPretrainingOutput(loss, audio_output, video_output, inter, intra)

    def teacher_features(self, audio: Tensor, video: Tensor) -> TargetFeatures:
        """Return features of unmasked audio and video from this model as a teacher: each patch after the fusion blocks and the norm."""
        audio_tokens, video_tokens = (
            half.run(Tokens(half.with_class_token(half.embed(pixels))))
            for half, pixels in ((self.audio, self.config.check_audio(audio)), (self.video, self.config.trim_video(video)))
        )
        audio_tokens, video_tokens = fuse(self.blocks_av, audio_tokens, video_tokens)
        return TargetFeatures(self.audio.norm(audio_tokens.x[:, 1:]), self.video.norm(video_tokens.x[:, 1:]))

    def _patch_targets(self, audio: Tensor, video: Tensor) -> TargetFeatures:
        """Return the targets of stage 1: patches of times and bins, and of frames, rows, columns and colours."""
        config = self.config
        audio_patches = patchify(audio, config.audio_patch_size)
        video_patches = patchify_tubes(video, config.patch_frames, config.patch_size)
        return (
            TargetFeatures(normalise_patches(audio_patches), normalise_patches(video_patches))
            if config.normalise_targets
            else TargetFeatures(audio_patches, video_patches)
        )


def _build_autoencoder(
    config: MAViLPretrainingConfig, patch_embed: nn.Module, positions: Tensor, decoder_positions: Tensor, values: int
) -> MaskedAutoencoder:
    return MaskedAutoencoder(
        patch_embed,
        positions,
        DecoderSpec(decoder_positions, config.decoder_depth, config.decoder_heads, values),
        depth=config.depth,
        heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias,
        norm_eps=config.norm_eps,
    )


def _encode_views(half: MaskedAutoencoder, pixels: Tensor, masks: list[Masking]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Encode both views in one batch; return the first (B, 1 + visible, C), not normalised, and the embeddings (B, C) of both."""
    patches = half.embed(pixels)
    visible = torch.cat([gather_tokens(patches, masking.ids_keep) for masking in masks])  # (2B, visible, C)
    encoded = half.run(Tokens(half.with_class_token(visible))).x
    first, second = F.normalize(half.norm(encoded[:, 1:]).mean(dim=1), dim=-1).chunk(2)
    return encoded[: len(pixels)], (first, second)


def _reconstruct(
    half: MaskedAutoencoder, fused: Tensor, masking: Masking, embeddings: tuple[Tensor, Tensor], targets: Tensor
) -> ModalityOutput:
    fused = half.norm(fused)
    predicted = half.decode(fused, masking)
    loss = masking.masked_mean((predicted - targets).square().mean(dim=-1))
    return ModalityOutput(predicted, masking.mask, embeddings, fused, loss)


def info_nce(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Return the InfoNCE loss of paired embeddings (B, C) of length 1, in both directions: a scalar."""
    scores = x @ y.T / temperature
    partner = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(scores, partner) + F.cross_entropy(scores.T, partner)) / 2


def random_audio_and_video(config: Any, make: InputMaker) -> tuple[Tensor, Tensor]:
    audio = make.normal(1, config.audio_frames, config.mel_bins)
    return audio, make.normal(3, config.frames, config.image_size, config.image_size)


def audio_and_video(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    audio, video = random_audio_and_video(config, make)
    if not config.sees:
        return lambda: model.forward_audio(audio)
    return lambda: model(audio, video)


def masked_audio_and_video(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    audio, video = random_audio_and_video(config, make)
    audio_patches, video_patches = config.audio_patches, config.video_patches
    noise = MaskNoise(
        (make.uniform(audio_patches), make.uniform(audio_patches)), (make.uniform(video_patches), make.uniform(video_patches))
    )
    return lambda: model(audio, video, noise)


def masked_audio(model: Any, config: Any, make: InputMaker) -> ForwardCall:
    audio, noise = make.normal(1, config.audio_frames, config.mel_bins), make.uniform(config.patches)
    return lambda: model(audio, noise)


SKIPPED_PREFIXES = ("decoder_pred.",)
"""Prefixes of skipped weights: a patch of an image has fewer values than one of a clip."""


def video_weights_from_images(image_weights: Mapping[str, Tensor], config: TowersConfig) -> dict[str, Tensor]:
    """Convert an MAE's weights to those of the video half and of the fusion blocks, by our names.

    The kernel is repeated over time, not scaled; positions are the same at all times; each fusion block is a copy of the last block.
    """
    times, _, _ = config.video_grid
    weights: dict[str, Tensor] = {}
    for name, value in image_weights.items():
        if name.startswith(SKIPPED_PREFIXES):
            continue
        if name == "patch_embed.proj.weight":
            value = value.unsqueeze(2).repeat(1, 1, config.patch_frames, 1, 1)  # (C, 3, u, p, p)
        elif name in ("pos_embed", "decoder_pos_embed"):
            value = repeat_in_time(value, times)
        weights[f"video.{name}"] = value
    last = f"blocks.{config.depth - 1}."
    for index in range(config.fusion_depth):
        copies = {
            name.replace(last, f"blocks_av.{index}.", 1): value.clone() for name, value in image_weights.items() if name.startswith(last)
        }
        weights |= copies
    return weights


def audio_weights_from_video(video_weights: Mapping[str, Tensor], config: TowersConfig) -> dict[str, Tensor]:
    """Convert weights of the video half to the audio half, an option of the published code.

    The kernel is summed over colours and time; the positions of one time are interpolated bicubically to times and mel bins.
    """
    weights = {}
    for name, value in video_weights.items():
        half, _, rest = name.partition(".")
        if half != "video" or rest.startswith(SKIPPED_PREFIXES):
            continue
        if rest == "patch_embed.proj.weight":
            value = value.sum(dim=(1, 2)).unsqueeze(1)  # (C, 1, p, p)
        elif rest in ("pos_embed", "decoder_pos_embed"):
            value = _interpolate_positions(value, config)
        weights[f"audio.{rest}"] = value
    return weights


def _interpolate_positions(table: Tensor, config: TowersConfig) -> Tensor:
    """Interpolate positions bicubically: (1, 1 + t·h·w, C) → (1, 1 + times·bins, C)."""
    times, rows, columns = config.video_grid
    table_map = table[:, 1:].unflatten(1, (times, rows, columns))[:, 0].permute(0, 3, 1, 2)  # type: ignore[no-untyped-call]  # (1, C, h, w)
    interpolated = F.interpolate(table_map, size=config.audio_grid, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], interpolated.flatten(2).transpose(1, 2)], dim=1)
