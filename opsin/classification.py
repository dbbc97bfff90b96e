"""Classification for the client: what can be asked, the request, and how its answer is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from opsin.api_request import Call, call_of, check_names
from opsin.image_encoding import File, Picture, encoded, file_bytes
from opsin.results import classifications

Priority = Literal["high", "normal", "low"]
Pictures = Sequence[Picture]


class ClassifyOptions(TypedDict, total=False):
    """Options of a classification. One that is left out or None is the service's default."""

    model: str | None
    """`name` or `name@version`."""
    top_k: int | None
    merge: int | str | None
    """`"off"`, how many tokens to merge in each block, or the name of a rung of the bundle's ladder."""
    merge_sight: int | str | None
    """The same for the video half of a bundle of sound and sight, where `merge` is to hold for sound alone."""
    views: int | None
    """Views of a video, from 1 to 30."""
    crops: Literal[1, 3] | None
    """Crops of each view: its centre, or three along its longer side."""
    start_s: float | None
    end_s: float | None
    """Seconds: the part of the video or sound that is classified."""
    windows: int | None
    """Windows of sound, from 1 to 12."""
    use: Literal["both", "sound", "sight"] | None
    """Parts that a bundle of sound and sight goes by."""
    timeline: bool | None
    """Whether the labels of each view or window are told, too."""
    priority: Priority | None
    timeout: float | None
    """Seconds for this call, retries included, in place of the client's."""
    request_id: str | None
    """Under which the service's logs speak of this request."""


def classify_call(images: Picture | Pictures | None, asked: ClassifyOptions, video: File | None = None, audio: File | None = None) -> Call:
    """Images, or a video, a sound, or both. Raises TypeError, ValueError or OSError for what cannot be sent."""
    check_names("classify", asked, ClassifyOptions)
    parts = {name: file_bytes(name, file) for name, file in (("video", video), ("audio", audio)) if file is not None}
    if (images is None) != bool(parts):
        raise ValueError("images, video, audio: give images, or a video, a sound, or both")
    return call_of("/v1/classify", asked, pictures=() if images is None else _encoded(images), parts=parts)


def reader(images: Picture | Pictures | None) -> Callable[[Mapping[str, Any]], Any]:
    """From the body of an answer to one classification, or to several."""
    if several(images):
        return classifications
    return lambda answer: classifications(answer)[0]


def several(images: Picture | Pictures | None) -> bool:
    return isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview)


def _encoded(images: Any) -> tuple[bytes, ...]:
    """Raises ValueError where there is none."""
    pictures = images if several(images) else [images]
    if not len(pictures):
        raise ValueError("images: at least one picture is needed")
    return tuple(encoded(picture) for picture in pictures)
