"""MViTv2 and MViT: classification of clips and of boxes in them, as SlowFast's configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from models.checkpoints import families, fit, read_checkpoint
from models.checkpoints.family import ConfigFields, Family
from models.systems.mvit.checkpoint import fields_of
from tests.golden.case import Case, Replay


def replay(case: Case) -> Replay:
    model = fit(read_checkpoint(case.checkpoint), *choose(case.config)).model()
    intermediates = record(model)
    answer = model(case.inputs["x"], case.inputs.get("boxes"))
    if not model.config.mean_pooling:
        intermediates["norm_tokens"] = model.norm(intermediates[f"block{model.config.depth - 1}"])
    scores = {"probs": answer.scores, "scores": answer.scores}  # classification has the one name, detection the other
    return Replay({"features": answer.features, "logits": answer.logits, **scores}, intermediates)


def choose(config: Mapping[str, Any]) -> tuple[Family, ConfigFields]:
    """Return the family and the fields of its config for a configuration of SlowFast."""
    separate = config["MVIT"].get("SEPARATE_QKV", False)
    return families()["mvit_separate" if separate else "mvit"], fields_of(config)


def record(model: nn.Module) -> dict[str, Tensor]:
    """Record the outputs of the parts in the next forward pass."""
    found: dict[str, Tensor] = {}

    def keep(name: str, part: nn.Module) -> None:
        part.register_forward_hook(lambda module, inputs, output: found.__setitem__(name, output[0]))

    keep("patch_tokens", model.patch_embed)
    for number, block in enumerate(model.blocks):
        keep(f"block{number}", block)
    return found
