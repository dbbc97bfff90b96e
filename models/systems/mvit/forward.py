"""Forward calls of a worker to MViT and Rev-MViT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from models.bundle_schema import Preprocess
from models.layers.forward import normalise, with_tokens


def classify(model: nn.Module, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Tensor]:
    """pixels uint8 (B, S, S, 3) → logits and numbers of tokens, which pooling decides: the option `merge` changes nothing."""
    answer = model(normalise(arrays["pixels"], preprocess, next(model.parameters()).dtype))
    return with_tokens(answer.logits, answer.tokens_in, answer.tokens_out)
