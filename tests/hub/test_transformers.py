"""Checkpoints in the layout of transformers answer here as they do in the library: random weights, equal pixels."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from models.bundle import Bundle
from models.checkpoints import CheckpointError
from models.loading import StepOutputs, load
from tests.hub.conftest import change, import_folder, noise, normalise, randomise, save

MAX_DIFFERENCE = 1e-4
"""Maximum difference of a logit, or of a component of a vector of unit length, in float32."""
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
}
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "bird"}, "label2id": {"cat": 0, "dog": 1, "bird": 2}}
HALF, IMAGENET = [0.5, 0.5, 0.5], [0.485, 0.456, 0.406]
SQUARE = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "image_mean": HALF, "image_std": HALF}


def vit(**changes: Any) -> nn.Module:
    return randomise(transformers.ViTForImageClassification(transformers.ViTConfig(**TINY | LABELS | changes)))


def deit(kind: str, **changes: Any) -> nn.Module:
    return randomise(getattr(transformers, kind)(transformers.DeiTConfig(**TINY | LABELS | changes)))


def dinov2(kind: str, **changes: Any) -> nn.Module:
    fields = {key: value for key, value in TINY.items() if key != "intermediate_size"}
    return randomise(getattr(transformers, kind)(transformers.Dinov2Config(**fields | LABELS | changes)))


CLASSIFIERS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "ViT": (vit, SQUARE),
    "ViT with tanh": (lambda: vit(hidden_act="gelu_new"), SQUARE),
    "ViT with quick GELU": (lambda: vit(hidden_act="quick_gelu"), SQUARE),
    "ViT without biases of q, k and v": (lambda: vit(qkv_bias=False), SQUARE),
    "ViT with a larger epsilon": (lambda: vit(layer_norm_eps=0.1), SQUARE),
    "DeiT": (lambda: deit("DeiTForImageClassification"), SQUARE),
    "DeiT with teacher": (lambda: deit("DeiTForImageClassificationWithTeacher"), SQUARE),
    "DINOv2": (lambda: dinov2("Dinov2ForImageClassification"), SQUARE),
    "DINOv2 at another size": (lambda: dinov2("Dinov2ForImageClassification", image_size=56), SQUARE),
}


def logits(bundle: Bundle, pixels: Any, merge: int = 0) -> Any:
    model = load(bundle)
    return model.forward({"pixels": pixels}, {"merge": [merge] * model.depth})["logits"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_answers_as_in_the_library_and_merges(name: str, tmp_path: Path) -> None:
    make, processor = CLASSIFIERS[name]
    model = make()
    made, pixels = import_folder(save(model, tmp_path / "model", processor)), noise(4, 32, 32)
    with torch.inference_mode():
        expected = model(normalise(pixels, made.spec.image_preprocess)).logits.numpy()
    assert expected.std(axis=0).min() > 0.01  # images differ, so weights that see them count
    assert np.abs(logits(made, pixels) - expected).max() <= MAX_DIFFERENCE
    assert made.spec.labels == ["cat", "dog", "bird"]
    merged = logits(made, pixels, merge=3)
    assert np.isfinite(merged).all()
    assert np.abs(merged - expected).max() > MAX_DIFFERENCE


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "ViT": lambda: randomise(transformers.ViTModel(transformers.ViTConfig(**TINY))),
    "DINOv2": lambda: dinov2("Dinov2Model"),
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_an_encoder_gives_the_vectors_of_the_library(name: str, pool: str, tmp_path: Path) -> None:
    model = ENCODERS[name]()
    made, pixels = import_folder(save(model, tmp_path / "model", SQUARE)), noise(4, 32, 32)
    with torch.inference_mode():
        states = model(normalise(pixels, made.spec.image_preprocess)).last_hidden_state
    pooled = states[:, 0] if pool == "cls" else states[:, 1:].mean(dim=1)
    expected = nn.functional.normalize(pooled, dim=-1).numpy()
    assert made.spec.task == "embed"
    assert np.abs(load(made).forward({"pixels": pixels}, {"pool": pool})["embedding"] - expected).max() <= MAX_DIFFERENCE


def mae(**changes: Any) -> transformers.ViTMAEConfig:
    decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 48}
    return transformers.ViTMAEConfig(**TINY | decoder | changes)


@pytest.mark.parametrize("kind", ["ViTMAEModel", "ViTMAEForPreTraining"])
def test_the_encoder_of_an_mae_gives_the_vectors_of_the_library(kind: str, tmp_path: Path) -> None:
    model = randomise(getattr(transformers, kind)(mae(mask_ratio=0.0)))
    made, pixels = import_folder(save(model, tmp_path / "model", SQUARE)), noise(4, 32, 32)
    encoder, order = model.vit if kind == "ViTMAEForPreTraining" else model, torch.arange(16.0).expand(4, -1)
    with torch.inference_mode():
        states = encoder(normalise(pixels, made.spec.image_preprocess), noise=order).last_hidden_state
    expected = nn.functional.normalize(states[:, 0], dim=-1).numpy()
    assert np.abs(load(made).forward({"pixels": pixels}, {})["embedding"] - expected).max() <= MAX_DIFFERENCE
    merged = load(made).forward({"pixels": pixels}, {"merge": [3, 3]})
    assert merged["tokens"].tolist() == [[17, 11]] * 4


@pytest.mark.parametrize("normalised_targets", [False, True])
def test_mae_decoder_predicts_as_library(normalised_targets: bool, tmp_path: Path) -> None:
    model = randomise(transformers.ViTMAEForPreTraining(mae(norm_pix_loss=normalised_targets)))
    made, pixels = import_folder(save(model, tmp_path / "model", SQUARE)), noise(4, 32, 32)
    images, order = normalise(pixels, made.spec.image_preprocess), torch.rand(4, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = model(images, noise=order), load(made).model(images, order)
    assert torch.equal(found.mask, expected.mask)
    assert (found.patches - expected.logits).abs().max() <= MAX_DIFFERENCE
    assert abs(found.loss - expected.loss) <= MAX_DIFFERENCE


def videomae(**changes: Any) -> nn.Module:
    kind = transformers.VideoMAEForVideoClassification
    return randomise(kind(transformers.VideoMAEConfig(**TINY | LABELS | {"num_frames": 4} | changes)))


CLIP_PROCESSOR = {
    "image_processor_type": "VideoMAEImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
    "image_mean": IMAGENET,
}


@pytest.mark.parametrize("changes", [{}, {"tubelet_size": 1}, {"qv_bias": False}])
def test_clip_classifier_answers_as_library_and_merges(changes: dict[str, Any], tmp_path: Path) -> None:
    model = videomae(**changes)
    made, frames = import_folder(save(model, tmp_path / "model", CLIP_PROCESSOR)), noise(2, 4, 32, 32)
    clips = normalise(frames, made.spec.image_preprocess)  # (B, T, 3, S, S)
    network = load(made).model
    with torch.inference_mode():
        expected, found = model(clips).logits, network(clips.transpose(1, 2))
    assert expected.std(dim=0).min() > 0.01
    assert (found.logits - expected).abs().max() <= MAX_DIFFERENCE
    assert (made.spec.route, made.spec.labels) == ("classify", ["cat", "dog", "bird"])
    assert made.spec.clip is not None
    assert (made.spec.clip.frames, made.spec.clip.smooth) == (4, True)
    steps = load(made).steps
    assert steps is not None
    merge = {"merge": [2, 2], "views": 1, "crops": 1}
    [ended] = steps.step(steps.start([{"frames": frames[0]}], [merge]), [False])
    assert isinstance(ended, StepOutputs)
    tokens = ended.outputs["tokens"].tolist()
    assert tokens[0] - tokens[1] == 4


def test_clip_frames_are_antialiased_without_preprocessor_file(tmp_path: Path) -> None:
    spec = import_folder(save(videomae(), tmp_path / "model")).spec
    assert spec.clip is not None and spec.clip.smooth
    assert "no preprocessor_config.json next to the file states it" in spec.provenance["transform"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "activation": ({"hidden_act": "relu"}, "config.json: hidden_act 'relu' cannot be computed here; accepted is gelu, gelu_new"),
    "heads": (
        {"num_attention_heads": "four"},
        "config.json: num_attention_heads 'four' cannot be computed here; accepted is a positive int",
    ),
    "grey images": ({"num_channels": 1}, "config.json: num_channels 1 cannot be computed here; accepted is 3"),
    "size": ({"image_size": [32, 64]}, "config.json: image_size [32, 64] cannot be computed here"),
    "size of the processor": ({"image_size": 64}, "config.json: image_size 64 is not the 32 pixels that preprocessor_config.json makes"),
    "class": (
        {"architectures": ["BeitForImageClassification"]},
        "architectures 'BeitForImageClassification' is not read here; accepted are",
    ),
    "class without a name": ({"architectures": [{}]}, "architectures names no class"),
    "no class": ({"architectures": None}, "architectures names no class"),
    "labels": ({"id2label": {"0": "cat", "1": "dog"}}, "has 3 classes, and its config names 2; --labels gives their names"),
    "a number beyond floats": ({"layer_norm_eps": 10**400}, "layer_norm_eps"),
    "control characters": ({"id2label": {"0": "cat", "1": "\x1b[31mdog", "2": "bird"}}, "holds control characters or surrogates"),
    "halves of characters": ({"id2label": {"0": "cat", "1": "\ud800", "2": "bird"}}, "holds control characters or surrogates"),
    "numbers of labels": ({"id2label": {"0": "cat", "2": "dog", "3": "bird"}}, "id2label: its numbers must be 0 to 2, without gaps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_config_field_is_refused_by_name(name: str, tmp_path: Path) -> None:
    fields, sentence = REFUSED[name]
    folder = save(vit(), tmp_path / "model", SQUARE)
    change(folder / "config.json", **fields)
    with pytest.raises(CheckpointError) as refused:
        import_folder(folder)
    assert sentence in str(refused.value)
    assert ("`opsin import FILE.onnx --as classify`" in str(refused.value)) == (
        name in ("activation", "class")
    )  # another network, not a wrong file


WEIGHTS_REFUSED: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "a deep block": ({"vit.encoder.layer.99999999.layernorm_after.bias": torch.zeros(64)}, "blocks.99999999 is the last of its blocks"),
    "a deeper block": ({f"vit.encoder.layer.{'9' * 5000}.layernorm_after.bias": torch.zeros(64)}, "unexpected"),
    "no width": ({"vit.embeddings.patch_embeddings.projection.weight": torch.zeros(0, 3, 8, 8)}, "(0, 3, 8, 8) is empty"),
    "integers": ({"classifier.weight": torch.ones(3, 64, dtype=torch.int8)}, "of another shape or type: classifier.weight int8"),
    "eight bits": ({"classifier.bias": torch.ones(3).to(torch.float8_e4m3fn)}, "classifier.bias float8_e4m3fn"),
    "not a number": ({"vit.layernorm.weight": torch.full((64,), torch.nan)}, "layernorm.weight holds values that are infinite"),
}


@pytest.mark.parametrize("name", WEIGHTS_REFUSED)
def test_weights_that_lie_are_refused(name: str, tmp_path: Path) -> None:
    changed, sentence = WEIGHTS_REFUSED[name]
    folder = save(vit(), tmp_path / "model", SQUARE)
    file = folder / "model.safetensors"
    save_file(load_file(file) | changed, file)
    with pytest.raises(CheckpointError) as refused:
        import_folder(folder)
    assert sentence in str(refused.value)


@pytest.mark.parametrize("size", [40, 2000])
def test_size_other_than_position_table_is_refused(size: int, tmp_path: Path) -> None:
    folder = save(vit(), tmp_path / "model", SQUARE | {"size": {"height": size, "width": size}})
    change(folder / "config.json", image_size=size)
    with pytest.raises(CheckpointError, match=f"image_size {size} is not that of its position table, 32"):
        import_folder(folder)
    assert import_folder(folder, image_size="32").spec.config["image_size"] == 32


def test_a_size_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="image_size 20000: it makes 6250000 patches; at most 65536"):
        import_folder(save(vit(), tmp_path / "model", SQUARE), image_size="20000")


def test_pipes_are_not_read(tmp_path: Path) -> None:
    folder = save(vit(), tmp_path / "model", SQUARE)
    os.mkfifo(folder / "README.md")
    assert import_folder(folder).spec.license == "unknown"


def test_a_long_name_of_a_file_of_weights_is_refused(tmp_path: Path) -> None:
    folder = save(vit(), tmp_path / "model", SQUARE)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"head.weight": "a" * 5000}}))
    with pytest.raises(CheckpointError, match="is not a name of a file in its folder"):
        import_folder(folder)


def test_a_gated_mlp_is_refused_by_the_name_of_its_field(tmp_path: Path) -> None:
    folder = save(dinov2("Dinov2Model", use_swiglu_ffn=True), tmp_path / "model", SQUARE)
    with pytest.raises(CheckpointError, match=r"config\.json: use_swiglu_ffn True cannot be computed here; accepted is False"):
        import_folder(folder)


def test_sharded_and_torch_weights_load_alike(tmp_path: Path) -> None:
    model, pixels = vit(), noise(2, 32, 32)
    one = import_folder(save(model, tmp_path / "one", SQUARE))
    several = save(model, tmp_path / "several", SQUARE, max_shard_size="40KB")
    assert len(list(several.glob("*.safetensors"))) > 1
    torch_folder = save(model, tmp_path / "torch", SQUARE)
    torch.save(load_file(torch_folder / "model.safetensors"), torch_folder / "pytorch_model.bin")
    (torch_folder / "model.safetensors").unlink()
    expected = logits(one, pixels)
    assert np.array_equal(logits(import_folder(several), pixels), expected)
    assert np.array_equal(logits(import_folder(torch_folder), pixels), expected)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    folder = save(vit(), tmp_path / "model", SQUARE, max_shard_size="40KB")
    first, second, *_ = sorted(folder.glob("*-of-*.safetensors"))
    weights = load_file(first)
    save_file(load_file(second) | {min(weights): weights[min(weights)] + 1}, second)
    with pytest.raises(CheckpointError, match=f"{min(weights)} .* in {second.name} and in another file"):
        import_folder(folder)


def test_a_config_of_another_depth_than_the_weights_is_refused(tmp_path: Path) -> None:
    folder = save(vit(), tmp_path / "model", SQUARE)
    for depth, fault in ((1, "unexpected: vit.encoder.layer"), (3, "missing: vit.encoder.layer")):
        change(folder / "config.json", num_hidden_layers=depth)
        with pytest.raises(CheckpointError, match=fault):
            import_folder(folder)


def test_an_absent_file_of_several_is_named(tmp_path: Path) -> None:
    folder = save(vit(), tmp_path / "model", SQUARE, max_shard_size="40KB")
    lost = sorted(folder.glob("*-of-*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"{lost.name} must be in its folder"):
        import_folder(folder)


TEXT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99}
PAIR = {"projection_dim": 24}


def clip(end: int = 98, **changes: Any) -> nn.Module:
    text = TEXT | {"max_position_embeddings": 12, "eos_token_id": end, "bos_token_id": 97, "projection_dim": 24}
    vision = TINY | PAIR | changes
    return randomise(transformers.CLIPModel(transformers.CLIPConfig(text_config=text | changes, vision_config=vision, **PAIR)))


CLIP_IMAGES = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
WORDS = torch.tensor([[97, 5, 17, 98, 0, 0], [97, 4, 98, 98, 98, 98], [97, 3, 2, 1, 96, 98]])


def vectors(bundle: Bundle, words: torch.Tensor, visible: torch.Tensor) -> Any:
    """Return the vectors of texts from the token ids that a worker's tokenizer makes of them: (n, dim)."""
    arrays = {"word_ids": words[None].numpy(), "visible": visible.long()[None].numpy()}
    return load(bundle).forward(arrays, {})["embedding"][0]


