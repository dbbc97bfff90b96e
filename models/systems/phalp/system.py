"""PHALP: its pose predictor and its appearance network. Imports no torch."""

from __future__ import annotations

from models.registry import Architecture, BundleDefaults, DummyForward, SizeTable, System

SYSTEM = System(
    architectures=(
        Architecture(
            name="phalp_pose",
            model="models.systems.phalp.pose_predictor:PosePredictor",
            bundle_defaults=BundleDefaults(lambda config: "track", size=lambda config: None),
            dummy_forward=DummyForward("track", lambda config: int(config.frames), "models.people.track_batch:tracks"),
        ),
        Architecture(
            name="phalp_appearance",
            model="models.systems.phalp.hmar:AppearanceNet",
            bundle_defaults=BundleDefaults(lambda config: "track", size=lambda config: (config.size, config.size)),
            dummy_forward=DummyForward("crop", lambda config: 0, "models.people.track_batch:masked_crops"),
        ),
    ),
    sizes=(SizeTable("PHALP", "phalp_appearance", "arXiv 2112.04477", "models.systems.phalp.hmar:PUBLISHED"),),
    families={
        "phalp_pose": "models.systems.phalp.checkpoint:POSE",
        "phalp_appearance": "models.systems.phalp.checkpoint:APPEARANCE",
    },
)
