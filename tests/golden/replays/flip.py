"""FLIP: the masked and the whole forward pass, the loss, zero-shot classes, and the published form on disk where the case has one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.checkpoints import families, fit, read_checkpoint
from models.layers.masked_encoder import Masking
from models.systems.image_text.dual_encoder import contrastive_loss
from models.systems.image_text.flip import FLIP, FLIPConfig
from tests.golden.case import Case, Replay, unpack


def replay(case: Case) -> Replay:
    return answers(case, load(case))


def answers(case: Case, model: FLIP) -> Replay:
    inputs, dtype = case.inputs, next(model.parameters()).dtype
    images, tokens, noise = inputs["image_nhwc"].permute(0, 3, 1, 2).to(dtype), inputs["txt"].long(), inputs.get("mask_noise")
    answer, unmasked = model(images, tokens, noise), model(images, tokens)
    outputs = {
        "train_image_features": answer.images,
        "train_text_features": answer.texts,
        "train_loss": answer.loss,
        "tau": 1 / model.scale(),
        "eval_image_features": unmasked.images,
        "eval_text_features": unmasked.texts,
        "eval_loss": contrastive_loss(unmasked.images, unmasked.texts, model.scale()),
    }
    if "zeroshot_classifier" in case.outputs:
        count = len(case.outputs["zeroshot_classifier"])
        classes = torch.arange(count).repeat_interleave(2)  # two templates each
        classifier = model.class_features(tokens[: 2 * count], classes, count)
        outputs |= {"zeroshot_classifier": classifier, "zeroshot_logits": unmasked.images @ classifier.T}
    if noise is None:
        return Replay(outputs)
    masking = Masking.from_noise(noise, model.config.visible)
    return Replay(outputs, {"mask": masking.mask, "ids_keep": masking.ids_keep})


def load(case: Case) -> FLIP:
    """Load from `checkpoint.pth`, and from the T5X folder, which must hold the same; a case may have either."""
    tree = unpack(case.folder)
    weights = read_checkpoint(case.checkpoint if case.checkpoint.is_file() else tree)
    for folder in tree.glob("checkpoint_*/"):
        assert_same(read_checkpoint(folder), weights)
    config = flip_config(case.config)
    found = fit(weights, families()["flip"], vars(config))
    assert found.perfect, found.mismatch_message()
    model: Any = found.model()
    assert model.config == config
    return model  # type: ignore[no-any-return]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], value) for key, value in other.items())


def flip_config(config: dict[str, Any]) -> FLIPConfig:
    image, text = config["image"], config["text"]
    assert config.get("gelu", "tanh approximation") == "tanh approximation"
    return FLIPConfig(
        image_size=config["image_size"],
        patch_size=config["patch_size"],
        width=image["hidden_size"],
        depth=image["layers"],
        heads=image["heads"],
        mlp_ratio=image["mlp_dim"] / image["hidden_size"],
        text_width=text["hidden_size"],
        text_depth=text["layers"],
        text_heads=text["heads"],
        text_hidden=text["mlp_dim"],
        vocabulary=text["vocab_size"],
        text_length=text["max_len"],
        joint_width=config["proj_dim"],
        mask_ratio=image.get("mask_ratio", 0.0),
        fixed_temperature=None if config.get("tau_learnable", True) else config.get("fixed_tau", 0.01),
        norm_eps=config.get("layernorm_eps", 1e-6),
    )
