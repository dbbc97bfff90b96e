"""The Python client, sync and async.

with Client("http://127.0.0.1:8000") as client:
    print(client.classify("cat.jpg").label)
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack, overload
from urllib.parse import quote

import httpx

from opsin import results
from opsin.actions import ActionsOptions, Tracks, Video, VideoActions, actions_call, video_actions
from opsin.calls import Budget, Call, checked, problem_of, transport_error
from opsin.errors import OpsinError
from opsin.inpainting import Inpainting, InpaintOptions, inpaint_call, inpainting
from opsin.jobs import AsyncJob, Job
from opsin.pictures import Picture, encoded
from opsin.reconstruction import Map, Reconstruction, ReconstructOptions, SceneOptions, reconstruct_call, reconstruction, scene_call
from opsin.results import Classification, Model, Readiness

DEFAULT_URL = "http://127.0.0.1:8000"
Priority = Literal["high", "normal", "low"]
Pictures = Sequence[Picture]

# Below uvicorn's five seconds, so that no request is sent down a connection that the service is just closing.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=3.0)


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


class Client:
    """A client of one service; close it, or use it as a context manager. May be shared between threads.

    `url` defaults to `OPSIN_URL`, else http://127.0.0.1:8000. `timeout` is in seconds and covers a whole call, retries included.
    `retries` bounds how often a call is repeated after 429 or 503, each time after the pause that the service asks for in
    Retry-After; where the pause does not fit into the timeout, the error is raised at once. Nothing else is retried.
    """

    def __init__(
        self, url: str | None = None, *, timeout: float = 60.0, retries: int = 2, headers: Mapping[str, str] | None = None
    ) -> None:
        self._timeout, self._retries = timeout, retries
        self._http = httpx.Client(base_url=_base(url), headers=headers, limits=LIMITS)

    @property
    def url(self) -> str:
        return str(self._http.base_url).rstrip("/")

    @overload
    def classify(  # type: ignore[overload-overlap]
        self, images: Picture, *, wait: Literal[True] = True, **options: Unpack[ClassifyOptions]
    ) -> Classification: ...
    @overload
    def classify(self, images: Pictures, *, wait: Literal[True] = True, **options: Unpack[ClassifyOptions]) -> list[Classification]: ...
    @overload
    def classify(  # type: ignore[overload-overlap]
        self, images: Picture, *, wait: Literal[False], **options: Unpack[ClassifyOptions]
    ) -> Job[Classification]: ...
    @overload
    def classify(self, images: Pictures, *, wait: Literal[False], **options: Unpack[ClassifyOptions]) -> Job[list[Classification]]: ...
    def classify(self, images: Picture | Pictures, *, wait: bool = True, **options: Unpack[ClassifyOptions]) -> Any:
        """The labels of one picture, or of several in one request (all or nothing), in their order.

        A picture is a path, the bytes of a file, a binary file, a uint8 array (H, W[, C]) or a Pillow image.
        `options` are those of `ClassifyOptions`. Without `wait` it is a `Job`, and `timeout` the job's. Raises OpsinError.
        """
        call, read = _classify_call(images, **options), _reader(images)
        if wait:
            return read(self._exchange(call).json())
        return Job(self._http, self._exchange, self._exchange(call.to_be_answered_later()).json()["id"], read)

    @overload
    def inpaint(
        self, image: Picture, mask: Picture | None = None, *, wait: Literal[True] = True, **options: Unpack[InpaintOptions]
    ) -> Inpainting: ...
    @overload
    def inpaint(
        self, image: Picture, mask: Picture | None = None, *, wait: Literal[False], **options: Unpack[InpaintOptions]
    ) -> Job[Inpainting]: ...
    def inpaint(self, image: Picture, mask: Picture | None = None, *, wait: bool = True, **options: Unpack[InpaintOptions]) -> Any:
        """The picture with its hole filled. mask: a picture of the same size, white where it is to be filled, or words such as
        `box:X,Y,W,H` or `center:0.5`; None for the picture's own transparency.

        Without `wait` it is a `Job`, and `timeout` the job's. Raises OpsinError.
        """
        call = inpaint_call(image, mask, options)
        if wait:
            return inpainting(self._exchange(call).json())
        return Job(self._http, self._exchange, self._exchange(call.to_be_answered_later()).json()["id"], inpainting)

    @overload
    def actions(
        self, video: Video | None = None, *, tracks: Tracks | None = None, wait: Literal[True] = True, **options: Unpack[ActionsOptions]
    ) -> VideoActions: ...
    @overload
    def actions(
        self, video: Video | None = None, *, tracks: Tracks | None = None, wait: Literal[False], **options: Unpack[ActionsOptions]
    ) -> Job[VideoActions]: ...
    def actions(
        self, video: Video | None = None, *, tracks: Tracks | None = None, wait: bool = True, **options: Unpack[ActionsOptions]
    ) -> Any:
        """Who does what when in a video, or in tracks of people: a file, or an answer's JSON.

        Without `wait` it is a `Job`, and `timeout` the job's; `job.file("video/mp4")` is the annotated clip. Raises OpsinError.
        """
        call = actions_call(video, tracks, options)
        if wait:
            return video_actions(self._exchange(call).json())
        return Job(self._http, self._exchange, self._exchange(call.to_be_answered_later()).json()["id"], video_actions)

    @overload
    def reconstruct(
        self,
        image: Picture,
        depth: Map | None = None,
        *,
        points: Map | None = None,
        mask: Picture | None = None,
        wait: Literal[True] = True,
        **options: Unpack[ReconstructOptions],
    ) -> Reconstruction: ...
    @overload
    def reconstruct(
        self,
        image: Picture,
        depth: Map | None = None,
        *,
        points: Map | None = None,
        mask: Picture | None = None,
        wait: Literal[False],
        **options: Unpack[ReconstructOptions],
    ) -> Job[Reconstruction]: ...
    def reconstruct(
        self,
        image: Picture,
        depth: Map | None = None,
        *,
        points: Map | None = None,
        mask: Picture | None = None,
        wait: bool = True,
        **options: Unpack[ReconstructOptions],
    ) -> Any:
        """The whole shape of what one picture shows. depth: a map, with `fov` or `fx`; or points, one for each pixel. mask: white on the
        object.

        Without `wait` it is a `Job`, and `timeout` the job's. Raises OpsinError.
        """
        call = reconstruct_call(image, depth, points, mask, options)
        if wait:
            return reconstruction(self._exchange(call).json())
        return Job(self._http, self._exchange, self._exchange(call.to_be_answered_later()).json()["id"], reconstruction)

    def scene(self, scene: str, **options: Unpack[SceneOptions]) -> Reconstruction:
        """`Reconstruction.scene` asked again, in another way. Raises Refused (404) where it is gone."""
        return reconstruction(self._exchange(scene_call(scene, options)).json())

    def job(self, job_id: str) -> Job[dict[str, Any]]:
        """A job by its id, also one that another process has asked for. Its result is the answer as JSON."""
        return Job(self._http, self._exchange, job_id, dict)

    def models(self) -> list[Model]:
        """The bundles that the service knows."""
        return [results.model(entry) for entry in self._exchange(Call("GET", "/v1/models")).json()["models"]]

    def model(self, name: str) -> Model:
        """One bundle by `name` or `name@version`. Raises Refused (404) if there is none."""
        return results.model(self._exchange(_model_call(name)).json())

    def health(self) -> bool:
        """Whether the service runs."""
        try:
            return self._send(Call("GET", "/health/live"), self._timeout).is_success
        except OpsinError:
            return False

    def ready(self) -> Readiness:
        """Whether it can take requests now."""
        try:
            return _readiness(self._send(Call("GET", "/health/ready"), self._timeout))
        except OpsinError as error:
            return Readiness(False, str(error))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _exchange(self, call: Call) -> httpx.Response:
        budget = Budget(self._timeout if call.timeout is None else call.timeout, self._retries)
        while True:
            response = self._send(call, budget.left())
            pause = budget.pause_before_retry(response)
            if pause is None:
                return checked(response)
            time.sleep(pause)

    def _send(self, call: Call, timeout: float) -> httpx.Response:
        try:
            return self._http.request(**call.arguments(timeout))
        except httpx.HTTPError as error:
            raise transport_error(error, self.url, timeout) from error


class AsyncClient:
    """`Client` for asyncio: the same calls, awaited."""

    def __init__(
        self, url: str | None = None, *, timeout: float = 60.0, retries: int = 2, headers: Mapping[str, str] | None = None
    ) -> None:
        self._timeout, self._retries = timeout, retries
        self._http = httpx.AsyncClient(base_url=_base(url), headers=headers, limits=LIMITS)

    @property
    def url(self) -> str:
        return str(self._http.base_url).rstrip("/")

    @overload
    async def classify(  # type: ignore[overload-overlap]
        self, images: Picture, *, wait: Literal[True] = True, **options: Unpack[ClassifyOptions]
    ) -> Classification: ...
    @overload
    async def classify(
        self, images: Pictures, *, wait: Literal[True] = True, **options: Unpack[ClassifyOptions]
    ) -> list[Classification]: ...
    @overload
    async def classify(  # type: ignore[overload-overlap]
        self, images: Picture, *, wait: Literal[False], **options: Unpack[ClassifyOptions]
    ) -> AsyncJob[Classification]: ...
    @overload
    async def classify(
        self, images: Pictures, *, wait: Literal[False], **options: Unpack[ClassifyOptions]
    ) -> AsyncJob[list[Classification]]: ...
    async def classify(self, images: Picture | Pictures, *, wait: bool = True, **options: Unpack[ClassifyOptions]) -> Any:
        """See `Client.classify`. Files are read and arrays encoded in a thread."""
        call, read = await asyncio.to_thread(_classify_call, images, **options), _reader(images)
        if wait:
            return read((await self._exchange(call)).json())
        accepted = await self._exchange(call.to_be_answered_later())
        return AsyncJob(self._http, self._exchange, accepted.json()["id"], read)

    @overload
    async def inpaint(
        self, image: Picture, mask: Picture | None = None, *, wait: Literal[True] = True, **options: Unpack[InpaintOptions]
    ) -> Inpainting: ...
    @overload
    async def inpaint(
        self, image: Picture, mask: Picture | None = None, *, wait: Literal[False], **options: Unpack[InpaintOptions]
    ) -> AsyncJob[Inpainting]: ...
    async def inpaint(self, image: Picture, mask: Picture | None = None, *, wait: bool = True, **options: Unpack[InpaintOptions]) -> Any:
        """See `Client.inpaint`."""
        call = await asyncio.to_thread(inpaint_call, image, mask, options)
        if wait:
            return inpainting((await self._exchange(call)).json())
        accepted = await self._exchange(call.to_be_answered_later())
        return AsyncJob(self._http, self._exchange, accepted.json()["id"], inpainting)

    @overload
    async def actions(
        self, video: Video | None = None, *, tracks: Tracks | None = None, wait: Literal[True] = True, **options: Unpack[ActionsOptions]
    ) -> VideoActions: ...
    @overload
    async def actions(
        self, video: Video | None = None, *, tracks: Tracks | None = None, wait: Literal[False], **options: Unpack[ActionsOptions]
    ) -> AsyncJob[VideoActions]: ...
    async def actions(
        self, video: Video | None = None, *, tracks: Tracks | None = None, wait: bool = True, **options: Unpack[ActionsOptions]
    ) -> Any:
        """See `Client.actions`."""
        call = await asyncio.to_thread(actions_call, video, tracks, options)
        if wait:
            return video_actions((await self._exchange(call)).json())
        accepted = await self._exchange(call.to_be_answered_later())
        return AsyncJob(self._http, self._exchange, accepted.json()["id"], video_actions)

    @overload
    async def reconstruct(
        self,
        image: Picture,
        depth: Map | None = None,
        *,
        points: Map | None = None,
        mask: Picture | None = None,
        wait: Literal[True] = True,
        **options: Unpack[ReconstructOptions],
    ) -> Reconstruction: ...
    @overload
    async def reconstruct(
        self,
        image: Picture,
        depth: Map | None = None,
        *,
        points: Map | None = None,
        mask: Picture | None = None,
        wait: Literal[False],
        **options: Unpack[ReconstructOptions],
    ) -> AsyncJob[Reconstruction]: ...
    async def reconstruct(
        self,
        image: Picture,
        depth: Map | None = None,
        *,
        points: Map | None = None,
        mask: Picture | None = None,
        wait: bool = True,
        **options: Unpack[ReconstructOptions],
    ) -> Any:
        """See `Client.reconstruct`."""
        call = await asyncio.to_thread(reconstruct_call, image, depth, points, mask, options)
        if wait:
            return reconstruction((await self._exchange(call)).json())
        accepted = await self._exchange(call.to_be_answered_later())
        return AsyncJob(self._http, self._exchange, accepted.json()["id"], reconstruction)

    async def scene(self, scene: str, **options: Unpack[SceneOptions]) -> Reconstruction:
        """See `Client.scene`."""
        return reconstruction((await self._exchange(scene_call(scene, options))).json())

    def job(self, job_id: str) -> AsyncJob[dict[str, Any]]:
        """See `Client.job`."""
        return AsyncJob(self._http, self._exchange, job_id, dict)

    async def models(self) -> list[Model]:
        return [results.model(entry) for entry in (await self._exchange(Call("GET", "/v1/models"))).json()["models"]]

    async def model(self, name: str) -> Model:
        return results.model((await self._exchange(_model_call(name))).json())

    async def health(self) -> bool:
        try:
            return (await self._send(Call("GET", "/health/live"), self._timeout)).is_success
        except OpsinError:
            return False

    async def ready(self) -> Readiness:
        try:
            return _readiness(await self._send(Call("GET", "/health/ready"), self._timeout))
        except OpsinError as error:
            return Readiness(False, str(error))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _exchange(self, call: Call) -> httpx.Response:
        budget = Budget(self._timeout if call.timeout is None else call.timeout, self._retries)
        while True:
            response = await self._send(call, budget.left())
            pause = budget.pause_before_retry(response)
            if pause is None:
                return checked(response)
            await asyncio.sleep(pause)

    async def _send(self, call: Call, timeout: float) -> httpx.Response:
        try:
            return await self._http.request(**call.arguments(timeout))
        except httpx.HTTPError as error:
            raise transport_error(error, self.url, timeout) from error


def _base(url: str | None) -> str:
    return url or os.environ.get("OPSIN_URL") or DEFAULT_URL


def _several(images: Picture | Pictures) -> bool:
    return isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview)


def _reader(images: Picture | Pictures) -> Callable[[Mapping[str, Any]], Any]:
    """From the body of an answer to one classification, or to several."""
    if _several(images):
        return results.classifications
    return lambda answer: results.classifications(answer)[0]


def _classify_call(
    images: Picture | Pictures,
    model: str | None = None,
    top_k: int | None = None,
    merge: int | str | None = None,
    priority: Priority | None = None,
    timeout: float | None = None,
    request_id: str | None = None,
) -> Call:
    pictures: Any = images if _several(images) else [images]
    if not len(pictures):
        raise ValueError("images: at least one picture is needed")
    options = {"model": model, "top_k": top_k, "merge": merge, "priority": priority}
    return Call(
        "POST",
        "/v1/classify",
        query={name: str(value) for name, value in options.items() if value is not None},
        headers={"X-Request-ID": request_id} if request_id else {},
        pictures=tuple(encoded(picture) for picture in pictures),
        timeout=timeout,
    )


def _model_call(name: str) -> Call:
    return Call("GET", f"/v1/models/{quote(name, safe='@')}")


def _readiness(response: httpx.Response) -> Readiness:
    return Readiness(True) if response.is_success else Readiness(False, problem_of(response).detail)
