"""Tracks that requests bring, as JSON or .npz."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from typing import Any

import numpy as np
import pytest

from server.media import person_tracks
from server.media.limits import ExcessivePart, InvalidPart
from server.media.person_tracks import Tracks

BOX = [0.0, 1.0, 2.0, 3.0, 4.0, 0.5]
POSE = [0.0, [[1.0, 2.0, 0.5]] * 17]


def pack(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def read(content: bytes) -> Tracks:
    return person_tracks.read(content, seconds=120)


def with_header(shape: bytes) -> bytes:
    """Return an .npz whose array of people claims a shape."""
    header = b"{'descr': '<i4', 'fortran_order': False, 'shape': " + shape + b", }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("person.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    return file.getvalue()


def damaged_archive(method: int) -> bytes:
    """Return an archive whose person.npy, packed by a method of ZIP, is overwritten."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("person.npy", bytes(range(256)) * 8)
        start = archive.getinfo("person.npy").header_offset + zipfile.sizeFileHeader + len("person.npy")
    content = bytearray(file.getvalue())
    content[start : start + 40] = b"\xff" * 40
    return bytes(content)


def many_entries(count: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(count):
            archive.writestr(str(number), b"")
    return file.getvalue()


def good(count: int = 3) -> dict[str, Any]:
    return {"person": np.ones(count, int), "time": np.arange(count) / 10, "box": np.ones((count, 5)), "token": np.zeros((count, 229))}


def test_json_is_read_with_or_without_what_is_around_its_people() -> None:
    person = {"person": 4, "boxes": [BOX], "poses": [POSE], "actions": [{"start_s": 0, "end_s": 1, "labels": []}]}
    complete = read(json.dumps({"id": "x", "video": {"width": 64, "height": 48, "fps": 3}, "people": [person]}).encode())
    assert complete["person"].tolist() == [4] and complete["box"].tolist() == [[1, 2, 3, 4, 0.5]] and complete["size"].tolist() == [64, 48]
    assert complete["pose"].shape == (1, 51) and complete["token"].shape == (1, 0)
    bare = read(json.dumps([person]).encode())
    assert bare["size"].tolist() == [4, 6] and np.array_equal(bare["pose"], complete["pose"])


def test_npz_is_read() -> None:
    found = read(pack(**good()))
    assert found["token"].shape == (3, 229) and found["pose"].shape == (3, 0) and found["size"].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither .npz nor JSON"),
        (b'{"people": 3}', "neither .npz nor JSON"),
        (b'[{"person": 1, "boxes": [[0, 1, 2, 3, 4]]}]', "neither .npz nor JSON"),
        (
            json.dumps([{"person": 1, "boxes": [BOX], "poses": [[0.5, POSE[1]]]}]).encode(),
            "the times of its poses are not those of its boxes",
        ),
        (json.dumps([{"person": 1, "boxes": [BOX], "poses": [[0.0, [[1, 2, 3]] * 16]]}]).encode(), "a pose has 17 points"),
        (json.dumps([{"person": 1, "boxes": [BOX], "poses": [POSE]}, {"person": 2, "boxes": [BOX]}]).encode(), "others have none"),
        (json.dumps([{"person": 1, "boxes": [BOX]}, {"person": 2, "boxes": []}]).encode(), "people[1]: no boxes"),
        (json.dumps([{"person": 1, "boxes": [[-1.0, *BOX[1:]]]}]).encode(), "times must be 0 or later"),
        (json.dumps([{"person": 1, "boxes": [[0, 1, 2, 0, 4, 1]]}]).encode(), "wider and higher than 0"),
        (pack(person=np.ones(2, int)), "missing: time, box, pose or token"),
        (pack(**(good() | {"box": np.ones((2, 5))})), "box: float64 (2, 5), but numbers (3, 5) are needed"),
        (pack(**(good() | {"time": np.array(["a", "b", "c"])})), "time: a .npy file of <U1"),
        (pack(**(good() | {"token": np.full((3, 229), np.nan)})), "token: infinite, or not a number"),
        (pack(**(good() | {"token": np.full((3, 229), -1e20)})), "token: 1e+20 is above 1e+06"),
        (pack(**(good() | {"box": np.array([[1e30, 0, 1, 1, 1]] * 3)})), "box: 1e+30 is above 1e+06"),
        (pack(**(good() | {"token": np.array([None] * 3)})), "token: a .npy file of Python objects"),
        (pack(**(good() | {"time": np.array([0, 0.1, 2e6])})), "time: 2e+06 s is later than 1e+06 s"),
        (pack(**(good() | {"person": np.array([1, 2, 1 + 2**32])})), "person: numbers that 32 bits cannot hold"),
        (pack(**(good() | {"person": np.array([1, 2, np.nan])})), "person: a .npy file of float64: save an array of integers"),
        (pack(**(good() | {"size": np.array([0, 10])})), "size: a frame has 1 to 100000 pixels"),
        (b'{"people":[{"person":1%s,"boxes":[[0,1,1,1,1,1]]}]}' % (b"0" * 400), "neither .npz nor JSON"),
        (b'{"people":[],"video":{"width":1%s,"height":7}}' % (b"0" * 400), "neither .npz nor JSON"),
        (b'{"people":[],"video":{"width":-5,"height":7}}', "`$.video.width`"),
        (with_header(b"(99999999999999999999,)"), "person: "),
        (damaged_archive(zipfile.ZIP_STORED), "an .npz that cannot be read"),
        (damaged_archive(zipfile.ZIP_DEFLATED), "an .npz that cannot be read"),
        (damaged_archive(zipfile.ZIP_BZIP2), "an .npz that cannot be read"),
        (damaged_archive(zipfile.ZIP_LZMA), "an .npz that cannot be read"),
        (b'[{"person": 1, "boxes": ' + b"[" * 70 + b"]" * 70 + b"}]", "nested deeper than 64 levels"),
    ],
)
def test_other_files_are_refused_in_words(content: bytes, message: str) -> None:
    with pytest.raises(InvalidPart) as error:
        read(content)
    assert message in str(error.value)


