"""Detection of images, videos and sounds by their content, so that each file is sent as its kind. Only signatures are checked: the service
reads the files with care."""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

MediaKind = Literal["image", "video", "audio"]
HEAD_BYTES = 2**16
"""Number of bytes that identify most containers."""
STILL_SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"BM", b"II*\0", b"MM\0*")
GIF_SIGNATURES = (b"GIF87a", b"GIF89a")
"""Signatures of images that may also be sent as clips."""
STILL_BRANDS = frozenset({b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"})
"""Brands of images in the container of MP4 (ISO 23008-12)."""
SOUND_BRANDS = frozenset({b"M4A ", b"M4B ", b"M4P "})
"""Brands of sounds in the container of MP4."""
MP4_FIRST_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
"""First boxes of MP4 and QuickTime."""
RIFF_KINDS: Mapping[bytes, MediaKind] = {b"AVI ": "video", b"WAVE": "audio", b"AIFF": "audio", b"AIFC": "audio", b"WEBP": "image"}
"""Types of RIFF and IFF files."""
SOUND_SIGNATURES = (b"fLaC", b"caff", b"ID3")
VIDEO_SIGNATURES = (b"FLV\x01", b".RMF", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")
TRANSPORT_PACKETS = ((0, 188), (4, 192))
"""First sync byte and length of the packets of MPEG transport streams."""

MP4_TRACK = re.compile(rb"hdlr.{8}(vide|soun)", re.DOTALL)
"""The handler of a track (ISO 14496-12, section 8.4.3)."""
MATROSKA_VIDEO = re.compile(rb"\x86[\x80-\xff]V_[A-Z]", re.DOTALL)
"""The codec of a video track (RFC 9559, section 5.1.4.1.21)."""
ASF_VIDEO = bytes.fromhex("c0ef19bc4d5bcf11a8fd00805f5c442b")
"""The type of a video stream (ASF specification, section 10.4)."""
OGG_VIDEO = (b"\x80theora", b"OVP80")


def detect_kind(content: bytes | mmap.mmap) -> MediaKind | None:
    """Return the kind of a file's content, None if it is unknown."""
    head = content[:HEAD_BYTES]
    if head[4:8] in MP4_FIRST_BOXES:
        return "image" if head[8:12] in STILL_BRANDS else _mp4_kind(content)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM"):
        return RIFF_KINDS.get(head[8:12])
    if head.startswith((*STILL_SIGNATURES, *GIF_SIGNATURES)):
        return "image"
    if head.startswith(b"OggS"):
        return _video_or_audio(any(codec in head for codec in OGG_VIDEO))
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return _video_or_audio(MATROSKA_VIDEO.search(head))
    if head.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"):
        return _video_or_audio(ASF_VIDEO in head)
    if head.startswith(SOUND_SIGNATURES) or _is_mpeg_audio(head):
        return "audio"
    return "video" if head.startswith(VIDEO_SIGNATURES) or _is_transport_stream(head) else None


def detect_file_kind(path: Path) -> MediaKind | None:
    """Return the kind of a file, reading no more than necessary. Raises OSError."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return detect_kind(content)


def is_gif(path: Path) -> bool:
    """Return whether it is a GIF. False for a file that cannot be read: its own answer reports that."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(len(GIF_SIGNATURES[0])) in GIF_SIGNATURES
    return False


def _mp4_kind(content: bytes | mmap.mmap) -> MediaKind:
    """Detect the kind by the list of tracks. Truncated files may lack it, since cameras write it last; then by the brand."""
    tracks = {track.group(1) for track in MP4_TRACK.finditer(content)}
    if tracks:
        return _video_or_audio(b"vide" in tracks)
    return "audio" if content[8:12] in SOUND_BRANDS else "video"


def _video_or_audio(has_video: object) -> MediaKind:
    return "video" if has_video else "audio"


def _is_mpeg_audio(head: bytes) -> bool:
    """Return whether a frame of MP3 or AAC starts here: with eleven set bits, unlike JPEG."""
    return len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0


def _is_transport_stream(head: bytes) -> bool:
    return any(len(head) > first + step and head[first] == head[first + step] == 0x47 for first, step in TRANSPORT_PACKETS)
