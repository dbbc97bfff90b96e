"""Images or texts → vectors of unit length. Input: uint8 (S, S, 3) at the bundle's size, or up to 64 texts. Output: `embedding` float32."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from models.bundle import VECTOR_TASKS, BundleSpec
from models.registry import architectures
from server.media.images import ImageDecoder
from server.tasks.base import JSON, Arrays, FileAnswer, Item, OffersFiles, Outputs, RequestPart, Tensor
from server.tasks.classify.images import IMAGE
from server.tasks.embedding import vector_jobs
from server.tasks.embedding.vector_jobs import VectorTask, image_arguments, image_bound, need_tokenizer
from server.tasks.options import MERGED, VALUES, ExcessiveOption, InvalidOption, RequestOptions, schedule_of

NPY, NPZ = "application/x-npy", "application/x-npz"
MAX_TEXTS = 256
MAX_TEXT_CHARS = 2048
INLINE_BYTES = 64 * 1024
"""Maximum size of outputs that are presented in the event loop, not in a thread."""


class EmbedOptions(RequestOptions, frozen=True, kw_only=True):
    encoding: Annotated[Literal["float", "base64"], Meta(description="Vectors as numbers, or as base64 of little-endian float32.")] = (
        "float"
    )
    merge: Annotated[MERGED, Meta(description="Token merging in images.", extra={"values": VALUES})] = "off"
    pool: Annotated[
        Literal["cls", "mean"] | None,
        Meta(
            description="Vector of an image: the class token, or the mean of the patches; not every bundle has both.",
            extra={"default": "the bundle's own"},
        ),
    ] = None
    output: Annotated[
        Literal["pooled", "tokens"],
        Meta(description="One vector for an image, or one for each of its merged tokens, with their sizes and patches."),
    ] = "pooled"
    dimensions: Annotated[
        int | None, Meta(ge=1, description="Length of the vectors.", extra={"values": "the bundle's own", "default": "the bundle's own"})
    ] = None
    truncate: Annotated[bool, Meta(description="Cut texts that are too long for the bundle, instead of refusing them.")] = True


class EmbedPlan(msgspec.Struct, frozen=True):
    """`schedule` is r of every block; `pool` is empty if only the bundle's own is possible."""

    encoding: str
    schedule: tuple[int, ...]
    pool: str
    output: str
    truncate: bool


class TokenVectors(msgspec.Struct, frozen=True):
    """The merged tokens of one image: their vectors, numbers of patches, and the patches."""

    vectors: list[list[float]] | str
    sizes: list[int]
    patches: list[list[int]]


class EmbedAnswer(msgspec.Struct, frozen=True):
    kind: Literal["image", "text"]
    dim: int
    normalized: bool
    """Whether vectors have unit length, which is always true."""
    embeddings: list[list[float] | str | TokenVectors]
    """Embeddings in the order of the images or texts."""
    truncated: int
    """Number of texts that were too long and lost their end."""


class EmbedTask(VectorTask[EmbedOptions, EmbedPlan], OffersFiles[EmbedOptions, EmbedPlan]):
    """Turn images or texts into vectors."""

    name = "embed"
    bundle_tasks = VECTOR_TASKS
    parts = (
        RequestPart(IMAGE.name, IMAGE.kind, IMAGE.description, IMAGE.max_count, required=False),
        RequestPart("text", "text", f"A text of at most {MAX_TEXT_CHARS:,} characters.", MAX_TEXTS, required=False, is_one_item=True),
    )
    options = EmbedOptions
    plan_type = EmbedPlan
    answer = EmbedAnswer
    media_types = (JSON, NPY, NPZ)
    example = EmbedAnswer("text", dim=4, normalized=True, embeddings=[[0.5, -0.5, 0.5, 0.5]], truncated=0)

    def accepted_parts(self, spec: BundleSpec) -> tuple[RequestPart, ...]:
        return self.parts if spec.task == "zero-shot" else self.parts[:1]

    def offered_media_types(self, request: EmbedOptions | EmbedPlan) -> tuple[str, ...]:
        """Return the media types: NPY holds a single array, NPZ several."""
        return self.media_types if request.output == "pooled" else (JSON, NPZ)

    def plan(self, options: EmbedOptions, spec: BundleSpec) -> EmbedPlan:
        dim = spec.embedding_dim
        if options.dimensions not in (None, dim):
            raise InvalidOption("dimensions", f"{options.dimensions}: vectors of {spec.id} have {dim} numbers, and cannot be cut")
        architecture = architectures()[spec.architecture]
        pools = architecture.pools(spec.config)
        if options.pool is not None and options.pool not in pools:
            raise InvalidOption("pool", f"{options.pool}: {spec.id} offers {' and '.join(pools) or 'no choice; leave it out'}")
        if options.output == "tokens" and not architecture.token_vectors(spec.config):
            raise InvalidOption("output", f"tokens: {spec.id} gives one vector for an image; use `pooled`")
        _, schedule = schedule_of(str(options.merge), spec)
        return EmbedPlan(options.encoding, schedule, options.pool or "", options.output, options.truncate)

    def prepare(self, item: Item, plan: EmbedPlan, spec: BundleSpec, decoder: ImageDecoder) -> list[Arrays]:
        if "text" in item:
            return vector_jobs.pack_texts(_check_texts(msgspec.json.decode(item["text"], type=list[str]), plan, spec))
        return super().prepare(item, plan, spec, decoder)

    def _image_arguments(self, plan: EmbedPlan) -> dict[str, Any]:
        return image_arguments(plan.schedule, plan.pool, plan.output)

    def present(self, outputs: Sequence[Outputs], plan: EmbedPlan, spec: BundleSpec, media_type: str) -> EmbedAnswer | FileAnswer:
        if plan.output == "tokens":
            return _tokens(outputs, plan, spec, media_type)
        kind, vectors, truncated = _vectors(outputs, plan, spec)
        if media_type != JSON:
            buffer = io.BytesIO()
            np.save(buffer, vectors) if media_type == NPY else np.savez(buffer, vectors=vectors)
            return FileAnswer(buffer.getvalue())
        return EmbedAnswer(kind, spec.embedding_dim, True, encode_vectors(vectors, plan.encoding), truncated)

    def present_in_thread(self, outputs: Sequence[Outputs], plan: EmbedPlan) -> bool:
        return sum(array.nbytes for one in outputs for array in one.values()) > INLINE_BYTES

    def result_bound(self, plan: EmbedPlan, spec: BundleSpec, arrays: Arrays) -> int:
        return vector_jobs.bound(spec, arrays) if "lengths" in arrays else image_bound(spec, plan.output)

    def tensors(self, spec: BundleSpec) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        inputs = tuple(Tensor(part.name, "BYTES", (1,)) for part in self.accepted_parts(spec))
        return inputs, (Tensor("embedding", "FP32", (spec.embedding_dim,)),)

    def to_tensors(self, outputs: Sequence[Outputs], plan: EmbedPlan, spec: BundleSpec) -> tuple[Arrays, dict[str, Any]]:
        if plan.output == "tokens":
            raise InvalidOption("output", "tokens are not available in this protocol; use POST /v1/embed")
        kind, vectors, truncated = _vectors(outputs, plan, spec)
        return {"embedding": vectors}, {"truncated": truncated} if kind == "text" else {}


