"""A recipe for sounds of instruments: its notes of other fonts, its baselines, and the bundle that it ends in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from models import bundle, loading
from models.systems.mavil.model import MAViL
from starters.evaluation import cards as model_card
from starters.evaluation import sounds
from starters.tests.recordings import cached_notes
from starters.tests.soundfonts import RATE, cached_font, cached_renderer, hiss, tone
from tests.support.audio import wav
from training import cli, recipe
from training.evaluation import __main__ as evaluation
from training.evaluation import metrics

FONT = {(0, 0): tone(262, 1), (0, 1): tone(262, 8), (128, 0): hiss(0.3)}
RECORDINGS = {"flute_long": tone(300, 1, 2.0), "flute_short": tone(400, 1, 0.2), "hit_hard": hiss(0.3), "loop_all": hiss(1.0)}
MAKERS = {"flutes": "0:0", "reeds": "0:1"}
RECORDED: dict[str, Any] = {
    "name": "samples",
    "package": {"name": "recorded", "version": "1", "sha256": "3" * 64},
    "folder": "samples",
    "license": "CC0",
}
FLUTES, HITS = {"files": ["*/flute_*"], "right": ["flute", "reed"]}, {"files": ["a/hit_*"], "right": ["drum"]}
DECODER: dict[str, Any] = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "window": None}
HEAD: dict[str, Any] = {"sees": False, "fusion_depth": 0, "multi_label": False, "classes": 3}
SIZES: dict[str, Any] = {"audio_frames": 64, "mel_bins": 32, "width": 32, "depth": 2, "heads": 2}


def small(cache: Path) -> dict[str, Any]:
    folder = cache / f"recorded-{'3' * 12}" / "samples/a"
    folder.mkdir(parents=True)
    for name, samples in RECORDINGS.items():
        (folder / f"{name}.wav").write_bytes(wav(samples, RATE))
    loop = {"epochs": 1, "batch_size": 8}
    return {
        "name": "tiny-sounds",
        "version": "1.0.0",
        "license": "CC0",
        "sound": {"sample_rate": RATE, "frames": 64, "mel_bins": 32, "mean": -8.0, "std": 4.0},
        "data": {
            "kind": "notes",
            "renderer": cached_renderer(cache),
            "fonts": [cached_font(cache, "trained", FONT)],
            "instruments": {
                "flute": {"presets": ["0:0"], "keys": [55, 65]},
                "reed": {"presets": ["0:1"], "keys": [55, 65]},
                "drum": {"drums": [38]},
            },
            "kits": ["128:0"],
            "samples": 24,
        },
        "phases": [
            {
                "name": "listen",
                "model": {
                    "architecture": "audio_mae",
                    "config": {**SIZES, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "window": None},
                },
                "objective": {"kind": "mae"},
                "optimiser": {"lr": 0.001},
                "loop": loop,
            },
            {
                "name": "name",
                "start": "listen",
                "model": {
                    "architecture": "mavil",
                    "config": {**SIZES, "sees": False, "fusion_depth": 0, "multi_label": False, "classes": 3},
                },
                "objective": {"kind": "audio_visual", "time_mask": 0.0, "mel_mask": 0.0},
                "optimiser": {"lr": 0.001},
                "loop": loop,
            },
        ],
        "release": {
            "task": "audio-visual",
            "quality": {
                "kind": "sounds",
                "validation": [
                    {"name": "chosen", "fonts": [cached_font(cache, "chosen", FONT)]},
                    {
                        "name": "makers",
                        "fonts": [cached_notes(cache, name, preset, {"C4": tone(262, 1)}) for name, preset in MAKERS.items()],
                    },
                ],
                "test": {"name": "font", "fonts": [cached_font(cache, "others", FONT, without=["0:1"])]},
                "recorded": [RECORDED | {"recordings": [FLUTES, HITS]}],
                "notes": 4,
                "baseline_sounds": 60,
                "rungs": {"r2": 2},
                "batch_size": 2,
                "rounds": 3,
            },
        },
    }


def test_a_recipe_ends_in_a_bundle_that_names_instruments(tmp_path: Path) -> None:
    cache, file = tmp_path / "cache", tmp_path / "recipe.yaml"
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(cache)]
    file.write_text(yaml.safe_dump(small(cache), sort_keys=False))
    assert cli.main([str(file), *places, "--bundles", str(tmp_path / "bundles"), "--no-tensorboard"]) == 0
    made = bundle.read(tmp_path / "bundles/tiny-sounds/1.0.0")
    made.verify()
    spec, found = made.spec, made.spec.quality["sounds"]
    assert (spec.task, spec.clip, spec.preprocess, spec.labels) == ("audio-visual", None, None, ["flute", "reed", "drum"])
    assert isinstance(loading.load(made).model, MAViL)
    notes, rooms, recorded = found["groups"]
    assert [group["name"] for group in found["groups"]] == ["font", "font, in rooms", "samples"]
    assert notes["top1"]["n"] == rooms["top1"]["n"] == 8 and notes["sources"] == 2
    assert recorded["top1"]["n"] == 3  # what no class names is left out
    assert notes["baselines"][sounds.LOGISTIC]["accuracy"]["value"] > 0.7  # a tone and a hiss are easily told apart
    [rung] = spec.ladder
    assert rung.name == "r2" and rung.accuracy == pytest.approx(found["ladder"][0]["accuracy"]["value"], abs=1e-4)
    card = (made.path / "README.md").read_text(encoding="utf-8")
    assert card == model_card.render(spec) and "labels a sound with one of 3 classes" in card and "test: others 1.0-1 (CC0)" in card

    report = tmp_path / "runs/tiny-sounds-1.0.0/evaluation/sounds-test.json"
    before = report.read_text()
    assert evaluation.main([str(file), *places, "--split", "test"]) == 0 and report.read_text() == before
    assert evaluation.main([str(file), "release.quality.notes=3", *places, "--split", "test"]) == 2  # it is looked at once
    assert evaluation.main([str(file), *places]) == 0
    chosen_by = json.loads((report.parent / "sounds-val.json").read_text())["groups"]
    assert [group["name"] for group in chosen_by] == ["chosen", "chosen, in rooms", "makers", "makers, in rooms"]
    assert chosen_by[2]["top1"]["n"] == 8  # the notes of two makers, for their own instruments alone


def test_a_recording_of_no_class_is_refused_before_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, file = small(tmp_path / "cache"), tmp_path / "recipe.yaml"
    content["release"]["quality"]["recorded"][0]["recordings"][0]["right"] = ["oboe"]
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert cli.main([str(file), "--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"), "--no-tensorboard"]) == 2
    assert "release.quality: samples: oboe: no instrument has this name" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_sound_of_several_windows_has_the_mean_of_their_scores(tmp_path: Path) -> None:
    content = small(tmp_path / "cache")
    plan = recipe.Recipe.model_validate(content)
    settings = plan.model_of(plan.phases[1]).resolve(3)
    network, features = MAViL(settings).eval(), sounds.SoundFeatures(plan.sound) if plan.sound else None
    assert features is not None
    torch.nn.init.normal_(network.head["a"].weight)
    wave = RECORDINGS["flute_long"] * np.linspace(1, 0, 2 * RATE).astype(np.float32)
    alone = [features.logits(network, [part]) for part in (wave[:10_480], wave[10_240:20_720], wave[20_480:30_960])]
    mean = np.mean([np.exp(logits) for logits in [*alone, features.logits(network, [wave[30_720:]])]], axis=0)
    np.testing.assert_allclose(np.exp(features.logits(network, [wave])), mean, atol=1e-5)


def test_tries_of_one_source_count_as_one() -> None:
    values = np.array([1.0, 1, 1, 1, 0, 0, 0, 0])
    independent = metrics.cluster_mean(values, [str(number) for number in range(8)])
    cluster_mean = metrics.cluster_mean(values, ["a"] * 4 + ["b"] * 4)
    assert independent.value == cluster_mean.value == 0.5 and independent.standard_error == pytest.approx(
        metrics.mean(values).standard_error
    )
    assert cluster_mean.standard_error == pytest.approx(0.5)
