"""Forward calls of a worker to a ViT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from models.bundle import Preprocess
from models.layers.forward import normalise, with_tokens
from models.merge_schedule import MergeSchedule


def classify(model: nn.Module, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Tensor]:
    """pixels uint8 (B, S, S, 3); option `merge`: r per block → logits and numbers of tokens."""
    schedule = MergeSchedule.of(options.get("merge", ()))
    answer = model(normalise(arrays["pixels"], preprocess, next(model.parameters()).dtype), merge=schedule)
    return with_tokens(answer.logits, answer.tokens_in, answer.tokens_out)
