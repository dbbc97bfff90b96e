"""Embeddings for the client: the options, the requests for images or texts, and their answers."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from opsin import display
from opsin.api_request import ApiRequest, CallOptions, build_request, check_names, check_texts
from opsin.classification import ImageSequence, is_sequence
from opsin.errors import Failed
from opsin.image_encoding import ImageLike
from opsin.request_chunks import Chunk, RequestLimits, image_chunks

if TYPE_CHECKING:
    import httpx2
    from numpy.typing import NDArray

TASKS = ("embed", "zero-shot", "autoencode")
"""Tasks of the bundles that embed."""
MAX_TEXTS = 256
"""Maximum number of texts in one request."""
NPY, NPZ = "application/x-npy", "application/x-npz"
Output = Literal["pooled", "tokens"]
InputKind = Literal["image", "text"]


class EmbedOptions(CallOptions, total=False):
    """Options of an embedding request; None is the service's default."""

    model: str | None
    """`name` or `name@version`."""
    merge: int | str | None
    """Token merging in images: `"off"`, the number of tokens to merge in each block, or the name of a rung of the bundle's ladder."""
    pool: Literal["cls", "mean"] | None
    """Vector of an image: its class token, or the mean of its patch tokens."""
    truncate: bool | None
    """Whether to cut texts that are too long, as by default, or reject them."""


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Vectors of unit length, in the order of the images or texts. `numpy.asarray` makes them an array."""

    vectors: NDArray[np.float32]
    """float32 (n, dim)."""
    kind: InputKind
    truncated: int
    """Number of texts that were too long for the bundle and were cut."""
    model: str
    version: str

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def __len__(self) -> int:
        return len(self.vectors)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.vectors, dtype) if copy else self.vectors.astype(dtype or np.float32, copy=False)

    def _repr_html_(self) -> str:
        return display.render_small_print(f"{len(self):,} vectors of {self.kind}s, {self.dim} numbers each, {self.model}@{self.version}")


@dataclass(frozen=True, slots=True, eq=False)
class TokenEmbeddings:
    """Vectors of the merged tokens of images. Each token represents one or more patches."""

    vectors: NDArray[np.float32]
    """float32 (n, tokens, dim), of unit length."""
    sizes: NDArray[np.int32]
    """(n, tokens): number of patches that each token represents."""
    owners: NDArray[np.int32]
    """(n, patches): index of each patch's token, in raster order."""
    model: str
    version: str

    def __len__(self) -> int:
        return len(self.vectors)

    def _repr_html_(self) -> str:
        images, tokens, dim = self.vectors.shape
        facts = f"{images:,} images, {tokens} tokens each for {self.owners.shape[1]} patches, {dim} numbers a token"
        return display.render_small_print(f"{facts}, {self.model}@{self.version}")


Vectors = TypeVar("Vectors", Embeddings, TokenEmbeddings)
_ARRAYS = ("vectors", "sizes", "owners")


def check_given(images: ImageLike | ImageSequence | None, texts: str | Sequence[str] | None, output: str, options: EmbedOptions) -> None:
    """Check the arguments of `Client.embed`. Raises TypeError and ValueError for combinations that no service accepts."""
    check_names("embed", options, EmbedOptions)
    if (images is None) == (texts is None):
        raise TypeError("embed: give either images or texts")
    if output not in ("pooled", "tokens"):
        raise ValueError(f"output: {output!r}; use 'pooled' or 'tokens'")
    if texts is not None and output == "tokens":
        raise ValueError("output: 'tokens' is for images; texts only have 'pooled'")
    inputs: Any = images if texts is None else texts
    if is_sequence(inputs) and not len(inputs):
        raise ValueError("embed: at least one image or text is needed")


def image_requests(images: ImageLike | ImageSequence, output: Output, options: EmbedOptions, limits: RequestLimits) -> Iterator[Chunk]:
    """Yield requests within the limits. Raises TypeError, ValueError or OSError for images that cannot be sent."""
    listed: Any = images if is_sequence(images) else [images]
    empty = _empty_request(options, {} if output == "pooled" else {"output": output}, NPY if output == "pooled" else NPZ)
    return image_chunks(listed, limits, lambda encoded: replace(empty, images=encoded))


def text_requests(texts: str | Sequence[str], options: EmbedOptions) -> Iterator[Chunk]:
    """Yield requests of at most `MAX_TEXTS` texts, for answers in JSON, which also say how many texts were cut."""
    listed = [texts] if isinstance(texts, str) else list(texts)
    check_texts("texts", listed)
    empty = _empty_request(options, {"encoding": "base64"}, "application/json")
    for first in range(0, len(listed), MAX_TEXTS):
        texts_of_request = listed[first : first + MAX_TEXTS]
        yield Chunk(replace(empty, json={"texts": texts_of_request}), first, len(texts_of_request), len(listed))


def parse_image_answer(response: httpx2.Response) -> Embeddings:
    """Read an answer in NPY."""
    vectors = np.load(BytesIO(response.content), allow_pickle=False)
    return Embeddings(_float32(vectors, 2), "image", 0, *_model(response))


def parse_token_answer(response: httpx2.Response) -> TokenEmbeddings:
    """Read an answer in NPZ."""
    with np.load(BytesIO(response.content), allow_pickle=False) as arrays:
        return TokenEmbeddings(_float32(arrays["vectors"], 3), arrays["sizes"], arrays["owners"], *_model(response))


def parse_text_answer(response: httpx2.Response) -> Embeddings:
    """Read an answer in JSON, with vectors in base64."""
    answer = response.json()
    rows = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in answer["embeddings"]]
    return Embeddings(_float32(np.stack(rows), 2), "text", answer["truncated"], answer["model"], answer["version"])


def answer_parser(texts: object, output: Output) -> Callable[[httpx2.Response], Any]:
    """Return the function that reads answers to requests for images (texts is None) or for texts."""
    if texts is not None:
        return parse_text_answer
    return parse_image_answer if output == "pooled" else parse_token_answer


def join(parts: Sequence[Vectors]) -> Vectors:
    """Join the answers to several requests. Raises Failed if they come from different bundles: their vectors are not comparable."""
    first, *others = parts
    for one in others:
        if (one.model, one.version) != (first.model, first.version):
            raise Failed(f"embed: {first.model}@{first.version} answered first, then {one.model}@{one.version}; name one by `model`")
    changes: dict[str, Any] = {name: np.concatenate([getattr(one, name) for one in parts]) for name in _ARRAYS if hasattr(first, name)}
    if isinstance(first, Embeddings):
        changes["truncated"] = sum(one.truncated for one in parts if isinstance(one, Embeddings))
    return replace(first, **changes)


def _empty_request(options: EmbedOptions, extra: dict[str, str], accept: str) -> ApiRequest:
    return build_request("/v1/embed", {**options, **extra}, accept=accept)


def _model(response: httpx2.Response) -> tuple[str, str]:
    name, _, version = response.headers["X-Model"].partition("@")
    return name, version


def _float32(array: NDArray[Any], dimensions: int) -> NDArray[np.float32]:
    if array.ndim != dimensions or array.dtype != np.float32:
        raise ValueError(f"vectors of {array.dtype} {array.shape}")
    return array
