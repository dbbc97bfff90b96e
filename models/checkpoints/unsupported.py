"""Parts of published checkpoints that no family here reads, by the name that the field has for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

PARTS: Mapping[str, str] = {
    r"\.ls[12]\.gamma$|\.gamma_[12]$|\.layer_scale": "LayerScale",
    r"\.(q|k|query|key)_?norm\.": "QK-norm",
    r"reg_?token|register|storage_token": "register tokens",
    r"rope|freqs_cis": "rotary position embeddings",
    r"relative_position_bias|rel_pos_bias": "relative position biases",
    r"mlp\.(w12|w[123]|fc1_[gx]|gate_proj)\.": "gated MLPs (SwiGLU)",
    r"attn_pool": "attention pooling",
    r"norm_pre": "a norm before the first block",
    r"mlp\.norm\.|attn\.norm\.|inner_attn_ln": "norms inside attention or MLP",
    r"lora_": "LoRA adapters",
    r"(weight|input)_scale$|qweight|\.SCB$|absmax": "quantised weights",
}
"""Pattern of published keys → name of the part."""
ONNX_ADVICE = "another classifier or encoder of images comes as ONNX: export it, then `opsin import FILE.onnx --as classify`"
"""Advice at the end of each refusal of an architecture."""


def describe_unsupported(unexpected: Iterable[str]) -> list[str]:
    """One sentence for each unsupported part that keys show."""
    keys = list(unexpected)
    return [f"{part} cannot be imported" for pattern, part in PARTS.items() if any(re.search(pattern, key) for key in keys)]
