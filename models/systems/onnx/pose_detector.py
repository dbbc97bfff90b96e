"""Detector of people and of their poses, as an ONNX graph run by ONNX Runtime: MoveNet-MultiPose, or one that answers like it.

The graph sees one frame at a time: the frame scaled to `long_side`, or to what a pipeline asks for, in the top left corner of a black one
whose sides are multiples of `multiple`, int32 (1, H, W, 3) of 0..255. It answers float32 (1, people, 56): y, x and score of 17 keypoints,
then top, left, bottom, right and score of the box, places in parts of what it saw.
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
from models.systems.onnx.session import LONGEST, ended_after, first_line, open_session
from models.systems.onnx.signature import described, fits, inputs_of, read_graph


@dataclass(frozen=True)
class PoseGraphConfig:
    """Preprocessing of frames, and what counts as a person."""

    long_side: int = 320
    multiple: int = 32
    people: int = 6
    """The most that one frame's answer holds."""
    least_score: float = 0.25
    """Score of a box below which it counts as nobody."""

    def __post_init__(self) -> None:
        if not 1 <= self.multiple <= self.long_side <= 2048 or self.long_side % self.multiple:
            raise ValueError(f"long_side {self.long_side} is no multiple of {self.multiple} up to 2048")
        if not 1 <= self.people <= 1000:
            raise ValueError(f"people {self.people} is outside 1..1000")
        if not 0 <= self.least_score <= 1:
            raise ValueError(f"least_score {self.least_score} is outside 0..1")


class PoseGraph(nn.Module):
    """Frames → people. It has no parameters of its own: the session holds them. Any number of threads may call it at once."""

    def __init__(self, config: PoseGraphConfig, session: onnxruntime.InferenceSession | None = None) -> None:
        super().__init__()
        self.config = config
        self._session = session

    def forward(self, frames: Tensor, options: onnxruntime.RunOptions | None = None, *, long_side: int | None = None) -> Tensor:
        """uint8 RGB (B, H, W, 3) → float32 (B, people, 56) on the CPU, as rows of `models.people.keypoints` in the frames' pixels.

        long_side: pixels that frames are scaled to, a multiple of `multiple`; None: the config's."""
        return torch.stack([self._answer(frame, long_side or self.config.long_side, options) for frame in frames])

    def find(self, frames: Tensor, *, long_side: int | None = None) -> list[Poses]:
        """The people of each frame (B, H, W, 3), best first, without doubles. long_side: see `forward`."""
        return [
            suppress_duplicates(Poses.from_rows(rows), min_score=self.config.least_score)
            for rows in self(frames, long_side=long_side).numpy()
        ]

    def run(self, seen: NDArray[np.int32], options: onnxruntime.RunOptions | None = None) -> NDArray[np.float32]:
        """The graph alone, on a frame that is prepared: int32 (1, H, W, 3) → float32 (1, people, 56)."""
        assert self._session is not None, "open it with `open_poses`"
        return np.asarray(self._session.run(None, {self._session.get_inputs()[0].name: seen}, options)[0])

    def _answer(self, frame: Tensor, long_side: int, options: onnxruntime.RunOptions | None) -> Tensor:
        seen, scale = letterbox(frame, long_side, self.config.multiple)
        answer = torch.from_numpy(self.run(seen.numpy(), options)[0])  # (people, 56)
        high, wide = (side / scale for side in seen.shape[1:3])  # pixels of the frame
        keypoints = answer[:, : 3 * KEYPOINT_COUNT].view(-1, KEYPOINT_COUNT, 3)[..., [1, 0, 2]] * torch.tensor([wide, high, 1.0])
        top, left, bottom, right, score = answer[:, 3 * KEYPOINT_COUNT :].unbind(1)
        boxes = torch.stack([left * wide, top * high, (right - left) * wide, (bottom - top) * high, score], dim=1)
        return torch.cat([keypoints.flatten(1), boxes], dim=1)


def letterbox(frame: Tensor, long_side: int, multiple: int) -> tuple[Tensor, float]:
    """uint8 (H, W, 3) → int32 (1, h, w, 3) on the CPU, the sides multiples of `multiple`, and its scale."""
    height, width, _ = frame.shape
    scale = long_side / max(height, width)
    small = (max(1, round(height * scale)), max(1, round(width * scale)))
    seen = torch.zeros(1, *(side + -side % multiple for side in small), 3, dtype=torch.int32)
    seen[0, : small[0], : small[1]] = frame if small == (height, width) else _resized(frame, small)
    return seen, scale


def _resized(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (H, W, 3) → float32 (h, w, 3), rounded."""
    planes = F.interpolate(frame.permute(2, 0, 1)[None].float(), size, mode="bilinear", antialias=True)
    return planes[0].permute(1, 2, 0).round()


def open_poses(path: Path, config: PoseGraphConfig, device: torch.device) -> PoseGraph:
    """Check a graph whose SHA-256 was verified, and open it on a device. Raises ValueError with what is wrong and OSError."""
    content, model = read_graph(path)
    _check_signature(model, config)
    graph = PoseGraph(config, open_session(content, device, torch.get_num_threads()))
    try:
        with ended_after(LONGEST) as options:
            rows = graph(torch.zeros(1, config.long_side, config.long_side // 2, 3, dtype=torch.uint8), options)
    except Exception as error:  # ONNX Runtime's own exceptions derive from Exception alone
        raise ValueError(f"it fails on a black frame: {first_line(error)}") from error
    if rows.shape != (1, config.people, ROW_VALUES) or not np.isfinite(rows.numpy()).all():
        raise ValueError(f"a black frame gives {tuple(rows.shape)} where finite (1, {config.people}, {ROW_VALUES}) is needed")
    return graph


def _check_signature(model: ModelProto, config: PoseGraphConfig) -> None:
    inputs = inputs_of(model)
    right = len(inputs) == 1 and inputs[0].type.tensor_type.elem_type == TensorProto.INT32 and fits(inputs[0], [1, None, None, 3])
    if not right:
        found = ", ".join(map(described, inputs)) or "none"
        raise ValueError(f"its inputs are {found}; one of int32 (1, height, width, 3) is needed")
    outputs = list(model.graph.output)
    if not outputs or outputs[0].type.tensor_type.elem_type != TensorProto.FLOAT or not fits(outputs[0], [1, config.people, ROW_VALUES]):
        found = ", ".join(map(described, outputs)) or "none"
        raise ValueError(f"its outputs are {found}; the first must be float32 (1, {config.people}, {ROW_VALUES})")
