"""PHALP: its pose predictor and its appearance network. Imports no torch."""

from __future__ import annotations

from models.registry import Architecture, Native, Purpose, SizeTable, System

SYSTEM = System(
    architectures=(
        Architecture(
            name="phalp_pose",
            model="models.systems.phalp.pose_predictor:PosePredictor",
            purpose=Purpose(lambda config: "track", size=lambda config: None),
            native=Native("track", lambda config: int(config.frames), "models.people.dummy_inputs:tracks"),
        ),
        Architecture(
            name="phalp_appearance",
            model="models.systems.phalp.hmar:AppearanceNet",
            purpose=Purpose(lambda config: "track", size=lambda config: (config.size, config.size)),
            native=Native("crop", lambda config: 0, "models.people.dummy_inputs:masked_crops"),
        ),
    ),
    sizes=(SizeTable("PHALP", "phalp_appearance", "arXiv 2112.04477", "models.systems.phalp.hmar:PUBLISHED"),),
    families={
        "phalp_pose": "models.systems.phalp.checkpoint:POSE",
        "phalp_appearance": "models.systems.phalp.checkpoint:APPEARANCE",
    },
)
