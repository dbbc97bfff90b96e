"""The validation transform of imported checkpoints: as the library that they come from validates them, number by number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from models.bundle import Bundle
from models.checkpoints import CheckpointError, families, import_checkpoint
from models.loading import load
from server.media.images import ImageDecoder, to_model_size
from tests.support.bundles.vit import seal

PICTURES = sorted(Path("docs/pictures/flags").glob("*.png"))[:2] + sorted(Path("docs/pictures/drawings").glob("*.png"))[:2]
MAX_DIFFERENCE = 1e-3
"""Largest difference of a logit in float32."""
Transform = Callable[[Image.Image], Tensor]


def import_file(file: Path, family: str | None = None, **overrides: str) -> Bundle:
    spec, weights = import_checkpoint(
        file, family=family, labels=None, overrides={"heads": "3"} | overrides, name="test", version="1", license="CC0-1.0"
    )
    return seal(file.parent / "bundles", spec, weights)


def serve(of: Bundle) -> np.ndarray:
    """Logits of the pictures, each prepared as the service does."""
    model, rows = load(of), []
    for path in PICTURES:
        with ImageDecoder(10**8).decode(path.read_bytes()) as picture:
            pixels = np.array(to_model_size(picture, of.spec.image_preprocess, 10**8))
        rows.append(model.forward({"pixels": pixels[None]}, {"merge": [0] * model.depth})["logits"][0])
    return np.stack(rows)


@torch.inference_mode()
def original(model: nn.Module, transform: Transform) -> np.ndarray:
    """Preprocess with the library that the model comes from."""
    images = []
    for path in PICTURES:
        picture = Image.open(path).convert("RGBA")
        images.append(Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB"))
    return np.concatenate([model(transform(image)[None]).numpy() for image in images])


def timm_model(**changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Build a ViT-Ti of timm with a head that separates images, and its `pretrained_cfg`."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", num_classes=5, depth=3).eval()
    nn.init.normal_(model.head.weight, std=0.5)
    return model, model.pretrained_cfg | {"num_classes": 5} | changes


def validation(cfg: dict[str, Any]) -> Transform:
    transform: Transform = create_transform(**resolve_data_config(pretrained_cfg=cfg))
    return transform


def write_config(file: Path, cfg: dict[str, Any]) -> None:
    """Write the config next to the file, as hubs of timm models have it."""
    content = {"architecture": "vit_tiny_patch16_224", "num_classes": 5, "pretrained_cfg": cfg}
    (file.parent / "config.json").write_text(json.dumps(content, default=str))


def test_timms_usual_transform_is_assumed_where_none_is_stated(tmp_path: Path) -> None:
    model, cfg = timm_model()
    torch.save(model.state_dict(), tmp_path / "tiny.pth")
    made = import_file(tmp_path / "tiny.pth", "timm")
    assert np.abs(serve(made) - original(model, validation(cfg))).max() <= MAX_DIFFERENCE
    assert "is assumed, that of family timm" in made.spec.provenance["transform"]
    assert "--set short_side=248 --set interpolation=bicubic --set mean=0.5,0.5,0.5" in made.spec.provenance["transform"]


OTHERS: list[dict[str, Any]] = [
    {"crop_pct": 0.95, "interpolation": "bilinear", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    {"crop_pct": 1.0, "crop_mode": "squash"},
]


@pytest.mark.parametrize("changes", OTHERS)
@pytest.mark.parametrize("place", ["config.json", "torch", "safetensors"])
def test_a_stated_transform_is_kept(changes: dict[str, Any], place: str, tmp_path: Path) -> None:
    model, cfg = timm_model(**changes)
    file = tmp_path / ("tiny.safetensors" if place == "safetensors" else "tiny.pth")
    if place == "config.json":
        torch.save(model.state_dict(), file)
        write_config(file, cfg)
    elif place == "torch":
        torch.save({"state_dict": model.state_dict(), "pretrained_cfg": json.loads(json.dumps(cfg, default=str))}, file)
    else:
        save_file(model.state_dict(), file, metadata={"pretrained_cfg": json.dumps(cfg, default=str)})
    made = import_file(file, "timm")
    assert np.abs(serve(made) - original(model, validation(cfg))).max() <= MAX_DIFFERENCE
    assert made.spec.provenance["transform"] == f"read from {'config.json' if place == 'config.json' else file.name}"


def test_settings_by_hand_come_before_what_is_stated(tmp_path: Path) -> None:
    model, cfg = timm_model(crop_pct=0.8, interpolation="lanczos")
    torch.save(model.state_dict(), tmp_path / "tiny.pth")
    write_config(tmp_path / "tiny.pth", cfg)
    pictures = import_file(tmp_path / "tiny.pth", "timm", short_side="224", interpolation="bilinear").spec.image_preprocess
    assert (pictures.short_side, pictures.interpolation) == (224, "bilinear")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"interpolation": "lanczos"}, "config.json: interpolation 'lanczos' cannot be kept; --set interpolation=bicubic"),
        ({"crop_mode": "border"}, "config.json: crop_mode 'border' at crop_pct 0.9 cannot be kept; --set fit=crop"),
        ({"crop_pct": "most"}, "config.json: crop_pct 'most' is not a share of an image; --set short_side=… sets it by hand"),
    ],
)
def test_a_transform_that_cannot_be_kept_is_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    model, cfg = timm_model(**changes)
    torch.save(model.state_dict(), tmp_path / "tiny.pth")
    write_config(tmp_path / "tiny.pth", cfg)
    with pytest.raises(CheckpointError) as refused:
        import_file(tmp_path / "tiny.pth", "timm")
    assert sentence in str(refused.value)


def test_config_of_another_model_is_not_used_for_the_file(tmp_path: Path) -> None:
    model, cfg = timm_model(crop_pct=0.5)
    torch.save(model.state_dict(), tmp_path / "tiny.pth")
    write_config(tmp_path / "tiny.pth", cfg)
    content = json.loads((tmp_path / "config.json").read_text()) | {"num_classes": 1000}
    (tmp_path / "config.json").write_text(json.dumps(content))
    made = import_file(tmp_path / "tiny.pth", "timm")
    assert made.spec.image_preprocess.short_side == 248
    message = made.spec.provenance["transform"]
    assert message.startswith("config.json is of a model with 1000 classes, not 5: not read; the transform is assumed")


def test_the_table_of_crops_is_timms() -> None:
    sizes = ("tiny", "small", "base", "large")
    names = [name for size in sizes for name in timm.list_pretrained(f"vit_{size}_patch*.augreg*")]
    assert len(names) > 20
    for name in names:
        cfg = timm.get_pretrained_cfg(name)
        ours = families()["timm"].preprocess(cfg.input_size[-1])
        scale = int(np.floor(cfg.input_size[-1] / cfg.crop_pct))
        assert (ours.short_side, ours.interpolation, ours.mean, ours.std) == (scale, cfg.interpolation, cfg.mean, cfg.std), name
        assert cfg.crop_mode == "center"


def test_deit_keeps_its_own(tmp_path: Path) -> None:
    model, cfg = timm_model(crop_pct=224 / 256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    torch.save({"model": model.state_dict()}, tmp_path / "deit.pth")
    assert np.abs(serve(import_file(tmp_path / "deit.pth", "deit")) - original(model, validation(cfg))).max() <= MAX_DIFFERENCE


@pytest.mark.parametrize("older", [False, True])
def test_torchvisions_vision_transformers_answer_as_there(older: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(224, 16, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight, std=0.5)
    names = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."} if older else {}
    weights = dict(model.state_dict())
    for new, old in names.items():
        weights = {key.replace(new, old): value for key, value in weights.items()}
    torch.save(weights, tmp_path / "vit.pth")
    transform = torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1.transforms()
    made = import_file(tmp_path / "vit.pth")
    assert made.spec.provenance["family"] == "torchvision"
    assert np.abs(serve(made) - original(model, transform)).max() <= MAX_DIFFERENCE


def test_torchvision_large_images_are_prepared_as_declared() -> None:
    weights = torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1.transforms()
    ours = families()["torchvision"].preprocess(384)
    theirs = (weights.resize_size, weights.crop_size, weights.interpolation.value)
    assert ([ours.short_side], [ours.image_size], ours.interpolation) == theirs
    assert families()["torchvision"].preprocess(224).short_side == 256
