"""CiT: both towers, their projections and losses; and one round of curation on recorded embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.checkpoints import families, fit, read_checkpoint
from models.systems.image_text.cit import CiT, CiTConfig, VisionTower
from models.systems.image_text.dual_encoder import unit_vectors
from tests.golden.case import Case, Replay
from tests.golden.replays.maws import vision_fields
from training.curation import Curation, curate, label_features, label_similarity

FAMILY_OF = {VisionTower.MOCO: "cit", VisionTower.AUGREG: "cit_augreg", VisionTower.SWAG: "cit_swag"}


def replay(case: Case) -> Replay:
    return _curation(case) if "threshold" in case.config else answers(case, load(case))


def answers(case: Case, model: CiT) -> Replay:
    """Return the answers; a case may lack one of the two kinds of inputs."""
    outputs, intermediates = {"logit_scale": model.scale()}, {}
    pictures, captions = pictures_of(case, model), captions_of(case)
    if pictures is not None:
        seen = model.encode_vision(pictures)
        images = model.vision_projection(seen)
        intermediates["vision_pooled"] = seen
        outputs |= {"image_embeds": images, "image_embeds_normalized": unit_vectors(images)}
    if captions is not None:
        text_features = model.encode_text_features(*captions)
        texts = model.text_projection(text_features)
        outputs |= {"text_embeds_skip_projection": text_features, "text_embeds": texts, "text_embeds_normalized": unit_vectors(texts)}
    if pictures is not None and captions is not None:
        outputs["cosine"] = unit_vectors(images) @ unit_vectors(texts).T
        if len(images) == len(texts):
            outputs["loss_i2t"] = model(pictures, *captions)
            outputs["loss_symmetric"] = model(pictures, *captions, symmetric=True)
    return Replay(outputs, intermediates)


def pictures_of(case: Case, model: CiT) -> Tensor | None:
    pixels = case.inputs.get("pixel_values")
    return None if pixels is None else pixels.to(model.logit_scale.dtype)


def captions_of(case: Case) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """Return tokens, a mask of those that are not padding, and their segments."""
    tokens, visible, types = (case.inputs.get(name) for name in ("input_ids", "attention_mask", "token_type_ids"))
    return None if tokens is None else (tokens.long(), None if visible is None else visible.long(), None if types is None else types.long())


def load(case: Case) -> CiT:
    config = cit_config(case.config)
    found = fit(read_checkpoint(case.checkpoint), families()[FAMILY_OF[config.tower]], vars(config))
    assert found.perfect, found.mismatch_message()
    model: Any = found.model()
    assert model.config == config
    return model  # type: ignore[no-any-return]


def cit_config(config: dict[str, Any]) -> CiTConfig:
    vision, text = config["vision"], config["text"]
    assert text.get("hidden_act", "gelu (exact)") == "gelu (exact)"
    fields: dict[str, Any] = {"projector_hidden": vision["mlp_dim"], "projector_width": vision["out_dim"]} if "mlp_dim" in vision else {}
    return CiTConfig(
        tower=VisionTower(config["vision_tower"]),
        **vision_fields(vision),
        tower_classes=vision.get("num_classes", 0),
        vocabulary=text["vocab_size"],
        positions=text["max_position_embeddings"],
        text_width=text["hidden_size"],
        text_depth=text["num_hidden_layers"],
        text_heads=text["num_attention_heads"],
        text_hidden=text["intermediate_size"],
        text_norm_eps=text.get("layer_norm_eps", 1e-12),
        joint_width=config["projection_dim"],
        **fields,
    )


def _curation(case: Case) -> Replay:
    config, inputs = case.config, case.inputs
    labels = label_features(inputs["metadata_embeddings"], inputs["label_members"].long())
    alike = label_similarity(inputs["pool_embeddings"], labels)
    curation = Curation(
        target=config.get("target") or config["curate"] * config["batch_size"],
        threshold=config["threshold"],
        min_ratio=config.get("min_ratio"),
        unique=config.get("ids_container", "set").startswith("set"),
    )
    warming_up = config.get("step", 0) < config.get("skip_step", 0)
    batch: int = config.get("pool_batch") or 2 * config["batch_size"]
    batches = zip(torch.split(inputs["pool_ids"].long(), batch), torch.split(alike.cosine, batch), strict=True)
    curated = curate(batches, curation, keep_all=warming_up)
    count = -(-len(alike.cosine) // batch)
    # the reference cuts a set in any order, so that what was recorded is all of it, sorted
    collected = sorted(curated.collected) if curation.unique else curated.ids
    outputs = {
        "label_features": labels,
        "max_similarity": alike.cosine,
        "argmax_label": alike.label,
        "mask": pad_to(torch.cat([choice.mask for choice in curated.choices]), len(alike.cosine)),
        "collected_ids": torch.tensor(collected),
        "n_collected_before_truncation": torch.tensor(len(curated.collected)),
        "batches_consumed": torch.tensor(len(curated.choices)),
        "fallback_used": pad_to(torch.tensor([choice.fell_back for choice in curated.choices]), count),
        "ratio": torch.tensor(curated.ratio),
    }
    return Replay(outputs)


def pad_to(values: Tensor, length: int) -> Tensor:
    return torch.cat([values, values.new_zeros(length - len(values))])
