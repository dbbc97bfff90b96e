"""MAWS beyond the recorded cases (tests/golden/maws): the published sizes, the text tower against PyTorch's own transformer, and what the
recorded tolerance would let pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from models.bundle_schema import Preprocess
from models.checkpoints import detect, families, fit, import_checkpoint, read_checkpoint
from models.systems.image_text.maws import CLIP, VISION, MAWSClip
from models.systems.image_text.text_encoder import PostNormTextConfig, PostNormTextEncoder
from models.systems.vit.model import ViT
from server.media.images import to_model_size
from tests.golden.case import published_keys, read_case
from tests.golden.replays.maws import answers, clip_config, load
from training.data import load_image

GOLDEN = Path(__file__).parents[3] / "golden" / "maws"
PAIR = GOLDEN / "clip"
KEYS: dict[str, Any] = published_keys("maws")

TEXT = PostNormTextConfig(
    vocabulary=50, positions=20, token_types=0, padding=1, width=16, depth=3, heads=4, hidden=24, norm_eps=1e-5, dropout=0.0
)


def texts() -> Tensor:
    """Return texts of 5 tokens and of 3, padded to 6."""
    return torch.tensor([[0, 7, 8, 9, 2, 1], [0, 30, 2, 1, 1, 1]])


def shapes_of(weights: dict[str, Tensor]) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in weights.items()}


@pytest.mark.parametrize("name", KEYS)
def test_published_checkpoints_load_strictly_at_full_size(name: str) -> None:
    shapes = KEYS[name]["params"]
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    family = families()["maws_clip" if name in CLIP else "maws"]
    assert family.name in detect(weights)
    found = fit(weights, family, {})
    assert found.perfect
    assert found.config() == {**VISION, **CLIP}[name]
    with torch.device("meta"):
        model = MAWSClip(found.config()) if name in CLIP else ViT(found.config())
    model.load_state_dict(found.weights, strict=True, assign=True)
    assert shapes_of(family.export(model.state_dict())) == shapes


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vit_b16", 85_798_656),
        ("vit_l16", 303_301_632),
        ("vit_h14", 630_764_800),
        ("vit_2b14", 1_890_408_960),
        ("vit_6.5b14", 6_447_632_384),
        ("vit_b16_ft_in1k", 87_203_560),
        ("vit_l16_ft_in1k", 305_174_504),
        ("vit_h14_ft_in1k", 633_470_440),
        ("vit_2b14_ft_in1k", 1_895_819_240),
        ("vit_6.5b14_ft_in1k", 6_456_288_232),
        ("vit_b16_xlmr_b", 364_430_593),
        ("vit_l16_xlmr_l", 864_238_593),
        ("vit_h14_xlmr_l", 1_191_963_905),
        ("vit_2b14_xlmr_l", 2_456_588_801),
    ],
)
def test_sizes_have_published_parameters_and_differ_in_shapes(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = MAWSClip(CLIP[name]) if name in CLIP else ViT(VISION[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    family = families()["maws_clip" if name in CLIP else "maws"]
    assert fit(family.export(model.state_dict()), family, {}).config() == model.config


@pytest.mark.parametrize(("name", "family"), [("vision_features", "maws"), ("vision_ft_head", "maws"), ("clip", "maws_clip")])
def test_a_checkpoint_survives_the_way_to_our_names_and_back(name: str, family: str) -> None:
    published = read_checkpoint(GOLDEN / name / "checkpoint.pth")
    table = families()[family]
    exported = table.export(table.table.translate(published).weights)
    assert exported.keys() == published.keys()
    assert all(torch.equal(exported[key], value) for key, value in published.items())


def test_a_checkpoint_and_its_heads_give_the_whole_config() -> None:
    config = clip_config(read_case(PAIR).config)
    heads = {"heads": config.heads, "text_heads": config.text_heads}
    assert fit(read_checkpoint(PAIR / "checkpoint.pth"), families()["maws_clip"], heads).config() == config


def older(key: str) -> str:
    """Return the name that earlier versions of the published code gave a parameter."""
    for new, old in {
        "layers.layers.": "layers.",
        "self_attn.in_proj_": "attention.input_projection.",
        "self_attn.out_proj": "attention.output_projection",
        "linear1": "residual_mlp.mlp.0",
        "linear2": "residual_mlp.mlp.3",
    }.items():
        key = key.replace(new, old)
    return key.replace(".norm1.", ".attention_layer_norm.").replace(".norm2.", ".final_layer_norm.") if "text_encoder" in key else key


def test_other_image_size_resizes_positions_as_mae_does() -> None:
    published, config = read_checkpoint(PAIR / "checkpoint.pth"), clip_config(read_case(PAIR).config)
    table = fit(published, families()["maws_clip"], {**vars(config), "image_size": 48}).weights["vision.pos_embed"]
    ours = published["vision_encoder.pos_embed"]
    grid = F.interpolate(ours[:, 1:].reshape(1, 4, 4, 40).permute(0, 3, 1, 2), size=(6, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(table, torch.cat([ours[:, :1], grid.permute(0, 2, 3, 1).reshape(1, 36, 40)], dim=1))


def test_the_older_spelling_of_the_text_tower_is_read() -> None:
    published, settings = read_checkpoint(PAIR / "checkpoint.pth"), vars(clip_config(read_case(PAIR).config))
    renamed = {older(key): value for key, value in published.items()}
    assert renamed.keys() != published.keys()
    found, expected = (fit(weights, families()["maws_clip"], settings) for weights in (renamed, published))
    assert found.perfect
    assert all(torch.equal(found.weights[key], value) for key, value in expected.weights.items())


def test_bfloat16_stays_within_two_percent() -> None:
    case = read_case(PAIR)
    with torch.inference_mode():
        outputs = answers(case, load(case).bfloat16()).outputs
    for name in ("image_features", "text_features", "class_embeddings"):
        recorded = case.outputs[name]
        assert ((outputs[name].float() - recorded).norm(dim=1) < 0.02 * recorded.norm(dim=1)).all(), name


def torch_layer(config: PostNormTextConfig) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        config.width, config.heads, config.hidden, 0.0, "gelu", layer_norm_eps=config.norm_eps, batch_first=True, norm_first=False
    )


@pytest.mark.parametrize("norm_eps", [1e-5, 1e-12])
def test_the_text_tower_is_the_post_norm_transformer_of_pytorch(norm_eps: float) -> None:
    """Activations are small, in float64: another epsilon in any norm of a layer would stay inside the recorded tolerance."""
    torch.manual_seed(0)
    model = PostNormTextEncoder(PostNormTextConfig(**{**vars(TEXT), "norm_eps": norm_eps})).double().eval()
    tokens = texts()
    x = model.embed_norm(model.token_embed(tokens) + model.pos_embed(model.position_ids(tokens)))
    for block in model.blocks:
        layer = torch_layer(model.config).double().train()  # the fast path of evaluation has its own arithmetic
        names = {"self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj.", "linear1": "mlp.fc1", "linear2": "mlp.fc2"}
        our_own = block.state_dict()
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                for theirs, ours in names.items():
                    name = name.replace(theirs, ours)
                parameter.copy_(our_own[name])
        x = layer(x, src_key_padding_mask=tokens == 1)
    torch.testing.assert_close(model(tokens)[tokens != 1], x[tokens != 1], atol=1e-12, rtol=1e-12)


def test_places_are_counted_from_the_one_after_padding() -> None:
    assert PostNormTextEncoder(TEXT).position_ids(texts()).tolist() == [[2, 3, 4, 5, 6, 1], [2, 3, 4, 1, 1, 1]]


def test_how_much_padding_there_is_makes_no_difference() -> None:
    case = read_case(PAIR)
    model, tokens = load(case), case.inputs["tokens"].long()
    longer = torch.cat([tokens, torch.ones(len(tokens), 9, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(model.encode_texts(longer), model.encode_texts(tokens), atol=1e-6, rtol=1e-5)


def test_a_class_without_texts_is_refused() -> None:
    model = load(read_case(PAIR))
    with pytest.raises(ValueError, match="class 1 has no text"):
        model.class_features(torch.tensor([[0, 5, 2]]), torch.tensor([0]), 2)


@pytest.mark.parametrize(
    "prepare", [lambda image, p: to_model_size(image, p, 10_000), load_image.to_model_size], ids=["service", "training"]
)
def test_pictures_for_fine_tuned_models_are_squeezed(prepare: Any) -> None:
    """The four corners of an oblong image are still there."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:20, :40], pixels[20:, 40:] = 255, 128
    preprocess = Preprocess(image_size=16, short_side=16, fit="squeeze", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    small = prepare(Image.fromarray(pixels), preprocess)
    assert small.shape == (16, 16, 3)
    assert [int(small[y, x, 0]) for y in (0, -1) for x in (0, -1)] == [255, 0, 0, 128]


def import_file(name: str, **changes: Any) -> Any:
    arguments: dict[str, Any] = {"family": "maws", "labels": None, "overrides": {"heads": "4"}, "name": "test", "version": "1"}
    return import_checkpoint(GOLDEN / name / "checkpoint.pth", license="CC-BY-NC-4.0", **{**arguments, **changes})


def test_a_fine_tuned_encoder_classifies_and_a_bare_one_embeds() -> None:
    spec, _ = import_file("vision_ft_head")
    assert (spec.architecture, spec.config["classes"], spec.config["proportional_attention"]) == ("vit", 9, True)
    assert families()["maws"].preprocess(518).fit == "squeeze"
    assert families()["maws"].preprocess(224).fit == "crop"
    bare, _ = import_file("vision_features", family="maws", overrides={"heads": "5"})
    assert (bare.task, bare.architecture, bare.labels) == ("embed", "vit", [])
