"""Pairs for `benchmarks.words`: random weights at a published size with a tokenizer of that size, kept between runs, and what they are
asked about: labels and captions of words from our documentation, and photographs that scikit-image ships."""

from __future__ import annotations

import io
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from string import ascii_lowercase, digits, punctuation
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks import reference
from models.bundle import Bundle, BundleError, BundleSpec, read
from models.bundle_schema import FileDigest, Preprocess
from models.flops import TowerFlops, tower_flops
from models.loading import LoadedModel
from models.registry import architectures, read_config
from models.systems.image_text.add_tokenizer import add_tokenizer
from models.systems.image_text.cit import CiTConfig
from models.systems.image_text.flip import FLIPConfig
from models.systems.image_text.maws import MAWSClipConfig
from models.systems.image_text.tokenizer import Tokenizer

Size = Literal["published", "tiny"]
VERSION = "1"
DOCUMENTS = Path(__file__).resolve().parent.parent / "docs"
ARCHITECTURES = {"maws": "maws_clip", "flip": "flip", "cit": "cit"}
_SMALL: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 64, "depth": 2, "heads": 2, "joint_width": 32}
_SMALL |= {"text_width": 32, "text_depth": 2, "text_heads": 2, "text_hidden": 64, "vocabulary": 3000}
CONFIGS: Mapping[Size, Mapping[str, Any]] = {
    "published": {"maws": MAWSClipConfig(), "flip": FLIPConfig(), "cit": CiTConfig()},
    "tiny": {
        "maws": MAWSClipConfig(**_SMALL),
        "flip": FLIPConfig(**_SMALL),
        "cit": CiTConfig(**_SMALL, projector_hidden=64, projector_width=32),
    },
}
"""MAWS ViT-B/16 with XLM-R base, FLIP-B/16, CiT MoCo-v3 ViT-B/16 with BERT-base."""
LEARNED_PIECES = 8000
"""Maximum number of word pieces that a tokenizer learns from the documentation. The rest fills its vocabulary up and occurs in no text."""
FILLER_SCORE = -20.0
PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket")
CAPTION_WORDS = (10.0, 0.6)
"""Median, and standard deviation of the logarithm, of the number of words in a caption."""
MAX_CAPTION_WORDS = 60
"""Words."""


class BenchmarkPair:
    """A pair in a folder of bundles of its own, and what arithmetic says of it."""

    def __init__(self, bundle: Bundle) -> None:
        assert bundle.spec.text is not None
        self.bundle = bundle
        self.folder = bundle.path.parent.parent
        self.text = bundle.spec.text
        self._config = read_config(type(CONFIGS["tiny"][bundle.spec.name]), bundle.spec.config)
        self._tokenizer = Tokenizer.open(bundle)
        self._flops: dict[int, TowerFlops] = {}
        """Operations by number of word pieces."""

    def flops(self, length: int) -> TowerFlops:
        """Operations for an image, and for a text of so many word pieces."""
        if length not in self._flops:
            self._flops[length] = tower_flops(self.bundle.spec.architecture, self._config, length)
        return self._flops[length]

    def text_flops(self, texts: Sequence[str]) -> list[int]:
        """Operations for each text, if no padding is computed."""
        return [self.flops(length).text for length in self._tokenizer.encode(texts).visible.sum(axis=1).tolist()]

    def padding(self) -> Tokenizer:
        """Return its tokenizer, which pads every text to the maximum length."""
        text = self.text.model_copy(update={"padding": "length"})
        return Tokenizer.open(Bundle(path=self.bundle.path, spec=self.bundle.spec.model_copy(update={"text": text})))


def make_pair(root: Path, name: str, size: Size) -> BenchmarkPair:
    """Return the pair NAME in the folder of bundles `root/NAME`. Write it with weights of seed 0 unless it exists."""
    folder, config = root / name, CONFIGS[size][name]
    bundle = _read_written(folder / name / VERSION, config)
    if bundle is None:
        bundle = _write(folder, name, config)
    return BenchmarkPair(bundle)


def _read_written(path: Path, config: Any) -> Bundle | None:
    """Return the existing bundle if it has this config."""
    try:
        found = read(path)
    except BundleError:
        return None
    return found if found.spec.config == asdict(config) and found.spec.text is not None else None


def _write(root: Path, name: str, config: Any) -> Bundle:
    torch.manual_seed(0)
    model = architectures()[ARCHITECTURES[name]].build(config)
    bundle = reference.write(root, _spec(name, config), {key: tensor.contiguous() for key, tensor in model.state_dict().items()})
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / ("sentencepiece.bpe.model" if name == "maws" else "vocab.txt")
        vocabulary.write_bytes(_sentencepiece(config.vocabulary) if name == "maws" else _wordpiece(config.vocabulary))
        return add_tokenizer(bundle, vocabulary, None)


