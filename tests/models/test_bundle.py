"""What a bundle may say of itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from models.bundle import Bundle, BundleError, BundleSpec, read
from models.spec import Clip, Sound

PICTURES = {"image_size": 32, "short_side": 36, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def spec(**changes: Any) -> BundleSpec:
    content = {
        "name": "test",
        "version": "1",
        "task": "classify",
        "architecture": "vit",
        "config": {},
        "preprocess": PICTURES,
        "labels": ["a", "b"],
        "license": "CC0-1.0",
        "weights": {"sha256": "0" * 64, "bytes": 0},
    }
    content |= changes
    return BundleSpec.from_bytes(json.dumps({key: value for key, value in content.items() if value is not None}).encode())


def test_bundles_written_before_there_were_other_tasks_are_read_as_they_were() -> None:
    plain = spec()
    assert (plain.task, plain.schema_version, plain.labels) == ("classify", 1, ["a", "b"])
    assert (plain.pictures.image_width, plain.pictures.fit, plain.clip, plain.sound) == (None, "crop", None, None)
    assert BundleSpec.from_bytes(plain.to_bytes()).digest() == plain.digest()


def test_what_a_bundle_does_not_say_is_not_in_its_bytes() -> None:
    """So that versions of Opsin that do not know a field agree on the digest."""
    rule = {"method": "exemplar", "thickness": 9, "side": None}
    said = {"trained_on": "ten drawings", "note": "For tests.", "preset": "fast", "fill": [rule]}
    silent, telling = spec(), spec(**said)
    assert not said.keys() & json.loads(silent.to_bytes()).keys()
    told = json.loads(telling.to_bytes())
    assert {name: told[name] for name in said} == said
    assert BundleSpec.from_bytes(telling.to_bytes()) == telling


@pytest.mark.timeout(20)
def test_a_pipe_is_refused_instead_of_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "bundle.json")
    with pytest.raises(BundleError, match=r"bundle\.json: is no ordinary file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(BundleError, match=r"model\.safetensors: is no ordinary file"):
        Bundle(path=tmp_path, spec=spec(weights={"sha256": "0" * 64, "bytes": 0})).verify()


def test_weights_that_cannot_be_read_are_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("/proc/self/mem")  # an ordinary file without bytes, of which each read fails
    with pytest.raises(BundleError, match=r"model\.safetensors: cannot be read \(Input/output error\)"):
        Bundle(path=tmp_path, spec=spec(weights={"sha256": "0" * 64, "bytes": 0})).verify()


def test_a_task_has_only_what_it_needs() -> None:
    sound = {"frames": 1024, "mel_bins": 128, "mean": 0, "std": 1}
    heard = spec(task="audio-visual", clip={"frames": 8, "stride": 1, "rate": 2}, sound=sound)
    assert heard.clip == Clip(frames=8, stride=1, rate=2)
    assert heard.sound == Sound(sample_rate=16_000, frames=1024, mel_bins=128, mean=0, std=1)
    tracked = spec(task="track", preprocess=None, labels=None)
    assert (tracked.preprocess, tracked.labels) == (None, [])
    with pytest.raises(BundleError, match="test@1: task track takes no pictures"):
        _ = tracked.pictures
    oblong = spec(task="inpaint", labels=None, preprocess={**PICTURES, "image_width": 64, "short_side": 32})
    assert (oblong.pictures.image_size, oblong.pictures.image_width) == (32, 64)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": "paint"}, "task: Input should be 'classify'"),
        ({"config": {"depth": 60_000_000}}, "config: .*depth 60000000 is more than 1024 blocks"),
        ({"config": {"depth": 6e7}}, "config: .*depth 60000000.0 is more than 1024 blocks"),
        ({"config": {"depth": "twelve"}}, "config: .*depth 'twelve' must be an integer"),
        ({"config": {"patch_size": [16]}}, "config: .*patch_size \\[16\\] must be an integer"),
        ({"config": {"depth": 10**400}}, "is more than 1024 blocks"),
        ({"config": {"text_depth": "60000000"}}, "config: .*text_depth 60000000 is more than 1024 blocks"),
        ({"preprocess": None}, "task classify needs preprocess and labels"),
        ({"labels": None}, "task classify needs preprocess and labels"),
        ({"preprocess": {**PICTURES, "image_width": 24}}, "task classify takes square pictures, without image_width"),
        ({"task": "inpaint"}, "labels: task inpaint has none"),
        ({"preprocess": {**PICTURES, "short_side": 31}}, "short_side 31 is smaller than image_size 32"),
        ({"clip": {"frames": 8, "stride": 0}}, "clip.stride: Input should be greater than 0"),
    ],
)
def test_what_does_not_belong_together_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BundleError, match=sentence):
        spec(**changes)
