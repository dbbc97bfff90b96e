"""Every published family becomes a bundle that loads, and a checkpoint of its own layout again, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import bundle
from models.bundle import Bundle, BundleError, BundleSpec
from models.bundle_schema import FileDigest
from models.checkpoints import CheckpointError, detect, families, fit, import_checkpoint
from models.checkpoints.checkpoint_file import ALLOWED_CLASSES
from models.checkpoints.export_bundle import export_bundle
from models.flops import prepare_forward
from models.loading import load
from models.registry import architectures
from models.systems.image_text.cit import CiTConfig, VisionTower
from models.systems.vit.model import Pool, ViTConfig
from tests.golden.case import GOLDEN, published_keys
from tests.golden.checks import RECORDED
from tests.support.bundles.vit import seal

MADE: dict[str, Any] = {
    "torchvision": ViTConfig(image_size=16, patch_size=8, classes=3, width=16, depth=2, heads=2),
    "deit": ViTConfig(image_size=16, patch_size=8, classes=3, width=16, depth=2, heads=2, distilled=True),
    "rev_vit_fused": ViTConfig(
        image_size=16, patch_size=8, classes=3, width=16, depth=2, heads=2, class_token=False, pool=Pool.NORM_MEAN, reversible=True
    ),
    "cit_swag": CiTConfig(
        tower=VisionTower.SWAG,
        image_size=16,
        patch_size=8,
        width=16,
        depth=2,
        heads=2,
        vocabulary=20,
        positions=8,
        text_width=16,
        text_depth=2,
        text_heads=2,
        text_hidden=32,
        joint_width=8,
    ),
}
"""Families without a recorded checkpoint → a config of theirs."""

META_ONLY = {"phalp_appearance"}
"""Families of one size, which is large."""


LOOK_ALIKES = ["timm", "deit", "mae", "maws"]
"""Classifiers of timm's names, and encoders without a head: only a person knows whose they are."""

PUBLISHED: dict[str, set[str]] = {
    "cit": {"cit", "cit_augreg"},
    "diffmae": {"diffmae"},
    "flip": {"flip"},
    "hmr2": {"hmr2"},
    "lart": {"lart"},
    "mae": {"mae", "mae_pretrained"},
    "mae_st": {"mae_st", "mae_st_pretrained"},
    "mavil": {"mavil", "mavil_pretrained"},
    "maws": {"maws_clip"},
    "mcc": {"mcc"},
    "mvit": {"mvit"},
    "phalp": {"phalp_appearance"},
    "rev": {"rev_vit", "rev_mvit", "rev_mvit_fused"},
    "tome": {"swag", "mae"},
}
"""System → families of its published files."""


def published_files(system: str) -> Iterator[dict[str, torch.Tensor]]:
    """Names and shapes, no storage."""
    for entry in published_keys(system).values():
        if "params" in entry:
            yield {key: torch.empty(shape, device="meta") for key, shape in entry["params"].items()}


def import_file(file: Path, root: Path, settings: Mapping[str, str], family: str | None = None) -> Bundle:
    spec, weights = import_checkpoint(
        file, family=family, labels=None, overrides=settings, name="test", version=file.name.lower(), license="CC0-1.0"
    )
    return seal(root, spec, weights, overwrite=True)


def build(family: str, root: Path) -> Bundle:
    config, architecture = MADE[family], families()[family].architecture
    torch.manual_seed(0)
    model = architectures()[architecture].build(config)
    save_file(model.state_dict(), root / "weights")
    purpose = architectures()[architecture].bundle_defaults
    spec = BundleSpec(
        name="test",
        version="made",
        task=purpose.task(config),
        architecture=architecture,
        config=asdict(config),
        preprocess=families()[family].preprocess(config.image_size),
        labels=[f"class {index}" for index in range(purpose.classes(config) if purpose.classes else 0)],
        license="CC0-1.0",
        weights=FileDigest(sha256="0" * 64, bytes=0),
    )
    return bundle.write(root, spec, root / "weights")