def _spec(name: str, config: Any) -> BundleSpec:
    side = config.image_size
    return BundleSpec(
        name=name,
        version=VERSION,
        task="zero-shot",
        architecture=ARCHITECTURES[name],
        config=asdict(config),
        preprocess=Preprocess(image_size=side, short_side=side, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        license="CC0-1.0",
        description="Random weights for benchmarks",
        weights=FileDigest(sha256="0" * 64, bytes=0),
    )


def _sentencepiece(vocabulary: int) -> bytes:
    """Train a unigram model of XLM-R's kind. It has two pieces less than the network has rows: the import adds <pad> and <mask>."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    written, size = io.BytesIO(), vocabulary - 2
    SentencePieceTrainer.train(
        sentence_iterator=iter(_lines()),
        model_writer=written,
        vocab_size=min(LEARNED_PIECES, size),
        model_type="unigram",
        normalization_rule_name="nmt_nfkc",
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    content = written.getvalue()
    learned = SentencePieceProcessor(model_proto=content).get_piece_size()
    # a field of a Protocol Buffers message that is repeated may be appended to the file
    return content + b"".join(_piece(f"⟨{number}⟩") for number in range(size - learned))


def _piece(text: str) -> bytes:
    """Field 1 of `ModelProto`: a `SentencePiece` of fields 1, its text, and 2, its score."""
    encoded = text.encode()
    message = bytes([0x0A, len(encoded)]) + encoded + b"\x15" + struct.pack("<f", FILLER_SCORE)
    return bytes([0x0A, len(message)]) + message


def _wordpiece(vocabulary: int) -> bytes:
    """BERT's vocab.txt: special tokens, characters, the words that are most frequent in the documentation, fillers."""
    characters = [*ascii_lowercase, *digits, *punctuation]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{one}" for one in (*ascii_lowercase, *digits))]
    pieces += [word for word in words() if len(word) > 1][: min(LEARNED_PIECES, vocabulary - len(pieces))]
    pieces += [f"[unused{number}]" for number in range(vocabulary - len(pieces))]
    return "".join(f"{piece}\n" for piece in pieces).encode()


@cache
def _lines() -> Sequence[str]:
    return [line for file in sorted(DOCUMENTS.rglob("*.md")) for line in file.read_text().splitlines() if line.strip()]


@cache
def words() -> Sequence[str]:
    """Words of small letters in the documentation, the most frequent first."""
    counted = Counter(word for line in _lines() for word in line.split() if word.isascii() and word.isalpha() and word.islower())
    return [word for word, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0]))]


def labels(count: int, length: int) -> list[str]:
    """Distinct labels of `length` words each."""
    generator, found = np.random.default_rng(0), dict[str, None]()
    while len(found) < count:
        found[" ".join(generator.choice(words(), length))] = None
    return list(found)


def captions(count: int, seed: int) -> list[str]:
    """Captions whose numbers of words are log-normal: most are short, a few long."""
    generator = np.random.default_rng(seed)
    median, spread = CAPTION_WORDS
    lengths = np.exp(generator.normal(np.log(median), spread, count)).round().clip(1, MAX_CAPTION_WORDS).astype(int)
    return [" ".join(generator.choice(words(), length)) for length in lengths]


def write_photographs(folder: Path) -> None:
    """Photographs and their mirror images as JPEGs of 500 × 375 pixels, 20 to 60 KB."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(_photographs()):
        image.save(folder / f"{number:03}.jpg", "JPEG", quality=90)


def _photographs() -> Iterator[Image.Image]:
    import skimage

    examples: Any = skimage.data
    for name in PHOTOGRAPHS:
        image = ImageOps.fit(Image.fromarray(getattr(examples, name)()), reference.PICTURE_SIZE, Image.Resampling.LANCZOS)
        yield image
        yield ImageOps.mirror(image)


def texts_per_second(loop: LoadedModel, tokenizer: Tokenizer, texts: Sequence[str], batch: int) -> float:
    """Speed of tokenizer and network alone, in this thread; the network reads padding like words."""

    def encode(first: int) -> dict[str, NDArray[Any]]:
        tokens = tokenizer.encode(texts[first : first + batch]).tokens[None]  # (1, R, N)
        return {"word_ids": tokens, "visible": np.ones_like(tokens)}

    loop.forward(encode(0), {})
    started_at = time.perf_counter()
    for first in range(0, len(texts), batch):
        loop.forward(encode(first), {})
    return len(texts) / (time.perf_counter() - started_at)
