# Derived from async_client.py by `make client`: change that file.
"""The Python client.

with Client("http://127.0.0.1:8000") as client:
    result = client.classify("cat.jpg")
    print(result.label)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload
from urllib.parse import quote

import httpx2

from opsin import embedding, results, zero_shot
from opsin.actions import ActionsOptions, Tracks, VideoActions, actions_request, video_actions
from opsin.any_task import task_request
from opsin.api_request import ApiRequest, Headers, parse_answer, parse_json_answer, readiness
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
    check_served,
    has_model_options,
    inputs_of,
    map_threads,
    method_of,
)
from opsin.classification import ClassifyCallOptions, ClassifyOptions, ImageSequence, answer_parser, classify_request, is_sequence
from opsin.connection import ServiceConnection
from opsin.embedding import Embeddings, EmbedOptions, Output, TokenEmbeddings
from opsin.errors import OpsinError
from opsin.gallery import Gallery
from opsin.image_encoding import FileLike, ImageLike
from opsin.inpainting import Inpainting, InpaintOptions, inpaint_request, inpainting
from opsin.jobs import Job
from opsin.reconstruction import (
    MapLike,
    Reconstruction,
    ReconstructOptions,
    SceneOptions,
    reconstruct_request,
    reconstruction,
    scene_request,
)
from opsin.request_chunks import ONE_IMAGE, Chunk, RequestLimits, limits_of
from opsin.results import Classification, Model, Readiness
from opsin.vector_file import answering_bundle, file_vectors
from opsin.zero_shot import ZeroShotClassification, ZeroShotOptions, zero_shot_chunks, zero_shot_request

T = TypeVar("T")


class Client:
    """A client of one service; close it, or use it as a context manager. It may be shared between threads.

    `url` defaults to `OPSIN_URL`, else http://127.0.0.1:8000, and `api_key`, for a service that requires one, to `OPSIN_API_KEY`.
    `timeout` is in seconds and covers a whole call, retries included. `retries` is the maximum number of retries after 429 or 503, each
    after the pause that the service names in Retry-After. If the pause does not fit into the timeout, the error is raised at once. Nothing
    else is retried.
    """

    def __init__(
        self, url: str | None = None, *, api_key: str | None = None, timeout: float = 60.0, retries: int = 2, headers: Headers | None = None
    ) -> None:
        self._service = ServiceConnection(url, api_key, timeout, retries, headers)

    @property
    def url(self) -> str:
        return self._service.url

    @overload
    def classify(  # type: ignore[overload-overlap]
        self, images: ImageLike | None = None, *, wait: Literal[True] = True, **options: Unpack[ClassifyCallOptions]
    ) -> Classification: ...
    @overload
    def classify(
        self, images: ImageSequence, *, wait: Literal[True] = True, **options: Unpack[ClassifyOptions]
    ) -> list[Classification]: ...
    @overload
    def classify(  # type: ignore[overload-overlap]
        self, images: ImageLike | None = None, *, wait: Literal[False], **options: Unpack[ClassifyCallOptions]
    ) -> Job[Classification]: ...
    @overload
    def classify(self, images: ImageSequence, *, wait: Literal[False], **options: Unpack[ClassifyOptions]) -> Job[list[Classification]]: ...
    def classify(
        self, images: ImageLike | ImageSequence | None = None, *, wait: bool = True, **options: Unpack[ClassifyCallOptions]
    ) -> Any:
        """Classify one image, or several in one request (all or nothing), in input order; or `video`, `audio` or both.

        An image is a path, the content of a file, a binary file, a uint8 array (H, W[, C]) or a Pillow image; a video or sound is a file.
        With `wait=False` the result is a `Job`, and `timeout` the job's. Raises OpsinError.
        """
        request = classify_request(images, options)
        return self._answer_or_job(request, answer_parser(images, results.classifications), wait)

    @overload
    def zero_shot(  # type: ignore[overload-overlap]
        self, images: ImageLike, labels: Sequence[str], *, wait: Literal[True] = True, **options: Unpack[ZeroShotOptions]
    ) -> ZeroShotClassification: ...
    @overload
    def zero_shot(
        self, images: ImageSequence, labels: Sequence[str], *, wait: Literal[True] = True, **options: Unpack[ZeroShotOptions]
    ) -> list[ZeroShotClassification]: ...
    @overload
    def zero_shot(  # type: ignore[overload-overlap]
        self, images: ImageLike, labels: Sequence[str], *, wait: Literal[False], **options: Unpack[ZeroShotOptions]
    ) -> Job[ZeroShotClassification]: ...
    @overload
    def zero_shot(
        self, images: ImageSequence, labels: Sequence[str], *, wait: Literal[False], **options: Unpack[ZeroShotOptions]
    ) -> Job[list[ZeroShotClassification]]: ...
    def zero_shot(
        self, images: ImageLike | ImageSequence, labels: Sequence[str], *, wait: bool = True, **options: Unpack[ZeroShotOptions]
    ) -> Any:
        """Score one image, or several in input order, against your own labels. labels: 1 to 1,000 distinct texts.

        More images than one request may have are sent in several requests; with `wait=False` they are one request, and the result is an
        `Job`. Raises OpsinError.
        """
        if not wait:
            request = zero_shot_request(images, labels, options)
            return self._answer_or_job(request, answer_parser(images, zero_shot.zero_shots), wait)
        chunks = zero_shot_chunks(images, labels, options, self._limits(images, zero_shot.TASKS))
        results = [one for answer in self._exchange_chunks(chunks) for one in parse_json_answer(answer, zero_shot.zero_shots)]
        return results if is_sequence(images) else results[0]

    @overload
    def embed(
        self,
        images: ImageLike | ImageSequence | None = None,
        *,
        texts: str | Sequence[str] | None = None,
        output: Literal["pooled"] = "pooled",
        **options: Unpack[EmbedOptions],
    ) -> Embeddings: ...
    @overload
    def embed(
        self, images: ImageLike | ImageSequence, *, output: Literal["tokens"], **options: Unpack[EmbedOptions]
    ) -> TokenEmbeddings: ...
    def embed(
        self,
        images: ImageLike | ImageSequence | None = None,
        *,
        texts: str | Sequence[str] | None = None,
        output: Output = "pooled",
        **options: Unpack[EmbedOptions],
    ) -> Any:
        """Return a vector of unit length for each image or text, in input order; with output="tokens", those of an image's merged tokens.

        More inputs than one request may have are sent in several requests. Raises OpsinError.
        """
        embedding.check_given(images, texts, output, options)
        if texts is not None:
            chunks = embedding.text_requests(texts, options)
        else:
            assert images is not None
            chunks = embedding.image_requests(images, output, options, self._limits(images, embedding.TASKS))
        read = embedding.answer_parser(texts, output)
        return embedding.join([parse_answer(answer, read) for answer in self._exchange_chunks(chunks)])

    def gallery(
        self,
        folder: str | os.PathLike[str],
        *,
        concurrency: int = 8,
        pattern: str = "*",
        progress: ProgressOption = None,
        **options: Unpack[EmbedOptions],
    ) -> Gallery:
        """Embed the images of a folder, for searches by text or image: `gallery.search("something to eat", k=5)`.

        Each file that matches `pattern` is embedded once, as by `map`; files that fail are in `failures`. Raises OpsinError if none can be
        embedded.
        """
        inputs = inputs_of(os.fspath(folder), pattern, "gallery")
        outcomes = self.map("embed", inputs, concurrency=concurrency, progress=progress, **options)
        model = self.model(answering_bundle(outcomes))
        return Gallery(file_vectors(outcomes, model, options), tuple(outcomes.failures), self.embed, self.model)

    @overload
    def inpaint(
        self, image: ImageLike, mask: ImageLike | None = None, *, wait: Literal[True] = True, **options: Unpack[InpaintOptions]
    ) -> Inpainting: ...
    @overload
    def inpaint(
        self, image: ImageLike, mask: ImageLike | None = None, *, wait: Literal[False], **options: Unpack[InpaintOptions]
    ) -> Job[Inpainting]: ...
    def inpaint(self, image: ImageLike, mask: ImageLike | None = None, *, wait: bool = True, **options: Unpack[InpaintOptions]) -> Any:
        """Fill the hole of an image. mask: an image of the same size, white in the hole, or an expression such as `box:X,Y,W,H` or
        `center:0.5`; None: the image's transparent pixels.

        With `wait=False` the result is a `Job`, and `timeout` the job's. Raises OpsinError.
        """
        request = inpaint_request(image, mask, options)
        return self._answer_or_job(request, inpainting, wait)

    @overload
    def actions(
        self, video: FileLike | None = None, *, tracks: Tracks | None = None, wait: Literal[True] = True, **options: Unpack[ActionsOptions]
    ) -> VideoActions: ...
    @overload
    def actions(
        self, video: FileLike | None = None, *, tracks: Tracks | None = None, wait: Literal[False], **options: Unpack[ActionsOptions]
    ) -> Job[VideoActions]: ...
    def actions(
        self, video: FileLike | None = None, *, tracks: Tracks | None = None, wait: bool = True, **options: Unpack[ActionsOptions]
    ) -> Any:
        """Recognise who does what, and when, in a video, or in tracks of people: a file, or an answer's JSON.

        With `wait=False` the result is a `Job`, and `timeout` the job's; `job.file("video/mp4")` is the annotated clip. Raises
        OpsinError.
        """
        request = actions_request(video, tracks, options)
        return self._answer_or_job(request, video_actions, wait)

    @overload
    def reconstruct(
        self, image: ImageLike, depth: MapLike | None = None, *, wait: Literal[True] = True, **options: Unpack[ReconstructOptions]
    ) -> Reconstruction: ...
    @overload
    def reconstruct(
        self, image: ImageLike, depth: MapLike | None = None, *, wait: Literal[False], **options: Unpack[ReconstructOptions]
    ) -> Job[Reconstruction]: ...
    def reconstruct(
        self, image: ImageLike, depth: MapLike | None = None, *, wait: bool = True, **options: Unpack[ReconstructOptions]
    ) -> Any:
        """Reconstruct the whole shape of an object or scene from one image.

        depth: a map, with `fov` or `fx`; or `points`: one for each pixel; neither for an object, if the model estimates depth. `mask`:
        white on the object. With `wait=False` the result is a `Job`, and `timeout` the job's. Raises OpsinError.
        """
        request = reconstruct_request(image, depth, options)
        return self._answer_or_job(request, reconstruction, wait)

    def scene(self, scene: str, **options: Unpack[SceneOptions]) -> Reconstruction:
        """Query a stored scene (`Reconstruction.scene`) again, with other options. Raises Refused (404) if it has expired."""
        return self._answer(scene_request(scene, options), reconstruction)

    @overload
    def map(self, task: Literal["classify"], inputs: Inputs, **options: Unpack[ClassifyMap]) -> Outcomes[Classification]: ...
    @overload
    def map(self, task: Literal["zero-shot"], inputs: Inputs, **options: Unpack[ZeroShotMap]) -> Outcomes[ZeroShotClassification]: ...
    @overload
    def map(self, task: Literal["embed"], inputs: Inputs, **options: Unpack[EmbedMap]) -> Outcomes[Embeddings]: ...
    @overload
    def map(self, task: Literal["inpaint"], inputs: Inputs, **options: Unpack[InpaintMap]) -> Outcomes[Inpainting]: ...
    @overload
    def map(self, task: Literal["reconstruct"], inputs: Inputs, **options: Unpack[ReconstructMap]) -> Outcomes[Reconstruction]: ...
    @overload
    def map(self, task: Literal["actions"], inputs: Inputs, **options: Unpack[ActionsMap]) -> Outcomes[VideoActions]: ...
    def map(
        self, task: Task, inputs: Inputs, *, concurrency: int = 8, pattern: str = "*", progress: ProgressOption = None, **options: Any
    ) -> Outcomes[Any]:
        """Run a task on many inputs, `concurrency` at a time, and return the outcomes in input order.

        inputs: a folder, or a sequence of whatever the task's method accepts; a tuple holds several arguments. pattern: which files of a
        folder to send, in order of name. progress: True for a progress bar, False for none, a function of (done, total), or None for a bar
        only on a terminal. options: those of the task's method.

        An input that fails does not affect the others. Raises ValueError and OSError for inputs that cannot be used, TypeError for options
        that the method does not have, and Refused, before any input is sent, for a model that is not served, has no such rung, or has fewer
        labels.
        """
        method = method_of(self, task, concurrency, options)
        if has_model_options(options):
            check_served(self.models(), task, options)
        return map_threads(method, task, inputs_of(inputs, pattern), concurrency, progress, options)

    def ask(self, task: str, parts: Mapping[str, ImageLike | ImageSequence], **options: Any) -> dict[str, Any]:
        """Run any task by its name, also one that this client has no method for, and return its answer as JSON.

        parts: by name, as `classify` takes images. options: those of the task, and `timeout`; a list or tuple is sent as a repeated option.
        Raises OpsinError.
        """
        request = task_request(task, parts, options)
        return self._answer(request, dict)

    def job(self, job_id: str) -> Job[dict[str, Any]]:
        """Return a job by its id, also one that another process has submitted. Its result is the answer as JSON."""
        return Job(self._service, job_id, dict)

    def models(self) -> list[Model]:
        """Return the bundles of the service."""
        return self._answer(ApiRequest("GET", "/v1/models"), results.models)

    def model(self, name: str) -> Model:
        """Return a bundle by `name` or `name@version`. Raises Refused (404) if there is none."""
        return self._answer(ApiRequest("GET", f"/v1/models/{quote(name, safe='@')}"), results.model)

    def health(self) -> bool:
        """Return whether the service is running."""
        try:
            response = self._service.send(ApiRequest("GET", "/health/live"), self._service.timeout)
        except OpsinError:
            return False
        return response.is_success

    def ready(self) -> Readiness:
        """Return whether the service can take requests now, and if not, why."""
        try:
            return readiness(self._service.send(ApiRequest("GET", "/health/ready"), self._service.timeout))
        except OpsinError as error:
            return Readiness(False, str(error))

    def close(self) -> None:
        self._service.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _answer(self, request: ApiRequest, read: Callable[[Any], T]) -> T:
        return parse_json_answer(self._service.exchange(request), read)

    def _answer_or_job(self, request: ApiRequest, read: Callable[[Any], Any], wait: bool) -> Any:
        if wait:
            return self._answer(request, read)
        return Job(self._service, self._answer(request.as_job(), lambda accepted: str(accepted["id"])), read)

    def _limits(self, images: ImageLike | ImageSequence, tasks: Collection[str]) -> RequestLimits:
        """Return the limits of requests for these images. For several images, the service is queried for them."""
        return limits_of(self.models(), tasks) if is_sequence(images) and len(images) > 1 else ONE_IMAGE  # type: ignore[arg-type]

    def _exchange_chunks(self, chunks: Iterator[Chunk]) -> Iterator[httpx2.Response]:
        """Send requests one after the other, and yield their answers."""
        while (chunk := next(chunks, None)) is not None:
            try:
                yield self._service.exchange(chunk.request)
            except OpsinError as error:
                raise chunk.renumber(error) from None
