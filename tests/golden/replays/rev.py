"""Reversible ViT and MViT: answers in both modes, and the gradients of the recomputing backward pass.

Recorded gradients have published names: ours are exported through the table of the family, as weights are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoints import families, fit, read_checkpoint
from models.checkpoints.family import ConfigFields, Family
from models.layers.reversible import couple
from models.layers.token_merging import Tokens
from models.systems.mvit.checkpoint_reversible import is_rev_vit, mvit_fields, vit_fields
from models.systems.mvit.model import MViTOutput
from models.systems.mvit.reversible import RevMViT, StageTransition
from models.systems.vit.model import ViT
from tests.golden.case import Case, Replay


def replay(case: Case) -> Replay:
    family, settings = choose(case.config)
    model = fit(read_checkpoint(case.checkpoint), family, settings).model()
    images = case.inputs["x"].clone().requires_grad_()
    answer, intermediates = model(images), walk(model, images)
    probabilities = answer.scores if isinstance(answer, MViTOutput) else answer.logits.softmax(dim=-1)
    model.train()
    with torch.enable_grad():
        logits = model(images, keep=masks(case.inputs, model.config.depth)).logits
        loss = (logits * case.inputs["loss_weight"]).sum()
    loss.backward()
    gradients = family.table.export({name: parameter.grad for name, parameter in model.named_parameters()})
    outputs = {
        "probs": probabilities,
        "logits": logits,
        "loss": loss.reshape(1),
        "grad_norms": torch.stack([gradients[name].norm() for name in sorted(gradients)]),
        "grad.x": images.grad,
        **{f"grad.{name}": gradient for name, gradient in gradients.items()},
    }
    return Replay(outputs, intermediates)


def choose(config: Mapping[str, Any]) -> tuple[Family, ConfigFields]:
    """Return the family and the fields of its config for a configuration of SlowFast or arguments of minREV."""
    if "n_head" in config:
        height, width = config["image_size"]
        return families()["minrev"], {"heads": config["n_head"], "image_size": height, "image_width": width}
    layout = "" if config["MVIT"].get("SEPARATE_QKV", False) else "_fused"
    if is_rev_vit(config):
        return families()[f"rev_vit{layout}"], vit_fields(config)
    return families()[f"rev_mvit{layout}"], mvit_fields(config)


def masks(inputs: Mapping[str, Tensor], depth: int) -> Tensor | None:
    """Return masks (depth, B) if any are recorded: a block without one drops nothing."""
    recorded = {name: mask for name, mask in inputs.items() if name.startswith("drop_mask.layer")}
    if not recorded:
        return None
    keep_all = torch.ones(inputs["x"].shape[0])
    return torch.stack([recorded.get(f"drop_mask.layer{number}", keep_all).float() for number in range(depth)])


def walk(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the streams after every block, in evaluation mode."""
    return _walk_vit(model, images) if isinstance(model, ViT) else _walk_mvit(model, images)


def _walk_vit(model: ViT, images: Tensor) -> dict[str, Tensor]:
    patches = model.patch_embed(images)
    x = patches + model.pos_embed
    found, streams = {"patch_tokens": patches}, (x, x)
    for number, block in enumerate(model.blocks):
        streams = couple(block, Tokens(x)).forward(*streams)
        found |= {f"layer{number}.y1": streams[0], f"layer{number}.y2": streams[1]}
    z = torch.cat(streams, dim=-1)
    return found | {"fused_norm_tokens": model.norm(z), "pooled_norm": model.fc_norm(z.mean(dim=1))}


def _walk_mvit(model: RevMViT, images: Tensor) -> dict[str, Tensor]:
    patches, grid = model.patch_embed(images)
    x = patches + model.pos_embed(grid)
    found, streams = {"patch_tokens": patches}, (x, x)
    for number, block in enumerate(model.blocks):
        grid = model.config.grid_of(number)
        if isinstance(block, StageTransition):
            x = block(torch.cat(streams, dim=-1), grid, None)
            found[f"layer{number}.out"], streams = x, (x, x)
        else:
            streams = block.couple(x, grid, None).forward(*streams)
            found |= {f"layer{number}.y1": streams[0], f"layer{number}.y2": streams[1]}
    if model.config.mean_first:
        return found
    return found | {"fused_norm_tokens": model.norm(torch.cat(streams, dim=-1))}
