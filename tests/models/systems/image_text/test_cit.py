"""CiT beyond the recorded cases (tests/golden/cit): the published sizes, the SWAG tower, training mode, and what is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.checkpoints import detect, families, fit, read_checkpoint
from models.systems.image_text.cit import PUBLISHED, CiT, CiTConfig, VisionTower
from models.systems.vit.checkpoint import SWAG
from models.systems.vit.model import ViT
from tests.golden.case import published_keys, read_case
from tests.golden.replays.cit import FAMILY_OF, answers, cit_config, load

GOLDEN = Path(__file__).parents[3] / "golden" / "cit"
TOWERS = ["moco_tiny", "augreg_tiny"]
KEYS: dict[str, Any] = published_keys("cit")
SIZES = {"yfcc15m_in1k_mocob16": "cit_mocob16", "augreg_b32_in21k (not published, training configuration)": "cit_augreg_b32"}
POSITION_IDS = "text_model.embeddings.position_ids"

SMALL = CiTConfig(
    image_size=32,
    patch_size=8,
    width=24,
    depth=2,
    heads=3,
    projector_hidden=20,
    projector_width=10,
    vocabulary=40,
    positions=12,
    text_width=16,
    text_depth=2,
    text_heads=2,
    text_hidden=32,
    joint_width=8,
)


def make(config: CiTConfig = SMALL) -> CiT:
    torch.manual_seed(0)
    return CiT(config).eval()


def batch(count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, tokens, and which of these are words."""
    generator = torch.Generator().manual_seed(1)
    images, tokens = torch.randn(count, 3, 32, 32, generator=generator), torch.randint(1, 40, (count, 7), generator=generator)
    visible = torch.ones_like(tokens)
    visible[0, 4:] = 0
    return images, tokens, visible


@pytest.mark.parametrize("name", KEYS)
def test_published_checkpoints_load_strictly_at_full_size(name: str) -> None:
    shapes = KEYS[name]["params"]
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    family = families()[FAMILY_OF[PUBLISHED[SIZES[name]].tower]]
    assert detect(weights) == [family.name]
    found = fit(weights, family, {})
    assert found.perfect
    assert found.config() == PUBLISHED[SIZES[name]]
    with torch.device("meta"):
        model = CiT(found.config())
    model.load_state_dict(found.weights, strict=True, assign=True)
    assert {key: list(value.shape) for key, value in family.export(model.state_dict()).items()} == shapes


@pytest.mark.parametrize("name", TOWERS)
def test_a_checkpoint_survives_the_way_to_our_names_and_back(name: str) -> None:
    case = read_case(GOLDEN / name)
    published, config = read_checkpoint(case.checkpoint), cit_config(case.config)
    family = families()[FAMILY_OF[config.tower]]
    exported = family.export(fit(published, family, vars(config)).weights)
    assert exported.keys() == published.keys()
    assert all(torch.equal(exported[key], value) and exported[key].dtype == value.dtype for key, value in published.items())


@pytest.mark.parametrize("name", TOWERS)
def test_a_checkpoint_and_its_heads_give_the_whole_config(name: str) -> None:
    case = read_case(GOLDEN / name)
    config = cit_config(case.config)
    heads = {"heads": config.heads, "text_heads": config.text_heads}
    assert fit(read_checkpoint(case.checkpoint), families()[FAMILY_OF[config.tower]], heads).config() == config


def test_the_buffer_of_positions_may_be_absent() -> None:
    case = read_case(GOLDEN / "moco_tiny")
    published = read_checkpoint(case.checkpoint)
    del published[POSITION_IDS]
    assert detect(published) == ["cit"]
    assert fit(published, families()["cit"], vars(cit_config(case.config))).perfect


@pytest.mark.parametrize("name", TOWERS)
def test_bfloat16_stays_within_two_percent(name: str) -> None:
    case = read_case(GOLDEN / name)
    with torch.inference_mode():
        outputs = answers(case, load(case).bfloat16()).outputs
    for output in ("image_embeds", "text_embeds", "text_embeds_skip_projection"):
        recorded = case.outputs[output]
        assert ((outputs[output].float() - recorded).norm(dim=1) < 0.02 * recorded.norm(dim=1)).all(), output


