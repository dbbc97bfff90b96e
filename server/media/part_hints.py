"""Hints for files that were sent as another part than their own."""

from __future__ import annotations

from models.media import audio
from models.media import video as containers

SOUNDS = {"wav": "WAV", "aiff": "AIFF", "flac": "FLAC", "caf": "CAF", "aac": "AAC", "mp3": "MP3"}
"""FFmpeg's names of formats that hold nothing but sound."""
VIDEOS = {
    "mov": "MP4",
    "avi": "AVI",
    "matroska": "WebM or Matroska",
    "ogg": "Ogg",
    "asf": "WMV",
    "flv": "FLV",
    "rm": "RealMedia",
    "mpeg": "MPEG",
    "mpegvideo": "MPEG",
    "mpegts": "MPEG-TS",
}
"""Formats of video, by FFmpeg's names."""
IMAGES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
"""Formats of images, by their first bytes."""
STILL_BRANDS = frozenset({b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"})
"""Brands of images in the container of MP4 (ISO 23008-12), which are not supported."""
SOUND_BRANDS = frozenset({b"M4A ", b"M4B ", b"M4P "})
"""Brands of sounds in the container of MP4."""
OGG_VIDEO = (b"\x80theora", b"OVP80")
"""Codecs of the videos in Ogg; the others are sounds."""


def suggest_part(content: bytes) -> str | None:
    """Return a hint about the part as which a sound or an image must be sent. None for other files."""
    return suggest_image_part(content) or _suggest_audio_part(SOUNDS.get(audio.demuxer(content) or ""))


def suggest_image_part(content: bytes) -> str | None:
    """Return a hint that an image must be sent as `image`. None for other files."""
    image = "WebP" if content[8:12] == b"WEBP" else next((name for head, name in IMAGES.items() if content.startswith(head)), None)
    return None if image is None else f"this is an image ({image}): it is sent as `image`, to a bundle that takes images"


def suggest_recording_part(content: bytes) -> str | None:
    """Return a hint about the part as which a video or a sound must be sent. None for other files."""
    head = content[: containers.HEAD_BYTES]
    name = audio.demuxer(content) or containers.demuxer(head) or ""
    brand = head[8:12] if name == "mov" and head[4:8] == b"ftyp" else b""
    if brand in STILL_BRANDS:
        return None
    if brand in SOUND_BRANDS or (name == "ogg" and not any(codec in head for codec in OGG_VIDEO)):
        return _suggest_audio_part(VIDEOS[name])
    if video := VIDEOS.get(name):
        return f"this is a video ({video}): it is sent as `video`, as with curl -F video=@FILE, to a bundle that takes videos"
    return _suggest_audio_part(SOUNDS.get(name))


def _suggest_audio_part(sound: str | None) -> str | None:
    return (
        None if sound is None else f"this is a sound ({sound}): it is sent as `audio`, as with curl -F audio=@FILE, to a bundle that hears"
    )
