"""Foreign classifiers and detectors of poses as ONNX graphs. Imports no torch."""

from __future__ import annotations

from models.registry import Architecture, Purpose, System

SYSTEM = System(
    architectures=(
        Architecture(
            name="onnx",
            model="models.onnx_graph.model:OnnxGraph",
            purpose=Purpose(
                task=lambda config: "classify",
                size=lambda config: (config.image_size, config.image_size),
                classes=lambda config: int(config.classes),
            ),
            forwards={"classify": "models.onnx_graph.model:classify"},
            merges=False,
            open="models.onnx_graph.model:open_graph",
        ),
        Architecture(
            name="movenet",
            model="models.onnx_graph.poses:PoseGraph",
            purpose=Purpose(task=lambda config: "pose", size=lambda config: None),
            merges=False,
            open="models.onnx_graph.poses:open_poses",
        ),
    ),
)
