"""Small ONNX graphs and bundles of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.bundle import Bundle, BundleSpec, write
from models.spec import Preprocess
from tests.bundles import UNSEALED

SIZE, CLASSES = 16, 4
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