def returns_bit_for_bit(first: Bundle, file: Path, family: str, root: Path) -> None:
    written = export_bundle(first, file, family)
    second = import_file(file, root, {name: json.dumps(value) for name, value in written.settings.items()}, family)
    assert second.spec.config == first.spec.config
    for part in ("preprocess", "clip", "sound", "space"):
        assert getattr(second.spec, part) == getattr(first.spec, part)
    before, after = load_file(first.weights_path), load_file(second.weights_path)
    assert before.keys() == after.keys()
    assert all(before[name].dtype is after[name].dtype and torch.equal(before[name], after[name]) for name in before)


def test_every_family_and_every_architecture_is_tested_here() -> None:
    assert RECORDED.keys() | MADE.keys() | META_ONLY == families().keys()


@pytest.mark.slow
@pytest.mark.parametrize("system", PUBLISHED)
def test_keys_of_published_files_at_full_size_give_their_family(system: str) -> None:
    found = [detect(weights) for weights in published_files(system)]
    assert {family for families in found if families != LOOK_ALIKES for family in families} == PUBLISHED[system]
    assert all(len(families) == 1 or families == LOOK_ALIKES for families in found)


@pytest.mark.parametrize("family", RECORDED)
def test_published_checkpoint_becomes_bundle_and_exports_back(family: str, tmp_path: Path) -> None:
    case, task, settings = RECORDED[family]
    first = import_file(GOLDEN / case / "checkpoint.pth", tmp_path, settings, family if family in LOOK_ALIKES else None)
    assert (first.spec.provenance["family"], first.spec.task) == (family, task)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load(first, dtype=dtype)
        tensors = [*loaded.model.parameters(), *loaded.model.buffers()]
        assert not any(tensor.is_meta for tensor in tensors)
        with torch.inference_mode():
            prepare_forward(first.spec.architecture, loaded.model, batch=2)()
    returns_bit_for_bit(first, tmp_path / "again.pth", family, tmp_path)


def test_only_mergeable_imports_get_rungs(tmp_path: Path) -> None:
    for family, rungs in (("mae_pretrained", True), ("maws_clip", True), ("flip", True), ("mae_st_pretrained", False), ("mcc", False)):
        case, _, settings = RECORDED[family]
        spec = import_file(GOLDEN / case / "checkpoint.pth", tmp_path, settings).spec
        assert (family, bool(spec.ladder), spec.default_rung) == (family, rungs, None)
        assert {(rung.accuracy, rung.throughput, rung.metric) for rung in spec.ladder} <= {(None, None, "top-1")}


def test_audio_video_network_gets_rungs_of_two_halves(tmp_path: Path) -> None:
    case, _, settings = RECORDED["mavil"]
    spec = import_file(GOLDEN / case / "checkpoint.pth", tmp_path, settings).spec
    answer = [(rung.name, rung.schedule, rung.schedule_sight) for rung in spec.ladder]  # of 32 and 64 patches, in two blocks
    assert answer == [("r4-8", 4, 8), ("r8-16", 8, 16), ("r10-20", 10, 20), ("r12-25", 12, 25), ("r15-30", 15, 30)]
    assert spec.default_rung is None


@pytest.mark.parametrize("family", MADE)
def test_own_bundle_converts_to_published_layout_and_back(family: str, tmp_path: Path) -> None:
    returns_bit_for_bit(build(family, tmp_path), tmp_path / "file.pth", family, tmp_path)


def test_appearance_network_converts_to_published_names_and_back() -> None:
    architecture = architectures()["phalp_appearance"]
    with torch.device("meta"):
        weights = architecture.build(architecture.config()).state_dict()
    found = fit(families()["phalp_appearance"].export(weights), families()["phalp_appearance"], {})
    assert found.perfect and found.weights.keys() == weights.keys()


@pytest.mark.parametrize(
    ("family", "file"),
    [("flip", "again"), ("diffmae", "again.safetensors"), ("mvit", "again.safetensors"), ("lart", "again.safetensors")],
)
def test_other_containers_return_as_well(family: str, file: str, tmp_path: Path) -> None:
    """T5X's folder, and safetensors with the configuration in its metadata."""
    case, _, settings = RECORDED[family]
    returns_bit_for_bit(import_file(GOLDEN / case / "checkpoint.pth", tmp_path, settings), tmp_path / file, family, tmp_path)


