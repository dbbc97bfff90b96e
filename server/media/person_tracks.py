"""Tracks of people in requests: JSON, as `POST /v1/actions` answers it, or NumPy's .npz. Nothing in them is ever unpickled."""

from __future__ import annotations

import io
import lzma
import struct
import zipfile
import zlib
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from server import json_scan
from server.media import npy
from server.media.limits import ExcessivePart, InvalidPart

MAX_SIGHTINGS = 50_000
MAX_TRACKED_PEOPLE = 100
MAX_JSON_ELEMENTS = 1_000_000
"""Maximum number of JSON elements (about 14,000 sightings with poses): a decoder blocks the process while it makes objects of them."""
MAX_ARRAY_BYTES = 64 * 2**20
"""Maximum size of one array of an .npz, unpacked."""
MAX_TIME_S = 1e6
MAX_SIDE_PIXELS = 100_000
"""Maximum side of a frame."""
MAX_ABS_VALUE = 1e6
"""Maximum absolute value of boxes, poses and tokens: beyond it a network's output is meaningless."""
MAX_ZIP_ENTRIES, MAX_ZIP_DIRECTORY_BYTES, MAX_ZIP_COMMENT_BYTES = 64, 64 * 1024, 2**16
"""Limits of a ZIP archive: number of files, and bytes of their names."""
END = struct.Struct("<4s4H2LH")
END_MARK, LARGE_MARK = b"PK\x05\x06", b"PK\x06\x07"
"""The end of a ZIP archive's directory (APPNOTE 4.3.16), and what precedes it in those of 64 bits (4.3.15)."""
UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, ValueError, EOFError, OSError, NotImplementedError, RuntimeError)
"""Errors of a ZIP archive that is damaged, encrypted or packed by an unsupported method."""
POSE = 51
"""Values of a pose: x, y and score of COCO's 17 keypoints."""
BOX = 5

Tracks = dict[str, NDArray[Any]]
"""person int32 (K,), time float64 (K,), box float32 (K, 5): x, y, width, height, score; pose float32 (K, 51) or (K, 0); token float32
(K, D) or (K, 0); size float64 (2,): width and height of the frames."""


Side = Annotated[int, Meta(ge=1, le=MAX_SIDE_PIXELS)]


class _VideoJson(msgspec.Struct):
    width: Side
    height: Side


class _PersonJson(msgspec.Struct):
    person: Annotated[int, Meta(ge=-(2**31), lt=2**31)]
    boxes: list[tuple[float, float, float, float, float, float]]
    poses: list[tuple[float, list[tuple[float, float, float]]]] = []


class _TracksJson(msgspec.Struct):
    people: list[_PersonJson]
    video: _VideoJson | None = None


_decoder = msgspec.json.Decoder(_TracksJson | list[_PersonJson])


def read(content: bytes, seconds: float) -> Tracks:
    """Read tracks. seconds: maximum time from the first sighting to the last. Raises InvalidPart and ExcessivePart."""
    tracks = _parse_npz(content) if content.startswith(b"PK") else _parse_json(content)
    count = len(tracks["person"])
    if count > MAX_SIGHTINGS:
        raise ExcessivePart(f"{count} sightings are above the limit of {MAX_SIGHTINGS}")
    for name, values in tracks.items():
        if not np.isfinite(values).all():
            raise InvalidPart(f"{name}: infinite, or not a number")
        if name in ("box", "pose", "token") and np.abs(values).max(initial=0.0) > MAX_ABS_VALUE:
            raise InvalidPart(f"{name}: {float(np.abs(values).max()):g} is above {MAX_ABS_VALUE:g}")
    if not 1 <= tracks["size"].min() <= tracks["size"].max() <= MAX_SIDE_PIXELS:
        raise InvalidPart(f"size: a frame has 1 to {MAX_SIDE_PIXELS} pixels in each direction")
    if count and (tracks["time"].min() < 0 or tracks["box"][:, 2:4].min() <= 0):
        raise InvalidPart("times must be 0 or later, and boxes wider and higher than 0")
    if count:
        _check_extent(tracks, seconds)
    return tracks


def _check_extent(tracks: Tracks, seconds: float) -> None:
    """Check duration and number: an answer takes memory and time for every moment between two sightings, and for every person."""
    first, last = float(tracks["time"].min()), float(tracks["time"].max())
    if last > MAX_TIME_S:
        raise InvalidPart(f"time: {last:g} s is later than {MAX_TIME_S:g} s")
    if last - first > seconds:
        raise ExcessivePart(
            f"{last - first:g} s from the first sighting to the last are above the limit of {seconds:g} s (OPSIN_MAX_VIDEO_SECONDS)"
        )
    people = len(np.unique(tracks["person"]))
    if people > MAX_TRACKED_PEOPLE:
        raise ExcessivePart(f"{people} people are above the limit of {MAX_TRACKED_PEOPLE}")


