"""The vision transformer for classification (arXiv 2010.11929), timm's layout and parameter names, with token merging as an argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import ops
from models.bundle_schema import Preprocess
from models.layers.block import Mlp, TransformerBlock, drop_path_rates, initialise_like_slowfast
from models.layers.efficientnet_lite import CHANNELS, PATCH, LitePatches
from models.layers.forward import (
    ClassifierOutput,
    EmbedBatchOptions,
    classification_arrays,
    image_vectors,
    normalise,
    patch_token_map,
    token_vectors,
)
from models.layers.masked_encoder import gather_tokens
from models.layers.patches import PatchEmbed, require_shape
from models.layers.reversible import run_trunk
from models.layers.token_merging import Tokens
from models.merge_schedule import MergeSchedule
from models.registry import architectures


class Pool(StrEnum):
    TOKEN = "token"
    """`norm`, then the class token (ViT, DeiT, SWAG)."""
    MEAN = "mean"
    """The mean of the patches, weighted by size if tokens merged, then `fc_norm` (MAE)."""
    NORM_MEAN = "norm-mean"
    """`norm` on every token, then the weighted mean."""
    NORM_MEAN_ALL = "norm-mean-all"
    """`norm` on every token, then the weighted mean including the class token (FLIP)."""
    TOKEN_MEAN = "token-mean"
    """`norm` on every token, then the class token and the weighted mean of the patches: linear heads of DINOv2 (arXiv 2304.07193)."""
    ATTENTION = "attention"
    """`norm` on every token, then attention pooling by a trained query (SigLIP)."""


class Stem(StrEnum):
    PATCHES = "patches"
    LITE = "lite"
    """The first stages of EfficientNet-Lite0, for patches of 16 pixels (`models.layers.efficientnet_lite`)."""


@dataclass(frozen=True)
class ViTConfig:
    """Config of a plain vision transformer; the defaults are ViT-B/16."""

    image_size: int = 224
    image_width: int | None = None
    """Width if images are not square."""
    patch_size: int = 16
    patch_width: int | None = None
    """Width if patches are not square."""
    cut_edge: bool = False
    """Whether sizes need not be multiples of the patch size: the rest at the right and lower edge is ignored (SigLIP)."""
    channels: int = 3
    classes: int = 1000
    """Number of classes; 0: no head, the logits are the features."""
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    tanh_gelu: bool = False
    """Use the tanh approximation of GELU (FLIP)."""
    quick_gelu: bool = False
    """Use x · sigmoid(1.702 x) instead of GELU (CLIP)."""
    pre_norm: bool = False
    """Apply a norm before the first block, timm's `norm_pre` (CLIP)."""
    norm_eps: float = 1e-6
    class_token: bool = True
    class_position: bool = True
    """Whether special tokens get a position; if not, their rows in the table are unused (FLIP)."""
    distilled: bool = False
    """Whether there is a second special token with its own head (DeiT, arXiv 2012.12877); the logits are the mean of both heads."""
    pool: Pool = Pool.TOKEN
    proportional_attention: bool = True
    """Whether merged tokens count by their size in attention: for models trained on supervised labels without merging, and for models
    trained with it; off for published MAE models."""
    drop_path: float = 0.0
    reversible: bool = False
    """Use two residual streams, whose activations training recomputes instead of storing (Rev-ViT, arXiv 2302.04869): norm and head have
    both as input and are twice as wide."""
    mlp_norm_eps: float | None = None
    final_norm_eps: float | None = None
    """Epsilon of the norm before each MLP, and of the last one; None for `norm_eps` (minREV has others)."""
    stem: Stem = Stem.PATCHES
    joint_width: int | None = None
    """Width of the joint space of an image-text pair whose labels have become the head (`models.systems.image_text.zero_shot_classifier`):
    features are projected into it and normalised before the head, so that its logits are scaled cosines. None: no projection."""

    def __post_init__(self) -> None:
        for dimension, size, patch in zip(("size", "width"), self.image_shape, self.patch_shape, strict=True):
            if size % patch and not self.cut_edge:
                raise ValueError(f"image_{dimension} {size} is not a multiple of patch_{dimension} {patch}")
        if self.depth < 1:
            raise ValueError(f"depth {self.depth} is not a positive number of blocks")
        if self.distilled and not self.class_token:
            raise ValueError("distilled: a distillation token needs a class token before it")
        if self.pool is Pool.TOKEN and not self.class_token:
            raise ValueError("pool: there is no class token to take")
        if self.tanh_gelu and self.quick_gelu:
            raise ValueError("quick_gelu: the activation is either this or tanh_gelu")
        if self.pool is Pool.ATTENTION and (self.quick_gelu or self.reversible):
            raise ValueError("pool attention: for models with GELU and one residual stream")
        if self.pool is Pool.TOKEN_MEAN and (not self.class_token or self.distilled or self.reversible):
            raise ValueError("pool token-mean: for models with a class token and one residual stream")
        if self.stem is Stem.LITE and (self.patch_shape != (PATCH, PATCH) or self.channels != CHANNELS):
            raise ValueError(f"stem lite: for images of {CHANNELS} channels and patches of {PATCH} pixels")
        if self.joint_width is not None and (self.joint_width < 1 or self.distilled or not self.classes):
            raise ValueError("joint_width: a positive number, for models with one head")

    @property
    def image_shape(self) -> tuple[int, int]:
        return self.image_size, self.image_size if self.image_width is None else self.image_width

    @property
    def patch_shape(self) -> tuple[int, int]:
        return self.patch_size, self.patch_size if self.patch_width is None else self.patch_width

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = (size // patch for size, patch in zip(self.image_shape, self.patch_shape, strict=True))
        return rows, columns

    @property
    def patches(self) -> int:
        rows, columns = self.grid
        return rows * columns

    @property
    def special_tokens(self) -> int:
        """Number of class and distillation tokens, which come first and never merge."""
        return int(self.class_token) + int(self.distilled)

    @property
    def features(self) -> int:
        return 2 * self.width if self.reversible or self.pool is Pool.TOKEN_MEAN else self.width


SIZES: Mapping[str, ViTConfig] = {
    "vit_tiny_patch16": ViTConfig(width=192, heads=3),
    "vit_small_patch16": ViTConfig(width=384, heads=6),
    "vit_base_patch16": ViTConfig(),
    "vit_large_patch16": ViTConfig(width=1024, depth=24, heads=16),
    "vit_huge_patch14": ViTConfig(patch_size=14, width=1280, depth=32, heads=16),
}
"""Published sizes of AugReg, DeiT and SWAG; MAE fine-tunes the last three with `Pool.MEAN`, SWAG at 384 to 518 px."""


class AttentionPool(nn.Module):
    """Pooling by a trained query that attends to tokens (section 3.2 of arXiv 2106.04560; the head of SigLIP, arXiv 2303.15343)."""

    def __init__(self, width: int, heads: int, hidden: int, *, norm_eps: float, tanh_gelu: bool = False) -> None:
        """hidden: width of the MLP behind the attention."""
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden, tanh_gelu=tanh_gelu)

    def forward(self, tokens: Tokens) -> Tensor:
        """Pool tokens (B, N, C) → (B, C). A merged token counts as those that it stands for, as in a mean."""
        split = (self.heads, -1)
        q = self.q(self.query).unflatten(-1, split).transpose(1, 2).expand(len(tokens.x), -1, -1, -1)  # (B, H, 1, D)
        k, v = self.kv(tokens.x).unflatten(-1, (2, *split)).permute(2, 0, 3, 1, 4)  # (B, H, N, D) each
        attended = self.proj(ops.size_biased_attention(q, k, v, tokens.size).transpose(1, 2).flatten(2))[:, 0]  # (B, C)
        pooled: Tensor = attended + self.mlp(self.norm(attended))
        return pooled