def test_the_swag_tower_has_the_names_of_swag_below_its_prefix() -> None:
    """The sources are the published names of SWAG and those of the other two towers, since no file with it was published."""
    model = make(replace(SMALL, tower=VisionTower.SWAG))
    published = families()["cit_swag"].export(model.state_dict())
    assert detect(published) == ["cit_swag"]
    found = fit(published, families()["cit_swag"], {"heads": 3, "text_heads": 2})
    assert found.perfect
    images, _, _ = batch()
    torch.testing.assert_close(found.model().encode_images(images), model.encode_images(images))  # type: ignore[operator]
    alone = {key.removeprefix("vision_model.swag."): value for key, value in published.items() if key.startswith("vision_model.")}
    vision = ViT(replace(model.config.vision, classes=0)).eval()
    vision.load_state_dict(SWAG.table.translate(alone).weights)
    torch.testing.assert_close(vision(images).features, model.encode_vision(images))


@pytest.mark.parametrize("tower", VisionTower)
def test_another_image_size_resizes_positions_as_the_tower_does(tower: VisionTower) -> None:
    """SWAG's own rule aligns corners."""
    family = families()[FAMILY_OF[tower]]
    published = family.export(make(replace(SMALL, tower=tower)).state_dict())
    same, larger = (
        fit(published, family, {"heads": 3, "text_heads": 2, "image_size": size}).weights["vision.pos_embed"] for size in (32, 48)
    )
    grid = same[:, 1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=tower is VisionTower.SWAG)
    assert torch.equal(larger[:, :1], same[:, :1])
    torch.testing.assert_close(larger[:, 1:], resized.permute(0, 2, 3, 1).reshape(1, 36, 24))


def test_padding_is_not_read() -> None:
    model = make()
    _, tokens, visible = batch()
    other = tokens.where(visible.bool(), 3)
    torch.testing.assert_close(model.encode_texts(other, visible), model.encode_texts(tokens, visible))
    torch.testing.assert_close(model.encode_texts(tokens[:1, :4]), model.encode_texts(tokens, visible)[:1])


def test_segments_are_read_everywhere_alike() -> None:
    model = make()
    images, tokens, visible = batch()
    types = (torch.arange(7) > 2).long().expand_as(tokens)
    texts = model.encode_texts(tokens, visible, types)
    assert not torch.allclose(texts, model.encode_texts(tokens, visible))
    torch.testing.assert_close(texts, model.text_projection(model.encode_text_features(tokens, visible, types)))
    logits = model.scale() * F.normalize(model.encode_images(images)) @ F.normalize(texts).T
    torch.testing.assert_close(model(images, tokens, visible, types), -logits.log_softmax(dim=1).diagonal().mean())


def test_a_class_is_the_mean_of_its_texts_as_unit_vectors() -> None:
    model = make()
    _, tokens, visible = batch()
    texts = F.normalize(model.encode_texts(tokens, visible))
    features = model.class_features(tokens, visible, torch.tensor([1, 0, 1, 1]), 2)
    torch.testing.assert_close(features, F.normalize(torch.stack([texts[1], texts[[0, 2, 3]].mean(dim=0)])))


def test_captions_are_curated_by_what_the_pooler_says() -> None:
    model = make()
    _, tokens, visible = batch()
    message = model.encode_text_features(tokens, visible)
    assert message.shape == (4, 16) and bool((message.abs() < 1).all())
    torch.testing.assert_close(model.text_projection(message), model.encode_texts(tokens, visible))


def test_training_updates_projector_statistics_and_trainables() -> None:
    model = make().train()
    model.vision.requires_grad_(False)
    before = model.head[1].running_mean.clone() if model.head is not None else None
    model(*batch()).backward()
    assert model.head is not None and before is not None
    assert not torch.equal(model.head[1].running_mean, before)
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith("vision.")}


def test_the_scale_has_no_bounds() -> None:
    model = make()
    model.logit_scale.data.fill_(6.0)
    assert float(model.scale().detach()) == pytest.approx(403.4288)
    model(*batch()).backward()
    assert model.logit_scale.grad is not None and float(model.logit_scale.grad) != 0


def test_the_loss_asks_for_the_text_of_each_picture_only() -> None:
    """A text belongs to either of two equal images by a coin toss, which the default does not count."""
    model = make()
    images, tokens, visible = batch(2)
    images[1] = images[0]
    loss, symmetric = model(images, tokens, visible), model(images, tokens, visible, symmetric=True)
    features = F.normalize(model.encode_images(images)), F.normalize(model.encode_texts(tokens, visible))
    logits = model.scale() * features[0] @ features[1].T
    one_way, other_way = (-part.log_softmax(dim=1).diagonal().mean() for part in (logits, logits.T))
    torch.testing.assert_close(loss, one_way)
    torch.testing.assert_close(symmetric, (one_way + other_way) / 2)
    assert float(other_way.detach()) == pytest.approx(0.693147, abs=1e-5)
