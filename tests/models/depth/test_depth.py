"""The network that tells depth: its encoder is timm's, weight by weight, and a bundle of it is a member that tells depth."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from models.bundle import BundleSpec, write
from models.depth.model import Encoder, LiteDepth, LiteDepthConfig, start_from_lite
from models.joining import join_photographs
from models.loading import Ended, load, not_served
from models.spec import Preprocess, Weights
from tests.reconstruct.shell import write_shell

SMALL = LiteDepthConfig(image_size=32, widths=(8, 8, 8, 8))


def test_the_encoder_gives_the_features_of_timms_network() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            if "running_var" in name:
                value.uniform_(0.5, 2.0)
            elif "bn" in name and value.is_floating_point():
                value.copy_(torch.randn_like(value) * 0.3 + ("weight" in name))
    own = Encoder().eval()
    start_from_lite(own, theirs.state_dict())
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        for found, expected in zip(own(images), theirs(images), strict=True):
            assert found.shape == expected.shape
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    with pytest.raises(ValueError, match=r"no EfficientNet-Lite0: 'bn1.weight' is missing"):
        start_from_lite(own, {})


def test_depth_has_the_size_of_the_image_and_sizes_that_do_not_fit_are_refused() -> None:
    assert LiteDepth(SMALL)(torch.zeros(3, 3, 32, 32)).shape == (3, 32, 32)
    assert sum(value.numel() for value in LiteDepth(LiteDepthConfig()).parameters()) == 3_658_737
    with pytest.raises(ValueError, match="no multiple of 32"):
        LiteDepthConfig(image_size=100)
    with pytest.raises(ValueError, match="4 positive numbers are needed"):
        LiteDepthConfig(widths=(8, 8))


def test_a_bundle_of_it_is_the_member_that_tells_depth(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LiteDepth(SMALL).eval()
    save_file(model.state_dict(), tmp_path / "weights")
    spec = BundleSpec(
        name="teller",
        version="1",
        task="depth",
        architecture="lite_depth",
        config={"image_size": 32, "widths": [8, 8, 8, 8]},
        preprocess=Preprocess(image_size=32, short_side=32, fit="squeeze", interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3),
        license="CC0-1.0",
        weights=Weights(sha256="0" * 64, bytes=0),
    )
    depth = write(tmp_path / "bundles", spec, tmp_path / "weights")
    assert not_served(depth.spec) is not None
    made = join_photographs(tmp_path / "bundles", "photographed", "1", write_shell(tmp_path / "bundles"), depth)
    assert (made.spec.config["depth_size"], made.spec.config["depth_output"]) == (32, "depth")
    steps = load(made).steps
    assert steps is not None
    photograph = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
    [state] = steps.start([{"photograph": photograph.numpy()}], [{}])
    [ended] = steps.step([state], [False])
    assert isinstance(ended, Ended)
    with torch.inference_mode():
        expected = model((photograph.permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.25)[0]
    assert (torch.from_numpy(ended.outputs["told"]) - expected).abs().max() <= 1e-5