class ViT(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        patches = PatchEmbed(config.patch_shape, config.channels, width) if config.stem is Stem.PATCHES else LitePatches(width)
        self.patch_embed: PatchEmbed | LitePatches = patches
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width)) if config.distilled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.special_tokens + config.patches, width))
        self.norm_pre = nn.LayerNorm(width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width,
                config.heads,
                hidden,
                qkv_bias=config.qkv_bias,
                norm_eps=config.norm_eps,
                mlp_norm_eps=config.mlp_norm_eps,
                drop_path=rate,
                tanh_gelu=config.tanh_gelu,
                quick_gelu=config.quick_gelu,
            )
            for rate in drop_path_rates(config.drop_path, config.depth)
        )
        norm_first = config.pool is not Pool.MEAN
        stream = 2 * width if config.reversible else width
        final_norm = nn.LayerNorm(stream, eps=config.norm_eps if config.final_norm_eps is None else config.final_norm_eps)
        self.norm = final_norm if norm_first else nn.Identity()
        self.fc_norm = nn.Identity() if norm_first else final_norm
        attends = config.pool is Pool.ATTENTION
        self.attn_pool = (
            AttentionPool(width, config.heads, hidden, norm_eps=config.norm_eps, tanh_gelu=config.tanh_gelu) if attends else None
        )
        self.projection = nn.Linear(config.features, config.joint_width, bias=False) if config.joint_width is not None else None
        self.head = nn.Linear(config.joint_width or config.features, config.classes) if config.classes else nn.Identity()
        self.head_dist = nn.Linear(config.features, config.classes) if config.distilled and config.classes else None
        self._initialise()

    def _initialise(self) -> None:
        """Initialise as timm: truncated normal of standard deviation 0.02, biases 0. A reversible trunk is initialised as published."""
        if self.config.reversible:
            initialise_like_slowfast(self)
        else:
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        for parameter in (self.cls_token, self.dist_token, self.pos_embed):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(
        self,
        images: Tensor,
        *,
        merge: MergeSchedule | None = None,
        trace: bool = False,
        keep: Tensor | None = None,
        visible: Tensor | None = None,
        pool: Pool | None = None,
    ) -> ClassifierOutput:
        """Classify normalised images (B, channels, S, S).

        merge: number of tokens that merge in each block; trace: also record which tokens merged. visible: (B, V), indices in raster order
        of the only patches to encode; None: all. keep: (depth, 2, B) of 0 and 1, which samples keep both branches of each block in
        stochastic depth; (depth, B) in a reversible trunk, which keeps or drops both; None: drawn, in training. pool: of the features,
        None: the config's, the only one that the head is trained for.
        """
        schedule = (merge or MergeSchedule.off()).expand(self.config.depth)
        tokens = self._embed(images, trace, visible)
        tokens_in = tokens.x.shape[1]
        tokens = run_trunk(self.blocks, tokens, schedule, keep, reversible=self.config.reversible, training=self.training)
        features = self._pool(tokens, tokens_in, pool or self.config.pool)
        logits = self._classify(features)
        return ClassifierOutput(logits, features, tokens_in, tokens.x.shape[1], tokens.size, tokens.source, tokens.token_owners)

    def encode_patches(self, images: Tensor) -> Tensor:
        """Encode patches: (B, patches, C), after the last block and `norm`, the targets of another model."""
        tokens = run_trunk(self.blocks, self._embed(images, trace=False), [0] * self.config.depth, reversible=self.config.reversible)
        patches: Tensor = self.norm(tokens.x[:, self.config.special_tokens :])
        return patches

    def encode_tokens(self, images: Tensor, merge: MergeSchedule | None = None) -> Tokens:
        """Encode special tokens and patches, (B, N', C), after the last block and the final norm, traced."""
        schedule = (merge or MergeSchedule.off()).expand(self.config.depth)
        tokens = run_trunk(self.blocks, self._embed(images, trace=True), schedule, reversible=self.config.reversible)
        return replace(tokens, x=self.fc_norm(self.norm(tokens.x)))

    def _embed(self, images: Tensor, trace: bool, visible: Tensor | None = None) -> Tokens:
        images = require_shape("images", images, (self.config.channels, *self.config.image_shape))
        special = [token.expand(images.shape[0], -1, -1) for token in (self.cls_token, self.dist_token) if token is not None]
        front, grid = self.pos_embed[:, : self.config.special_tokens], self.pos_embed[:, self.config.special_tokens :]
        x = self.patch_embed(images) + grid  # (B, patches, C)
        if visible is not None:
            x = gather_tokens(x, visible)  # (B, V, C)
        if special:
            first = torch.cat(special, dim=1)
            x = torch.cat([first + front if self.config.class_position else first, x], dim=1)  # (B, special + V, C)
        x = self.norm_pre(x)
        return Tokens(x, protected=self.config.special_tokens, proportional_attention=self.config.proportional_attention, traced=trace)

    def _pool(self, tokens: Tokens, tokens_in: int, pool: Pool) -> Tensor:
        """Pool tokens → (B, C), or (B, 2, C), the special tokens of distilled models."""
        special = self.config.special_tokens
        if pool is Pool.TOKEN:
            front: Tensor = self.fc_norm(self.norm(tokens.x[:, :special]))  # the other tokens are not used
            return front if self.config.distilled else front[:, 0]
        first = 0 if pool is Pool.NORM_MEAN_ALL else special
        normed = replace(tokens, x=self.norm(tokens.x))
        if self.attn_pool is not None and pool is Pool.ATTENTION:
            attended: Tensor = self.attn_pool(normed)
            return attended
        pooled: Tensor = self.fc_norm(normed.mean(first, tokens_in - first))
        return torch.cat([normed.x[:, 0], pooled], dim=1) if pool is Pool.TOKEN_MEAN else pooled

    def _classify(self, features: Tensor) -> Tensor:
        if self.projection is not None:
            projected = F.normalize(self.projection(features).float(), dim=-1)  # (B, joint_width), unit length
            features = projected.to(features.dtype)
        if self.head_dist is None or features.dim() == 2:
            logits: Tensor = self.head(features)
            return logits
        mean_logits: Tensor = (self.head(features[:, 0]) + self.head_dist(features[:, 1])) / 2
        return mean_logits


