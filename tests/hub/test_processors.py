"""Images are prepared as the image processors of transformers prepare them, by Pillow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from models.bundle_schema import Preprocess
from models.checkpoints import CheckpointError
from models.checkpoints.hf_folder import open_folder
from models.checkpoints.hf_image_processor import DEFAULTS, read
from models.media.clip_sampling import crops
from server.media.images import ImageDecoder, to_model_size

MAX_DIFFERENCE = 2
"""Maximum difference of a value from 0 to 255."""
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SHORT = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViT", {}),
    "ViT of another size": ("ViT", {"size": {"height": 48, "width": 48}, "resample": 3}),
    "DeiT": ("DeiT", IMAGENET),
    "DINOv2": ("Bit", SHORT | IMAGENET),
    "CLIP": ("CLIP", {}),
    "CLIP without normalising": ("CLIP", {"do_normalize": False}),
    "SigLIP": ("Siglip", {"size": {"height": 40, "width": 40}}),
}


def photo(width: int, height: int) -> Image.Image:
    """Draw smooth waves with some noise.

    Its sides must differ from the crop's by an even number of pixels: else Pillow's crop starts one pixel earlier.
    """
    across, down = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 9, height))
    waves = np.stack([np.sin(across) + np.cos(down), np.cos(across * down / 4), np.sin(down)], axis=-1)
    speckles = np.random.default_rng(0).normal(0, 0.2, waves.shape)
    return Image.fromarray(np.clip((waves + speckles) * 60 + 128, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(300, 300), (320, 240), (96, 64)])
def test_pixels_are_those_of_the_library(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    kind, settings = PROCESSORS[name]
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**settings)
    processor.save_pretrained(tmp_path)
    found = read(json.loads((tmp_path / "preprocessor_config.json").read_text()), "")
    preprocess = Preprocess(image_size=found.image_size, **found.fields(found.image_size, {}))
    image = photo(*size)
    image.save(tmp_path / "photo.png")
    with ImageDecoder(10**8).decode((tmp_path / "photo.png").read_bytes()) as decoded:
        pixels = np.array(to_model_size(decoded, preprocess, 10**8))
    ours = (torch.from_numpy(pixels).float() / 255 - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)
    theirs = processor(image, return_tensors="pt")["pixel_values"][0].movedim(0, -1)
    assert ours.shape == theirs.shape
    assert ((ours - theirs).abs() * torch.tensor(preprocess.std) * 255).max() <= MAX_DIFFERENCE + 1e-3


@pytest.mark.parametrize("kind", DEFAULTS)
def test_omitted_fields_have_the_defaults_of_the_library(kind: str) -> None:
    written = json.loads(getattr(transformers, f"{kind}ImageProcessor")().to_json_string())
    assert read({"image_processor_type": f"{kind}ImageProcessor"}, "") == read(written, "")


def test_early_files_without_a_type_are_read_by_the_model(tmp_path: Path) -> None:
    early = {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "size": 224}
    found = read(early, "vit")
    assert found.fields(224, {}) == {
        "short_side": 224,
        "fit": "squeeze",
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }
    assert read(early | {"size": 256, "crop_size": 224, "do_center_crop": True}, "clip").fields(224, {})["fit"] == "crop"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "resample": ({"resample": 1}, "resample 1 cannot be kept; accepted is 2"),
    "no resizing": ({"do_resize": False}, "do_resize False cannot be kept; accepted is True"),
    "scale": ({"rescale_factor": 1.0}, "rescale_factor 1.0 cannot be kept; accepted is 1/255"),
    "oblong": ({"size": {"height": 32, "width": 64}}, "size {'height': 32, 'width': 64} cannot be kept"),
    "no crop": ({"size": {"shortest_edge": 224}}, "do_center_crop False cannot be kept"),
    "large crop": ({"size": 32, "do_center_crop": True, "crop_size": 48}, "crop_size 48 cannot be kept; accepted is at most size, 32"),
    "mean": ({"image_mean": [0.5]}, "image_mean [0.5] cannot be kept; accepted is three numbers"),
    "endless std": ({"image_std": [0.5, 0.5, float("nan")]}, "image_std [0.5, 0.5, nan] cannot be kept; accepted is three numbers"),
    "list of resample": ({"resample": [2]}, "resample [2] cannot be kept"),
    "no flag": ({"do_normalize": "no"}, "do_normalize 'no' cannot be kept; accepted is true or false"),
    "huge": ({"size": 100_000}, "size 100000 cannot be kept; accepted is an integer from 1 to 4096"),
    "type": ({"image_processor_type": "SamImageProcessor"}, "image_processor_type 'SamImageProcessor' cannot be kept"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_preparation_beyond_the_schema_is_refused_by_field(name: str) -> None:
    fields, sentence = REFUSED[name]
    with pytest.raises(CheckpointError) as refused:
        read({"image_processor_type": "ViTImageProcessor"} | fields, "vit")
    assert sentence in str(refused.value)


def test_null_means_the_default_of_the_library() -> None:
    content = {"image_processor_type": "CLIPImageProcessor"}
    nulls = dict.fromkeys(("do_normalize", "do_center_crop", "resample", "size", "image_mean"))
    assert read(content | nulls, "") == read(content, "")


def test_a_refusal_names_the_file_that_states_the_field(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["ViTModel"], "model_type": "vit"}))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"resample": 1}}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"^processor_config\.json: resample 1 cannot be kept"):
        open_folder(tmp_path)


@pytest.mark.parametrize("fields", [{"size": {"height": 224, "width": 224}}, {"resample": 3}])
def test_preparation_unlike_frames_of_clips_is_refused(fields: dict[str, Any]) -> None:
    [(name, value)] = fields.items()
    with pytest.raises(CheckpointError) as refused:
        read({"image_processor_type": "VideoMAEImageProcessor"} | fields, "videomae")
    assert f"{name} {value!r} cannot be kept" in str(refused.value)
    assert "of frames of clips" in str(refused.value)


@pytest.mark.parametrize("size", [(320, 240), (96, 64), (64, 148), (40, 32), (32, 32), (20, 24)])
def test_frames_of_clips_are_those_of_the_library(size: tuple[int, int]) -> None:
    width, height = size
    processor = transformers.VideoMAEImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_normalize=False
    )
    frame = photo(width, height)
    theirs = processor([frame], return_tensors="pt")["pixel_values"][0, 0] * 255  # (3, 32, 32)
    pixels = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[:, None].float()
    ours = crops(pixels, short_side=32, size=32, count=1, smooth=True)[0, :, 0]
    assert (ours - theirs).abs().max() <= MAX_DIFFERENCE
    assert (ours - theirs).abs().mean() < 0.3  # rounding, in the other order of the axes
