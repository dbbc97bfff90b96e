"""Classification for the client: the options and the request. One or several images, as all tasks of images take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from opsin.api_request import ApiRequest, CallOptions, build_request, check_names
from opsin.image_encoding import FileLike, ImageLike, encode, file_bytes

T = TypeVar("T")
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


class ClassifyCallOptions(ClassifyOptions, total=False):
    """Options of `Client.classify`: those of a classification, and the files of a clip or sound, which are sent instead of images."""

    video: FileLike | None
    audio: FileLike | None
    """The sound, or a file to use instead of the video's own sound track."""


def classify_request(images: ImageLike | ImageSequence | None, options: ClassifyCallOptions) -> ApiRequest:
    """Return the request for images, or for a video, a sound, or both.

    Raises TypeError, ValueError or OSError for inputs that cannot be sent.
    """
    check_names("classify", options, ClassifyCallOptions)
    request_options: dict[str, Any] = dict(options)
    files = {name: request_options.pop(name, None) for name in ("video", "audio")}
    parts = {name: file_bytes(name, file) for name, file in files.items() if file is not None}
    if (images is None) != bool(parts):
        raise ValueError("images, video, audio: give images, or a video, a sound, or both")
    encoded = () if images is None else tuple(encode(image) for image in as_list(images))
    return build_request("/v1/classify", request_options, images=encoded, parts=parts)


def answer_parser(
    images: ImageLike | ImageSequence | None, read: Callable[[Mapping[str, Any]], list[T]]
) -> Callable[[Mapping[str, Any]], T | list[T]]:
    """Return the function that reads an answer's body: to one result for one image, to a list for several."""
    return read if is_sequence(images) else lambda answer: read(answer)[0]


def is_sequence(images: ImageLike | ImageSequence | None) -> bool:
    return isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview)


def as_list(images: Any) -> Any:
    """Return one or several images as a sequence. Raises ValueError if there is none."""
    listed = images if is_sequence(images) else [images]
    if not len(listed):
        raise ValueError("images: at least one image is needed")
    return listed
