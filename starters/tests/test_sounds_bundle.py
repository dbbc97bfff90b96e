"""The committed starter for sounds is what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models import bundle, loading
from models.bundle import Bundle
from models.systems.mavil.model import MAViL
from server.playground import SAMPLES
from starters.evaluation import cards as model_card
from starters.evaluation.sounds import SoundFeatures
from training.data.decode import read_sound


@pytest.fixture(scope="module")
def starter() -> Bundle:
    return bundle.read(Path("bundles/sounds/1.1.0"))


def test_it_is_small_whole_and_licensed(starter: Bundle) -> None:
    starter.verify()
    assert sum(file.stat().st_size for file in starter.path.iterdir()) <= 16_000_000
    assert "MIT" in starter.spec.license and len(starter.spec.labels) == len(set(starter.spec.labels)) == 45
    assert (starter.path / "README.md").read_text(encoding="utf-8") == model_card.render(starter.spec)


def test_it_names_the_samples_of_the_page(starter: Bundle) -> None:
    model, sound = loading.load(starter).model, starter.spec.sound
    assert isinstance(model, MAViL) and sound is not None
    files = sorted(SAMPLES.glob("*.flac"))
    with torch.inference_mode():
        logits = SoundFeatures(sound).logits(model, [read_sound(file, sound.sample_rate, 10.0).numpy() for file in files])
    named = [starter.spec.labels[int(row.argmax())] for row in logits]
    assert named == [file.stem.replace("-", " ") for file in files]
    assert np.isfinite(logits).all()
