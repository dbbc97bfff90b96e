"""MAE: pre-training, and the fine-tuned classifier at two resolutions with its parameter groups and learning rates."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from models.checkpoints import families, fit, read_checkpoint
from models.layers.masked_encoder import Masking
from models.layers.patches import patchify, unpatchify
from models.systems.mae.model import MAE, MAEConfig
from models.systems.vit.model import ViT
from tests.golden.case import Case, Replay
from training.optim import layer_decay_groups, warmup_cosine

NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"

SIZES = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "in_chans": "channels",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "decoder_embed_dim": "decoder_width",
    "decoder_depth": "decoder_depth",
    "decoder_num_heads": "decoder_heads",
    "mlp_ratio": "mlp_ratio",
    "norm_eps": "norm_eps",
    "mask_ratio": "mask_ratio",
    "norm_pix_loss": "normalise_targets",
}
"""Published name → ours; what a case does not say has its default."""

FINE_TUNED = ("num_heads", "norm_eps", "img_size")
"""Fields that the weights of a classifier do not determine; its positions are taken to the case's image size."""


def settings(config: dict[str, Any], names: Iterable[str] = SIZES) -> dict[str, Any]:
    return {SIZES[name]: config[name] for name in names if name in config}


def replay(case: Case) -> Replay:
    return _pretraining(case) if "decoder_depth" in case.config else _replay_finetuned(case)


def _pretraining(case: Case) -> Replay:
    images, noise = case.inputs["img"], case.inputs["noise"]
    model = MAE(MAEConfig(**settings(case.config)))
    tables = {"pos_embed": model.pos_embed.clone(), "decoder_pos_embed": model.decoder_pos_embed.clone()}
    model.load_state_dict({**tables, **read_checkpoint(case.checkpoint)})  # a file may go without its tables
    answer = model(images, noise)
    masking = Masking.from_noise(noise, model.config.visible)
    return Replay(
        outputs={
            "loss": answer.loss,
            "pred": answer.patches,
            "mask": answer.mask,
            "unpatchified_pred": unpatchify(answer.patches, model.config.patch_size),
            "patchified_img": patchify(images, model.config.patch_size),
            **{f"sincos_{name}": table for name, table in tables.items()},
        },
        intermediates={
            "tokens": model.embed(images),
            "latent": model.encode_visible(images, masking.ids_keep),
            "ids_restore": masking.ids_restore,
        },
    )


def _replay_finetuned(case: Case) -> Replay:
    weights = read_checkpoint(case.checkpoint)
    config = settings(case.config, FINE_TUNED)
    model = fit(weights, families()["mae"], config).model()
    assert isinstance(model, ViT)
    answer = model(case.inputs["img"])
    outputs = {"logits": answer.logits, "features": answer.features}
    if "interp_img_size" in case.config:
        large = fit(weights, families()["mae"], {**config, "image_size": case.config["interp_img_size"]}).model()
        outputs |= {"logits_large": large(case.inputs["img_large"]).logits, "pos_embed_large": large.pos_embed}
    recorded: dict[str, Any] = {}
    if "param_groups" in case.recorded:
        recorded["param_groups"] = _parameter_groups(model, case.recorded["param_groups"])
    if "lr_schedule" in case.recorded:
        recorded["lr_schedule"] = _learning_rates(case.recorded["lr_schedule"])
    return Replay(outputs, recorded=recorded)


def _parameter_groups(model: ViT, expected: dict[str, Any]) -> dict[str, Any]:
    """Layer decay → parameter → [lr_scale, weight_decay]; the weight decay stands in the prose."""
    found = re.search(rf"weight_decay ({NUMBER})", expected["meaning"])
    assert found, expected["meaning"]
    table = {}
    for decay in expected["table"]:
        groups = layer_decay_groups(model.requires_grad_(), layer_decay=float(decay), weight_decay=float(found[1]))
        table[decay] = {name: [group["lr_scale"], group["weight_decay"]] for group in groups for name in group["names"]}
    return {**expected, "table": table}


def _learning_rates(expected: dict[str, Any]) -> dict[str, Any]:
    rates = {epoch: warmup_cosine(float(epoch), **expected["args"]) for epoch in expected["epoch_to_lr"]}
    return {**expected, "epoch_to_lr": rates}
