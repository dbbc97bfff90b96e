"""Foreign classifiers and detectors of poses as ONNX graphs. Imports no torch."""

from __future__ import annotations

from models.registry import Architecture, Purpose, System

SYSTEM = System(
    architectures=(
        Architecture(
            name="onnx",
            model="models.onnx.graph:OnnxGraph",
            purpose=Purpose(
                task=lambda config: "classify",
                size=lambda config: (config.image_size, config.image_size),
                classes=lambda config: int(config.classes),
            ),
            forwards={"classify": "models.onnx.graph:classify"},
            merges=False,
            open="models.onnx.graph:open_graph",
        ),
        Architecture(
            name="movenet",
            model="models.onnx.poses:PoseGraph",
            purpose=Purpose(task=lambda config: "pose", size=lambda config: None),
            merges=False,
            open="models.onnx.poses:open_poses",
        ),
    ),
)