@pytest.mark.parametrize("changes", [{}, {"hidden_act": "gelu"}, {"end": 2}])
def test_both_towers_of_clip_give_the_vectors_of_the_library(changes: dict[str, Any], tmp_path: Path) -> None:
    model = clip(**changes)
    made, pixels = import_folder(save(model, tmp_path / "model", CLIP_IMAGES)), noise(4, 32, 32)
    with torch.inference_mode():
        expected = model(pixel_values=normalise(pixels, made.spec.image_preprocess), input_ids=WORDS)
    found = load(made).forward({"pixels": pixels}, {})["embedding"]
    assert np.abs(found - expected.image_embeds.numpy()).max() <= MAX_DIFFERENCE
    assert np.abs(vectors(made, WORDS, torch.ones_like(WORDS)) - expected.text_embeds.numpy()).max() <= MAX_DIFFERENCE
    assert expected.image_embeds.std(dim=0).min() > 1e-3
    assert (made.spec.task, made.spec.embedding_dim) == ("zero-shot", 24)
    merged = load(made).forward({"pixels": pixels}, {"merge": [3, 3]})
    assert merged["tokens"].tolist() == [[17, 11]] * 4


def test_clip_image_tower_alone_equals_library(tmp_path: Path) -> None:
    model = randomise(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TINY)))
    made, pixels = import_folder(save(model, tmp_path / "model", CLIP_IMAGES)), noise(4, 32, 32)
    with torch.inference_mode():
        pooled = model(normalise(pixels, made.spec.image_preprocess)).pooler_output
    expected = nn.functional.normalize(pooled, dim=-1).numpy()
    assert np.abs(load(made).forward({"pixels": pixels}, {})["embedding"] - expected).max() <= MAX_DIFFERENCE