def test_nothing_is_unpickled() -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (pytest.fail, ("it was unpickled",))

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("person.npy", pickle.dumps(Trap()))
    with pytest.raises(InvalidPart):
        read(file.getvalue())


def test_what_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.media.person_tracks.MAX_ARRAY_BYTES", 1000)
    with pytest.raises(ExcessivePart, match="token: more than 1000 bytes"):
        read(pack(**good()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pack(**(good() | {"time": np.array([0, 1, 121.0])})), "121 s from the first sighting to the last are above the limit of 120 s"),
        (pack(**good(101) | {"person": np.arange(101), "time": np.zeros(101)}), "101 people are above the limit of 100"),
        (pack(person=np.ones(50_001, int), time=np.ones(1), box=np.ones((1, 5)), token=np.ones((1, 1))), "person: 50001 sightings"),
        (b'[{"person":1,"boxes":[' + b"[0,0,0,1,1,0]," * 150_000 + b"[0,0,0,1,1,0]]}]", "more than 1000000 elements: send an .npz"),
        (many_entries(1000), "an .npz with more than 64 entries"),
        (b"[" + b'{"person":1,"boxes":[]},' * 250_000 + b"{}]", "more than 1000000 elements: send an .npz"),
    ],
    ids=["long", "people", "sightings", "boxes", "entries", "nobody"],
)
def test_what_is_too_much_is_refused_before_it_is_unpacked(content: bytes, message: str) -> None:
    with pytest.raises(ExcessivePart) as error:
        read(content)
    assert message in str(error.value)


def test_a_part_of_a_long_video_is_read() -> None:
    assert read(pack(**(good() | {"time": np.array([900_000, 900_001, 900_002.0])})))["time"].min() == 900_000
