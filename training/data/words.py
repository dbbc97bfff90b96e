"""Captions → token ids, by a tokenizer file of Hugging Face's `tokenizers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.errors import DataError
from training.settings import Settings


class WordSettings(Settings):
    tokenizer: Path
    """A `tokenizer.json`."""
    special: bool = True
    """Add the tokenizer's special tokens ([CLS], [SEP]); FLIP has none."""
    padding: int = 0
    """Fills up short captions: 0 for BERT, 1 for XLM-R."""


@dataclass(frozen=True)
class Words:
    settings: WordSettings
    length: int
    captions: tuple[str, ...] = field(default=(), repr=False)

    def ids(self, texts: Sequence[str]) -> Tensor:
        """(n, length) int64: cut at the end, or padded."""
        tokenizer = _tokenizer(self.settings.tokenizer)
        encoded = tokenizer.encode_batch(list(texts), add_special_tokens=self.settings.special)
        rows = [self._fitted(tokens.ids) for tokens in encoded]
        return torch.tensor(rows, dtype=torch.int64).view(len(rows), self.length)

    def _fitted(self, ids: list[int]) -> list[int]:
        cut = ids[: self.length]
        if self.settings.special and len(ids) > self.length:
            cut[-1] = ids[-1]  # the end of the sentence stays
        return cut + [self.settings.padding] * (self.length - len(cut))

    def __len__(self) -> int:
        return len(self.captions)

    def read(self, numbers: Tensor) -> Tensor:
        """Captions with these numbers (n,) → (n, length) int64."""
        return self.ids([self.captions[number] for number in numbers.tolist()])

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        return self.ids(texts)


def open_words(settings: WordSettings, length: int, captions: Sequence[str] = ()) -> Words:
    """Raises DataError."""
    if not length:
        raise DataError("words: the recipe does not say how many token ids a caption has")
    if not settings.tokenizer.is_file():
        raise DataError(f"data.words.tokenizer: {settings.tokenizer} is no file")
    return Words(settings, length, tuple(captions))


@lru_cache(maxsize=4)
def _tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing finer
        raise DataError(f"data.words.tokenizer: {path} is no tokenizer of the library `tokenizers` ({error})") from error
