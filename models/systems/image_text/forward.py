"""Forward calls of a worker to pairs of towers: images and texts become vectors of one space, which are compared elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.bundle_schema import Preprocess
from models.layers.embedding import EmbedBatchOptions, image_vectors, l2_normalise, token_vectors
from models.layers.forward import ForwardFn, normalise
from models.registry import architectures

EncodeTexts = Callable[[Any, Tensor, Tensor], Tensor]
"""(model, word ids int64 (n, N), visible bool (n, N)) → (n, dim), of any length."""
FEW_TOKENS = 128
"""Below it a pass costs about the same whatever it holds."""
PADDED = 1.1
"""Most tokens of a larger pass, padding included, for each that is read."""


def _zero_shot(architecture: str, encode_texts: EncodeTexts, *, reads_padding: bool = False) -> ForwardFn:
    """A batch is of images or of texts.

    pixels uint8 (B, S, S, 3) → `image_vectors`, or with option `output="tokens"` `token_vectors`, both through the head of the image tower.
    word_ids and visible int64 (B, R, N) → `embedding` float32 (B, R, dim): see `text_vectors`.
    """

    def forward(model: Any, arrays: Mapping[str, Tensor], options: Mapping[str, Any], preprocess: Preprocess) -> dict[str, Tensor]:
        if "pixels" not in arrays:
            return text_vectors(model, arrays["word_ids"], arrays["visible"], encode_texts, reads_padding=reads_padding)
        asked, tower = EmbedBatchOptions.read(options, architectures()[architecture], model.config), model.vision
        images = normalise(arrays["pixels"], preprocess, tower.pos_embed.dtype)
        if asked.tokens:
            special, tokens = model.config.special_tokens, tower.encode_tokens(images, asked.merge)
            return token_vectors(model.project_images(tokens.x[:, special:]), tokens, special + model.config.patches)
        answer = tower(images, merge=asked.merge)
        return image_vectors(model.project_images(answer.features), answer.tokens_in, answer.tokens_out)

    return forward


maws_clip = _zero_shot("maws_clip", lambda model, words, visible: model.encode_texts(words.where(visible, model.config.padding)))
"""`_zero_shot`; the text tower knows padding by its id, which what is not visible gets."""

cit = _zero_shot("cit", lambda model, words, visible: model.encode_texts(words, visible))
"""`_zero_shot`; the text tower does not read what is not visible."""

clip = _zero_shot("clip", lambda model, words, visible: model.encode_texts(words))
"""`_zero_shot`; the text tower reads nothing behind the end of a text, where padding is."""

flip = _zero_shot("flip", lambda model, words, visible: model.encode_texts(words), reads_padding=True)
"""`_zero_shot`; padding takes part, and N is always the model's `text_length`: `visible` only tells which rows are texts."""

siglip = _zero_shot("siglip", lambda model, words, visible: model.encode_texts(words), reads_padding=True)
"""`flip`, of which the last place is the vector."""


def text_vectors(
    model: Any, word_ids: Tensor, visible: Tensor, encode_texts: EncodeTexts, *, reads_padding: bool = False
) -> dict[str, Tensor]:
    """B jobs of up to R texts: int64 (B, R, N) twice → embedding float32 (B, R, dim), unit length.

    Rows of which nothing is visible are no texts: they cost nothing and are zeros. The others are read in passes of about one length, and
    padding is read only where the network was trained so. Raises ValueError for ids beyond the vocabulary.
    """
    seen = visible.bool()
    texts = seen.any(dim=-1)  # (B, R)
    vectors = torch.zeros(*texts.shape, model.config.joint_width, device=word_ids.device)
    words, seen = word_ids[texts], seen[texts]  # (n, N)
    if not len(words):
        return {"embedding": vectors}
    vocabulary, lowest, highest = model.config.vocabulary, *map(int, words.aminmax())
    if lowest < 0 or highest >= vocabulary:
        raise ValueError(f"word_ids: ids from {lowest} to {highest} where the vocabulary has 0 to {vocabulary - 1}")
    if reads_padding:
        vectors[texts] = l2_normalise(encode_texts(model, words, seen))
        return {"embedding": vectors}
    places = torch.arange(1, words.shape[1] + 1, device=words.device)
    ends, order = (seen * places).amax(dim=1).sort()  # (n,): past the last token that is visible
    lengths, found = ends.tolist(), vectors.new_empty(len(words), model.config.joint_width)
    for first, last in _passes(lengths):
        rows, length = order[first:last], lengths[last - 1]
        found[rows] = l2_normalise(encode_texts(model, words[rows, :length], seen[rows, :length]))
    vectors[texts] = found
    return {"embedding": vectors}


def _passes(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut ascending lengths into slices with little padding: first and last + 1 of each."""
    first = total = 0
    for place, length in enumerate(lengths):
        if length * (place + 1 - first) > max(FEW_TOKENS, PADDED * (total + length)):
            yield first, place
            first, total = place, 0
        total += length
    yield first, len(lengths)
