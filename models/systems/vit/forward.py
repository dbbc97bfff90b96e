"""Forward calls of a worker to a ViT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.bundle_schema import Preprocess
from models.layers.classifier_output import ClassifierOutput, patch_token_map
from models.layers.embedding import EmbedBatchOptions, image_vectors, token_vectors
from models.layers.forward import classification_arrays, normalise
from models.merge_schedule import MergeSchedule
from models.registry import architectures
from models.systems.vit.model import Pool, ViT, ViTConfig


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
