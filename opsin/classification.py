"""Classification for the client: the options, the request, and the reader of its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from opsin.api_request import ApiRequest, CallOptions, build_request, check_names
from opsin.image_encoding import FileLike, ImageLike, encode, file_bytes
from opsin.results import classifications

ImageSequence = Sequence[ImageLike]


class ClassifyOptions(CallOptions, total=False):
    """Options of a classification; None is the service's default."""

    model: str | None
    """`name` or `name@version`."""
    top_k: int | None
    merge: int | str | None
    """`"off"`, the number of tokens to merge in each block, or the name of a rung of the bundle's ladder."""
    merge_sight: int | str | None
    """Merging in the video half of an audio-visual bundle, written as `merge`, which then applies to the sound alone."""
    views: int | None
    """Number of views of a video, from 1 to 30."""
    crops: Literal[1, 3] | None
    """Number of crops of each view: one at its centre, or three along its longer side."""
    start_s: float | None
    end_s: float | None
    """End of the part of the video or sound to classify, in seconds; `start_s` is its start."""
    windows: int | None
    """Number of windows of sound, from 1 to 12."""
    use: Literal["both", "sound", "sight"] | None
    """Parts of the clip that an audio-visual bundle uses."""
    timeline: bool | None
    """Whether to return the labels of each view or window, too."""


def classify_request(
    images: ImageLike | ImageSequence | None, options: ClassifyOptions, video: FileLike | None = None, audio: FileLike | None = None
) -> ApiRequest:
    """Return the request for images, or for a video, a sound, or both.

    Raises TypeError, ValueError or OSError for inputs that cannot be sent.
    """
    check_names("classify", options, ClassifyOptions)
    parts = {name: file_bytes(name, file) for name, file in (("video", video), ("audio", audio)) if file is not None}
    if (images is None) != bool(parts):
        raise ValueError("images, video, audio: give images, or a video, a sound, or both")
    return build_request("/v1/classify", options, images=() if images is None else _encode_all(images), parts=parts)


def answer_parser(images: ImageLike | ImageSequence | None) -> Callable[[Mapping[str, Any]], Any]:
    """Return the function that reads an answer's body: to one classification for one image, to a list for several."""
    if is_sequence(images):
        return classifications
    return lambda answer: classifications(answer)[0]


def is_sequence(images: ImageLike | ImageSequence | None) -> bool:
    return isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview)


def _encode_all(images: Any) -> tuple[bytes, ...]:
    """Encode one or several images. Raises ValueError if there is none."""
    listed = images if is_sequence(images) else [images]
    if not len(listed):
        raise ValueError("images: at least one picture is needed")
    return tuple(encode(picture) for picture in listed)
