"""Videos that requests bring: what they are, within the service's limits. Workers decode them (`models.media.video`)."""

from __future__ import annotations

from models.media import video
from models.media.containers import NAMES
from models.media.video import ClipInfo, ClipLimits
from server.media.errors import MediaError

__all__ = ["NAMES", "ClipInfo", "ClipLimits", "CorruptVideo", "NotAVideo", "TooMuchVideo", "probe"]


class NotAVideo(MediaError):
    """No container or codec that we open."""


class TooMuchVideo(MediaError):
    """Above a limit."""


class CorruptVideo(MediaError):
    """Truncated, damaged, or without frames."""


KINDS: dict[video.Kind, type[MediaError]] = {"not-a-video": NotAVideo, "too-much": TooMuchVideo, "broken": CorruptVideo}


def probe(data: bytes, limits: ClipLimits) -> ClipInfo:
    """What a video is, without decoding more than a frame. Raises MediaError."""
    try:
        return video.probe(data, limits)
    except video.VideoError as error:
        raise KINDS[error.kind](str(error)) from error
