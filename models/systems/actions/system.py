"""Actions of people in a video: a pipeline of other systems' networks. Imports no torch."""

from __future__ import annotations

from models.registry import Architecture, BundleDefaults, System

SYSTEM = System(
    architectures=(
        Architecture(
            name="actions",
            model="models.systems.actions.pipeline:ActionPipeline",
            bundle_defaults=BundleDefaults(task=lambda config: "actions", size=lambda config: None),
            steps={"actions": "models.systems.actions.steps:action_steps"},
            precise_tasks=frozenset({"actions"}),
            merges=False,
            assemble="models.systems.actions.pipeline:assemble",
        ),
    ),
)
