"""Forward calls of a worker to pairs of towers: images and texts become vectors of one space, which are compared elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import Bundle
from models.bundle_schema import Preprocess
from models.layers.forward import EmbedBatchOptions, ForwardFn, TokenizeFn, image_vectors, l2_normalise, normalise, token_vectors
from models.layers.stepwise import InvalidInput
from models.registry import architectures
from models.systems.image_text.tokenizer import Tokenizer

EncodeTexts = Callable[[Any, Tensor, Tensor], Tensor]
"""Function of model, word ids int64 (n, N) and visible bool (n, N) → (n, dim), not normalised."""
SMALL_PASS_TOKENS = 128
"""Number of tokens below which a pass takes about the same time whatever its size."""
MAX_PADDING_RATIO = 1.1
"""Maximum ratio of tokens, padding included, to tokens without padding in a larger pass."""


def _make_forward(architecture: str, encode_texts: EncodeTexts, *, pads_texts: bool = False) -> ForwardFn:
    """Return the forward function of a pair; a batch is of images or of texts.

    Pixels uint8 (B, S, S, 3) → `image_vectors`, or with option `output="tokens"` `token_vectors`, both through the head of the image tower.
    word_ids and visible int64 (B, R, N) → `embedding` float32 (B, R, dim): see `text_vectors`.
    """

    def forward(model: Any, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Tensor]:
        if "pixels" not in arrays:
            return text_vectors(model, arrays["word_ids"], arrays["visible"], encode_texts, pads_texts=pads_texts)
        embed_options, tower = EmbedBatchOptions.read(options, architectures()[architecture], model.config), model.vision
        images = normalise(arrays["pixels"], preprocess, tower.pos_embed.dtype)
        if embed_options.tokens:
            special, tokens = model.config.special_tokens, tower.encode_tokens(images, embed_options.merge)
            return token_vectors(model.project_images(tokens.x[:, special:]), tokens, special + model.config.patches)
        output = tower(images, merge=embed_options.merge)
        return image_vectors(model.project_images(output.features), output.tokens_in, output.tokens_out)

    return forward


maws_clip = _make_forward("maws_clip", lambda model, words, visible: model.encode_texts(words.where(visible, model.config.padding)))
"""Forward function of MAWS; the text tower recognises padding by its id, which tokens that are not visible get."""

cit = _make_forward("cit", lambda model, words, visible: model.encode_texts(words, visible))
"""Forward function of CiT; the text tower masks tokens that are not visible."""

clip = _make_forward("clip", lambda model, words, visible: model.encode_texts(words))
"""Forward function of CLIP; the text tower ignores tokens after the end of a text, the padding."""

flip = _make_forward("flip", lambda model, words, visible: model.encode_texts(words), pads_texts=True)
"""Forward function of FLIP; attention includes padding, and N is always the model's `text_length`: `visible` only marks the rows with
texts."""

siglip = _make_forward("siglip", lambda model, words, visible: model.encode_texts(words), pads_texts=True)
"""Forward function of SigLIP, like FLIP's; the last token is the feature."""


def text_vectors(
    model: Any, word_ids: Tensor, visible: Tensor, encode_texts: EncodeTexts, *, pads_texts: bool = False
) -> dict[str, Tensor]:
    """Encode B jobs of up to R texts: int64 (B, R, N) twice → embedding float32 (B, R, dim), unit length.

    Rows without visible tokens have no text: they cost nothing and are zeros. Texts are encoded in passes of about one length, with padding
    only if the network was trained so. Raises ValueError for ids beyond the vocabulary.
    """
    is_visible = visible.bool()
    has_text = is_visible.any(dim=-1)  # (B, R)
    vectors = torch.zeros(*has_text.shape, model.config.joint_width, device=word_ids.device)
    words, is_visible = word_ids[has_text], is_visible[has_text]  # (n, N)
    if not len(words):
        return {"embedding": vectors}
    vocabulary, lowest, highest = model.config.vocabulary, *map(int, words.aminmax())
    if lowest < 0 or highest >= vocabulary:
        raise ValueError(f"word_ids: ids from {lowest} to {highest} where the vocabulary has 0 to {vocabulary - 1}")
    if pads_texts:
        vectors[has_text] = l2_normalise(encode_texts(model, words, is_visible))
        return {"embedding": vectors}
    positions = torch.arange(1, words.shape[1] + 1, device=words.device)
    ends, order = (is_visible * positions).amax(dim=1).sort()  # (n,): one after the last visible token
    lengths, embedded = ends.tolist(), vectors.new_empty(len(words), model.config.joint_width)
    for first, last in _passes(lengths):
        rows, length = order[first:last], lengths[last - 1]
        embedded[rows] = l2_normalise(encode_texts(model, words[rows, :length], is_visible[rows, :length]))
    vectors[has_text] = embedded
    return {"embedding": vectors}


def _passes(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut ascending lengths into slices with little padding: first and last + 1 of each."""
    first = total = 0
    for index, length in enumerate(lengths):
        if length * (index + 1 - first) > max(SMALL_PASS_TOKENS, MAX_PADDING_RATIO * (total + length)):
            yield first, index
            first, total = index, 0
        total += length
    yield first, len(lengths)


def make_tokenize_fn(bundle: Bundle) -> TokenizeFn:
    """Return a function that tokenizes a batch. Raises BundleError.

    Its input: utf8 uint8 (B, R, W), padded with zeros, and lengths int32 (B, R), 0 without a text. Its outputs: word_ids and visible int64
    (B, R, N) for the network; truncated bool (B, R) and text_tokens int32 (B, R), the number of tokens, for the answer.
    """
    tokenizer = Tokenizer.open(bundle)

    def tokenize(arrays: Mapping[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        utf8, lengths = arrays["utf8"], arrays["lengths"]
        present = lengths > 0
        rows = zip(utf8[present], lengths[present].tolist(), strict=True)
        texts = [row[:length].tobytes().decode() for row, length in rows]
        encoded = tokenizer.encode(texts)
        empty = np.flatnonzero(~encoded.visible.any(axis=1))
        if len(empty):
            raise InvalidInput(f"{texts[empty[0]][:40]!r} has no word that is in the bundle's vocabulary")
        return {
            "word_ids": _place(encoded.tokens, present),
            "visible": _place(encoded.visible, present),
        }, {
            "truncated": _place(encoded.truncated, present),
            "text_tokens": _place(encoded.visible.sum(axis=1, dtype=np.int32), present),
        }

    return tokenize


def _place(rows: NDArray[Any], present: NDArray[np.bool_]) -> NDArray[Any]:
    """Place rows where there are texts: (n, …) → (B, R, …), zeros elsewhere."""
    placed = np.zeros((*present.shape, *rows.shape[1:]), rows.dtype)
    placed[present] = rows
    return placed
