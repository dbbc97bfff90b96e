"""Vectors of images and texts for the client: what can be asked, the requests, and their answers."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

import numpy as np

from opsin import display
from opsin.api_request import Call, call_of, check_names, check_texts
from opsin.classification import Pictures, Priority, several
from opsin.errors import Failed
from opsin.image_encoding import Picture
from opsin.request_chunks import Chunk, Limits, image_chunks

if TYPE_CHECKING:
    import httpx2
    from numpy.typing import NDArray

TASKS = ("embed", "zero-shot", "autoencode")
"""Tasks of the bundles that answer."""
MOST_TEXTS = 256
"""Texts of one request."""
NPY, NPZ = "application/x-npy", "application/x-npz"
Output = Literal["pooled", "tokens"]
Kind = Literal["image", "text"]


class EmbedOptions(TypedDict, total=False):
    """Options that are left out or None have the service's defaults."""

    model: str | None
    """`name` or `name@version`."""
    merge: int | str | None
    """Token merging in images: `"off"`, how many tokens to merge in each block, or the name of a rung of the bundle's ladder."""
    pool: Literal["cls", "mean"] | None
    """Vector of an image: the class token, or the mean of the patches."""
    truncate: bool | None
    """Whether texts that are too long are cut, as they are by default, or refused."""
    priority: Priority | None
    timeout: float | None
    """Seconds for this call, retries included, in place of the client's; for each request where it takes several."""
    request_id: str | None
    """Under which the service's logs speak of this request."""


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Vectors of unit length, in the order of the images or texts. `numpy.asarray` makes them an array."""

    vectors: NDArray[np.float32]
    """float32 (n, dim)."""
    kind: Kind
    truncated: int
    """Number of texts that were too long for the bundle and lost their end."""
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
        return display.line(f"{len(self):,} vectors of {self.kind}s, {self.dim} numbers each, {self.model}@{self.version}")


@dataclass(frozen=True, slots=True, eq=False)
class TokenEmbeddings:
    """Vectors of the merged tokens of images: each token stands for one or more patches."""

    vectors: NDArray[np.float32]
    """float32 (n, tokens, dim), of unit length."""
    sizes: NDArray[np.int32]
    """(n, tokens), how many patches each token stands for."""
    owners: NDArray[np.int32]
    """(n, patches), the token of each patch, in raster order."""
    model: str
    version: str

    def __len__(self) -> int:
        return len(self.vectors)

    def _repr_html_(self) -> str:
        images, tokens, dim = self.vectors.shape
        facts = f"{images:,} images, {tokens} tokens each for {self.owners.shape[1]} patches, {dim} numbers a token"
        return display.line(f"{facts}, {self.model}@{self.version}")


Vectors = TypeVar("Vectors", Embeddings, TokenEmbeddings)
_ARRAYS = ("vectors", "sizes", "owners")


def check_given(images: Picture | Pictures | None, texts: str | Sequence[str] | None, output: str, asked: EmbedOptions) -> None:
    """Raises TypeError and ValueError for what no service answers."""
    check_names("embed", asked, EmbedOptions)
    if (images is None) == (texts is None):
        raise TypeError("embed: give either images or texts")
    if output not in ("pooled", "tokens"):
        raise ValueError(f"output: {output!r}; use 'pooled' or 'tokens'")
    if texts is not None and output == "tokens":
        raise ValueError("output: 'tokens' are those of images; texts have 'pooled' alone")
    given: Any = images if texts is None else texts
    if several(given) and not len(given):
        raise ValueError("embed: at least one image or text is needed")


def image_calls(images: Picture | Pictures, output: Output, asked: EmbedOptions, limits: Limits) -> Iterator[Chunk]:
    """Requests within the limits. Raises TypeError, ValueError or OSError for what cannot be sent."""
    listed: Any = images if several(images) else [images]
    empty = _empty_call(asked, {} if output == "pooled" else {"output": output}, NPY if output == "pooled" else NPZ)
    return image_chunks(listed, limits, lambda pictures: replace(empty, pictures=pictures))


def text_calls(texts: str | Sequence[str], asked: EmbedOptions) -> Iterator[Chunk]:
    """Requests of at most `MOST_TEXTS` texts. They ask for JSON, which also tells how many texts lost their end."""
    listed = [texts] if isinstance(texts, str) else list(texts)
    check_texts("texts", listed)
    empty = _empty_call(asked, {"encoding": "base64"}, "application/json")
    for first in range(0, len(listed), MOST_TEXTS):
        some = listed[first : first + MOST_TEXTS]
        yield Chunk(replace(empty, json={"texts": some}), first, len(some), len(listed))


def of_images(response: httpx2.Response) -> Embeddings:
    """Read an answer in NPY."""
    vectors = np.load(BytesIO(response.content), allow_pickle=False)
    return Embeddings(_float32(vectors, 2), "image", 0, *_model(response))


def of_tokens(response: httpx2.Response) -> TokenEmbeddings:
    """Read an answer in NPZ."""
    with np.load(BytesIO(response.content), allow_pickle=False) as arrays:
        return TokenEmbeddings(_float32(arrays["vectors"], 3), arrays["sizes"], arrays["owners"], *_model(response))


def of_texts(response: httpx2.Response) -> Embeddings:
    """Read an answer in JSON, its vectors in base64."""
    answer = response.json()
    rows = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in answer["embeddings"]]
    return Embeddings(_float32(np.stack(rows), 2), "text", answer["truncated"], answer["model"], answer["version"])


def reader(texts: object, output: Output) -> Callable[[httpx2.Response], Any]:
    """Return the function that reads answers to requests for images (texts is None) or for texts."""
    if texts is not None:
        return of_texts
    return of_images if output == "pooled" else of_tokens


def joined(parts: Sequence[Vectors]) -> Vectors:
    """Join the answers to several requests. Raises Failed where another bundle has answered in between: its vectors mean other things."""
    first, *others = parts
    for one in others:
        if (one.model, one.version) != (first.model, first.version):
            raise Failed(f"embed: {first.model}@{first.version} answered first, then {one.model}@{one.version}; name one by `model`")
    changes: dict[str, Any] = {name: np.concatenate([getattr(one, name) for one in parts]) for name in _ARRAYS if hasattr(first, name)}
    if isinstance(first, Embeddings):
        changes["truncated"] = sum(one.truncated for one in parts if isinstance(one, Embeddings))
    return replace(first, **changes)


def _empty_call(asked: EmbedOptions, more: dict[str, str], accept: str) -> Call:
    return call_of("/v1/embed", {**asked, **more}, accept=accept)


def _model(response: httpx2.Response) -> tuple[str, str]:
    name, _, version = response.headers["X-Model"].partition("@")
    return name, version


def _float32(array: NDArray[Any], dimensions: int) -> NDArray[np.float32]:
    if array.ndim != dimensions or array.dtype != np.float32:
        raise ValueError(f"vectors of {array.dtype} {array.shape}")
    return array
