"""Tells files that came as another part than their own."""

from __future__ import annotations

from models.media import sound_formats

SOUNDS = {"wav": "WAV", "aiff": "AIFF", "flac": "FLAC", "caf": "CAF", "aac": "AAC", "mp3": "MP3"}
"""FFmpeg's names of formats that hold nothing but sound."""
IMAGES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
"""Images are known by their first bytes."""


def other_part(content: bytes) -> str | None:
    """Say as which part a sound or an image is sent, in words for whoever sent it as another one; None for anything else."""
    if image := as_image(content):
        return image
    sound = SOUNDS.get(sound_formats.demuxer(content) or "")
    return None if sound is None else f"this is a sound ({sound}): it is sent as `audio`, to a bundle that hears"


def as_image(content: bytes) -> str | None:
    """Say that an image is sent as `image`, in words for whoever sent it as another part; None for anything else."""
    image = "WebP" if content[8:12] == b"WEBP" else next((name for head, name in IMAGES.items() if content.startswith(head)), None)
    return None if image is None else f"this is an image ({image}): it is sent as `image`, to a bundle that takes images"
