"""A network that tells the red of an image as its disparity, and photographs whose red is that of a ball."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from models.bundle import Bundle, write
from models.systems.onnx.import_graph import import_graph
from tests.harness.captures import depth
from tests.harness.graphs import FLOAT, graph

SIDE = 64


def write_teller(root: Path, name: str = "teller", **settings: str) -> Bundle:
    nodes = [
        helper.make_node("Split", ["image"], ["answer", "green", "blue"], axis=1),
    ]
    with TemporaryDirectory() as folder:
        file = Path(folder, "teller.onnx")
        file.write_bytes(graph([("image", FLOAT, 3)], SIDE, nodes, (FLOAT, [1, 1, SIDE, SIDE])))
        spec, _ = import_graph(file, overrides={"output": "disparity", **settings}, name=name, version="1", license="CC0-1.0")
        return write(root, spec, file)


def ball() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(H, W, 3), red by the disparity of the ball of `depth`, and its mask."""
    there = depth() > 0
    disparity = np.where(there, 1 / np.where(there, depth(), 1), 0)
    low, high = disparity[there].min(), disparity.max()
    pixels = np.random.default_rng(0).integers(0, 256, (*there.shape, 3), np.uint8)
    pixels[..., 0] = np.rint(np.clip((disparity - low) / (high - low), 0, 1) * 200 + 20)
    return pixels, there
