"""Diffusion models as masked autoencoders (DiffMAE, arXiv 2304.03283): denoise the masked patches, given the visible ones.

No code or weights were published and little of the paper could be found, so details are ours: time embedding, which encoder block a decoder
block reads, the normalisation of its input, and all defaults. Those that may be read otherwise are fields of the config.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.block import load_encoder
from models.layers.masked_encoder import MaskedEncoder, gather_tokens
from models.layers.patches import (
    PatchEmbed,
    TubePatchEmbed,
    normalise_patches,
    patchify_tubes,
    sincos_table,
    space_time_table,
    unpatchify_tubes,
)
from models.layers.token_merging import Tokens
from models.merge_schedule import MergeSchedule
from models.systems.diffmae.decoder import DecoderContext, DecoderType, DiffMAEDecoderBlock, TimeEmbedding
from models.systems.diffmae.diffusion import NoiseSchedule
from models.systems.diffmae.masks import PatchSplit


class DecoderConnection(StrEnum):
    U_SHAPED = "u_shaped"
    """The last blocks first, down to the first ones."""
    LAST = "last"


class PredictionTarget(StrEnum):
    X0 = "x0"
    EPS = "eps"


@dataclass(frozen=True)
class DiffMAEConfig:
    """The defaults are ViT-B/16 on images."""

    image_size: tuple[int, int] = (224, 224)
    """Height and width."""
    patch_size: int = 16
    frames: int | None = None
    """Frames of a clip; None for images."""
    patch_frames: int = 1
    channels: int = 3
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    proportional_attention: bool = False
    """Whether merged tokens count by their size, in the encoder and in the decoder's cross-attention."""
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    decoder_type: DecoderType = DecoderType.CROSS_SELF
    connection: DecoderConnection = DecoderConnection.U_SHAPED
    time_embed: bool = True
    """Whether the decoder gets the time; otherwise it sees the noise only."""
    time_width: int = 256
    normalise_patches: bool = False
    """Whether to diffuse patches normalised by their own mean and standard deviation. Such a model cannot fill holes."""
    target: PredictionTarget = PredictionTarget.X0
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    clip_width: int | None = None
    """Width of the CLIP features that a second head predicts; None without that head."""
    clip_weight: float = 1.0
    RETIRED: ClassVar[tuple[str, ...]] = ("mask_channel", "head_width")
    """Fields of `bundle.json` files written in November 2026. Read if they are false or 0."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Mean and standard deviation of each channel of images in [0, 1]. Encoder and diffusion both see normalised pixels."""

    def __post_init__(self) -> None:
        sizes = ("patch_size", "patch_frames", "width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads", "time_width")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}; it is at least 1")
        if any(side % self.patch_size for side in self.image_size) or (self.frames or 1) % self.patch_frames:
            height, width = self.image_size
            raise ValueError(
                f"{self.frames or 1} frames of {height} × {width} px cannot be cut into patches of {self.patch_frames} frames of "
                f"{self.patch_size} px"
            )
        if self.frames is None and self.patch_frames != 1:
            raise ValueError(f"patch_frames: {self.patch_frames}, but images have no frames")

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches in time (1 for images), rows and columns."""
        height, width = self.image_size
        return (self.frames or 1) // self.patch_frames, height // self.patch_size, width // self.patch_size

    @property
    def patches(self) -> int:
        times, rows, columns = self.grid
        return times * rows * columns

    @property
    def patch_values(self) -> int:
        return self.patch_frames * self.patch_size**2 * self.channels

    @property
    def special_tokens(self) -> int:
        return 1

    @property
    def read_blocks(self) -> tuple[int, ...]:
        """Index of the encoder block that each decoder block reads. A joint decoder reads the last one only."""
        last = self.depth - 1
        if self.connection is DecoderConnection.LAST or self.decoder_type is DecoderType.JOINT:
            return (last,) * self.decoder_depth
        return tuple(last - block * self.depth // self.decoder_depth for block in range(self.decoder_depth))


SIZES: Mapping[str, DiffMAEConfig] = {
    "diffmae_vit_base_patch16": DiffMAEConfig(),
    "diffmae_vit_large_patch16": DiffMAEConfig(width=1024, depth=24, heads=16),
    "diffmae_vit_huge_patch14": DiffMAEConfig(patch_size=14, width=1280, depth=32, heads=16),
    "diffmae_video_vit_large_patch16": DiffMAEConfig(frames=16, patch_frames=2, width=1024, depth=24, heads=16),
}


@dataclass(frozen=True)
class DecoderPrediction:
    patches: Tensor
    """(B, M, P), clean patches or noise, in the order of `PatchSplit.masked`."""
    clip: Tensor | None
    """(B, M, clip_width)."""


@dataclass(frozen=True)
class DiffMAEOutput:
    loss: Tensor
    loss_pixel: Tensor
    """Mean squared error over the masked patches."""
    loss_clip: Tensor | None
    """2 − 2 · cosine, averaged over the same."""
    prediction: DecoderPrediction


class DiffMAE(MaskedEncoder):
    """Encoder of clean visible patches, without time or noise, and decoder: `encode` once, `predict` in each step."""

    def __init__(self, config: DiffMAEConfig) -> None:
        times, rows, columns = config.grid
        if config.frames is None:
            embed: nn.Module = PatchEmbed(config.patch_size, config.channels, config.width)
            tables = [sincos_table(width, rows, columns) for width in (config.width, config.decoder_width)]
        else:
            embed = TubePatchEmbed(config.patch_frames, config.patch_size, config.channels, config.width)
            tables = [space_time_table(width, times, rows, columns) for width in (config.width, config.decoder_width)]
        super().__init__(embed, tables[0], depth=config.depth, heads=config.heads, mlp_ratio=config.mlp_ratio, norm_eps=config.norm_eps)
        self.config = config
        small = config.decoder_width
        self.noise_embed = nn.Linear(config.patch_values, small)
        self.decoder_pos_embed = nn.Parameter(tables[1], requires_grad=False)
        self.time_embed = TimeEmbedding(config.time_width, small) if config.time_embed else None
        self.decoder_embed = nn.Linear(config.width, small) if config.decoder_type is DecoderType.JOINT else None
        self.decoder_blocks = nn.ModuleList(
            DiffMAEDecoderBlock(
                config.decoder_type, small, config.width, config.decoder_heads, int(small * config.mlp_ratio), config.norm_eps
            )
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(small, eps=config.norm_eps)
        self.decoder_pred = nn.Linear(small, config.patch_values)
        self.decoder_pred_clip = nn.Linear(small, config.clip_width) if config.clip_width else None
        self.initialise()

    def forward(
        self,
        images: Tensor,
        split: PatchSplit,
        t: Tensor,
        noise: Tensor,
        clip_target: Tensor | None = None,
        context: DecoderContext | None = None,
    ) -> DiffMAEOutput:
        """Compute losses of normalised images (B, channels, H, W) or clips (B, channels, T, H, W).

        The caller draws times t (B,) and normal noise (B, M, P). clip_target: (B, N, clip_width) features of all patches, from a
        frozen teacher. context: result of `encode` for these images, if already computed.
        """
        x0 = self.targets(images, split)
        context = context or self.encode(images, split)
        prediction = self.predict(self.config.schedule.add_noise(x0, t, noise), t, context)
        target = x0 if self.config.target is PredictionTarget.X0 else noise
        loss_pixel = _mean_over_patches((prediction.patches - target).square().mean(dim=-1), split)
        if prediction.clip is None:
            return DiffMAEOutput(loss_pixel, loss_pixel, None, prediction)
        if clip_target is None:
            raise ValueError("clip_target: the second head of this model needs target features")
        cosine = F.cosine_similarity(prediction.clip, gather_tokens(clip_target, split.masked), dim=-1)
        loss_clip = _mean_over_patches(2 - 2 * cosine, split)
        return DiffMAEOutput(loss_pixel + self.config.clip_weight * loss_clip, loss_pixel, loss_clip, prediction)

    def targets(self, images: Tensor, split: PatchSplit) -> Tensor:
        """Return the clean masked patches, (B, M, P), in the units of the diffusion."""
        patches = gather_tokens(self.patchify(images), split.masked)
        return normalise_patches(patches) if self.config.normalise_patches else patches

    def encode(self, images: Tensor, split: PatchSplit, *, merge: MergeSchedule | None = None) -> DecoderContext:
        """Compute everything about images that the steps need; pixels under the mask have no influence.

        merge: schedule of merging visible tokens, for cross decoders and splits without padding.
        """
        config = self.config
        features = self.features(images, split, merge=merge)
        positions = self.decoder_pos_embed[0]
        masked_size = _unmask_first(split.masked_size)
        if self.decoder_embed is None:
            read = [features[block] for block in config.read_blocks]
            blocks = cast(Iterable[DiffMAEDecoderBlock], self.decoder_blocks)
            memories = tuple(block.remember(tokens.x, tokens.key_size) for block, tokens in zip(blocks, read, strict=True))
            return DecoderContext(positions[1 + split.masked], masked_size, memories)
        if merge is not None and any(merge.expand(config.depth)):
            raise ValueError("merge: a joint decoder needs the position of every visible patch, which merged tokens do not have")
        slots = F.pad(1 + split.visible, (1, 0))  # the class token at 0
        visible = self.decoder_embed(features[-1].x) + positions[slots]
        return DecoderContext(positions[1 + split.masked], masked_size, visible=visible, visible_size=features[-1].key_size)

    def features(self, images: Tensor, split: PatchSplit, *, merge: MergeSchedule | None = None) -> list[Tokens]:
        """Return the tokens after each block, (B, 1 + V, C), the class token first; those of the last block are normalised."""
        config, size = self.config, split.visible_size
        schedule = (merge or MergeSchedule.off()).expand(config.depth)
        if size is not None:
            if any(schedule):
                raise ValueError("merge: samples with different numbers of visible patches cannot merge in one batch")
            size = F.pad(size, (0, 0, 1, 0), value=1.0)
        tokens = Tokens(
            self.embed_visible(images, split.visible),
            protected=config.special_tokens,
            proportional_attention=config.proportional_attention or size is not None,
            size=size,
        )
        features = []
        for block, r in zip(self.blocks, schedule, strict=True):
            tokens = block(tokens, r)
            features.append(tokens)
        features[-1] = replace(tokens, x=self.norm(tokens.x))
        return features

    def predict(self, x: Tensor, t: Tensor, context: DecoderContext, *, times: Tensor | None = None) -> DecoderPrediction:
        """Predict from noisy patches (B, M, P), each sample at its own training time (B,), in the precision of x.

        times: `time_table()`, whose rows do not depend on the rest of the batch.
        """
        z = self.noise_embed(x.to(self.noise_embed.weight.dtype)) + context.positions  # (B, M, C)
        if self.time_embed is not None:
            z = z + (self.time_embed(t) if times is None else times[t]).unsqueeze(1)
        size = context.masked_size
        if context.visible is not None:
            z = torch.cat([context.visible, z], dim=1)  # (B, 1 + V + M, C)
            size = _join_sizes(context, x)
        memories = context.memories or (None,) * len(self.decoder_blocks)
        for block, memory in zip(self.decoder_blocks, memories, strict=True):
            z = block(z, size, memory)
        z = self.decoder_norm(z[:, z.shape[1] - x.shape[1] :])
        clip = None if self.decoder_pred_clip is None else self.decoder_pred_clip(z).to(x.dtype)
        return DecoderPrediction(self.decoder_pred(z).to(x.dtype), clip)

    def time_table(self) -> Tensor | None:
        """Embed every training time: (T, C). Return None if the decoder does not get the time."""
        if self.time_embed is None:
            return None
        table: Tensor = self.time_embed(torch.arange(self.config.schedule.steps, device=self.pos_embed.device))
        return table

    def patchify(self, images: Tensor) -> Tensor:
        """Cut images or clips into patches (B, N, P)."""
        config = self.config
        return patchify_tubes(images if config.frames else images.unsqueeze(2), config.patch_frames, config.patch_size)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Join patches (B, N, P) to images (B, channels, H, W) or clips (B, channels, T, H, W)."""
        config = self.config
        clips = unpatchify_tubes(patches, config.patch_frames, config.patch_size, config.grid[:2])
        return clips if config.frames else clips.squeeze(2)


