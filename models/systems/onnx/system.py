"""Foreign classifiers and encoders, detectors of poses, and networks that fill holes or tell depth, as ONNX graphs. Imports no torch."""

from __future__ import annotations

from models.registry import Architecture, Purpose, System

SYSTEM = System(
    architectures=(
        Architecture(
            name="onnx",
            model="models.systems.onnx.graph:OnnxGraph",
            purpose=Purpose(
                task=lambda config: "classify" if config.classes else "embed",
                size=lambda config: (config.image_size, config.image_size),
                classes=lambda config: int(config.classes),
            ),
            forwards={"classify": "models.systems.onnx.graph:classify", "embed": "models.systems.onnx.graph:embed"},
            precise_tasks=frozenset({"embed"}),
            merges=False,
            open="models.systems.onnx.graph:open_graph",
        ),
        Architecture(
            name="movenet",
            model="models.systems.onnx.poses:PoseGraph",
            purpose=Purpose(task=lambda config: "pose", size=lambda config: None),
            merges=False,
            open="models.systems.onnx.poses:open_poses",
        ),
        Architecture(
            name="onnx_inpaint",
            model="models.systems.onnx.inpainting:InpaintGraph",
            purpose=Purpose(task=lambda config: "inpaint"),
            steps={"inpaint": "models.systems.onnx.inpainting:painting_steps"},
            precise_tasks=frozenset({"inpaint"}),
            merges=False,
            open="models.systems.onnx.inpainting:open_inpainting",
        ),
        Architecture(
            name="onnx_depth",
            model="models.systems.onnx.depth:DepthGraph",
            purpose=Purpose(task=lambda config: "depth"),
            merges=False,
            open="models.systems.onnx.depth:open_depth",
        ),
    ),
)
