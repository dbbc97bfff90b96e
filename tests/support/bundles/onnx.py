"""Small ONNX graphs, bundles of them, and a depth network whose disparity is the red channel."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.bundle import Bundle, BundleSpec, write
from models.bundle_schema import Preprocess
from models.systems.onnx.import_graph import import_graph
from tests.support.bundles.vit import UNSEALED
from tests.support.images import depth

SIZE, CLASSES = 16, 4
FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
WEIGHT = np.random.default_rng(0).normal(size=(3, CLASSES)).astype(np.float32)


def colours(**changes: Any) -> onnx.ModelProto:
    """Mean colour of an image times a matrix: (batch, 3, 16, 16) → (batch, 4)."""
    nodes = [helper.make_node("GlobalAveragePool", ["images"], ["mean"]), helper.make_node("Flatten", ["mean"], ["colour"])]
    nodes.append(helper.make_node("MatMul", ["colour", "weight"], ["scores"]))
    graph = helper.make_graph(
        changes.get("nodes", nodes),
        "colours",
        [helper.make_tensor_value_info("images", changes.get("dtype", TensorProto.FLOAT), changes.get("shape", ["batch", 3, SIZE, SIZE]))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", changes.get("classes", CLASSES)])],
        [numpy_helper.from_array(changes.get("weight", WEIGHT), "weight")],
    )
    return helper.make_model(graph, opset_imports=changes.get("opsets", [helper.make_opsetid("", 18)]), ir_version=10)


def write_graph(root: Path, model: onnx.ModelProto | bytes) -> Bundle:
    root.mkdir(exist_ok=True)
    file = root / "graph"
    file.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    spec = BundleSpec(
        name="colours",
        version="1",
        task="classify",
        architecture="onnx",
        config={"image_size": SIZE, "classes": CLASSES},
        preprocess=Preprocess(image_size=SIZE, short_side=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        labels=["red", "green", "blue", "grey"],
        license="CC0-1.0",
        weights=UNSEALED,
    )
    return write(root, spec, file)


def graph(inputs: list[tuple[str, int, int]], side: int | str, nodes: list[onnx.NodeProto], output: tuple[int, list[Any]]) -> bytes:
    """Build a graph. inputs: name, type and channels of each."""
    weights = np.random.default_rng(0).normal(size=(3, 4, 3, 3)).astype(np.float32)
    reserved = {"weight": weights, "one": weights[:1, :3], "byte": np.array(255, np.float32), "axis": np.array([1])}
    made = helper.make_graph(
        nodes,
        "random",
        [helper.make_tensor_value_info(name, kind, [1, channels, side, side]) for name, kind, channels in inputs],
        [helper.make_tensor_value_info("answer", *output)],
        [numpy_helper.from_array(value, name) for name, value in reserved.items()],
    )
    return bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


def lama(side: int | str) -> bytes:
    """float32 image and mask in 0..1 → float32 in 0..255."""
    nodes = [
        helper.make_node("Concat", ["image", "mask"], ["both"], axis=1),
        helper.make_node("Conv", ["both", "weight"], ["seen"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["seen"], ["unit"]),
        helper.make_node("Mul", ["unit", "byte"], ["answer"]),
    ]
    return graph([("image", FLOAT, 3), ("mask", FLOAT, 1)], side, nodes, (FLOAT, [1, 3, side, side]))


def migan() -> bytes:
    """uint8 image and mask of open sizes → uint8: the mask itself in all three channels."""
    nodes = [
        helper.make_node("Concat", ["mask", "mask", "mask"], ["masks"], axis=1),
        helper.make_node("Max", ["masks", "image"], ["answer"]),
    ]
    return graph([("image", UINT8, 3), ("mask", UINT8, 1)], "side", nodes, (UINT8, [1, 3, "h", "w"]))


def midas(side: int | str) -> bytes:
    nodes = [
        helper.make_node("Conv", ["image", "one"], ["seen"], pads=[1, 1, 1, 1]),
        helper.make_node("Squeeze", ["seen", "axis"], ["answer"]),
    ]
    return graph([("image", FLOAT, 3)], side, nodes, (FLOAT, [1, side, side]))


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
    """Return an image (H, W, 3), red by the disparity of the ball of `depth`, and its mask."""
    opposite = depth() > 0
    disparity = np.where(opposite, 1 / np.where(opposite, depth(), 1), 0)
    low, high = disparity[opposite].min(), disparity.max()
    pixels = np.random.default_rng(0).integers(0, 256, (*opposite.shape, 3), np.uint8)
    pixels[..., 0] = np.rint(np.clip((disparity - low) / (high - low), 0, 1) * 200 + 20)
    return pixels, opposite
