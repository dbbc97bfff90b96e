"""The forward call of a worker to MAE: its encoder on whole images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from models.bundle_schema import Preprocess
from models.layers.embedding import EmbedBatchOptions, image_vectors, token_vectors
from models.layers.forward import normalise
from models.registry import architectures
from models.systems.mae.model import MAE


def embed(model: nn.Module, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Tensor]:
    """Embed pixels uint8 (B, S, S, 3) → `image_vectors`, or with option `output="tokens"` `token_vectors`.

    Option `pool`: "cls", the class token, which linear probing reads (appendix A.1 of arXiv 2111.06377), or "mean", that of the patches by
    size; both after `norm`. Merged tokens do not count by their size in attention: MAE was trained without merging.
    """
    mae = cast(MAE, model)
    embed_options = EmbedBatchOptions.read(options, architectures()["mae"], mae.config)
    patches, special = mae.config.patches, mae.config.special_tokens
    images = normalise(arrays["pixels"], preprocess, mae.pos_embed.dtype)
    tokens = mae.encode_tokens(images, embed_options.merge, trace=embed_options.tokens)
    if embed_options.tokens:
        return token_vectors(tokens.x[:, special:], tokens, special + patches)
    features = tokens.x[:, 0] if embed_options.pool == "cls" else tokens.mean(special, patches)
    return image_vectors(features, special + patches, tokens.x.shape[1])
