"""Audio formats, recognised by their bytes: FFmpeg never guesses, so that a playlist is never opened as one."""

from __future__ import annotations

from models.media import containers
from models.media.containers import HEAD_BYTES

NAMES = (
    "WAV, FLAC, MP3, Ogg (Vorbis, Opus), AAC, AIFF or CAF, or the sound of an MP4, MOV, 3GP, WebM, Matroska, AVI, MPEG, MPEG-TS, WMV, FLV "
    "or RealMedia file"
)
CONTAINERS_WITHOUT_SOUND = frozenset({"gif", "mpegvideo"})
"""Containers without sound."""
FORMATS_BY_TYPE = {b"WAVE": "wav", b"AIFF": "aiff", b"AIFC": "aiff"}
"""Demuxers by the type of a RIFF or IFF file, its bytes 8 to 11."""
CHUNK_IDS = frozenset({b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM"})
TAG_HEADER_BYTES = 10
"""Size in bytes of an ID3v2 tag before its content (id3.org, ID3v2.4.0 section 3.1)."""
MAX_TAGS = 16
"""Maximum number of tags that are read."""
MAX_PADDING_BYTES = 2**16
"""Maximum number of zeros after a tag."""
MAX_FRAME_BYTES = 2881
"""Maximum size of a frame of MPEG audio, in bytes: layer III has 1441, layer II of MPEG-2.5 has 2880, both with a byte of padding."""


def demuxer(data: bytes | memoryview) -> str | None:
    """Return FFmpeg's name for the format of a sound, or of a container that may have one; None for a format that is not accepted."""
    view = memoryview(data)
    start = _skip_tags(view)
    head = bytes(view[start : start + HEAD_BYTES])
    if head[:4] in CHUNK_IDS and head[8:12] in FORMATS_BY_TYPE:
        return FORMATS_BY_TYPE[head[8:12]]
    if head.startswith(b"fLaC"):
        return "flac"
    if head.startswith(b"caff"):
        return "caf"
    if start == 0 and (container := containers.demuxer(head)) is not None:
        return None if container in CONTAINERS_WITHOUT_SOUND else container
    padded = bytes(view[start : start + MAX_PADDING_BYTES + MAX_FRAME_BYTES + 4])
    frames = padded.lstrip(b"\0")
    if _is_adts(frames):
        return "aac"
    return "mp3" if start or _is_mpeg_audio(frames) else None


def _skip_tags(data: memoryview) -> int:
    """Return the end of the ID3v2 tags before a sound, which may contain megabytes of images."""
    start = 0
    for _ in range(MAX_TAGS):
        if bytes(data[start : start + 3]) != b"ID3" or len(data) - start < TAG_HEADER_BYTES:
            break
        size = 0
        for byte in data[start + 6 : start + TAG_HEADER_BYTES]:
            size = size << 7 | byte & 0x7F
        has_footer = bool(data[start + 5] & 0x10)
        start += TAG_HEADER_BYTES * (1 + has_footer) + size
    return start


def _is_adts(frames: bytes) -> bool:
    """Return True if a frame of AAC (ISO 13818-7, section 6.2) begins here, and another one where it ends, unless it is the last."""
    if len(frames) < 7 or not _is_adts_sync(frames):
        return False
    length = (frames[3] & 0x03) << 11 | frames[4] << 3 | frames[5] >> 5
    return length >= 7 and (length + 2 > len(frames) or _is_adts_sync(frames[length:]))


def _is_adts_sync(frames: bytes) -> bool:
    return frames[0] == 0xFF and frames[1] & 0xF6 == 0xF0


def _is_mpeg_audio(frames: bytes) -> bool:
    """Return True if a frame of MPEG audio (ISO 11172-3, section 2.4.1.3) begins here.

    Another one of the same version, layer and sample rate must follow soon, unless it is the last.
    """
    if len(frames) < 4 or frames[0] != 0xFF or frames[1] & 0xE0 != 0xE0:
        return False
    version, layer, bit_rate, sample_rate = frames[1] >> 3 & 3, frames[1] >> 1 & 3, frames[2] >> 4, frames[2] >> 2 & 3
    if version == 1 or layer == 0 or bit_rate in (0, 15) or sample_rate == 3:
        return False
    if len(frames) < MAX_FRAME_BYTES + 4:
        return True
    sync, at = frames[:2], 0
    while (at := frames.find(sync, at + 1, MAX_FRAME_BYTES + 2)) > 0:
        if frames[at + 2] & 0x0C == frames[2] & 0x0C:
            return True
    return False
