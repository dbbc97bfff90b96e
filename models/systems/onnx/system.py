"""Foreign classifiers and encoders, pose detectors, inpainting and depth networks, as ONNX graphs. Imports no torch."""

from __future__ import annotations

from models.registry import Architecture, BundleDefaults, System

SYSTEM = System(
    architectures=(
        Architecture(
            name="onnx",
            model="models.systems.onnx.classifier:OnnxGraph",
            bundle_defaults=BundleDefaults(
                task=lambda config: "classify" if config.classes else "embed",
                size=lambda config: (config.image_size, config.image_size),
                classes=lambda config: int(config.classes),
            ),
            forwards={"classify": "models.systems.onnx.classifier:classify", "embed": "models.systems.onnx.classifier:embed"},
            precise_tasks=frozenset({"embed"}),
            merges=False,
            open="models.systems.onnx.classifier:open_graph",
        ),
        Architecture(
            name="movenet",
            model="models.systems.onnx.pose_detector:PoseGraph",
            bundle_defaults=BundleDefaults(task=lambda config: "pose", size=lambda config: None),
            merges=False,
            open="models.systems.onnx.pose_detector:open_poses",
        ),
        Architecture(
            name="onnx_inpaint",
            model="models.systems.onnx.pixel_networks:InpaintGraph",
            bundle_defaults=BundleDefaults(task=lambda config: "inpaint"),
            steps={"inpaint": "models.systems.onnx.pixel_networks:inpaint_steps"},
            precise_tasks=frozenset({"inpaint"}),
            merges=False,
            open="models.systems.onnx.pixel_networks:open_inpainting",
        ),
        Architecture(
            name="onnx_depth",
            model="models.systems.onnx.pixel_networks:DepthGraph",
            bundle_defaults=BundleDefaults(task=lambda config: "depth"),
            merges=False,
            open="models.systems.onnx.pixel_networks:open_depth",
        ),
    ),
)
