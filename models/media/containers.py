"""Video containers, recognised by their first bytes: FFmpeg never guesses, so that a playlist is never opened as one."""

from __future__ import annotations

HEAD_BYTES = 512
"""Number of bytes of a file that are enough to recognise it."""
NAMES = "MP4, MOV, 3GP, WebM, Matroska, AVI, MPEG, MPEG-TS, Ogg, WMV, FLV, RealMedia or GIF"
MP4_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
PREFIXES = {
    b"\x1a\x45\xdf\xa3": "matroska",
    b"OggS": "ogg",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    b"FLV\x01": "flv",
    b".RMF": "rm",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"\x00\x00\x01\xba": "mpeg",
    b"\x00\x00\x01\xb3": "mpegvideo",
}
PLAYLIST_PREFIXES = (b"#EXTM3U", b"ffconcat", b"file ", b"<?xml", b"<MPD", b"[playlist]", b"v=0\r", b"v=0\n")
"""First bytes of files that only name others: HLS, concat scripts, DASH, PLS and SDP."""
SYNC_BYTE, PACKET_BYTES, STAMPED_PACKET_BYTES = 0x47, 188, 192
"""Sync byte and packet lengths of MPEG transport streams; Blu-rays add a timestamp of four bytes before each packet."""


def demuxer(head: bytes) -> str | None:
    """Return FFmpeg's name for the container that begins with `head`; None for one that is not accepted."""
    if head[4:8] in MP4_BOXES:
        return "mov"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    for prefix, name in PREFIXES.items():
        if head.startswith(prefix):
            return name
    return "mpegts" if _has_sync(head, 0, PACKET_BYTES) or _has_sync(head, 4, STAMPED_PACKET_BYTES) else None


def names_other_files(head: bytes) -> bool:
    """Return True for playlists and other lists of files."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return text.startswith(PLAYLIST_PREFIXES)


def _has_sync(head: bytes, first: int, step: int) -> bool:
    offsets = range(first, min(len(head), HEAD_BYTES), step)
    return len(offsets) > 1 and all(head[offset] == SYNC_BYTE for offset in offsets)
