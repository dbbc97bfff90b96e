"""The depth network: its encoder is timm's, weight by weight, and its bundle serves as the depth member of a pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from models.bundle import Bundle, BundleSpec
from models.bundle_schema import FileDigest, Preprocess
from models.layers.efficientnet_lite import EfficientNetLiteEncoder, init_from_efficientnet_lite
from models.loading import StepOutputs, load, unsupported_reason
from models.systems.depth.model import SKIP_STAGES, LiteDepth, LiteDepthConfig, fill_background
from models.systems.pipeline_bundles import write_photo_pipeline
from server.tasks.reconstruct.inputs import photograph
from tests.support.bundles.analytic_mcc import write_shell
from tests.support.bundles.vit import seal

SMALL = LiteDepthConfig(image_size=32, widths=(8, 8, 8, 8))


def small() -> LiteDepth:
    torch.manual_seed(0)
    return LiteDepth(SMALL).eval()


def write_teller(bundles: Path, version: str = "1", **config: str) -> Bundle:
    spec = BundleSpec(
        name="teller",
        version=version,
        task="depth",
        architecture="lite_depth",
        config={"image_size": 32, "widths": [8, 8, 8, 8], **config},
        preprocess=Preprocess(image_size=32, short_side=32, fit="squeeze", interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3),
        license="CC0-1.0",
        weights=FileDigest(sha256="0" * 64, bytes=0),
    )
    bundles.mkdir(exist_ok=True)
    return seal(bundles, spec, small().state_dict())


def test_the_encoder_gives_the_features_of_timms_network() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            if "running_var" in name:
                value.uniform_(0.5, 2.0)
            elif "bn" in name and value.is_floating_point():
                value.copy_(torch.randn_like(value) * 0.3 + ("weight" in name))
    ours = EfficientNetLiteEncoder().eval()
    init_from_efficientnet_lite(ours, theirs.state_dict())
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        seen = ours(images)
        for found, expected in zip((seen[number] for number in SKIP_STAGES), theirs(images), strict=True):
            assert found.shape == expected.shape
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    with pytest.raises(ValueError, match=r"not an EfficientNet-Lite0: 'bn1.weight' is missing"):
        init_from_efficientnet_lite(ours, {})


def test_depth_has_size_of_image_and_wrong_sizes_are_refused() -> None:
    assert LiteDepth(SMALL)(torch.zeros(3, 3, 32, 32)).shape == (3, 32, 32)
    assert sum(value.numel() for value in LiteDepth(LiteDepthConfig()).parameters()) == 3_658_737
    with pytest.raises(ValueError, match="not a multiple of 32"):
        LiteDepthConfig(image_size=100)
    with pytest.raises(ValueError, match="4 positive numbers are needed"):
        LiteDepthConfig(widths=(8, 8))


def test_the_service_shows_an_object_as_training_does(tmp_path: Path) -> None:
    shape = write_shell(tmp_path)
    retained, filled = (
        write_photo_pipeline(tmp_path, "photographed", version, shape, write_teller(tmp_path, version, background=version)).spec
        for version in ("kept", "mean")
    )
    mask = np.zeros((40, 40), np.bool_)
    mask[6:34, 10:30] = True
    image = np.where(mask[..., None], (200, 40, 40), (0, 250, 0)).astype(np.uint8)
    image[:20][mask[:20]] = (40, 40, 200)
    before, share = (photograph(Image.fromarray(one), mask, retained) for one in (image, np.uint8(255 * np.stack([mask] * 3, axis=2))))
    assert before[0, 0].tolist() == [0, 250, 0]
    expected = fill_background(torch.tensor(before).permute(2, 0, 1)[None].float(), torch.tensor(share[None, ..., 0]) / 255)
    visible = photograph(Image.fromarray(image), mask, filled)
    assert np.abs(visible - expected[0].permute(1, 2, 0).numpy()).max() <= 0.51
    assert np.abs(visible[0, 0] - np.array([120.0, 40.0, 120.0])).max() < 10  # mean of its two colours, with a little of its edge


def test_its_bundle_is_the_depth_member(tmp_path: Path) -> None:
    depth = write_teller(tmp_path / "bundles")
    model = small()
    assert unsupported_reason(depth.spec) is not None
    made = write_photo_pipeline(tmp_path / "bundles", "photographed", "1", write_shell(tmp_path / "bundles"), depth)
    assert (made.spec.config["depth_size"], made.spec.config["depth_output"]) == (32, "depth")
    steps = load(made).steps
    assert steps is not None
    photograph = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
    [state] = steps.start([{"photograph": photograph.numpy()}], [{}])
    [ended] = steps.step([state], [False])
    assert isinstance(ended, StepOutputs)
    with torch.inference_mode():
        expected = model((photograph.permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.25)[0]
    assert (torch.from_numpy(ended.outputs["told"]) - expected).abs().max() <= 1e-5
