"""DiffMAE's own container: it says everything about a model, and comes back as it was written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.checkpoints import CheckpointError, detect, export_bundle, import_checkpoint, read_checkpoint
from models.checkpoints.checkpoint_file import open_checkpoint
from models.loading import weight_mismatch
from models.registry import read_config
from models.systems.diffmae.checkpoint import FAMILY, describe, fields_of
from models.systems.diffmae.decoder import DecoderType
from models.systems.diffmae.diffusion import NoiseSchedule, RhoMode, ScheduleKind
from models.systems.diffmae.model import SIZES, DecoderConnection, DiffMAE, DiffMAEConfig, PredictionTarget
from tests.golden.case import published_keys
from tests.models.systems.diffmae.test_diffmae import CLIP, SMALL

GOLDEN = Path(__file__).parents[3] / "golden" / "diffmae"
PUBLISHED = published_keys("diffmae")

UNUSUAL = replace(
    CLIP,
    decoder_type=DecoderType.JOINT,
    connection=DecoderConnection.LAST,
    time_embed=False,
    normalise_patches=True,
    target=PredictionTarget.EPS,
    schedule=NoiseSchedule(ScheduleKind.COSINE, 500, 0.7, RhoMode.ALPHA_BAR, 2e-4, 0.03),
    clip_width=6,
    clip_weight=0.5,
)


def write(file: Path, config: DiffMAEConfig, weights: dict[str, Tensor]) -> None:
    export_bundle.write(file, FAMILY, FAMILY.export(weights), FAMILY.describe(config))


def read(file: Path) -> tuple[DiffMAEConfig, dict[str, Tensor]]:
    spec, weights = import_checkpoint(file, family=None, labels=None, overrides={}, name="x", version="1", license="none")
    return read_config(DiffMAEConfig, spec.config), weights


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_full_size_loads_strictly(name: str) -> None:
    published = PUBLISHED[name]
    weights = {key: torch.empty(shape, device="meta") for key, shape in published["params"].items()}
    with torch.device("meta"):
        model = DiffMAE(read_config(DiffMAEConfig, fields_of(published["config"])))
    model.load_state_dict(FAMILY.table.translate(weights, needed=model.state_dict()).weights, strict=True, assign=True)
    assert {key: list(value.shape) for key, value in FAMILY.table.export(model.state_dict()).items()} == published["params"]
    assert detect(weights) == ["diffmae"]


@pytest.mark.parametrize(
    ("name", "published"),
    [("diffmae_vit_base_patch16", "vit_base_patch16_224"), ("diffmae_vit_large_patch16", "vit_large_patch16_224")],
)
def test_the_sizes_are_the_published_ones(name: str, published: str) -> None:
    assert read_config(DiffMAEConfig, fields_of(PUBLISHED[published]["config"])) == SIZES[name]
    assert sum(torch.Size(shape).numel() for shape in PUBLISHED[published]["params"].values()) == pytest.approx(
        {"vit_base_patch16_224": 122.8e6, "vit_large_patch16_224": 342.4e6}[published], rel=1e-3
    )


def test_sizes_have_the_encoders_of_the_paper() -> None:
    """Millions of parameters without the decoder, at 224 px."""
    counts = {}
    for name, config in SIZES.items():
        with torch.device("meta"):
            model = DiffMAE(config)
        ours = model.named_parameters()
        counts[name] = sum(value.numel() for key, value in ours if not key.startswith(("decoder_", "noise_embed", "time_embed"))) / 1e6
    assert [round(count) for count in counts.values()] == [86, 303, 631, 305]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("config", [SMALL, CLIP, UNUSUAL], ids=["picture", "clip", "unusual"])
def test_a_model_comes_back_as_it_was_written(config: DiffMAEConfig, suffix: str, tmp_path: Path) -> None:
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    weights = DiffMAE(config).state_dict()
    write(first, config, weights)
    assert detect(read_checkpoint(first), open_checkpoint(first).description) == ["diffmae"]
    returned_config, returned = read(first)
    write(second, returned_config, returned)
    assert read(second)[0] == returned_config == config
    for name, value in read(second)[1].items():
        assert torch.equal(value, weights[name]), name
    assert open_checkpoint(first).description == open_checkpoint(second).description


@pytest.mark.parametrize("case", ["sample_cross_self", "train_cross_self", "train_video_cross"])
def test_recorded_checkpoints_are_read_and_written_bit_by_bit(case: str, tmp_path: Path) -> None:
    file, copy = GOLDEN / case / "checkpoint.pth", tmp_path / "copy.pth"
    config, weights = read(file)
    write(copy, config, weights)
    before, after = (torch.load(path, weights_only=True) for path in (file, copy))
    assert before["format"] == after["format"]
    assert before["config"].items() <= after["config"].items()
    assert before["model"].keys() == after["model"].keys()
    assert all(torch.equal(value, after["model"][key]) for key, value in before["model"].items())


def test_what_a_config_leaves_out_has_its_default() -> None:
    config: DiffMAEConfig = read_config(DiffMAEConfig, fields_of({"img_size": [224, 224], "patch_size": 16}))
    assert config == DiffMAEConfig()
    assert (config.normalise_patches, config.target, config.connection, config.time_embed) == (
        False,
        PredictionTarget.X0,
        DecoderConnection.U_SHAPED,
        True,
    )
    assert config.schedule == NoiseSchedule(ScheduleKind.LINEAR, 1000, 0.8, RhoMode.BETA, 1e-4, 0.02)


def test_video_alone_means_the_usual_clips() -> None:
    assert read_config(DiffMAEConfig, fields_of({"video": True})).grid == (8, 14, 14)


def test_images_have_no_frames_in_any_other_setting() -> None:
    assert read_config(DiffMAEConfig, fields_of({"video": False, "num_frames": 16, "t_patch_size": 2})).frames is None
    assert read_config(DiffMAEConfig, fields_of({"num_frames": 4, "t_patch_size": 2})).frames == 4


@pytest.mark.parametrize(
    ("described", "complaint"),
    [
        ({"rho": 0.8}, "rho: unknown; the fields are"),
        ({"schedule": {"T": 1000, "beta": 1}}, "schedule: beta: unknown"),
        ({"time_embed": "concat"}, "time_embed: 'concat'; it can be add or none"),
        ({"time_embed": ["add"]}, r"time_embed: \['add'\]; it can be"),
        ({"schedule": "linear"}, "schedule: 'linear'; it has the fields kind, T"),
        ({7: 1, "rho": 2}, "7, rho: unknown"),
    ],
)
def test_what_a_config_cannot_say_is_refused(described: dict[Any, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        fields_of(described)


def test_what_the_container_has_no_place_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mean: \(0\.5, 0\.5, 0\.5\)"):
        describe(replace(SMALL, mean=(0.5, 0.5, 0.5)))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda content: content["config"].update(depth=6), r"does not fit diffmae: missing: blocks\.\{i\}\.norm1\.weight"),
        (lambda content: content["config"].update(num_heads=5), "model.pth: width 24 cannot be split into 5 heads"),
        (lambda content: content["config"].update(patch_size=0), "patch_size: 0; it is at least 1"),
        (lambda content: content["config"].update(decoder_type="both"), "model.pth: decoder_type: Input should be"),
        (lambda content: content["config"].update(mask="random"), "model.pth: mask: unknown; the fields are"),
        (lambda content: content["config"]["schedule"].update(T=20), "model.pth: schedule: .*beta reaches 1;"),
        (lambda content: content["model"].update({"extra.weight": torch.zeros(1)}), r"does not fit diffmae: unexpected: extra\.weight"),
        (lambda content: content.update(config="vit_b"), "model.pth: it is not a diffmae-v1 file: .* its config a str"),
        (lambda content: content.update(format="diffmae-v2"), "model.pth: .*its format is diffmae-v2"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(damage: Any, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    write(file, SMALL, DiffMAE(SMALL).state_dict())
    content = torch.load(file, weights_only=True)
    damage(content)
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=complaint):
        read(file)


def test_an_oblong_picture_is_known_from_the_config_alone(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    write(file, SMALL, DiffMAE(SMALL).state_dict())
    assert detect(read_checkpoint(file)) == []
    assert detect(read_checkpoint(file), open_checkpoint(file).description) == ["diffmae"]


def test_it_becomes_a_bundle_that_inpaints(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    write(file, SMALL, DiffMAE(SMALL).state_dict())
    spec, weights = import_checkpoint(file, family=None, labels=None, overrides={}, name="x", version="1", license="none")
    assert (spec.task, spec.architecture, spec.labels) == ("inpaint", "diffmae", [])
    assert weights.keys() == DiffMAE(SMALL).state_dict().keys()


def test_shapes_give_what_they_determine() -> None:
    square = replace(SMALL, image_size=(16, 16), width=64, heads=1, clip_width=6, decoder_type=DecoderType.CROSS)
    with torch.device("meta"):
        weights = DiffMAE(square).state_dict()
    inferred = FAMILY.config(weights, {})
    assert weight_mismatch(DiffMAE(read_config(DiffMAEConfig, {**inferred, "decoder_heads": 2})), weights) is None
    assert (inferred["image_size"], inferred["decoder_type"], inferred["clip_width"]) == ((16, 16), DecoderType.CROSS, 6)
