"""Images, videos and sounds, told apart by their bytes, so that each file is sent as what it is. The service reads them with care; here it
is enough to know which it is meant to be."""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

Kind = Literal["image", "video", "audio"]
HEAD = 2**16
"""Bytes that tell what most containers hold."""
STILLS = (b"\xff\xd8", b"\x89PNG", b"BM", b"II*\0", b"MM\0*")
GIFS = (b"GIF87a", b"GIF89a")
"""Images that may also be asked for as clips."""
STILL_BRANDS = frozenset({b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"})
"""Images in the container of MP4 (ISO 23008-12)."""
SOUND_BRANDS = frozenset({b"M4A ", b"M4B ", b"M4P "})
"""Sounds in it."""
BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
"""First boxes of MP4 and QuickTime."""
RIFF: Mapping[bytes, Kind] = {b"AVI ": "video", b"WAVE": "audio", b"AIFF": "audio", b"AIFC": "audio", b"WEBP": "image"}
"""Types of RIFF and IFF files."""
SOUNDS = (b"fLaC", b"caff", b"ID3")
VIDEOS = (b"FLV\x01", b".RMF", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")
PACKETS = ((0, 188), (4, 192))
"""First sync byte and length of the packets of MPEG transport streams."""

MP4_TRACK = re.compile(rb"hdlr.{8}(vide|soun)", re.DOTALL)
"""The handler of a track (ISO 14496-12, section 8.4.3)."""
MATROSKA_VIDEO = re.compile(rb"\x86[\x80-\xff]V_[A-Z]", re.DOTALL)
"""The codec of a video track (RFC 9559, section 5.1.4.1.21)."""
ASF_VIDEO = bytes.fromhex("c0ef19bc4d5bcf11a8fd00805f5c442b")
"""The type of a video stream (ASF specification, section 10.4)."""
OGG_VIDEO = (b"\x80theora", b"OVP80")


def kind(content: bytes | mmap.mmap) -> Kind | None:
    """Return what a file is; None: nothing that is known here."""
    head = content[:HEAD]
    if head[4:8] in BOXES:
        return "image" if head[8:12] in STILL_BRANDS else _mp4_kind(content)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM"):
        return RIFF.get(head[8:12])
    if head.startswith((*STILLS, *GIFS)):
        return "image"
    if head.startswith(b"OggS"):
        return _of(any(codec in head for codec in OGG_VIDEO))
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return _of(MATROSKA_VIDEO.search(head))
    if head.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"):
        return _of(ASF_VIDEO in head)
    if head.startswith(SOUNDS) or _is_mpeg_audio(head):
        return "audio"
    return "video" if head.startswith(VIDEOS) or _is_transport_stream(head) else None


def kind_of(path: Path) -> Kind | None:
    """The same of a file, whose head is read alone where it tells. Raises OSError."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return kind(content)


def is_gif(path: Path) -> bool:
    """False for a file that cannot be read any more, too: its own answer says that."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(len(GIFS[0])) in GIFS
    return False


def _mp4_kind(content: bytes | mmap.mmap) -> Kind:
    """Tell it by the list of tracks. A file that is cut may lack that, since cameras write it last: its brand tells then."""
    tracks = {track.group(1) for track in MP4_TRACK.finditer(content)}
    if tracks:
        return _of(b"vide" in tracks)
    return "audio" if content[8:12] in SOUND_BRANDS else "video"


def _of(video: object) -> Kind:
    return "video" if video else "audio"


def _is_mpeg_audio(head: bytes) -> bool:
    """Whether a frame of MP3 or AAC begins here: eleven bits that are set, which JPEG's first two bytes have not."""
    return len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0


def _is_transport_stream(head: bytes) -> bool:
    return any(len(head) > first + step and head[first] == head[first + step] == 0x47 for first, step in PACKETS)
