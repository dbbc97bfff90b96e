"""Train a vocabulary on the texts of a recipe: `python -m starters.make.train_vocabulary RECIPE FILE`.

Unigram model (arXiv 1808.06226) of the library `tokenizers`, whose sums depend on the order of its hash tables: trained again, it differs
by some pieces. So the recipe names a file, and its runs and bundle share it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.normalizers import NFKC, Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.trainers import UnigramTrainer

from models.systems.image_text.tokenizer_file import read_tokenizer
from starters.data.images.named_drawings import NamedDrawings, drawings_of
from training import recipe
from training.errors import RecipeError
from training.options import TrainOptions

PADDING, UNKNOWN = "<pad>", "<unk>"
"""Pieces 0 and 1."""


def train(texts: Sequence[str], pieces: int) -> bytes:
    """Return a lower-case `tokenizer.json` with at most `pieces` pieces."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = Normalizers([NFKC(), Lowercase()])
    tokenizer.pre_tokenizer = Metaspace()
    trainer = UnigramTrainer(vocab_size=pieces, special_tokens=[PADDING, UNKNOWN], unk_token=UNKNOWN, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return read_tokenizer(tokenizer.to_str().encode()).to_bytes()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m starters.make.train_vocabulary", description="Learn the vocabulary of a recipe's texts."
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("file", type=Path, help="tokenizer.json to be written")
    parser.add_argument("--pieces", type=int, default=8000, help="at most (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=TrainOptions.cache, help="downloaded and decoded data (default: %(default)s)")
    options = parser.parse_args(arguments)
    data = recipe.read(options.recipe).data
    if not isinstance(data, NamedDrawings):
        raise RecipeError("data.kind: a vocabulary is trained on named-drawings")
    options.file.write_bytes(train(drawings_of(data, options.cache).texts(), options.pieces))


if __name__ == "__main__":
    main()
