"""The picture of merged tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import merged_tokens
from tests.support.bundles.vit import write_tiny_vit


@pytest.fixture
def stripes(tmp_path: Path) -> Path:
    image = Image.new("RGB", (60, 40), "red")
    image.paste("blue", (0, 20, 60, 40))
    image.save(tmp_path / "stripes.png")
    return tmp_path / "stripes.png"


def draw(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["merged_tokens", *map(str, arguments)])
    merged_tokens.main()


def test_pictures_stand_above_what_is_left_of_them(
    tmp_path: Path, stripes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_vit(tmp_path / "bundles")
    draw(monkeypatch, stripes, stripes, "-o", tmp_path / "merged.png", "--bundle", bundle.path, "--rung", "fast")
    assert capsys.readouterr().out == "stripes.png: 17 → 9 tokens\n" * 2
    with Image.open(tmp_path / "merged.png") as image:
        page = np.asarray(image)
    height, width = merged_tokens.HEIGHT, round(1.5 * merged_tokens.HEIGHT)
    assert page.shape == (2 * height + merged_tokens.GAP, 2 * width + merged_tokens.GAP, 3)
    assert page[height // 4, width // 2].tolist() == [255, 0, 0]
    assert page[height * 3 // 4, width // 2].tolist() == [0, 0, 255]
    below = page[height + merged_tokens.GAP :, :width]
    assert not np.array_equal(below, page[:height, :width])


def test_unknown_rung_is_refused_with_those_of_the_bundle(tmp_path: Path, stripes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_tiny_vit(tmp_path / "bundles")
    with pytest.raises(SystemExit, match="no rung 'slow'; its rungs are full, fast"):
        draw(monkeypatch, stripes, "-o", tmp_path / "merged.png", "--bundle", bundle.path, "--rung", "slow")
