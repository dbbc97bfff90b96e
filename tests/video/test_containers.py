"""One film in 21 containers: PyPI iscc-samples 0.6.0 (CC-BY-4.0), downloaded into a cache folder when these tests run."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import av
import pytest

from models.media.video import NAMES, ClipLimits, Frames, VideoError, probe

PACKAGE = "iscc-samples==0.6.0"
ARCHIVE, SHA256 = "iscc_samples-0.6.0.tar.gz", "5714df1ecbc49df091042fabf2f96a9c99623eb442453598db26198c7d187d22"
CONTAINERS = ("3g2", "3gp", "asf", "avi", "f4v", "flv", "gif", "m1v", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "ogg", "ogv", "rm", "swf")
CONTAINERS += ("vob", "webm", "wmv")
MIN_OPENED = 18
"""Number of containers that must be opened."""


@pytest.fixture(scope="module")
def films() -> dict[str, bytes]:
    """Container → file."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "opsin" / "tests"
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / ARCHIVE
    if not archive.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(cache), PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{PACKAGE} cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
    content = archive.read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = {member.name.rpartition(".")[2]: member for member in tar.getmembers() if "/files/video/demo." in member.name}
        return {kind: tar.extractfile(member).read() for kind, member in members.items()}  # type: ignore[union-attr]


def count_frames(film: bytes) -> int:
    """Count the frames that a plain decode gives."""
    count = 0
    with av.open(io.BytesIO(film)) as container:
        for packet in container.demux(video=0):
            try:
                count += len(packet.decode())
            except av.error.FFmpegError:
                continue
    return count


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_film_is_read_from_nearly_every_container(films: dict[str, bytes]) -> None:
    assert sorted(films) == sorted(CONTAINERS)
    opened = []
    for kind, film in films.items():
        try:
            facts = probe(film, ClipLimits())
        except VideoError as error:
            assert (error.kind, str(error)) == ("not-a-video", f"not a video in a container that is opened here ({NAMES})")
            continue
        frames = list(Frames(film, 30.0, ClipLimits()).take(10**9))
        assert abs(len(frames) - count_frames(film)) <= 1, kind
        assert {frame.pixels.shape for frame in frames} == {(facts.height, facts.width, 3)}, kind
        assert sum(frame.rows for frame in frames) == pytest.approx(facts.duration_s * 30, abs=4), kind
        opened.append(kind)
    assert len(opened) >= MIN_OPENED, opened
