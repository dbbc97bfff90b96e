"""Forward calls of a worker to MViT and Rev-MViT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from models.bundle_schema import Preprocess
from models.layers.forward import classification_arrays, normalise


def classify(model: nn.Module, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Tensor]:
    """Classify pixels: uint8 (B, S, S, 3) → logits and token counts. The option `merge` has no effect, since pooling decides the counts."""
    output = model(normalise(arrays["pixels"], preprocess, next(model.parameters()).dtype))
    return classification_arrays(output.logits, output.tokens_in, output.tokens_out)
