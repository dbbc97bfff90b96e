"""Detector of people and of their poses, as an ONNX graph run by ONNX Runtime: MoveNet-MultiPose, or one with the same output.

The graph takes one frame at a time: scaled to `long_side`, or to the size that a pipeline requests, in the top left corner of a black one
whose sides are multiples of `multiple`, int32 (1, H, W, 3) of 0..255. Its output is float32 (1, people, 56): y, x and score of 17
keypoints, then top, left, bottom, right and score of the box, positions relative to its input's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from torch import Tensor, nn

from models.people.keypoints import KEYPOINT_COUNT, ROW_VALUES, Poses, suppress_duplicates
from models.systems.onnx.session import first_run, open_session
from models.systems.onnx.signature import describe_value, fits_shape, graph_inputs, read_graph


@dataclass(frozen=True)
class PoseGraphConfig:
    """Preprocessing of frames, and the threshold of detections."""

    long_side: int = 320
    multiple: int = 32
    people: int = 6
    """Maximum number of people in the output of one frame."""
    least_score: float = 0.25

    def __post_init__(self) -> None:
        if not 1 <= self.multiple <= self.long_side <= 2048 or self.long_side % self.multiple:
            raise ValueError(f"long_side {self.long_side} is not a multiple of {self.multiple} up to 2048")
        if not 1 <= self.people <= 1000:
            raise ValueError(f"people {self.people} is outside 1..1000")
        if not 0 <= self.least_score <= 1:
            raise ValueError(f"least_score {self.least_score} is outside 0..1")


class PoseGraph(nn.Module):
    """A pose detector. The session holds its parameters. Any number of threads may call it at once."""

    def __init__(self, config: PoseGraphConfig, session: onnxruntime.InferenceSession | None = None) -> None:
        super().__init__()
        self.config = config
        self._session = session

    def forward(self, frames: Tensor, options: onnxruntime.RunOptions | None = None, *, long_side: int | None = None) -> Tensor:
        """Detect people: uint8 RGB (B, H, W, 3) → float32 (B, people, 56) on the CPU, rows of `models.people.keypoints` in the frames'
        pixels.

        long_side: pixels that frames are scaled to, a multiple of `multiple`; None: the config's.
        """
        return torch.stack([self._detect(frame, long_side or self.config.long_side, options) for frame in frames])

    def find(self, frames: Tensor, *, long_side: int | None = None) -> list[Poses]:
        """Return the people of each frame (B, H, W, 3), best first, without duplicates. long_side: see `forward`."""
        return [
            suppress_duplicates(Poses.from_rows(rows), min_score=self.config.least_score)
            for rows in self(frames, long_side=long_side).numpy()
        ]

    def run(self, prepared: NDArray[np.int32], options: onnxruntime.RunOptions | None = None) -> NDArray[np.float32]:
        """Run the graph alone, on a prepared frame: int32 (1, H, W, 3) → float32 (1, people, 56)."""
        assert self._session is not None, "open it with `open_poses`"
        return np.asarray(self._session.run(None, {self._session.get_inputs()[0].name: prepared}, options)[0])

    def _detect(self, frame: Tensor, long_side: int, options: onnxruntime.RunOptions | None) -> Tensor:
        prepared, scale = letterbox(frame, long_side, self.config.multiple)
        output = torch.from_numpy(self.run(prepared.numpy(), options)[0])  # (people, 56)
        high, wide = (side / scale for side in prepared.shape[1:3])  # pixels of the frame
        keypoints = output[:, : 3 * KEYPOINT_COUNT].view(-1, KEYPOINT_COUNT, 3)[..., [1, 0, 2]] * torch.tensor([wide, high, 1.0])
        top, left, bottom, right, score = output[:, 3 * KEYPOINT_COUNT :].unbind(1)
        boxes = torch.stack([left * wide, top * high, (right - left) * wide, (bottom - top) * high, score], dim=1)
        return torch.cat([keypoints.flatten(1), boxes], dim=1)


def letterbox(frame: Tensor, long_side: int, multiple: int) -> tuple[Tensor, float]:
    """Scale a frame and pad it to multiples of `multiple`: uint8 (H, W, 3) → int32 (1, h, w, 3) on the CPU, and its scale."""
    height, width, _ = frame.shape
    scale = long_side / max(height, width)
    small = (max(1, round(height * scale)), max(1, round(width * scale)))
    padded = torch.zeros(1, *(side + -side % multiple for side in small), 3, dtype=torch.int32)
    padded[0, : small[0], : small[1]] = frame if small == (height, width) else _resize(frame, small)
    return padded, scale


def _resize(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a frame: uint8 (H, W, 3) → float32 (h, w, 3), rounded."""
    planes = F.interpolate(frame.permute(2, 0, 1)[None].float(), size, mode="bilinear", antialias=True)
    return planes[0].permute(1, 2, 0).round()


def open_poses(path: Path, config: PoseGraphConfig, device: torch.device) -> PoseGraph:
    """Check a graph whose SHA-256 was verified, and open it on a device. Raises ValueError with the problem, and OSError."""
    content, model = read_graph(path)
    _check_signature(model, config)
    graph = PoseGraph(config, open_session(content, device, torch.get_num_threads()))
    with first_run("a black frame") as options:
        rows = graph(torch.zeros(1, config.long_side, config.long_side // 2, 3, dtype=torch.uint8), options)
    if rows.shape != (1, config.people, ROW_VALUES) or not np.isfinite(rows.numpy()).all():
        raise ValueError(f"a black frame gives {tuple(rows.shape)} where finite (1, {config.people}, {ROW_VALUES}) is needed")
    return graph


def _check_signature(model: ModelProto, config: PoseGraphConfig) -> None:
    inputs = graph_inputs(model)
    is_valid = len(inputs) == 1 and inputs[0].type.tensor_type.elem_type == TensorProto.INT32 and fits_shape(inputs[0], [1, None, None, 3])
    if not is_valid:
        declared = ", ".join(map(describe_value, inputs)) or "none"
        raise ValueError(f"its inputs are {declared}; one of int32 (1, height, width, 3) is needed")
    outputs = list(model.graph.output)
    if (
        not outputs
        or outputs[0].type.tensor_type.elem_type != TensorProto.FLOAT
        or not fits_shape(outputs[0], [1, config.people, ROW_VALUES])
    ):
        declared = ", ".join(map(describe_value, outputs)) or "none"
        raise ValueError(f"its outputs are {declared}; the first must be float32 (1, {config.people}, {ROW_VALUES})")
