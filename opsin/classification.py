"""Classification for the client: what can be asked, the request, and how its answer is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from opsin.calls import Call, check_names
from opsin.pictures import Picture, encoded
from opsin.results import classifications

Priority = Literal["high", "normal", "low"]
Pictures = Sequence[Picture]


class ClassifyOptions(TypedDict, total=False):
    """What is left out or None is the service's default."""

    model: str | None
    """`name` or `name@version`."""
    top_k: int | None
    merge: int | str | None
    """`"off"`, how many tokens to merge in each block, or the name of a rung of the bundle's ladder."""
    priority: Priority | None
    timeout: float | None
    """Seconds for this call, retries included, in place of the client's."""
    request_id: str | None
    """Under which the service's logs speak of this request."""


def classify_call(images: Picture | Pictures, asked: ClassifyOptions) -> Call:
    """Raises TypeError, ValueError or OSError for what cannot be sent."""
    check_names("classify", asked, ClassifyOptions)
    timeout, request_id = asked.get("timeout"), asked.get("request_id")
    pictures: Any = images if several(images) else [images]
    if not len(pictures):
        raise ValueError("images: at least one picture is needed")
    options = {name: asked.get(name) for name in ("model", "top_k", "merge", "priority")}
    return Call(
        "POST",
        "/v1/classify",
        query={name: str(value) for name, value in options.items() if value is not None},
        headers={"X-Request-ID": request_id} if request_id else {},
        pictures=tuple(encoded(picture) for picture in pictures),
        timeout=timeout,
    )


def reader(images: Picture | Pictures) -> Callable[[Mapping[str, Any]], Any]:
    """From the body of an answer to one classification, or to several."""
    if several(images):
        return classifications
    return lambda answer: classifications(answer)[0]


def several(images: Picture | Pictures) -> bool:
    return isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview)