def classify(model: nn.Module, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Tensor]:
    """Classify pixels uint8 (B, S, S, 3); option `merge`: r per block → logits and token counts.

    Option `trace`: also `groups` int32 (B, depth, patches), the token that holds each patch after each block, special tokens not counted,
    and `grid` int32 (B, 2), rows and columns of patches.
    """
    schedule, trace = MergeSchedule.from_list(options.get("merge", ())), bool(options.get("trace", False))
    output = model(normalise(arrays["pixels"], preprocess, next(model.parameters()).dtype), merge=schedule, trace=trace)
    outputs = classification_arrays(output.logits, output.tokens_in, output.tokens_out)
    return outputs | _groups(output, cast(ViTConfig, model.config), schedule) if trace else outputs


def embed(model: nn.Module, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Tensor]:
    """Embed pixels uint8 (B, S, S, 3) → `image_vectors`, or with option `output="tokens"` `token_vectors`.

    Option `pool`, by default the model's own: "cls" is the class token after the final norm, in distilled models the mean of both special
    tokens, as both heads count equally; "mean" is the mean of the normalised patches by size, or the model's own mean if it has one.
    """
    vit = cast(ViT, model)
    embed_options = EmbedBatchOptions.read(options, architectures()["vit"], vit.config)
    images = normalise(arrays["pixels"], preprocess, next(vit.parameters()).dtype)
    if embed_options.tokens:
        special, tokens = vit.config.special_tokens, vit.encode_tokens(images, embed_options.merge)
        return token_vectors(tokens.x[:, special:], tokens, special + vit.config.patches)
    model_pool = vit.config.pool
    mean = Pool.NORM_MEAN if model_pool in (Pool.TOKEN, Pool.TOKEN_MEAN) else model_pool
    output = vit(images, merge=embed_options.merge, pool=Pool.TOKEN if embed_options.pool == "cls" else mean)
    features = output.features.mean(dim=1) if output.features.dim() == 3 else output.features
    return image_vectors(features, output.tokens_in, output.tokens_out)


def _groups(output: ClassifierOutput, config: ViTConfig, schedule: MergeSchedule) -> dict[str, Tensor]:
    groups = patch_token_map(output.logits, output.token_owners, output.tokens_in, schedule.expand(config.depth), config.special_tokens)
    return {"groups": groups, "grid": torch.tensor(config.grid, dtype=torch.int32).expand(len(groups), -1)}
