"""A foreign depth network, as an ONNX graph run by ONNX Runtime: MiDaS, Depth Anything, or one with their inputs.

The graph takes one input, float32 (1, 3, S, S), normalised; its first output is float32 (1, S, S) or (1, 1, S, S), up to scale and shift.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto, TensorProto
from torch import Tensor, nn

from models.systems.onnx.session import first_run, open_session
from models.systems.onnx.signature import describe_value, dimensions, graph_inputs, is_depth, read_graph


@dataclass(frozen=True)
class DepthGraphConfig:
    image_size: int = 256
    output: Literal["disparity", "depth"] = "disparity"
    """disparity: larger is nearer, as in MiDaS and Depth Anything; depth: larger is farther."""

    def __post_init__(self) -> None:
        if not 16 <= self.image_size <= 4096:
            raise ValueError(f"image_size {self.image_size} is outside 16..4096")


class DepthGraph(nn.Module):
    """A depth network: normalised images (B, 3, S, S) → the graph's output per pixel (B, S, S). The session holds its parameters. Any
    number of threads may call it at once."""

    def __init__(self, config: DepthGraphConfig, session: onnxruntime.InferenceSession | None = None) -> None:
        super().__init__()
        self.config = config
        self._session = session

    def forward(self, images: Tensor, options: onnxruntime.RunOptions | None = None) -> Tensor:
        assert self._session is not None, "open it with `open_depth`"
        name, side = self._session.get_inputs()[0].name, self.config.image_size
        rows = [self._session.run(None, {name: image[None].cpu().contiguous().numpy()}, options)[0] for image in images]
        return torch.from_numpy(np.concatenate(rows)).view(-1, side, side).to(images.device)


def open_depth(path: Path, config: DepthGraphConfig, device: torch.device) -> DepthGraph:
    """Check a graph whose SHA-256 was verified, and open it on a device. Raises ValueError with the problem, and OSError."""
    content, model = read_graph(path)
    check_depth(model, config.image_size)
    graph = DepthGraph(config, open_session(content, device, torch.get_num_threads()))
    with first_run(f"a grey image of {config.image_size} × {config.image_size} pixels") as options:
        depths = graph(torch.zeros(1, 3, config.image_size, config.image_size), options)
    if not depths.isfinite().all():
        raise ValueError("its output for a grey image has infinite values or NaN")
    return graph


def check_depth(model: ModelProto, side: int) -> None:
    """Check a graph's input and output. Raises ValueError if they are not those of the module's docstring."""
    values = [*graph_inputs(model), *list(model.graph.output)[:1]]
    floats = all(value.type.tensor_type.elem_type == TensorProto.FLOAT for value in values)
    if not (is_depth(model) and floats and all(set(dimensions(value)[-2:]) <= {None, side} for value in values)):
        declared = ", ".join(map(describe_value, values)) or "none"
        raise ValueError(f"its input and first output are {declared}; float32 (1, 3, {side}, {side}) and (1, {side}, {side}) are needed")
