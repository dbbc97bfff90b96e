"""CiT: both towers, their projections and losses; and one round of curation on recorded embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.cit import CiT, CiTConfig, Tower
from models.clip import contrastive_loss, unit
from models.published import FAMILIES, fit, read_checkpoint
from tests.golden.case import Case, Replayed
from training.curation import Curation, curate, label_features, likeness

FAMILY_OF = {Tower.MOCO: "cit", Tower.AUGREG: "cit_augreg", Tower.SWAG: "cit_swag"}


def replay(case: Case) -> Replayed:
    return _curation(case) if "threshold" in case.config else answers(case, load(case))


def answers(case: Case, model: CiT) -> Replayed:
    inputs, dtype = case.inputs, next(model.parameters()).dtype
    pixels, tokens, visible = inputs["pixel_values"].to(dtype), inputs["input_ids"].long(), inputs["attention_mask"].long()
    seen, said = model.look(pixels), model.read(tokens, visible, inputs["token_type_ids"].long())
    images, texts = model.vision_projection(seen), model.text_projection(said)
    outputs = {
        "image_embeds": images,
        "image_embeds_normalized": unit(images),
        "text_embeds": texts,
        "text_embeds_normalized": unit(texts),
        "text_embeds_skip_projection": said,
        "cosine": unit(images) @ unit(texts).T,
        "logit_scale": model.scale(),
        "loss_i2t": model(pixels, tokens, visible),
        "loss_symmetric": contrastive_loss(unit(images), unit(texts), model.scale()),
    }
    return Replayed(outputs, {"vision_pooled": seen})


def load(case: Case) -> CiT:
    config = cit_config(case.config)
    found = fit(read_checkpoint(case.checkpoint), FAMILIES[FAMILY_OF[config.tower]], vars(config))
    assert found.perfect, found.complaint()
    model: Any = found.model()
    assert model.config == config
    return model  # type: ignore[no-any-return]


def cit_config(config: dict[str, Any]) -> CiTConfig:
    vision, text = config["vision"], config["text"]
    assert text["hidden_act"] == "gelu (exact)"
    fields: dict[str, Any] = {"projector_hidden": vision["mlp_dim"], "projector_width": vision["out_dim"]} if "mlp_dim" in vision else {}
    return CiTConfig(
        tower=Tower(config["vision_tower"]),
        image_size=vision["img_size"],
        patch_size=vision["patch_size"],
        width=vision["embed_dim"],
        depth=vision["depth"],
        heads=vision["num_heads"],
        tower_classes=vision.get("num_classes", 0),
        vocabulary=text["vocab_size"],
        positions=text["max_position_embeddings"],
        text_width=text["hidden_size"],
        text_depth=text["num_hidden_layers"],
        text_heads=text["num_attention_heads"],
        text_hidden=text["intermediate_size"],
        text_norm_eps=text["layer_norm_eps"],
        joint_width=config["projection_dim"],
        **fields,
    )


def _curation(case: Case) -> Replayed:
    config, inputs = case.config, case.inputs
    labels = label_features(inputs["metadata_embeddings"], inputs["label_members"].long())
    alike = likeness(inputs["pool_embeddings"], labels)
    curation = Curation(
        target=config["target"],
        threshold=config["threshold"],
        min_ratio=config["min_ratio"],
        unique=config["ids_container"].startswith("set"),
    )
    batches = zip(inputs["pool_ids"].long().split(config["pool_batch"]), alike.cosine.split(config["pool_batch"]), strict=True)
    curated = curate(batches, curation)
    count = -(-len(alike.cosine) // config["pool_batch"])
    # the reference cuts a set in any order, so that what was recorded is all of it, sorted
    collected = sorted(curated.collected) if curation.unique else curated.ids
    outputs = {
        "label_features": labels,
        "max_similarity": alike.cosine,
        "argmax_label": alike.label,
        "mask": padded(torch.cat([choice.kept for choice in curated.choices]), len(alike.cosine)),
        "collected_ids": torch.tensor(collected),
        "n_collected_before_truncation": torch.tensor(len(curated.collected)),
        "batches_consumed": torch.tensor(len(curated.choices)),
        "fallback_used": padded(torch.tensor([choice.fell_back for choice in curated.choices]), count),
        "ratio": torch.tensor(curated.ratio),
    }
    return Replayed(outputs)


def padded(values: Tensor, length: int) -> Tensor:
    return torch.cat([values, values.new_zeros(length - len(values))])
