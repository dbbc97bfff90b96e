"""Captions → token ids, by the tokenizer that the trained pair is served with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from models.systems.image_text.tokenizer import Tokenizer
from models.systems.image_text.tokenizer_conversion import read_vocabulary
from models.systems.image_text.tokenizer_vocabulary import TokenizerError
from training.errors import DataError
from training.recipe_settings import RecipeSettings
from training.shipped_files import Located


class WordSettings(RecipeSettings):
    tokenizer: Located
    """A `tokenizer.json`, or another file that `models.systems.image_text.tokenizer_conversion` reads."""
    special: bool = True
    """Add the tokenizer's special tokens ([CLS], [SEP]); FLIP has none."""
    padding: int = 0
    """Fills up short captions: 0 for BERT, 1 for XLM-R."""


@dataclass(frozen=True)
class CaptionTokens:
    settings: WordSettings
    length: int
    captions: tuple[str, ...] = field(default=(), repr=False)

    def identity(self) -> Mapping[str, Any]:
        """Content of the tokenizer, wherever it lies."""
        file = read_vocabulary(self.settings.tokenizer, special=self.settings.special)
        return {"tokenizer": hashlib.sha256(file.to_bytes()).hexdigest()}

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        """Encode texts as token ids (n, length) int64, truncated before special tokens are added, and padded."""
        return torch.from_numpy(_tokenizer(self.settings, self.length).encode(texts).tokens)

    def __len__(self) -> int:
        return len(self.captions)

    def read(self, numbers: Tensor) -> Tensor:
        """Captions with these numbers (n,) → (n, length) int64."""
        return self.tokenise([self.captions[number] for number in numbers.tolist()])


def open_words(settings: WordSettings, length: int, captions: Sequence[str] = ()) -> CaptionTokens:
    """Open the tokenizer of captions. Raises DataError."""
    if not length:
        raise DataError("words: the recipe does not say how many token ids a caption has")
    _tokenizer(settings, length)
    return CaptionTokens(settings, length, tuple(captions))


@lru_cache(maxsize=4)
def _tokenizer(settings: WordSettings, length: int) -> Tokenizer:
    """Open the tokenizer, once per process since it cannot be pickled."""
    try:
        file = read_vocabulary(settings.tokenizer, special=settings.special)
        return Tokenizer.from_file(file, length=length, is_fixed_length=True, padding=settings.padding)
    except TokenizerError as error:
        raise DataError(f"data.words.tokenizer: {error}") from error
