"""MCC, Multiview Compressive Coding (arXiv 2301.08247): one image with points in space → occupancy and colour of any query point.

Two encoders, for the image and for the points that were seen, and a decoder in which a query attends to the scene and to itself, never to
other queries. So a scene is encoded once, its keys and values are kept for every layer, and queries come in any number and order.

Ours, where `config.back` is set: a U-Net tells what lies behind the seen points, and queries know how far they are from both sides
(`models/systems/mcc/query_geometry.py`). Without it the network is the published one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import ops
from models.layers.block import TransformerBlock, drop_branch
from models.layers.bounded_cache import copy_to_own_pages
from models.layers.cross_attention import KVCache
from models.layers.initialisation import load_encoder
from models.layers.patches import PatchEmbed, require_image_patches
from models.layers.position_embeddings import sincos_table
from models.layers.reversible import run_trunk
from models.layers.token_merging import Tokens
from models.merge_schedule import MergeSchedule
from models.systems.mcc.back_surface import Back, BackConfig
from models.systems.mcc.point_embed import PointEmbed, WindowEmbed, at_least_float32, contract, in_float32
from models.systems.mcc.query_geometry import FEATURES, Knowing, Sides, both_sides, told

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
BINS = 256
"""Classes of a colour channel: class b stands for b / 255."""


@dataclass(frozen=True)
class MCCConfig:
    """The defaults are the published ViT-B."""

    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    width: int = 768
    depth: int = 12
    """Blocks of either encoder."""
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
    """Distance from the origin beyond which points are drawn nearer: `contract`."""
    regress_colour: bool = False
    """Three colour values per query, with a squared error; otherwise 256 classes for each channel."""
    occupancy_weight: float = 1.0
    colour_weight: float = 0.01
    drop_path: float = 0.1
    """The same in every block of encoders and decoder; none in the windows."""
    back: BackConfig | None = None
    """Tell what lies behind the seen points, and let queries know it; None: as published. The frame's axes must be the camera's."""

    def __post_init__(self) -> None:
        require_image_patches(self.image_size, self.patch_size)
        if self.window_depth < 1 or self.decoder_depth < 1:
            raise ValueError("window_depth and decoder_depth must be 1 at least")
        if self.back is not None and self.seen_size % self.back.step:
            raise ValueError(f"back: the map of seen points is {self.seen_size} wide, which is no multiple of {self.back.step}")

    @property
    def side(self) -> int:
        """Patches, and windows, along a side."""
        return self.image_size // self.patch_size

    @property
    def seen_size(self) -> int:
        """Side of the map of seen points."""
        return self.side * self.window

    @property
    def outputs(self) -> int:
        return 1 + 3 * (1 if self.regress_colour else BINS)


PUBLISHED: Mapping[str, MCCConfig] = {"mcc_vit_base_patch16": MCCConfig()}


@dataclass(frozen=True)
class Kept:
    """Samples that keep each branch in stochastic depth: (depth, 2, B) of 0 and 1, the attention's before the MLP's."""

    xyz: Tensor
    rgb: Tensor
    decoder: Tensor


@dataclass(frozen=True)
class Scene:
    """All that queries need of a scene: keys and values of its tokens in every decoder layer, made by `reserve_self`."""

    keys: Tensor
    """(layers, B, H, 1 + N + 1, D + 8)."""
    values: Tensor
    """The same shape."""
    fates: Tensor | None = None
    """(layers, 2, B) of 0 and 1, which samples kept which branches of the decoder: queries share the fate of their scene."""
    sides: Sides | None = None
    """Both sides of the scene, for networks whose queries know them."""

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes + (0 if self.sides is None else self.sides.nbytes)

    def kept(self, row: int) -> Scene:
        """A copy of one of several scenes, to be kept for long."""
        keys, values = (copy_to_own_pages(part[:, row : row + 1]) for part in (self.keys, self.values))
        return Scene(keys, values, sides=None if self.sides is None else self.sides.kept(row))

    @staticmethod
    def cat(scenes: Sequence[Scene]) -> Scene:
        """Several scenes, of which all branches were kept, as one."""
        if len(scenes) == 1:
            return scenes[0]
        sides = [scene.sides for scene in scenes if scene.sides is not None]
        keys, values = (torch.cat([getattr(scene, part) for scene in scenes], dim=1) for part in ("keys", "values"))
        return Scene(keys, values, sides=Sides.cat(sides) if sides else None)


@dataclass(frozen=True)
class Losses:
    """Scalars; `total` is the weighted sum of the others."""

    total: Tensor
    occupancy: Tensor
    colour: Tensor


class MCC(nn.Module):
    """Parameter names are the published ones: those without `xyz` and `decoder` are the image's encoder, an MAE's."""

    def __init__(self, config: MCCConfig) -> None:
        super().__init__()
        self.config = config
        width, small = config.width, config.decoder_width
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
        self.decoder_embed = nn.Linear(2 * width, small)
        self.decoder_pos_embed = nn.Parameter(sincos_table(small, config.side), requires_grad=False)
        self.decoder_xyz_pos_embed = PointEmbed(small)
        self.decoder_blocks = nn.ModuleList(
            DecoderBlock(
                small,
                config.decoder_heads,
                int(small * config.mlp_ratio),
                qkv_bias=config.qkv_bias,
                norm_eps=config.norm_eps,
                drop_path=config.drop_path,
            )
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(small, eps=config.norm_eps)
        self.decoder_pred = nn.Linear(small + (FEATURES if config.back else 0), config.outputs)
        self.back = Back(config.back) if config.back else None
        self.knowing = Knowing(small, config.norm_eps) if config.back else None
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

    def forward(self, images: Tensor, seen: Tensor, queries: Tensor, *, kept: Kept | None = None) -> Tensor:
        """`encode`, `remember`, `ask`, `predict` at once → (B, Q, outputs), float32. kept: None to draw it, in training."""
        return self.predict(self.ask(self.remember(self.encode(images, seen, kept), kept), queries))

    def encode(self, images: Tensor, seen: Tensor, kept: Kept | None = None, *, merge: MergeSchedule | None = None) -> Tensor:
        """→ latent tokens (B, 1 + N, 2C), class token first, the image's channels before the points'; with `config.back` further channels
        (`models.systems.mcc.query_geometry.told`), by which queries know both sides.

        images: RGB in 0..1, (B, 3, any, any), resized to the model's size where they differ, bilinearly without antialiasing.
        seen: (B, n, n, 3), the point seen in each pixel; where a coordinate is not finite there is none.
        merge: how many tokens merge in each block of both encoders. The decoder needs both in every place, so merged ones return there.
        """
        points = self.encode_points(self.embed_points(seen), kept, merge=merge)
        latent = torch.cat([self.encode_images(images, kept, merge=merge), points], dim=-1)
        if self.back is None:
            return latent
        valid = seen.sum(dim=-1).isfinite()
        known = told(self.back, images, seen.masked_fill(~valid.unsqueeze(-1), 0.0), valid, self.config.side)
        return torch.cat([latent.to(known.dtype), known], dim=-1)

    def encode_images(self, images: Tensor, kept: Kept | None = None, *, merge: MergeSchedule | None = None) -> Tensor:
        """→ (B, 1 + N, C)."""
        patches = self.patch_embed(self.normalise(images)) + self.pos_embed[:, 1:]
        class_token = (self.cls_token + self.pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
        x = torch.cat([class_token, patches], dim=1)
        return cast("Tensor", self.norm(_run(self.blocks, x, None if kept is None else kept.rgb, merge)))

    def normalise(self, images: Tensor) -> Tensor:
        """→ (B, 3, S, S) in the weights' type."""
        size = (self.config.image_size, self.config.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (MEAN, STD))
        return ((images - mean) / std).to(self.cls_token.dtype)

    def embed_points(self, seen: Tensor) -> Tensor:
        """→ (B, N, C), one token for each window."""
        size = self.config.seen_size
        if seen.dim() != 4 or seen.shape[1:] != (size, size, 3):
            raise ValueError(f"seen: shape {tuple(seen.shape)} where (batch, {size}, {size}, 3) is needed")
        valid = seen.sum(dim=-1).isfinite()
        points = contract(seen.masked_fill(~valid.unsqueeze(-1), 0.0), self.config.far)
        tokens: Tensor = self.xyz_pos_embed(points, valid)
        return tokens

    def encode_points(self, tokens: Tensor, kept: Kept | None = None, *, merge: MergeSchedule | None = None) -> Tensor:
        """(B, N, C) → (B, 1 + N, C). Positions are in the coordinates alone."""
        x = torch.cat([self.cls_token_xyz.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return cast("Tensor", self.norm_xyz(_run(self.blocks_xyz, x, None if kept is None else kept.xyz, merge)))

    def remember(self, latent: Tensor, kept: Kept | None = None) -> Scene:
        """The scene's way through the decoder, on which no query has any influence. kept: None to draw it, in training."""
        width, small = 2 * self.config.width, self.decoder_embed.weight
        x = self.decoder_embed(latent[..., :width].to(small.dtype)) + self.decoder_pos_embed  # (B, 1 + N, Cd)
        sides = None
        if self.knowing is not None:
            tokens = x[:, 1:].mT.unflatten(2, (self.config.side, -1))  # (B, Cd, side, side)
            sides = Sides(*both_sides(latent[..., width:], self.config.side), tokens)
        fate = self._draw(x) if kept is None else kept.decoder
        keys, values = [], []
        for layer, block in enumerate(self.decoder_blocks):
            x, memory = block(x, keep=None if fate is None else fate[layer], passes_on=layer + 1 < len(self.decoder_blocks))
            keys.append(memory.keys)
            values.append(memory.values)
        return Scene(torch.stack(keys), torch.stack(values), fate, sides)

    def ask(self, scene: Scene, queries: Tensor) -> Tensor:
        """Points (B, Q, 3) in the coordinates of the seen ones → what the decoder makes of each, (B, Q, Cd), and what each knows beside it
        where queries do: (B, Q, Cd + FEATURES)."""
        x, known = self.decoder_xyz_pos_embed(contract(queries, self.config.far)), None
        if self.knowing is not None:
            assert scene.sides is not None, "the scene is of a network whose queries know nothing"
            added, known = self.knowing(scene.sides, queries)
            x = x + added
        for layer, block in enumerate(self.decoder_blocks):
            memory = KVCache(scene.keys[layer], scene.values[layer])
            x, _ = block(x, memory, keep=None if scene.fates is None else scene.fates[layer])
        normed: Tensor = self.decoder_norm(x)
        return normed if known is None else torch.cat([normed.to(known.dtype), known], dim=-1)

    def predict(self, asked: Tensor) -> Tensor:
        """Outputs by what `ask` gave → (B, Q, outputs) in float32: the occupancy's logit, then colours, for which `decode_colours` is."""
        return in_float32(self.decoder_pred.weight, self.decoder_pred.bias, asked)

    def predict_occupancy(self, asked: Tensor) -> Tensor:
        """The logit alone by what `ask` gave → (B, Q), where colours of few points will be wanted."""
        return in_float32(self.decoder_pred.weight[:1], self.decoder_pred.bias[:1], asked).squeeze(-1)

    def losses(self, predicted: Tensor, occupied: Tensor, colours: Tensor) -> Losses:
        """predicted (B, Q, outputs), occupied (B, Q) of 0 and 1, colours (B, Q, 3) in 0..1, of which those of occupied queries count."""
        occupancy = F.binary_cross_entropy_with_logits(predicted[..., 0], occupied.to(predicted.dtype))
        if self.config.regress_colour:
            errors = (predicted[..., 1:] - colours).square()
        else:
            errors = F.cross_entropy(colour_logits(predicted).movedim(-1, 1), (colours * 255).round().long(), reduction="none")  # (B, Q, 3)
        counts = occupied.bool().unsqueeze(-1)
        colour = errors.masked_fill(~counts, 0.0).sum() / (3 * counts.sum()).clamp(min=1)
        return Losses(self.config.occupancy_weight * occupancy + self.config.colour_weight * colour, occupancy, colour)

    def _draw(self, x: Tensor) -> Tensor | None:
        """(layers, 2, B) of 0 and 1 in training; None where nothing is left out."""
        if not self.training or not self.config.drop_path:
            return None
        shape = (self.config.decoder_depth, 2, x.shape[0])
        return torch.empty(shape, device=x.device).bernoulli_(1 - self.config.drop_path)


class DecoderBlock(TransformerBlock):
    """A block in which the scene's tokens see each other, and a query sees them and itself."""

    def forward(  # type: ignore[override]
        self, x: Tensor, memory: KVCache | None = None, keep: Tensor | None = None, *, passes_on: bool = True
    ) -> tuple[Tensor, KVCache]:
        """(B, N, C) → (B, N, C), and what queries see of these tokens.

        memory: the scene that queries ask; None for the scene's own tokens. keep: (2, B) of 0 and 1, which samples keep the attention and
        the MLP branch; None: all. passes_on: False in the last layer for the scene, whose tokens nobody reads after it.
        """
        q, k, v = self.attn.project(self.norm1(x))
        own = KVCache(*reserve_self(k, v)) if memory is None else memory
        if not passes_on:
            return x, own
        attended = ops.size_biased_attention(q, k, v) if memory is None else attend_to_scene_and_self(q, k, v, memory.keys, memory.values)
        keep_attention, keep_mlp = (None, None) if keep is None else keep
        x = x + drop_branch(self.attn.join(attended), self.drop_path, False, keep_attention)
        return x + drop_branch(self.mlp(self.norm2(x)), self.drop_path, False, keep_mlp), own


EXTRA = 8
"""Channels that `reserve_self` adds to a head: two are used, eight keep rows aligned for fast kernels."""


def reserve_self(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (B, H, N, D) of a scene → (B, H, N + 1, D + 8), the last row standing for the query itself.

    Its key is 1 in two extra channels, in which a query carries the logit of its own key; its value is 1 in one, out of which the
    query reads the weight of its own value.
    """
    width = k.shape[-1]
    keys, values = (F.pad(x, (0, EXTRA, 0, 1)) for x in (k, v))
    own = torch.zeros(2, keys.shape[-2], keys.shape[-1], dtype=k.dtype, device=k.device)
    own[0, -1, width : width + 2] = 1
    own[1, -1, width] = 1
    return keys + own[0], values + own[1]


def attend_to_scene_and_self(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax over a scene's tokens and the query's own: (B, H, Q, D) each, the scene from `reserve_self` → (B, H, Q, D). Linear in Q."""
    width = q.shape[-1]
    logit = (at_least_float32(q) * at_least_float32(k)).sum(dim=-1, keepdim=True)
    coarse = logit.to(q.dtype)
    fine = (logit - coarse).to(q.dtype)  # what half precision has cut off
    asking = torch.cat([q, coarse, fine, q.new_zeros(1).expand(*q.shape[:-1], EXTRA - 2)], dim=-1)
    answer = F.scaled_dot_product_attention(asking, keys, values, scale=width**-0.5)  # (B, H, Q, D + 8)
    return answer[..., :width] + answer[..., width : width + 1] * v


def decode_colours(predicted: Tensor, temperature: float = 0.1) -> Tensor:
    """(..., 4 or 769) → RGB (..., 3): the expected value of each channel at a temperature, or what was regressed, as it is.

    A temperature of 0 takes the likeliest class.
    """
    if predicted.shape[-1] == 4:
        return predicted[..., 1:]
    logits = colour_logits(predicted)
    if temperature == 0:
        return logits.argmax(dim=-1) / (BINS - 1)
    levels = torch.linspace(0, 1, BINS, dtype=logits.dtype, device=logits.device)
    return (logits / temperature).softmax(dim=-1) @ levels


def colour_logits(predicted: Tensor) -> Tensor:
    """(..., 769) → (..., 3, 256)."""
    return predicted[..., 1:].reshape(*predicted.shape[:-1], 3, BINS)


def start_from_mae(model: MCC, pretrained: Mapping[str, Tensor]) -> None:
    """Load the encoder of an MAE into the image encoder, in place. Raises ValueError naming what is missing or has another shape."""
    load_encoder(model, pretrained, fresh=("cls_token_xyz", "xyz_pos_embed.", "blocks_xyz.", "norm_xyz.", "decoder_"))


def _encoder_block(config: MCCConfig) -> TransformerBlock:
    hidden = int(config.width * config.mlp_ratio)
    return TransformerBlock(
        config.width, config.heads, hidden, qkv_bias=config.qkv_bias, norm_eps=config.norm_eps, drop_path=config.drop_path
    )


def _run(blocks: nn.ModuleList, x: Tensor, kept: Tensor | None, merge: MergeSchedule | None) -> Tensor:
    """(B, N, C) → (B, N, C). kept: (depth, 2, B)."""
    schedule = (merge or MergeSchedule.off()).expand(len(blocks))
    return run_trunk(blocks, Tokens(x, protected=1, traced=any(schedule)), schedule, kept, reversible=False).spread()
