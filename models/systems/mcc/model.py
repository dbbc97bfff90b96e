"""MCC, Multiview Compressive Coding (arXiv 2301.08247): one image with points in space → occupancy and colour of any query point.

Two encoders, for the image and for the seen points, and a decoder in which a query attends to the scene and to itself, never to other
queries. So a scene is encoded once, its keys and values are cached for every layer, and queries come in any number and order.

Ours, if `config.back` is set: a U-Net predicts the back surface, and queries get their distances to front and back surface as features
(`models/systems/mcc/query_geometry.py`). Without it the network is the published one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.block import KVCache, TransformerBlock, load_encoder
from models.layers.patches import PatchEmbed, require_image_patches, sincos_table
from models.layers.reversible import run_trunk
from models.layers.stepwise import copy_to_own_pages
from models.layers.token_merging import Tokens
from models.merge_schedule import MergeSchedule
from models.systems.mcc.point_embed import MCCDecoderBlock, PointEmbed, WindowEmbed, contract, linear_in_float32
from models.systems.mcc.query_geometry import (
    FEATURE_COUNT,
    BackSurfaceConfig,
    BackSurfaceNet,
    QueryGeometryEmbed,
    SceneGeometry,
    decode_geometry,
    geometry_channels,
)

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
BINS = 256
"""Number of classes of a colour channel: class b stands for b / 255."""


@dataclass(frozen=True)
class MCCConfig:
    """Config of MCC. The defaults are the published ViT-B."""

    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    width: int = 768
    depth: int = 12
    """Number of blocks of each encoder."""
    heads: int = 12
    mlp_ratio: float = 4.0
    window: int = 8
    """Side of the squares of seen points of which each becomes a token: as many squares as patches."""
    window_depth: int = 1
    window_heads: int = 12
    window_mlp_ratio: float = 2.0
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    far: float = 10.0
    """Distance from the origin beyond which points are contracted: `contract`."""
    regress_colour: bool = False
    """Three colour values per query, with a squared error; otherwise 256 classes for each channel."""
    occupancy_weight: float = 1.0
    colour_weight: float = 0.01
    drop_path: float = 0.1
    """Rate in every block of encoders and decoder; windows have none."""
    back: BackSurfaceConfig | None = None
    """Predict the back surface, and give queries its geometry; None: as published. The frame's axes must be the camera's."""

    def __post_init__(self) -> None:
        require_image_patches(self.image_size, self.patch_size)
        if self.window_depth < 1 or self.decoder_depth < 1:
            raise ValueError("window_depth and decoder_depth must be 1 at least")
        if self.back is not None and self.seen_size % self.back.size_divisor:
            raise ValueError(f"back: the map of seen points is {self.seen_size} wide, which is not a multiple of {self.back.size_divisor}")

    @property
    def side(self) -> int:
        """Number of patches, and windows, along a side."""
        return self.image_size // self.patch_size

    @property
    def seen_size(self) -> int:
        return self.side * self.window

    @property
    def outputs(self) -> int:
        return 1 + 3 * (1 if self.regress_colour else BINS)


PUBLISHED: Mapping[str, MCCConfig] = {"mcc_vit_base_patch16": MCCConfig()}


@dataclass(frozen=True)
class DropPathMasks:
    """Samples that keep each branch in stochastic depth: (depth, 2, B) of 0 and 1, the attention's before the MLP's."""

    xyz: Tensor
    rgb: Tensor
    decoder: Tensor


@dataclass(frozen=True)
class SceneCache:
    """Keys and values of a scene's tokens in every decoder layer, by `append_self_slot`: the input of queries."""

    keys: Tensor
    """(layers, B, H, 1 + N + 1, D + 8)."""
    values: Tensor
    """(layers, B, H, 1 + N + 1, D + 8)."""
    keep_masks: Tensor | None = None
    """(layers, 2, B) of 0 and 1, which samples keep which branches of the decoder; queries use the mask of their scene."""
    geometry: SceneGeometry | None = None
    """Front and back surface of the scene, for networks whose queries use them."""

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes + (0 if self.geometry is None else self.geometry.nbytes)

    def copy_row(self, row: int) -> SceneCache:
        """Copy one of several scenes into memory of its own."""
        keys, values = (copy_to_own_pages(part[:, row : row + 1]) for part in (self.keys, self.values))
        return SceneCache(keys, values, geometry=None if self.geometry is None else self.geometry.copy_row(row))

    @staticmethod
    def cat(scenes: Sequence[SceneCache]) -> SceneCache:
        """Concatenate scenes that keep all branches."""
        if len(scenes) == 1:
            return scenes[0]
        sides = [scene.geometry for scene in scenes if scene.geometry is not None]
        keys, values = (torch.cat([getattr(scene, part) for scene in scenes], dim=1) for part in ("keys", "values"))
        return SceneCache(keys, values, geometry=SceneGeometry.cat(sides) if sides else None)