@pytest.mark.parametrize(
    ("case", "key"),
    [
        ("mae/finetune_gap", "model"),
        ("hmr2/tiny_forward", "state_dict"),
        ("mvit/mvitv2_det_tiny", "model_state"),
        ("flip/tiny_m75", "target"),
    ],
)
def test_an_export_is_wrapped_and_named_as_it_was_published(case: str, key: str, tmp_path: Path) -> None:
    settings = next(settings for recorded, _, settings in RECORDED.values() if recorded.split("/")[0] == case.split("/")[0])
    known_values = {name: value for name, value in settings.items() if name != "passes"} | (
        {"decoder_heads": "3"} if "hmr2" in case else {}
    )
    file = GOLDEN / case / "checkpoint.pth"
    written = export_bundle(import_file(file, tmp_path, known_values), tmp_path / "again.pth")
    with torch.serialization.safe_globals(ALLOWED_CLASSES):
        published, again = (torch.load(path, weights_only=True)[key] for path in (file, tmp_path / "again.pth"))
    assert again.keys() <= published.keys()
    assert (again.keys() < published.keys()) is bool(written.lacks)  # what is not there is named
    assert all(torch.equal(published[name], value) for name, value in again.items())


def test_video_audio_and_oblong_image_fit_into_a_bundle(tmp_path: Path) -> None:
    video = import_file(GOLDEN / "diffmae/train_video_cross/checkpoint.pth", tmp_path, {"stride": "2"}).spec
    assert video.preprocess is not None and video.clip is not None
    assert (video.preprocess.image_size, video.preprocess.image_width) == (32, 16)
    assert (video.clip.frames, video.clip.stride) == (4, 2)
    case, _, settings = RECORDED["audio_mae"]
    audio = import_file(GOLDEN / case / "checkpoint.pth", tmp_path, {**settings, "sound_mean": "-6.6"}).spec
    assert audio.preprocess is None and audio.sound is not None
    assert (audio.sound.frames, audio.sound.mel_bins, audio.sound.mean) == (128, 64, -6.6)
    case, _, settings = RECORDED["mavil"]
    both = import_file(GOLDEN / case / "checkpoint.pth", tmp_path, settings).spec
    assert both.preprocess is not None and both.clip is not None and both.sound is not None
    assert (both.preprocess.fit, both.clip.rate, both.sound.frames) == ("squeeze", 2, 64)
    with pytest.raises(BundleError, match="task autoencode takes no pictures"):
        _ = audio.image_preprocess


def test_the_queried_space_of_a_reconstruction_can_be_set(tmp_path: Path) -> None:
    case, _, settings = RECORDED["mcc"]
    for folder in ("objects", "rooms"):
        (tmp_path / folder).mkdir()
    objects = import_file(GOLDEN / case / "checkpoint.pth", tmp_path / "objects", settings).spec.space
    assert objects is not None and (objects.region, objects.extent, objects.source_size) == ("cube", 3.0, 800)
    set_ = {"region": "half-ball", "extent": "6", "spacing": "0.2", "source_size": "224"}
    rooms = import_file(GOLDEN / case / "checkpoint.pth", tmp_path / "rooms", {**settings, **set_}).spec.space
    assert rooms is not None and (rooms.region, rooms.extent, rooms.spacing, rooms.source_size) == ("half-ball", 6.0, 0.2, 224)


def test_a_model_of_a_task_that_is_not_served_loads_and_says_so(tmp_path: Path) -> None:
    case, _, settings = RECORDED["audio_mae"]
    loaded = load(import_file(GOLDEN / case / "checkpoint.pth", tmp_path, settings))
    with pytest.raises(BundleError, match="task autoencode is not served yet by this version"):
        loaded.forward({}, {})


@pytest.mark.parametrize(
    ("family", "file", "sentence"),
    [
        ("nobody", "a.pth", "family 'nobody' is unknown; known are timm"),
        ("swag", "a.pth", "does not fit swag: dist_token has no place in this format"),
        ("hmr2", "a.pth", "its architecture is vit, but hmr2 is a family of hmr2"),
        (None, "a.pth", r"was not imported; say with --family whose layout to write: deit$"),
        ("deit", "weights", "weights: exists already"),
        ("deit", "nowhere/a.pth", "nowhere: there is no such folder"),
    ],
)
def test_an_export_that_cannot_be_says_why(family: str | None, file: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        export_bundle(build("deit", tmp_path), tmp_path / file, family)