def check_text(text: str, field: str) -> None:
    """Raise InvalidOption for an empty text, ExcessiveOption for one that is too long."""
    if not text.strip():
        raise InvalidOption(field, "empty: send at least one character other than a space")
    if len(text) > MAX_TEXT_CHARS:
        raise ExcessiveOption(field, f"{len(text)} characters: at most {MAX_TEXT_CHARS} are accepted")


def _check_texts(texts: list[str], plan: EmbedPlan, spec: BundleSpec) -> list[str]:
    need_tokenizer(spec, "text")
    if plan.output == "tokens":
        raise InvalidOption("output", "tokens: only available for images; use `pooled`")
    for name, is_given in (("merge", any(plan.schedule)), ("pool", bool(plan.pool))):
        if is_given:
            raise InvalidOption(name, "it is for images, and texts were sent; leave it out")
    for index, text in enumerate(texts):
        check_text(text, "text" if len(texts) == 1 else f"text[{index}]")
    return texts


def _vectors(outputs: Sequence[Outputs], plan: EmbedPlan, spec: BundleSpec) -> tuple[Literal["image", "text"], NDArray[np.float32], int]:
    """Return the kind, the vectors (n, dim), and the number of cut texts. Raises InvalidOption if none may be cut."""
    if "places" not in outputs[0]:
        return "image", np.stack([one["embedding"] for one in outputs]), 0
    found = vector_jobs.vectors(outputs)
    cut = [place for place in range(len(found)) if found[place][1]]
    if cut and not plan.truncate:
        field = "text" if len(found) == 1 else f"text[{cut[0]}]"
        max_tokens = spec.text.length if spec.text is not None else 0
        raise InvalidOption(field, f"longer than the {max_tokens} word pieces that {spec.id} reads, and `truncate` is false")
    return "text", np.stack([found[place][0] for place in range(len(found))]), len(cut)


def encode_vectors(vectors: NDArray[np.float32], encoding: str) -> list[Any]:
    """Return the vectors (n, dim) as lists of numbers, or as base64 of little-endian float32."""
    if encoding == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    rows: list[Any] = vectors.tolist()
    return rows


def _tokens(outputs: Sequence[Outputs], plan: EmbedPlan, spec: BundleSpec, media_type: str) -> EmbedAnswer | FileAnswer:
    """Present vectors (T, dim) float32, sizes (T,), and owners (patches,), the token of each patch."""
    if media_type == NPZ:
        buffer = io.BytesIO()
        vectors, sizes, owners = (np.stack([one[name] for one in outputs]) for name in ("vectors", "sizes", "owners"))
        np.savez(buffer, vectors=vectors, sizes=sizes, owners=owners)
        return FileAnswer(buffer.getvalue())
    return EmbedAnswer("image", spec.embedding_dim, True, [_token_vectors(one, plan) for one in outputs], 0)


def _token_vectors(one: Outputs, plan: EmbedPlan) -> TokenVectors:
    owners = one["owners"]
    order = np.argsort(owners, kind="stable")
    by_token = np.split(order, np.cumsum(one["sizes"])[:-1])
    vectors = one["vectors"].astype("<f4")
    encoded = base64.b64encode(vectors.tobytes()).decode() if plan.encoding == "base64" else vectors.tolist()
    return TokenVectors(encoded, one["sizes"].tolist(), [group.tolist() for group in by_token])
