"""Kinds of data: the one place that lists them. A line here makes `data: {kind: …}` of a recipe mean something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from starters.data.clips import camera_moves
from starters.data.images import clip_art, flags, named_drawings
from starters.data.people import motions
from starters.data.renders import scenes as renders
from starters.data.sounds import instrument_notes
from training.data import folder, pairs, rgbd, sound, tracklets, videos, webdataset
from training.data.base import Preparation, Source
from training.settings import Settings


@dataclass(frozen=True)
class Kind:
    settings: type[Settings]
    """Has a field `kind: Literal[NAME] = NAME`."""
    open: Callable[[Any, Preparation], Source]
    """Raises DataError."""


KINDS: tuple[Kind, ...] = (
    Kind(folder.Folder, folder.open_folder),
    Kind(webdataset.WebDataset, webdataset.open_webdataset),
    Kind(pairs.Pairs, pairs.open_pairs),
    Kind(videos.VideoFiles, videos.open_videos),
    Kind(sound.SoundFiles, sound.open_sound),
    Kind(instrument_notes.Notes, instrument_notes.open_notes),
    Kind(rgbd.RGBD, rgbd.open_rgbd),
    Kind(tracklets.Tracklets, tracklets.open_tracklets),
    Kind(motions.Motions, motions.open_motions),
    Kind(flags.Flags, flags.open_flags),
    Kind(clip_art.ClipArt, clip_art.open_clip_art),
    Kind(named_drawings.NamedDrawings, named_drawings.open_named_drawings),
    Kind(renders.Renders, renders.open_renders),
    Kind(camera_moves.CameraMoves, camera_moves.open_camera_moves),
)

if TYPE_CHECKING:
    DataSettings = Settings
else:
    DataSettings = Annotated[Union[tuple(kind.settings for kind in KINDS)], Field(discriminator="kind")]  # noqa: UP007


def open_source(settings: Settings, preparation: Preparation) -> Source:
    """Raises DataError."""
    [kind] = [kind for kind in KINDS if isinstance(settings, kind.settings)]
    return kind.open(settings, preparation)