def siglip(kind: str, **changes: Any) -> nn.Module:
    if kind == "SiglipVisionModel":
        return randomise(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TINY | changes)))
    text = TEXT | {"max_position_embeddings": 16, "projection_size": TINY["hidden_size"]}
    return randomise(getattr(transformers, kind)(transformers.SiglipConfig(vision_config=TINY | changes, text_config=text, **LABELS)))


@pytest.mark.parametrize("changes", [{}, {"image_size": 38}])
def test_siglip_towers_equal_vectors_and_scores_of_library(changes: dict[str, int], tmp_path: Path) -> None:
    model = siglip("SiglipModel", **changes)
    side = changes.get("image_size", 32)
    made = import_folder(save(model, tmp_path / "model", SQUARE | {"size": {"height": side, "width": side}}))
    pixels, words = noise(4, side, side), torch.randint(0, 99, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(pixel_values=normalise(pixels, made.spec.image_preprocess), input_ids=words)
    found = load(made).forward({"pixels": pixels}, {})["embedding"]
    assert np.abs(found - expected.image_embeds.numpy()).max() <= MAX_DIFFERENCE
    texts = vectors(made, words, torch.ones_like(words))
    assert np.abs(texts - expected.text_embeds.numpy()).max() <= MAX_DIFFERENCE
    assert expected.image_embeds.std(dim=0).max() > 1e-3 and expected.text_embeds.std(dim=0).max() > 1e-3
    assert (made.spec.task, made.spec.architecture, made.spec.embedding_dim) == ("zero-shot", "siglip", 64)
    assert made.spec.config["padding"] == 1
    merged = load(made).forward({"pixels": pixels}, {"merge": [3, 3]})
    assert merged["tokens"].tolist() == [[16, 10]] * 4


def test_siglip_image_tower_equals_library_and_merges(tmp_path: Path) -> None:
    model = siglip("SiglipVisionModel")
    made, pixels = import_folder(save(model, tmp_path / "model", SQUARE)), noise(4, 32, 32)
    with torch.inference_mode():
        pooled = model(normalise(pixels, made.spec.image_preprocess)).pooler_output
    expected = nn.functional.normalize(pooled, dim=-1).numpy()
    assert np.abs(load(made).forward({"pixels": pixels}, {})["embedding"] - expected).max() <= MAX_DIFFERENCE
    assert expected.std(axis=0).max() > 1e-3
    merged = load(made).forward({"pixels": pixels}, {"merge": [3, 3]})
    assert merged["tokens"].tolist() == [[16, 10]] * 4
    assert 0.5 < (merged["embedding"] * expected).sum(axis=1).min() < 1 - 1e-6


def test_an_edge_that_fills_no_patch_is_not_seen(tmp_path: Path) -> None:
    """Prove it at sides like those of so400m-patch14-384: 27 patches of 14 pixels, and 6 pixels left over."""
    model = siglip("SiglipVisionModel", image_size=38)
    made = import_folder(save(model, tmp_path / "model", SQUARE | {"size": {"height": 38, "width": 38}}))
    pixels = noise(2, 38, 38)
    with torch.inference_mode():
        pooled = model(normalise(pixels, made.spec.image_preprocess)).pooler_output
    expected = nn.functional.normalize(pooled, dim=-1).numpy()
    assert np.abs(load(made).forward({"pixels": pixels}, {})["embedding"] - expected).max() <= MAX_DIFFERENCE


def test_a_classifier_on_siglip_answers_as_in_the_library(tmp_path: Path) -> None:
    model = siglip("SiglipForImageClassification")
    made, pixels = import_folder(save(model, tmp_path / "model", SQUARE)), noise(4, 32, 32)
    with torch.inference_mode():
        expected = model(normalise(pixels, made.spec.image_preprocess)).logits.numpy()
    assert expected.std(axis=0).min() > 1e-3
    assert np.abs(logits(made, pixels) - expected).max() <= MAX_DIFFERENCE
