"""Kinds of data: the one place that lists ours. A line here makes `data: {kind: …}` of a recipe mean something."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny

from training.data.source import DataSettings
from training.kinds import Kinds

KINDS = Kinds(
    DataSettings,  # type: ignore[type-abstract]
    {
        "folder": "training.data.image_folder:ImageFolderSettings",
        "webdataset": "training.data.webdataset:WebDatasetSettings",
        "pairs": "training.data.image_text:PairsSettings",
        "videos": "training.data.video_files:VideoFilesSettings",
        "sound": "training.data.audio_files:SoundFilesSettings",
        "rgbd": "training.data.rgbd_scenes:RGBDSettings",
        "tracklets": "training.data.tracklets:TrackletsSettings",
    },
    moved={
        "notes": "starters.data.sounds.instrument_notes:InstrumentNotes",
        "motions": "starters.data.people.motions:Motions",
        "flags": "starters.data.images.flags:Flags",
        "clip-art": "starters.data.images.clip_art:ClipArt",
        "named-drawings": "starters.data.images.named_drawings:NamedDrawings",
        "renders": "starters.data.renders.scenes:Renders",
        "camera-moves": "starters.data.clips.camera_moves:CameraMoves",
    },
)

AnyData = Annotated[SerializeAsAny[DataSettings], BeforeValidator(KINDS.read)]
"""Field of a recipe with settings of any kind."""