def init_from_encoder(model: DiffMAE, pretrained: Mapping[str, Tensor]) -> None:
    """Load the encoder of another MAE or DiffMAE in place; the decoder stays as it is. Raises ValueError if a weight does not fit."""
    load_encoder(model, pretrained, fresh=("decoder_", "noise_embed.", "time_embed."))


def _mean_over_patches(values: Tensor, split: PatchSplit) -> Tensor:
    """Average values (B, M) without padding: → scalar."""
    if split.masked_size is None:
        return values.mean()
    real = split.masked_size.squeeze(-1).to(values.dtype)
    return (values * real).sum() / real.sum()


def _unmask_first(size: Tensor | None) -> Tensor | None:
    """Set the first size of each row to 1: (B, M, 1). Then a row of padding stays finite; any other row begins with a patch."""
    return None if size is None else torch.cat([torch.ones_like(size[:, :1]), size[:, 1:]], dim=1)


def _join_sizes(context: DecoderContext, x: Tensor) -> Tensor | None:
    """Join sizes of a joint decoder's tokens to (B, 1 + V + M, 1). Return None if none are padded."""
    assert context.visible is not None
    if context.visible_size is None and context.masked_size is None:
        return None
    ones = [tokens.new_ones(*tokens.shape[:2], 1, dtype=torch.float32) for tokens in (context.visible, x)]
    sizes = (context.visible_size, context.masked_size)
    return torch.cat([one if size is None else size for size, one in zip(sizes, ones, strict=True)], dim=1)