def _parse_json(content: bytes) -> Tracks:
    try:
        json_scan.check(content, MAX_JSON_ELEMENTS)
        document = _decoder.decode(content)
    except json_scan.TooManyElements as error:
        raise ExcessivePart(f"{error}: send an .npz instead") from error
    except json_scan.MalformedJson as error:
        raise InvalidPart(str(error)) from error
    except msgspec.DecodeError as error:
        raise InvalidPart(f"neither .npz nor JSON with `people` as in an answer: {error}") from error
    people, video = (document, None) if isinstance(document, list) else (document.people, document.video)
    nowhere = next((number for number, person in enumerate(people) if not person.boxes), None)
    if nowhere is not None:
        raise InvalidPart(f"people[{nowhere}]: no boxes, so their position is unknown; leave them out")
    boxes = [(person.person, *box) for person in people for box in person.boxes]
    rows = np.array(boxes, np.float64).reshape(-1, 2 + BOX)
    poses = [_poses(number, person) for number, person in enumerate(people)]
    shapes = {pose.shape[1] for pose in poses if len(pose)}
    if len(shapes) > 1:
        raise InvalidPart("some people have poses, others have none")
    size = (rows[:, 2:4] + rows[:, 4:6]).max(axis=0, initial=1.0) if video is None else np.array([video.width, video.height])
    return {
        "person": rows[:, 0].astype(np.int32),
        "time": rows[:, 1],
        "box": rows[:, 2:].astype(np.float32),
        "pose": np.concatenate(poses) if shapes else np.zeros((len(rows), 0), np.float32),
        "token": np.zeros((len(rows), 0), np.float32),
        "size": size.astype(np.float64),
    }


def _poses(number: int, person: _PersonJson) -> NDArray[np.float32]:
    """Return (boxes, 51), or (boxes, 0) for a person without poses."""
    if not person.poses:
        return np.zeros((len(person.boxes), 0), np.float32)
    if [pose[0] for pose in person.poses] != [box[0] for box in person.boxes]:
        raise InvalidPart(f"people[{number}]: the times of its poses are not those of its boxes")
    if any(len(points) != POSE // 3 for _, points in person.poses):
        raise InvalidPart(f"people[{number}]: a pose has {POSE // 3} points")
    return np.array([points for _, points in person.poses], np.float32).reshape(-1, POSE)


def _parse_npz(content: bytes) -> Tracks:
    arrays = _arrays(content)
    missing = [name for name in ("person", "time", "box") if name not in arrays]
    if not {"pose", "token"} & arrays.keys():
        missing.append("pose or token")
    if missing:
        raise InvalidPart(f"an .npz of tracks needs person, time, box, and pose or token; missing: {', '.join(missing)}")
    count = arrays["person"].size
    shapes = {"person": (count,), "time": (count,), "box": (count, BOX), "pose": (count, POSE), "token": (count, -1), "size": (2,)}
    for name, array in arrays.items():
        if not _fits(array.shape, shapes[name]):
            raise InvalidPart(f"{name}: {array.dtype} {array.shape}, but numbers {shapes[name]} are needed; there are {count} sightings")
    person = arrays["person"]
    if count and not -(2**31) <= int(person.min()) <= int(person.max()) < 2**31:
        raise InvalidPart("person: numbers that 32 bits cannot hold")
    box = arrays["box"].astype(np.float32)
    return {
        "person": person.astype(np.int32),
        "time": arrays["time"].astype(np.float64),
        "box": box,
        "pose": arrays.get("pose", np.zeros((count, 0))).astype(np.float32),
        "token": arrays.get("token", np.zeros((count, 0))).astype(np.float32),
        "size": arrays.get("size", (box[:, :2] + box[:, 2:4]).max(axis=0, initial=1.0)).astype(np.float64),
    }


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Compare shapes. -1 stands for any number."""
    return len(shape) == len(expected) and all(side in (-1, real) for side, real in zip(expected, shape, strict=True))


def _array(name: str, data: bytes) -> NDArray[Any]:
    """Return the array of an .npy, as a view of it. Raises InvalidPart and ExcessivePart."""
    try:
        header = npy.read_header(data, kinds="iu" if name == "person" else "fiu", expected="integers" if name == "person" else "numbers")
    except InvalidPart as error:
        raise InvalidPart(f"{name}: {error}") from error
    if header.shape and header.shape[0] > MAX_SIGHTINGS:
        raise ExcessivePart(f"{name}: {header.shape[0]} sightings are above the limit of {MAX_SIGHTINGS}")
    return np.frombuffer(data, header.dtype, offset=header.offset).reshape(header.shape, order="F" if header.fortran else "C")


def _check_directory(content: bytes) -> None:
    """Check a ZIP archive's directory, since opening it would make objects of every entry. Raises ExcessivePart."""
    plain = len(content) - END.size
    if content[plain : plain + 4] != END_MARK or content[-2:] != b"\0\0":
        plain = content.rfind(END_MARK, max(0, plain - MAX_ZIP_COMMENT_BYTES))
    if plain < 0 or len(content) < plain + END.size:
        return  # opening it raises an error
    *_, entries, nbytes, _, _ = END.unpack_from(content, plain)
    if entries > MAX_ZIP_ENTRIES or nbytes > MAX_ZIP_DIRECTORY_BYTES or content[max(0, plain - 20) : plain].startswith(LARGE_MARK):
        raise ExcessivePart(f"an .npz with more than {MAX_ZIP_ENTRIES} entries")


def _arrays(content: bytes) -> Tracks:
    """Read the known arrays of an archive. Each header is checked before anything is allocated for it."""
    arrays: Tracks = {}
    try:
        _check_directory(content)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in ("person", "time", "box", "pose", "token", "size"):
                if f"{name}.npy" not in archive.namelist():
                    continue
                with archive.open(f"{name}.npy") as file:
                    data = file.read(MAX_ARRAY_BYTES + 1)
                if len(data) > MAX_ARRAY_BYTES:
                    raise ExcessivePart(f"{name}: more than {MAX_ARRAY_BYTES} bytes")
                arrays[name] = _array(name, data)
    except UNREADABLE as error:
        raise InvalidPart(f"an .npz that cannot be read ({error})") from error
    return arrays
