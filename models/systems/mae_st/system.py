"""MAE-ST. Imports no torch."""

from __future__ import annotations

from models.bundle_schema import Clip
from models.registry import Architecture, BundleDefaults, DummyForward, SizeTable, System, ViewCounts

SYSTEM = System(
    architectures=(
        Architecture(
            name="video_mae",
            model="models.systems.mae_st.model:VideoMAE",
            bundle_defaults=BundleDefaults(
                lambda config: "actions", clip=lambda config: Clip.like_slowfast(config.frames), classes=lambda config: int(config.classes)
            ),
            dummy_forward=DummyForward("clip", lambda config: int(config.patches + config.special_tokens), "models.layers.forward:clips"),
            steps={"actions": "models.systems.mae_st.steps:clip_steps"},
            precise_tasks=frozenset({"actions"}),
            route_of=lambda config: "classify",
            views=lambda config: ViewCounts(7, crops=3),
        ),
        Architecture(
            name="video_mae_pretraining",
            model="models.systems.mae_st.pretraining:VideoMAEPretraining",
            bundle_defaults=BundleDefaults(lambda config: "autoencode", clip=lambda config: Clip.like_slowfast(config.frames)),
            dummy_forward=DummyForward(
                "clip", lambda config: int(config.visible + config.special_tokens), "models.layers.forward:masked_clips"
            ),
        ),
    ),
    sizes=(
        SizeTable("MAE-ST", "video_mae", "arXiv 2205.09113", "models.systems.mae_st.model:SIZES"),
        SizeTable("MAE-ST", "video_mae_pretraining", "arXiv 2205.09113", "models.systems.mae_st.pretraining:PRETRAINING_SIZES"),
    ),
    families={
        "mae_st": "models.systems.mae_st.checkpoint:FAMILY",
        "mae_st_pretrained": "models.systems.mae_st.checkpoint:PRETRAINING",
    },
    hub_classes={"VideoMAEForVideoClassification": "models.systems.mae_st.checkpoint:TRANSFORMERS"},
)
