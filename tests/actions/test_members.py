"""A pipeline is one bundle that is made of others, pinned by the SHA-256 of their specs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from models.bundle import SPEC_FILE, Bundle, BundleError, BundleSpec, read
from models.bundle_schema import Preprocess
from models.loading import load
from models.people.heads import TrackFeatureDims
from models.people.track_batch import POSE_VALUES
from models.systems.hmr2.model import HMR2, HMR2Config
from models.systems.lart.model import LARTConfig
from server.queue.messages import ServedBundle
from server.worker.loaded_bundles import LoadedBundles
from tests.support.bundles.actions import LABELS, SMALL, STATISTICS, write_lart, write_movenet, write_pipeline, write_watcher
from tests.support.bundles.vit import UNSEALED, seal, write_tiny_vit


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_watcher(tmp_path_factory.mktemp("bundles"))


def write_hmr2(root: Path) -> Bundle:
    config = HMR2Config(
        image_size=64, side_cut=8, width=32, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_head_dim=8,
        decoder_hidden=16,
    )  # fmt: skip
    torch.manual_seed(0)
    spec = BundleSpec(
        name="small-hmr2",
        version="1",
        task="body",
        architecture="hmr2",
        config=dataclasses.asdict(config),
        preprocess=Preprocess(image_size=64, short_side=64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        license="CC0-1.0",
        weights=UNSEALED,
    )
    return seal(root, spec, HMR2(config).state_dict())


def error_of(bundle: Bundle) -> str:
    with pytest.raises(BundleError) as error:
        load(bundle)
    return str(error.value)


def test_a_pipeline_loads_with_its_members(watcher: Bundle) -> None:
    model = load(watcher)
    assert model.steps is not None and model.steps.unit == "windows"


def test_its_digest_covers_its_members(watcher: Bundle, tmp_path: Path) -> None:
    """Prove that another member under the same name changes the digest, so no worker takes the jobs of the other pipeline."""
    pose, small, wide = write_movenet(tmp_path), write_lart(tmp_path), write_lart(tmp_path / "other", dataclasses.replace(SMALL, hidden=64))
    first, second = (
        write_pipeline(root, {"pose": pose, "actions": lart}) for root, lart in ((tmp_path, small), (tmp_path / "other", wide))
    )
    assert first.spec.digest() == watcher.spec.digest() != second.spec.digest()


def test_bundles_without_members_keep_their_digest() -> None:
    flags = next(Path("bundles/flags").iterdir())
    spec = read(flags).spec
    assert "members" not in json.loads(spec.to_bytes())


def test_a_member_that_was_changed_is_refused(tmp_path: Path) -> None:
    bundle = write_watcher(tmp_path)
    file = tmp_path / "small-lart" / "1" / SPEC_FILE
    file.write_text(file.read_text().replace("CC0-1.0", "MIT"))
    assert "members.actions" in error_of(bundle) and "is not the one that this pipeline was made with" in error_of(bundle)


def test_a_member_that_is_missing_is_named(tmp_path: Path) -> None:
    bundle = write_watcher(tmp_path)
    (tmp_path / "movenet").rename(tmp_path / "gone")
    assert "members.pose: movenet@1.0.0 is not at" in error_of(bundle)


def test_the_weights_of_members_are_verified(tmp_path: Path) -> None:
    bundle = write_watcher(tmp_path)
    weights = tmp_path / "small-lart" / "1" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match="SHA-256"):
        bundle.verify()


def test_members_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    pose = write_movenet(tmp_path)
    bodies = write_lart(tmp_path, dataclasses.replace(SMALL, pose=TrackFeatureDims(POSE_VALUES, 32, 32)), "bodies")
    joints = write_lart(tmp_path, dataclasses.replace(SMALL, joints=TrackFeatureDims(135, 16, 16)), "joints")
    fitting = write_lart(tmp_path)
    vit = write_tiny_vit(tmp_path)
    assert "bodies@1 needs 229 values of pose for each person, and the other members provide 55" in error_of(
        write_pipeline(tmp_path, {"pose": pose, "actions": bodies}, "a")
    )
    assert "joints@1 needs 135 values of joints" in error_of(write_pipeline(tmp_path, {"pose": pose, "actions": joints}, "b"))
    assert "tiny@1 is of architecture vit, which returns no poses" in error_of(
        write_pipeline(tmp_path, {"pose": vit, "actions": fitting}, "c")
    )
    assert "needs one for `pose`" in error_of(write_pipeline(tmp_path, {"actions": fitting}, "d"))
    assert "do not fit into the 45 of small-lart@1" in error_of(
        write_pipeline(tmp_path, {"pose": pose, "actions": fitting}, "e", config={"step": 32, "margin": 32})
    )
    wrong = write_pipeline(tmp_path, {"pose": pose, "actions": fitting}, "f")
    spec = wrong.spec.model_copy(update={"labels": LABELS[::-1], "name": "g"})
    assert "labels: they are not those of its member small-lart@1" in error_of(seal(tmp_path, spec, {}))


def test_a_pipeline_may_estimate_bodies_instead_of_keypoints(tmp_path: Path) -> None:
    """Join HMR 2.0 for poses, a detector before it, and LART on its published tokens of 229 values."""
    config: LARTConfig = dataclasses.replace(SMALL, pose=TrackFeatureDims(POSE_VALUES, 32, 32), mean_std=STATISTICS)
    pose, detector, actions = write_hmr2(tmp_path), write_movenet(tmp_path), write_lart(tmp_path, config)
    assert "needs a member for `detector`" in error_of(write_pipeline(tmp_path, {"pose": pose, "actions": actions}, "without"))
    assert load(write_pipeline(tmp_path, {"detector": detector, "pose": pose, "actions": actions})).steps is not None


def test_a_worker_lists_a_pipeline_as_one_bundle(tmp_path: Path) -> None:
    """Prove that members are not listed as bundles, and that a pipeline is loaded as soon as a late member arrives."""
    write_watcher(tmp_path)
    (tmp_path / "movenet").rename(tmp_path.parent / "movenet-for-later")
    published: list[str] = []

    def warm_up(bundle: Bundle) -> object:
        bundle.verify()
        raise BundleError("enough for this test")

    bundles = LoadedBundles(tmp_path, warm_up, lambda spec: published.append(spec.id), lambda: None)  # type: ignore[arg-type]
    bundles.refresh({})
    [announced] = bundles.announcements(1)
    assert isinstance(announced, ServedBundle) and announced.name == "watcher" and "movenet@1.0.0 is not at" in announced.reason
    (tmp_path.parent / "movenet-for-later").rename(tmp_path / "movenet")
    bundles.refresh({})
    [announced] = bundles.announcements(1)
    assert announced.reason == "enough for this test" and published == ["watcher@1", "watcher@1"]
