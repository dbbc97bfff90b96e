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
    """pixels uint8 (B, S, S, 3); option `merge`: r per block → logits and numbers of tokens.

    Option `trace`: also `groups` int32 (B, depth, patches), the token that holds each patch after each block, special tokens not counted,
    and `grid` int32 (B, 2), rows and columns of patches.
    """
    schedule, trace = MergeSchedule.of(options.get("merge", ())), bool(options.get("trace", False))
    answer = model(normalise(arrays["pixels"], preprocess, next(model.parameters()).dtype), merge=schedule, trace=trace)
    outputs = classification_arrays(answer.logits, answer.tokens_in, answer.tokens_out)
    return outputs | _groups(answer, cast(ViTConfig, model.config), schedule) if trace else outputs


def embed(model: nn.Module, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Tensor]:
    """pixels uint8 (B, S, S, 3) → `image_vectors`, or with option `output="tokens"` `token_vectors`.

    Option `pool`, by default the model's own: "cls" is the class token after the final norm, in distilled models the mean of both special
    tokens, as both heads count alike; "mean" is the mean of the normalised patches by size, or the model's own mean where it has one.
    """
    vit = cast(ViT, model)
    asked = EmbedBatchOptions.read(options, architectures()["vit"], vit.config)
    images = normalise(arrays["pixels"], preprocess, next(vit.parameters()).dtype)
    if asked.tokens:
        special, tokens = vit.config.special_tokens, vit.encode_tokens(images, asked.merge)
        return token_vectors(tokens.x[:, special:], tokens, special + vit.config.patches)
    own = vit.config.pool
    mean = Pool.NORM_MEAN if own in (Pool.TOKEN, Pool.TOKEN_MEAN) else own
    answer = vit(images, merge=asked.merge, pool=Pool.TOKEN if asked.pool == "cls" else mean)
    features = answer.features.mean(dim=1) if answer.features.dim() == 3 else answer.features
    return image_vectors(features, answer.tokens_in, answer.tokens_out)


def _groups(answer: ClassifierOutput, config: ViTConfig, schedule: MergeSchedule) -> dict[str, Tensor]:
    groups = patch_token_map(answer.logits, answer.owners, answer.tokens_in, schedule.expand(config.depth), config.special_tokens)
    return {"groups": groups, "grid": torch.tensor(config.grid, dtype=torch.int32).expand(len(groups), -1)}
