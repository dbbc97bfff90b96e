"""The committed starter for words is what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from models import bundle, loading
from models.bundle import Bundle
from models.systems.image_text.flip import FLIP
from models.systems.image_text.tokenizer import Tokenizer
from opsin.cli.demo.labels import LABELS
from server.playground import SAMPLES
from starters.evaluation import cards
from training.data.augment import normalise
from training.data.load_image import to_model_size


@pytest.fixture(scope="module")
def starter() -> Bundle:
    return bundle.read(Path("bundles/words/1.1.0"))


def test_it_is_small_whole_and_licensed(starter: Bundle) -> None:
    starter.verify()
    assert sum(file.stat().st_size for file in starter.path.iterdir()) <= 16_000_000
    assert (starter.spec.task, starter.spec.architecture) == ("zero-shot", "flip")
    assert "CC-BY-4.0" in starter.spec.license and "MIT" in starter.spec.license
    assert (starter.path / "README.md").read_text(encoding="utf-8") == cards.render(starter.spec)


def test_it_knows_what_the_drawings_on_the_page_show(starter: Bundle) -> None:
    model, preprocess = loading.load(starter).model, starter.spec.preprocess
    assert isinstance(model, FLIP) and preprocess is not None
    drawings = [Image.open(SAMPLES / f"{name}.png").convert("RGB") for name in ("daisy", "padlock", "umbrella")]
    pixels = torch.stack([normalise(to_model_size(drawing, preprocess), preprocess) for drawing in drawings])
    tokens = torch.from_numpy(Tokenizer.open(starter).encode(LABELS).tokens)
    with torch.inference_mode():
        cosines = model.encode_images(pixels) @ model.encode_texts(tokens).T
    assert [LABELS[int(row.argmax())] for row in cosines] == ["цветок", "lock", "parapluie"]