@dataclass(frozen=True)
class MCCLosses:
    """Scalars; `total` is the weighted sum of the others."""

    total: Tensor
    occupancy: Tensor
    colour: Tensor


class MCC(nn.Module):
    """MCC with the published parameter names: those without `xyz` and `decoder` are the image's encoder, an MAE's."""

    def __init__(self, config: MCCConfig) -> None:
        super().__init__()
        self.config = config
        width, decoder_width = config.width, config.decoder_width
        self.patch_embed = PatchEmbed(config.patch_size, config.channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_table(width, config.side), requires_grad=False)
        self.blocks = nn.ModuleList(_encoder_block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.xyz_pos_embed = WindowEmbed(
            width,
            side=config.side,
            window=config.window,
            depth=config.window_depth,
            heads=config.window_heads,
            hidden=int(width * config.window_mlp_ratio),
            qkv_bias=config.qkv_bias,
            norm_eps=config.norm_eps,
        )
        self.cls_token_xyz = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks_xyz = nn.ModuleList(_encoder_block(config) for _ in range(config.depth))
        self.norm_xyz = nn.LayerNorm(width, eps=config.norm_eps)
        self.decoder_embed = nn.Linear(2 * width, decoder_width)
        self.decoder_pos_embed = nn.Parameter(sincos_table(decoder_width, config.side), requires_grad=False)
        self.decoder_xyz_pos_embed = PointEmbed(decoder_width)
        self.decoder_blocks = nn.ModuleList(
            MCCDecoderBlock(
                decoder_width,
                config.decoder_heads,
                int(decoder_width * config.mlp_ratio),
                qkv_bias=config.qkv_bias,
                norm_eps=config.norm_eps,
                drop_path=config.drop_path,
            )
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=config.norm_eps)
        self.decoder_pred = nn.Linear(decoder_width + (FEATURE_COUNT if config.back else 0), config.outputs)
        self.back = BackSurfaceNet(config.back) if config.back else None
        self.knowing = QueryGeometryEmbed(decoder_width, config.norm_eps) if config.back else None
        self._initialise()

    def _initialise(self) -> None:
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.config.width, -1))  # as the linear layer that it is
        for token in (self.cls_token, self.cls_token_xyz, self.xyz_pos_embed.cls_token, self.xyz_pos_embed.invalid_xyz_token):
            nn.init.normal_(token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, seen: Tensor, queries: Tensor, *, keep_masks: DropPathMasks | None = None) -> Tensor:
        """Predict occupancy and colours of queries: (B, Q, outputs), float32. keep_masks: None to draw them, in training."""
        return self.predict_outputs(self.decode_queries(self.cache_scene(self.encode(images, seen, keep_masks), keep_masks), queries))

    def encode(
        self, images: Tensor, seen: Tensor, keep_masks: DropPathMasks | None = None, *, merge: MergeSchedule | None = None
    ) -> Tensor:
        """Encode images and seen points as latent tokens (B, 1 + N, 2C), class token first, the image's channels before the points'.

        With `config.back` further channels follow (`models.systems.mcc.query_geometry.geometry_channels`), which describe both surfaces.

        images: RGB in 0..1, (B, 3, any, any), resized to the model's size if they differ, bilinearly without antialiasing. seen: (B, n, n,
        3), the point seen in each pixel; none where a coordinate is not finite. merge: number of tokens that merge in each block of both
        encoders. The decoder needs a token of both at every position, so merged ones are spread again.
        """
        points = self.encode_points(self.embed_points(seen), keep_masks, merge=merge)
        latent = torch.cat([self.encode_images(images, keep_masks, merge=merge), points], dim=-1)
        if self.back is None:
            return latent
        valid = seen.sum(dim=-1).isfinite()
        channels = geometry_channels(self.back, images, seen.masked_fill(~valid.unsqueeze(-1), 0.0), valid, self.config.side)
        return torch.cat([latent.to(channels.dtype), channels], dim=-1)

    def encode_images(self, images: Tensor, keep_masks: DropPathMasks | None = None, *, merge: MergeSchedule | None = None) -> Tensor:
        """Encode images: (B, 3, any, any) → (B, 1 + N, C)."""
        patches = self.patch_embed(self.normalise(images)) + self.pos_embed[:, 1:]
        class_token = (self.cls_token + self.pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
        x = torch.cat([class_token, patches], dim=1)
        return cast("Tensor", self.norm(_run_blocks(self.blocks, x, None if keep_masks is None else keep_masks.rgb, merge)))

    def normalise(self, images: Tensor) -> Tensor:
        """Resize and normalise images: (B, 3, S, S) in the weights' dtype."""
        size = (self.config.image_size, self.config.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (MEAN, STD))
        return ((images - mean) / std).to(self.cls_token.dtype)

    def embed_points(self, seen: Tensor) -> Tensor:
        """Embed seen points (B, n, n, 3), one token per window: (B, N, C)."""
        size = self.config.seen_size
        if seen.dim() != 4 or seen.shape[1:] != (size, size, 3):
            raise ValueError(f"seen: shape {tuple(seen.shape)} where (batch, {size}, {size}, 3) is needed")
        valid = seen.sum(dim=-1).isfinite()
        points = contract(seen.masked_fill(~valid.unsqueeze(-1), 0.0), self.config.far)
        tokens: Tensor = self.xyz_pos_embed(points, valid)
        return tokens

    def encode_points(self, tokens: Tensor, keep_masks: DropPathMasks | None = None, *, merge: MergeSchedule | None = None) -> Tensor:
        """Encode tokens of windows: (B, N, C) → (B, 1 + N, C). Positions are in the coordinates alone."""
        x = torch.cat([self.cls_token_xyz.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return cast("Tensor", self.norm_xyz(_run_blocks(self.blocks_xyz, x, None if keep_masks is None else keep_masks.xyz, merge)))

    def cache_scene(self, latent: Tensor, keep_masks: DropPathMasks | None = None) -> SceneCache:
        """Run the scene's tokens through the decoder, which no query influences, and cache keys and values. keep_masks: None to draw, in
        training."""
        width, weight = 2 * self.config.width, self.decoder_embed.weight
        x = self.decoder_embed(latent[..., :width].to(weight.dtype)) + self.decoder_pos_embed  # (B, 1 + N, Cd)
        geometry = None
        if self.knowing is not None:
            tokens = x[:, 1:].mT.unflatten(2, (self.config.side, -1))  # (B, Cd, side, side)
            geometry = SceneGeometry(*decode_geometry(latent[..., width:], self.config.side), tokens)
        decoder_keep = self._draw_keep_masks(x) if keep_masks is None else keep_masks.decoder
        keys, values = [], []
        for layer, block in enumerate(self.decoder_blocks):
            x, kv_cache = block(
                x, keep=None if decoder_keep is None else decoder_keep[layer], passes_on=layer + 1 < len(self.decoder_blocks)
            )
            keys.append(kv_cache.keys)
            values.append(kv_cache.values)
        return SceneCache(torch.stack(keys), torch.stack(values), decoder_keep, geometry)

    def decode_queries(self, scene: SceneCache, queries: Tensor) -> Tensor:
        """Decode queries against a cached scene: points (B, Q, 3) in the seen points' coordinates → (B, Q, Cd).

        With geometry features the result is (B, Q, Cd + FEATURE_COUNT).
        """
        x, features = self.decoder_xyz_pos_embed(contract(queries, self.config.far)), None
        if self.knowing is not None:
            assert scene.geometry is not None, "the scene was cached by a network without geometry features"
            embedded, features = self.knowing(scene.geometry, queries)
            x = x + embedded
        for layer, block in enumerate(self.decoder_blocks):
            kv_cache = KVCache(scene.keys[layer], scene.values[layer])
            x, _ = block(x, kv_cache, keep=None if scene.keep_masks is None else scene.keep_masks[layer])
        normed: Tensor = self.decoder_norm(x)
        return normed if features is None else torch.cat([normed.to(features.dtype), features], dim=-1)

    def predict_outputs(self, decoded: Tensor) -> Tensor:
        """Predict occupancy logits and colours, for `decode_colours`, of decoded queries: (B, Q, outputs), float32."""
        return linear_in_float32(self.decoder_pred.weight, self.decoder_pred.bias, decoded)

    def predict_occupancy(self, decoded: Tensor) -> Tensor:
        """Predict the logits (B, Q) alone, if colours of few points are needed."""
        return linear_in_float32(self.decoder_pred.weight[:1], self.decoder_pred.bias[:1], decoded).squeeze(-1)

    def losses(self, predicted: Tensor, occupied: Tensor, colours: Tensor) -> MCCLosses:
        """Compute the losses of predictions (B, Q, outputs).

        occupied: (B, Q) of 0 and 1. colours: (B, Q, 3) in 0..1, of which only those of occupied queries count.
        """
        occupancy = F.binary_cross_entropy_with_logits(predicted[..., 0], occupied.to(predicted.dtype))
        if self.config.regress_colour:
            errors = (predicted[..., 1:] - colours).square()
        else:
            errors = F.cross_entropy(colour_logits(predicted).movedim(-1, 1), (colours * 255).round().long(), reduction="none")  # (B, Q, 3)
        counts = occupied.bool().unsqueeze(-1)
        colour = errors.masked_fill(~counts, 0.0).sum() / (3 * counts.sum()).clamp(min=1)
        return MCCLosses(self.config.occupancy_weight * occupancy + self.config.colour_weight * colour, occupancy, colour)

    def _draw_keep_masks(self, x: Tensor) -> Tensor | None:
        """Draw (layers, 2, B) of 0 and 1 in training; None if all branches are kept."""
        if not self.training or not self.config.drop_path:
            return None
        shape = (self.config.decoder_depth, 2, x.shape[0])
        return torch.empty(shape, device=x.device).bernoulli_(1 - self.config.drop_path)


def decode_colours(predicted: Tensor, temperature: float = 0.1) -> Tensor:
    """Decode colours: (..., 4 or 769) → RGB (..., 3), the expected value of each channel at a temperature, or regressed values unchanged.

    A temperature of 0 selects the likeliest class.
    """
    if predicted.shape[-1] == 4:
        return predicted[..., 1:]
    logits = colour_logits(predicted)
    if temperature == 0:
        return logits.argmax(dim=-1) / (BINS - 1)
    levels = torch.linspace(0, 1, BINS, dtype=logits.dtype, device=logits.device)
    return (logits / temperature).softmax(dim=-1) @ levels


def colour_logits(predicted: Tensor) -> Tensor:
    """Reshape outputs to logits of colour classes: (..., 769) → (..., 3, 256)."""
    return predicted[..., 1:].reshape(*predicted.shape[:-1], 3, BINS)


def init_from_mae(model: MCC, pretrained: Mapping[str, Tensor]) -> None:
    """Load the encoder of an MAE into the image encoder, in place. Raises ValueError naming weights that are missing or have another
    shape."""
    load_encoder(model, pretrained, fresh=("cls_token_xyz", "xyz_pos_embed.", "blocks_xyz.", "norm_xyz.", "decoder_"))


def _encoder_block(config: MCCConfig) -> TransformerBlock:
    hidden = int(config.width * config.mlp_ratio)
    return TransformerBlock(
        config.width, config.heads, hidden, qkv_bias=config.qkv_bias, norm_eps=config.norm_eps, drop_path=config.drop_path
    )


def _run_blocks(blocks: nn.ModuleList, x: Tensor, keep_mask: Tensor | None, merge: MergeSchedule | None) -> Tensor:
    """Run tokens through blocks: (B, N, C) → (B, N, C). keep_mask: (depth, 2, B)."""
    schedule = (merge or MergeSchedule.off()).expand(len(blocks))
    return run_trunk(blocks, Tokens(x, protected=1, traced=any(schedule)), schedule, keep_mask, reversible=False).unmerge()
