"""The starter for clips, as it is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models import bundle
from models.loading import load
from models.media.clip_sampling import average_views, crops, view_frames
from models.systems.mae_st.model import VideoMAE
from server import playground
from starters.data.clips.camera_paths import MOVES
from starters.data.clips.video_augmentation import decode
from starters.evaluation import cards as model_card

FOLDER = Path(__file__).parents[2] / "bundles/clips/1.0.0"


def test_it_is_small_and_its_card_says_what_it_is_compared_with() -> None:
    starter = bundle.read(FOLDER)
    starter.verify()
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 16_000_000
    assert (starter.spec.task, starter.spec.architecture, tuple(starter.spec.labels)) == ("actions", "video_mae", MOVES)
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert card == model_card.render(starter.spec) and "Optical flow" in card


@pytest.mark.parametrize(("name", "move"), [("colosseum", "pan right"), ("otters", "zoom in"), ("lake", "shake")])
def test_it_names_the_moves_of_the_clips_on_the_page(name: str, move: str) -> None:
    spec, model = (starter := bundle.read(FOLDER)).spec, load(starter).model
    assert isinstance(model, VideoMAE) and spec.clip is not None and spec.preprocess is not None
    frames = torch.from_numpy(decode((playground.SAMPLES / f"{name}.mp4").read_bytes()))
    numbers = view_frames(len(frames), 25, frames=spec.clip.frames, stride=spec.clip.stride, views=3, rate=spec.clip.rate)
    pixels = frames[numbers].permute(0, 4, 1, 2, 3).float()  # (views, 3, T, H, W)
    size = spec.preprocess.image_size
    squares = torch.cat([crops(view, short_side=size, size=size, count=1) for view in pixels])
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (spec.preprocess.mean, spec.preprocess.std))
    with torch.inference_mode():
        scores = average_views(model((squares / 255 - mean) / std).logits[None])[0]
    assert spec.labels[int(scores.argmax())] == move
