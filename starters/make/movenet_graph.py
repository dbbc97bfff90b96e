"""Convert MoveNet-MultiPose from TensorFlow.js to ONNX: `python movenet_graph.py FOLDER FRAMES OUTPUT`.

`movenet_bundle.py` makes an environment with TensorFlow and tf2onnx, and runs this file in it. FRAMES is an `.npz` of int32 images
(1, H, W, 3); OUTPUT gets `graph.onnx`, and `poses.npz` with TensorFlow's outputs for each image.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

np.product = np.prod  # type: ignore[attr-defined]  # tf2onnx 1.17 uses this name, which NumPy 2 lacks
from tf2onnx.convert import _convert_common  # noqa: E402
from tf2onnx.tfjs_utils import read_tfjs_weight, tfjs_node_to_tf_node_def  # noqa: E402

MODEL = "movenet-multipose"
OPSET = 18
FUSED_DEPTHWISE = "FusedDepthwiseConv2dNative"
"""Operator of TensorFlow.js alone; TensorFlow needs the convolution and the operators fused to it one by one."""


def complete(model: dict[str, Any]) -> dict[str, Any]:
    """Add attributes that TensorFlow needs and TensorFlow.js leaves out."""
    for node in model["modelTopology"]["node"]:
        attributes = node.setdefault("attr", {})
        if node["op"] == "TopKV2":
            attributes.setdefault("index_type", {"type": "DT_INT32"})
            attributes.setdefault("Tk", {"type": "DT_INT32"})
        if node["op"] == "_FusedConv2D":
            fused = int(attributes["num_args"]["i"])
            attributes.setdefault("TArgs", {"list": {"type": ["DT_FLOAT"] * fused}})
    return model


def weights_of(model: Mapping[str, Any], folder: Path) -> dict[str, np.ndarray]:
    manifest = model["weightsManifest"][0]
    content = b"".join((folder / path).read_bytes() for path in manifest["paths"])
    weights, offset = {}, 0
    for weight in manifest["weights"]:
        name, values, size = read_tfjs_weight(weight, content, offset)
        weights[name], offset = values, offset + size
    return weights


def tensorflow_graph(model: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> tf.Graph:
    """Build the same network in TensorFlow without the converter's rewriting, as the reference for the ONNX graph."""
    definition = tf.compat.v1.GraphDef()
    for node in model["modelTopology"]["node"]:
        if node["op"] == "Const":
            kind = tf.dtypes.DType(tf.as_dtype(node["attr"]["dtype"]["type"].removeprefix("DT_").lower().replace("float", "float32")))
            constant = definition.node.add(name=node["name"], op="Const")
            constant.attr["dtype"].type = kind.as_datatype_enum
            constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(weights[node["name"]], dtype=kind))
        elif node["op"] == FUSED_DEPTHWISE:
            definition.node.extend(_unfuse(node))
        else:
            definition.node.append(tfjs_node_to_tf_node_def(node))
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(definition, name="")
    return graph


def _unfuse(node: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the convolution and the operators fused to it; the last one has the node's name."""
    fused = [base64.b64decode(name).decode() for name in node["attr"]["fused_ops"]["list"]["s"]]
    if fused[:1] != ["BiasAdd"]:
        raise ValueError(f"{node['name']}: fused to {fused}, where a bias was expected first")
    names = [f"{node['name']}/{place}" for place in range(len(fused))] + [node["name"]]
    data, kernel, bias = node["input"]
    attributes = {key: node["attr"][key] for key in ("T", "strides", "padding", "data_format", "dilations")}
    convolution = {"name": names[0], "op": "DepthwiseConv2dNative", "input": [data, kernel], "attr": attributes}
    yield tfjs_node_to_tf_node_def(convolution)
    for operator, before, name in zip(fused, names[:-1], names[1:], strict=True):
        inputs = [before, bias] if operator == "BiasAdd" else [before]
        yield tfjs_node_to_tf_node_def({"name": name, "op": operator, "input": inputs, "attr": {"T": attributes["T"]}})


def main(source: Path, frames: Path, output: Path) -> None:
    model = complete(json.loads((source / f"{MODEL}.json").read_text()))
    (output / f"{MODEL}.json").write_text(json.dumps(model))
    for path in model["weightsManifest"][0]["paths"]:
        shutil.copyfile(source / path, output / path)
    # tf2onnx's public functions read no TensorFlow.js; its command does, by this call
    proto, _ = _convert_common(None, name=MODEL, tfjs_path=str(output / f"{MODEL}.json"), opset=OPSET, inputs_as_nchw=None)
    (output / "graph.onnx").write_bytes(proto.SerializeToString())
    graph = tensorflow_graph(model, weights_of(model, source))
    with np.load(frames) as images, tf.compat.v1.Session(graph=graph) as session:
        np.savez(output / "poses.npz", **{name: session.run("Identity:0", {"input:0": images[name]}) for name in images})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
