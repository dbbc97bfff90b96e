"""Measurements of clips and sound, on tiny networks: that they run to their end and divide what they say."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from benchmarks import clips, reversible
from benchmarks.merging import block_macs
from models.merge_schedule import MergeSchedule


@pytest.mark.parametrize(
    ("name", "r", "ratio"),
    [("MAE-ST ViT-L", 65, 2.13), ("MAE-ST ViT-B", 65, 1.40), ("MAE-ST ViT-B", 130, 2.16), ("sound", 20, 1.34), ("sound", 40, 1.97)],
)
def test_arithmetic_promises_what_the_documentation_says(name: str, r: int, ratio: float) -> None:
    sizes = clips.SIZES["published"]
    sound = sizes.sound
    counted = clips.Blocks(sound.audio_patches, sound.width, sound.depth, sound.mlp_ratio) if name == "sound" else sizes.clips[name][0]
    assert counted.patches + counted.special_tokens == (513 if name == "sound" else 1569)
    assert block_macs(counted, MergeSchedule.off()) / block_macs(counted, MergeSchedule.constant(r)) == pytest.approx(ratio, abs=0.01)


def test_deeper_networks_have_longer_third_stages() -> None:
    sizes = clips.SIZES["published"]
    for config, deep in (
        (sizes.plain, reversible.deepen(sizes.plain, 48)),
        (sizes.reversible, reversible.deepen(sizes.reversible, 48)),
    ):
        assert [deep.heads_of(block) for block in (0, 1, 3, 45, 46, 47)] == [1, 2, 4, 4, 8, 8]
        assert deep.grid_of(46) == config.grid_of(14)
    assert reversible.deepen(sizes.plain, 16) == sizes.plain and reversible.deepen(sizes.reversible, 16) == sizes.reversible


@pytest.mark.slow
def test_reversible_networks_keep_less_as_they_grow() -> None:
    sizes = clips.SIZES["tiny"]
    pairs = (reversible.deepen(sizes.plain, 64), sizes.plain), (reversible.deepen(sizes.reversible, 64), sizes.reversible)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as children:
        (kept, _), (recomputed, _) = (children.apply(reversible.training_step, pair) for pair in pairs)
    assert kept > recomputed, "MiB"


@pytest.mark.slow
def test_a_run_measures_what_it_was_asked_for(tmp_path: Path) -> None:
    clips.main(["--size", "tiny", "--rounds", "1", "--seconds", "5", "--json", str(tmp_path / "clips.json")])
    told = json.loads((tmp_path / "clips.json").read_text())
    figures = {figure["name"]: figure for figure in told["figures"]}
    assert len(figures) == 10 and all(figure["values"] and min(figure["values"]) > 0 for figure in figures.values()), sorted(figures)
    merged = figures["merging: tiny, r = 4"]
    assert merged["values"][0] == pytest.approx(merged["details"]["times"][0] / merged["details"]["ideal"][0])
