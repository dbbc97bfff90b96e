"""The Python client for asyncio: the calls of `opsin.client.Client`, awaited."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

import httpx

from opsin import embedding, results, zero_shot
from opsin.actions import ActionsOptions, Tracks, VideoActions, actions_call, video_actions
from opsin.asking import ask_call
from opsin.calls import Call, id_of_job, interpreted, understood
from opsin.chunks import ONE, Chunk, Limits, limits_of
from opsin.classification import ClassifyOptions, Pictures, classify_call, reader, several
from opsin.connection import AsyncConnection, Headers, model_call, readiness
from opsin.embedding import Embeddings, EmbedOptions, Output, TokenEmbeddings
from opsin.errors import OpsinError
from opsin.gallery import AsyncGallery, answering, file_vectors
from opsin.inpainting import Inpainting, InpaintOptions, inpaint_call, inpainting
from opsin.jobs import AsyncJob
from opsin.mapping import Inputs, Outcomes, ProgressOption, Task, asks_of_model, check_options, check_served, inputs_of, map_tasks
from opsin.pictures import File, Picture
from opsin.reconstruction import Map, Reconstruction, ReconstructOptions, SceneOptions, reconstruct_call, reconstruction, scene_call
from opsin.results import Classification, Model, Readiness
from opsin.zero_shot import ZeroShotClassification, ZeroShotOptions, zero_shot_call, zero_shot_chunks


class AsyncClient:
    """`Client` for asyncio: the same calls, awaited."""

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
        """See `Client.classify`. Files are read and arrays encoded in a thread."""
        call, read = await asyncio.to_thread(classify_call, images, options, video, audio), reader(images)
        if wait:
            return understood(await self._service.exchange(call), read)
        return await self._later(call, read)

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
        """See `Client.zero_shot`."""
        if not wait:
            return await self._later(await asyncio.to_thread(zero_shot_call, images, labels, options), zero_shot.reader(images))
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
        """See `Client.embed`."""
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
        """See `Client.gallery`."""
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
        """See `Client.inpaint`."""
        call = await asyncio.to_thread(inpaint_call, image, mask, options)
        if wait:
            return understood(await self._service.exchange(call), inpainting)
        return await self._later(call, inpainting)

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
        """See `Client.actions`."""
        call = await asyncio.to_thread(actions_call, video, tracks, options)
        if wait:
            return understood(await self._service.exchange(call), video_actions)
        return await self._later(call, video_actions)

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
            return understood(await self._service.exchange(call), reconstruction)
        return await self._later(call, reconstruction)

    async def scene(self, scene: str, **options: Unpack[SceneOptions]) -> Reconstruction:
        """See `Client.scene`."""
        return understood(await self._service.exchange(scene_call(scene, options)), reconstruction)

    @overload
    async def map(
        self,
        task: Literal["classify"],
        inputs: Inputs,
        *,
        concurrency: int = 8,
        pattern: str = "*",
        progress: ProgressOption = None,
        **options: Any,
    ) -> Outcomes[Classification]: ...
    @overload
    async def map(
        self,
        task: Literal["zero-shot"],
        inputs: Inputs,
        *,
        concurrency: int = 8,
        pattern: str = "*",
        progress: ProgressOption = None,
        **options: Any,
    ) -> Outcomes[ZeroShotClassification]: ...
    @overload
    async def map(
        self,
        task: Literal["embed"],
        inputs: Inputs,
        *,
        concurrency: int = 8,
        pattern: str = "*",
        progress: ProgressOption = None,
        **options: Any,
    ) -> Outcomes[Embeddings]: ...
    @overload
    async def map(
        self,
        task: Literal["inpaint"],
        inputs: Inputs,
        *,
        concurrency: int = 8,
        pattern: str = "*",
        progress: ProgressOption = None,
        **options: Any,
    ) -> Outcomes[Inpainting]: ...
    @overload
    async def map(
        self,
        task: Literal["reconstruct"],
        inputs: Inputs,
        *,
        concurrency: int = 8,
        pattern: str = "*",
        progress: ProgressOption = None,
        **options: Any,
    ) -> Outcomes[Reconstruction]: ...
    @overload
    async def map(
        self,
        task: Literal["actions"],
        inputs: Inputs,
        *,
        concurrency: int = 8,
        pattern: str = "*",
        progress: ProgressOption = None,
        **options: Any,
    ) -> Outcomes[VideoActions]: ...
    async def map(
        self, task: Task, inputs: Inputs, *, concurrency: int = 8, pattern: str = "*", progress: ProgressOption = None, **options: Any
    ) -> Outcomes[Any]:
        """See `Client.map`."""
        asks: dict[str, Callable[..., Awaitable[Any]]] = {
            "classify": self.classify,
            "zero-shot": self.zero_shot,
            "embed": self.embed,
            "inpaint": self.inpaint,
            "reconstruct": self.reconstruct,
            "actions": self.actions,
        }
        check_options(asks, task, options)
        if asks_of_model(options):
            check_served(await self.models(), task, options)
        return await map_tasks(asks, task, inputs_of(inputs, pattern), concurrency, progress, options)

    async def ask(self, task: str, parts: Mapping[str, Picture], **options: Any) -> dict[str, Any]:
        """See `Client.ask`."""
        return understood(await self._service.exchange(await asyncio.to_thread(ask_call, task, parts, options)), dict)

    def job(self, job_id: str) -> AsyncJob[dict[str, Any]]:
        """See `Client.job`."""
        return AsyncJob(self._service.http, self._service.exchange, job_id, dict)

    async def models(self) -> list[Model]:
        return understood(await self._service.exchange(Call("GET", "/v1/models")), results.models)

    async def model(self, name: str) -> Model:
        return understood(await self._service.exchange(model_call(name)), results.model)

    async def health(self) -> bool:
        try:
            return (await self._service.send(Call("GET", "/health/live"), self._service.timeout)).is_success
        except OpsinError:
            return False

    async def ready(self) -> Readiness:
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

    async def _later(self, call: Call, read: Callable[[Mapping[str, Any]], Any]) -> AsyncJob[Any]:
        accepted = await self._service.exchange(call.to_be_answered_later())
        return AsyncJob(self._service.http, self._service.exchange, understood(accepted, id_of_job), read)

    async def _limits(self, images: Picture | Pictures, tasks: Collection[str]) -> Limits:
        """The limits of requests for these images: those of several are asked for."""
        return limits_of(await self.models(), tasks) if several(images) and len(images) > 1 else ONE  # type: ignore[arg-type]

    async def _exchange_chunks(self, chunks: Iterator[Chunk]) -> AsyncIterator[httpx.Response]:
        """The answers to requests, one after the other. Files are read in a thread."""
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            try:
                yield await self._service.exchange(chunk.call)
            except OpsinError as error:
                raise chunk.renumbered(error) from None
