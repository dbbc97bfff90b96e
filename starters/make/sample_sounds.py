"""Make samples for the starter `sounds`, of presets that it was not trained on: `python -m starters.make.sample_sounds FOLDER`.

Each is a short phrase as FLAC, with its log-mel spectrogram as a PNG."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from models.media.fbank import FbankConfig, log_mel
from starters.data.sounds.instrument_notes import InstrumentNotes
from starters.data.sounds.sampled_instruments import open_instruments
from starters.data.sounds.soundfonts import Note, Wave
from starters.evaluation.sounds import SoundsQuality
from training import recipe
from training.errors import exit_code
from training.options import TrainOptions

RECIPE = Path("starters/recipes/sounds.yaml")
_SIDE = 112
"""Side of a spectrogram image in pixels."""
_BEAT_S, _SECONDS = 0.4, 1.92
_PEAK = 0.6


@dataclass(frozen=True)
class Phrase:
    name: str
    font: int
    """Index of the recipe's validation group that plays it."""
    preset: str
    keys: tuple[int, ...]
    """Keys, one on each beat."""


PHRASES = (
    Phrase("accordion", 0, "8:21", (60, 64, 67, 72)),
    Phrase("pizzicato-strings", 1, "0:45", (60, 64, 67, 72)),
    Phrase("trumpet", 1, "0:56", (67, 67, 72)),
    Phrase("acoustic-guitar", 0, "8:25", (52, 59, 64, 68)),
    Phrase("snare-drum", 0, "128:4", (38, 38, 38, 38)),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m starters.make.sample_sounds", description="Write the sounds that the page and the demo offer."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, default=TrainOptions.cache, help="downloaded data (default: %(default)s)")
    options = parser.parse_args(arguments)
    return exit_code(lambda: write(options.folder, options.cache), options.folder)


def write(folder: Path, cache: Path) -> None:
    """Play all phrases into `folder`. Raises TrainingError."""
    plan = recipe.read(RECIPE)
    quality = plan.release.quality if plan.release else None
    assert isinstance(quality, SoundsQuality) and isinstance(plan.data, InstrumentNotes) and plan.sound is not None
    rate = plan.sound.sample_rate
    for phrase in PHRASES:
        synth = open_instruments(quality.validation[phrase.font].fonts[0], plan.data.renderer, rate, cache)
        beat = int(_BEAT_S * rate)
        notes = [Note(key, 0.8, number * beat, (number + 1) * beat) for number, key in enumerate(phrase.keys)]
        wave = synth.play(phrase.preset, notes, int(_SECONDS * rate))
        wave = wave * np.float32(_PEAK / np.abs(wave).max())
        _write_flac(folder / f"{phrase.name}.flac", wave, rate)
        _spectrogram_image(wave, rate).save(folder / f"{phrase.name}.png", optimize=True)


def _write_flac(file: Path, wave: Wave, rate: int) -> None:
    samples = (wave * 32767).astype(np.int16)[np.newaxis]
    with av.open(str(file), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=rate, options={"compression_level": "8"})
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _spectrogram_image(wave: Wave, rate: int) -> Image.Image:
    """Draw a log-mel spectrogram in 16 greys, time to the right, high frequencies at the top."""
    bank = log_mel(torch.from_numpy(wave), FbankConfig(sample_rate=rate, mel_bins=64)).numpy().T[::-1]
    loud = np.clip((bank - bank.max() + 12) / 12, 0, 1)
    picture = Image.fromarray((255 * loud).astype(np.uint8)).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return Image.fromarray(np.asarray(picture) // 17 * 17)


if __name__ == "__main__":
    sys.exit(main())
