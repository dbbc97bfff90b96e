# `make client` derives client.py from this file.
"""The Python client for asyncio.

async with AsyncClient("http://127.0.0.1:8000") as client:
    found = await client.classify("cat.jpg")
    print(found.label)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import httpx2

from opsin import classification, embedding, results, zero_shot
from opsin.actions import ActionsOptions, Tracks, VideoActions, actions_call, video_actions
from opsin.any_task import ask_call
from opsin.api_request import Call, id_of_job, interpreted, understood
from opsin.async_connection import AsyncConnection
from opsin.async_gallery import AsyncGallery
from opsin.async_jobs import AsyncJob
from opsin.bulk import (
    ActionsMap,
    ClassifyMap,
    EmbedMap,
    InpaintMap,
    Inputs,
    Outcomes,
    ProgressOption,
    ReconstructMap,
    Task,
    ZeroShotMap,
    asks_of_model,
    check_served,
    inputs_of,
    map_tasks,
    method_of,
)
from opsin.classification import ClassifyOptions, Pictures, classify_call, several
from opsin.embedding import Embeddings, EmbedOptions, Output, TokenEmbeddings
from opsin.endpoint import Headers, model_call, readiness
from opsin.errors import OpsinError
from opsin.gallery_search import answering, file_vectors
from opsin.image_encoding import File, Picture
from opsin.inpainting import Inpainting, InpaintOptions, inpaint_call, inpainting
from opsin.reconstruction import Map, Reconstruction, ReconstructOptions, SceneOptions, reconstruct_call, reconstruction, scene_call
from opsin.request_chunks import ONE, Chunk, Limits, limits_of
from opsin.results import Classification, Model, Readiness
from opsin.zero_shot import ZeroShotClassification, ZeroShotOptions, zero_shot_call, zero_shot_chunks

T = TypeVar("T")


class AsyncClient:
    """A client of one service; close it, or use it as a context manager. May be shared between tasks.

    `url` defaults to `OPSIN_URL`, else http://127.0.0.1:8000, and `api_key`, for a service that asks for one, to `OPSIN_API_KEY`.
    `timeout` is in seconds and covers a whole call, retries included. `retries` bounds how often a call is repeated after 429 or
    503, each time after the pause that the service asks for in Retry-After; where the pause does not fit into the timeout, the
    error is raised at once. Nothing else is retried.
    """

    def __init__(
        self, url: str | None = None, *, api_key: str | None = None, timeout: float = 60.0, retries: int = 2, headers: Headers | None = None
    ) -> None:
        self._service = AsyncConnection(url, api_key, timeout, retries, headers)

    @property
    def url(self) -> str:
        return self._service.url

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
    @overload
    async def classify(
        self, *, video: File | None = None, audio: File | None = None, wait: Literal[True] = True, **options: Unpack[ClassifyOptions]
    ) -> Classification: ...
    @overload
    async def classify(
        self, *, video: File | None = None, audio: File | None = None, wait: Literal[False], **options: Unpack[ClassifyOptions]
    ) -> AsyncJob[Classification]: ...
    async def classify(
        self,
        images: Picture | Pictures | None = None,
        *,
        video: File | None = None,
        audio: File | None = None,
        wait: bool = True,
        **options: Unpack[ClassifyOptions],
    ) -> Any:
        """The labels of one picture, or of several in one request (all or nothing), in their order; or of a video, a sound, or both.

        A picture is a path, the bytes of a file, a binary file, a uint8 array (H, W[, C]) or a Pillow image; a video or sound a file.
        `options` are those of `ClassifyOptions`. Without `wait` it is an `AsyncJob`, and `timeout` the job's. Raises OpsinError.
        """
        call = await asyncio.to_thread(classify_call, images, options, video, audio)
        return await self._answer_or_job(call, classification.reader(images), wait)

    @overload
    async def zero_shot(  # type: ignore[overload-overlap]
        self, images: Picture, labels: Sequence[str], *, wait: Literal[True] = True, **options: Unpack[ZeroShotOptions]
    ) -> ZeroShotClassification: ...
    @overload
    async def zero_shot(
        self, images: Pictures, labels: Sequence[str], *, wait: Literal[True] = True, **options: Unpack[ZeroShotOptions]
    ) -> list[ZeroShotClassification]: ...
    @overload
    async def zero_shot(  # type: ignore[overload-overlap]
        self, images: Picture, labels: Sequence[str], *, wait: Literal[False], **options: Unpack[ZeroShotOptions]
    ) -> AsyncJob[ZeroShotClassification]: ...
    @overload
    async def zero_shot(
        self, images: Pictures, labels: Sequence[str], *, wait: Literal[False], **options: Unpack[ZeroShotOptions]
    ) -> AsyncJob[list[ZeroShotClassification]]: ...
    async def zero_shot(
        self, images: Picture | Pictures, labels: Sequence[str], *, wait: bool = True, **options: Unpack[ZeroShotOptions]
    ) -> Any:
        """The labels of your own that fit one image best, or each of several, in their order. labels: 1 to 1,000 distinct texts.

        More images than the service takes at a time travel in several requests; without `wait` they are one, an `AsyncJob`.
        Raises OpsinError.
        """
        if not wait:
            call = await asyncio.to_thread(zero_shot_call, images, labels, options)
            return await self._answer_or_job(call, zero_shot.reader(images), wait)
        chunks = zero_shot_chunks(images, labels, options, await self._limits(images, zero_shot.TASKS))
        found = [one async for answer in self._exchange_chunks(chunks) for one in understood(answer, zero_shot.zero_shots)]
        return found if several(images) else found[0]

    @overload
    async def embed(
        self,
        images: Picture | Pictures | None = None,
        *,
        texts: str | Sequence[str] | None = None,
        output: Literal["pooled"] = "pooled",
        **options: Unpack[EmbedOptions],
    ) -> Embeddings: ...
    @overload
    async def embed(self, images: Picture | Pictures, *, output: Literal["tokens"], **options: Unpack[EmbedOptions]) -> TokenEmbeddings: ...
    async def embed(
        self,
        images: Picture | Pictures | None = None,
        *,
        texts: str | Sequence[str] | None = None,
        output: Output = "pooled",
        **options: Unpack[EmbedOptions],
    ) -> Any:
        """Vectors of unit length, one for each image or text, in their order; with output="tokens" those of an image's merged tokens.

        More than the service takes at a time travel in several requests. Raises OpsinError.
        """
        embedding.check_given(images, texts, output, options)
        if texts is not None:
            chunks = embedding.text_calls(texts, options)
        else:
            assert images is not None
            chunks = embedding.image_calls(images, output, options, await self._limits(images, embedding.TASKS))
        read = embedding.reader(texts, output)
        return embedding.joined([interpreted(answer, read) async for answer in self._exchange_chunks(chunks)])

    async def gallery(
        self,
        folder: str | os.PathLike[str],
        *,
        concurrency: int = 8,
        pattern: str = "*",
        progress: ProgressOption = None,
        **options: Unpack[EmbedOptions],
    ) -> AsyncGallery:
        """The images of a folder, to be searched by text or image: `gallery.search("something to eat", k=5)`.

        Each file that matches `pattern` is embedded once, as by `map`; those that fail stand in `failures`. Raises OpsinError where none
        can be embedded.
        """
        inputs = inputs_of(os.fspath(folder), pattern, "gallery")
        outcomes = await self.map("embed", inputs, concurrency=concurrency, progress=progress, **options)
        model = await self.model(answering(outcomes))
        return AsyncGallery(file_vectors(outcomes, model, options), tuple(outcomes.failures), self.embed, self.model)

    @overload
    async def inpaint(
        self, image: Picture, mask: Picture | None = None, *, wait: Literal[True] = True, **options: Unpack[InpaintOptions]
    ) -> Inpainting: ...
    @overload
    async def inpaint(
        self, image: Picture, mask: Picture | None = None, *, wait: Literal[False], **options: Unpack[InpaintOptions]
    ) -> AsyncJob[Inpainting]: ...
    async def inpaint(self, image: Picture, mask: Picture | None = None, *, wait: bool = True, **options: Unpack[InpaintOptions]) -> Any:
        """The picture with its hole filled. mask: a picture of the same size, white where it is to be filled, or words such as
        `box:X,Y,W,H` or `center:0.5`; None for the picture's own transparency.

        Without `wait` it is an `AsyncJob`, and `timeout` the job's. Raises OpsinError.
        """
        call = await asyncio.to_thread(inpaint_call, image, mask, options)
        return await self._answer_or_job(call, inpainting, wait)

    @overload
    async def actions(
        self, video: File | None = None, *, tracks: Tracks | None = None, wait: Literal[True] = True, **options: Unpack[ActionsOptions]
    ) -> VideoActions: ...
    @overload
    async def actions(
        self, video: File | None = None, *, tracks: Tracks | None = None, wait: Literal[False], **options: Unpack[ActionsOptions]
    ) -> AsyncJob[VideoActions]: ...
    async def actions(
        self, video: File | None = None, *, tracks: Tracks | None = None, wait: bool = True, **options: Unpack[ActionsOptions]
    ) -> Any:
        """Find who does what when in a video, or in tracks of people: a file, or an answer's JSON.

        Without `wait` it is an `AsyncJob`, and `timeout` the job's; `job.file("video/mp4")` is the annotated clip. Raises OpsinError.
        """
        call = await asyncio.to_thread(actions_call, video, tracks, options)
        return await self._answer_or_job(call, video_actions, wait)

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
        """The whole shape of what one picture shows. depth: a map, with `fov` or `fx`; or points, one for each pixel; or neither, of
        an object, where the model tells depth. mask: white on the object.

        Without `wait` it is an `AsyncJob`, and `timeout` the job's. Raises OpsinError.
        """
        call = await asyncio.to_thread(reconstruct_call, image, depth, points, mask, options)
        return await self._answer_or_job(call, reconstruction, wait)

    async def scene(self, scene: str, **options: Unpack[SceneOptions]) -> Reconstruction:
        """`Reconstruction.scene` asked again, in another way. Raises Refused (404) where it is gone."""
        return await self._answer(scene_call(scene, options), reconstruction)

    @overload
    async def map(self, task: Literal["classify"], inputs: Inputs, **options: Unpack[ClassifyMap]) -> Outcomes[Classification]: ...
    @overload
    async def map(self, task: Literal["zero-shot"], inputs: Inputs, **options: Unpack[ZeroShotMap]) -> Outcomes[ZeroShotClassification]: ...
    @overload
    async def map(self, task: Literal["embed"], inputs: Inputs, **options: Unpack[EmbedMap]) -> Outcomes[Embeddings]: ...
    @overload
    async def map(self, task: Literal["inpaint"], inputs: Inputs, **options: Unpack[InpaintMap]) -> Outcomes[Inpainting]: ...
    @overload
    async def map(self, task: Literal["reconstruct"], inputs: Inputs, **options: Unpack[ReconstructMap]) -> Outcomes[Reconstruction]: ...
    @overload
    async def map(self, task: Literal["actions"], inputs: Inputs, **options: Unpack[ActionsMap]) -> Outcomes[VideoActions]: ...
    async def map(
        self, task: Task, inputs: Inputs, *, concurrency: int = 8, pattern: str = "*", progress: ProgressOption = None, **options: Any
    ) -> Outcomes[Any]:
        """The task for each of many inputs, `concurrency` at a time: the files of a folder that match `pattern`, by name, or anything
        that the task's method takes; a tuple holds several arguments. `options` are those of the method.

        Outcomes stand in the order of the inputs; an input that fails costs the others nothing. progress: True for a bar, False for none,
        a function of how many are done and of how many, or None for a bar on a terminal. Raises ValueError and OSError for inputs that are
        none, TypeError for an option that the method does not have, and Refused, before any input is sent, for a model that is not served
        or has no such rung or so many labels.
        """
        ask = method_of(self, task, concurrency, options)
        if asks_of_model(options):
            check_served(await self.models(), task, options)
        return await map_tasks(ask, task, inputs_of(inputs, pattern), concurrency, progress, options)

    async def ask(self, task: str, parts: Mapping[str, Picture | Pictures], **options: Any) -> dict[str, Any]:
        """The answer of any task as JSON: parts by name, as `classify` takes pictures; options as the task has them, and `timeout`. A list
        or tuple is sent as a repeated option.

        For tasks that this client has no method for, such as one that you have added. Raises OpsinError."""
        call = await asyncio.to_thread(ask_call, task, parts, options)
        return await self._answer(call, dict)

    def job(self, job_id: str) -> AsyncJob[dict[str, Any]]:
        """A job by its id, also one that another process has asked for. Its result is the answer as JSON."""
        return AsyncJob(self._service, job_id, dict)

    async def models(self) -> list[Model]:
        """The bundles that the service knows."""
        return await self._answer(Call("GET", "/v1/models"), results.models)

    async def model(self, name: str) -> Model:
        """One bundle by `name` or `name@version`. Raises Refused (404) if there is none."""
        return await self._answer(model_call(name), results.model)

    async def health(self) -> bool:
        """Whether the service runs."""
        try:
            response = await self._service.send(Call("GET", "/health/live"), self._service.timeout)
        except OpsinError:
            return False
        return response.is_success

    async def ready(self) -> Readiness:
        """Whether it can take requests now."""
        try:
            return readiness(await self._service.send(Call("GET", "/health/ready"), self._service.timeout))
        except OpsinError as error:
            return Readiness(False, str(error))

    async def close(self) -> None:
        await self._service.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _answer(self, call: Call, read: Callable[[Any], T]) -> T:
        return understood(await self._service.exchange(call), read)

    async def _answer_or_job(self, call: Call, read: Callable[[Any], Any], wait: bool) -> Any:
        if wait:
            return await self._answer(call, read)
        return AsyncJob(self._service, await self._answer(call.to_be_answered_later(), id_of_job), read)

    async def _limits(self, images: Picture | Pictures, tasks: Collection[str]) -> Limits:
        """The limits of requests for these images: those of several are asked for."""
        return limits_of(await self.models(), tasks) if several(images) and len(images) > 1 else ONE  # type: ignore[arg-type]

    async def _exchange_chunks(self, chunks: Iterator[Chunk]) -> AsyncIterator[httpx2.Response]:
        """The answers to requests, one after the other."""
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            try:
                yield await self._service.exchange(chunk.call)
            except OpsinError as error:
                raise chunk.renumbered(error) from None
