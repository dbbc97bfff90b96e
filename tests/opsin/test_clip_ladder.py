"""`opsin calibrate --ladder` on clips and sounds as a user meets it, and what a service then answers. What it writes is computed here
again, from what the networks say of the same files by the rules of the published tests."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score
from torch import Tensor

from models.bundle import Bundle, BundleError, BundleSpec, read, replace_spec
from models.bundle_schema import Clip, Preprocess, Rung
from models.checkpoints.bundle_fields import unmeasured_ladder
from models.loading import load
from models.merge_schedule import MergeSchedule
from models.registry import architectures
from models.systems.mae_st.model import VideoMAE, VideoMAEConfig
from models.systems.mavil.model import MAViL
from models.systems.mavil.preprocessing import spectrogram
from models.systems.onnx.export import ExportError, export
from opsin.cli.bundles.labelled_recordings import read_recordings
from opsin.cli.shared.errors import UsageError
from opsin.measuring.clip_ladder import measure_steps
from server.worker.backends.learned_cache import LearnedCache
from server.worker.backends.loading import Loader
from server.worker.device_layout import Layout
from tests.clips.test_sound import bank, clip_at, windows
from tests.support.audio import wav
from tests.support.bundles.clips import NETWORKS, frames, mavil, squares, video, view_numbers, write_mavil, write_recorded
from tests.support.bundles.vit import UNSEALED, seal
from tests.support.processes import opsin
from tests.support.serve_process import Service, serve
from tests.support.videos import clip, every

COUNT, FPS, RATE = 12, 10.0, 16_000
SECONDS = COUNT / FPS
Scores = NDArray[np.float32]


def samples(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, round(SECONDS * RATE)).astype(np.float32)


def merging(r: int) -> MergeSchedule:
    return MergeSchedule.constant(r)


def views_of(seed: int) -> Tensor:
    """Return all views and crops of MAE-ST's published test, (21, 3, T, S, S)."""
    recorded, images = NETWORKS["mae-st"], frames(COUNT, seed=seed)
    numbers = view_numbers(COUNT, FPS, 8, recorded.views, offset=recorded.offset)
    return torch.stack([square for rows in numbers for square in squares(images[rows], recorded.crops)])


def observe(model: Any, seeds: Sequence[int], r: int) -> Scores:
    """Return the mean softmax over the views: (clips, labels)."""
    with torch.inference_mode():
        return np.stack([model(views_of(seed), merge=merging(r)).logits.softmax(dim=-1).mean(dim=0).numpy() for seed in seeds])


def spectrograms_of(model: Any, seed: int) -> Tensor:
    length, bins = model.config.audio_frames, model.config.mel_bins
    return torch.stack([spectrogram(window, length, config=bank(bins)) for window in windows(samples(seed), length)])


def hear(model: Any, seeds: Sequence[int], r: int) -> Scores:
    with torch.inference_mode():
        found = [
            model.forward_audio(spectrograms_of(model, seed), merge=merging(r)).logits.double().sigmoid().mean(dim=0) for seed in seeds
        ]
    return torch.stack(found).float().numpy()


def both(model: Any, seeds: Sequence[int], r: int, sight: int) -> Scores:
    """Pair each window of sound with the clip that starts with it."""
    config, found = model.config, []
    for seed in seeds:
        sounds = spectrograms_of(model, seed)
        latest = max(0.0, SECONDS - config.frames / 2)
        starts = [min(number * config.audio_frames / 100, latest) for number in range(len(sounds))]
        clips = torch.stack([clip_at(frames(COUNT, seed=seed), start, config.frames, config.image_size) for start in starts])
        with torch.inference_mode():
            answer = model(sounds, clips, merge=merging(r), video_merge=merging(sight))
        found.append(answer.logits.double().sigmoid().mean(dim=0))
    return torch.stack(found).float().numpy()


def add_separating_head(bundle: Bundle, seeds: Sequence[int]) -> Bundle:
    """Spread the logits 40 times as far from their mean over the clips: the recorded networks give all noise the same label."""
    weights, model = load_file(bundle.weights_path), load(bundle).model
    with torch.inference_mode():
        features = torch.cat([model(views_of(seed)).features for seed in seeds]).mean(dim=0)
    weights["head.weight"] = 40 * weights["head.weight"]
    weights["head.bias"] = -(weights["head.weight"] @ features)
    return seal(bundle.path.parents[1], bundle.spec, weights, overwrite=True)


def write_table(folder: Path, rows: dict[str, Sequence[str]]) -> None:
    (folder / "labels.csv").write_text("file,labels\n" + "".join(f"{file},{';'.join(labels)}\n" for file, labels in rows.items()))


def write_sounds(folder: Path, count: int) -> list[list[int]]:
    """Sounds and `labels.csv`; the labels of each, of the first five: one has one, others have two."""
    folder.mkdir(exist_ok=True)
    labels = [[0] if seed == 0 else sorted({seed % 3, 3 + seed % 2}) for seed in range(count)]
    for seed in range(count):
        (folder / f"{seed}.wav").write_bytes(wav(samples(seed), RATE))
    write_table(folder, {f"{seed}.wav": [f"action {label}" for label in ours] for seed, ours in enumerate(labels)})
    return labels


def precision(scores: Scores, labels: Sequence[Sequence[int]]) -> float:
    """Over the labels that some file has."""
    truth = np.array([[label in ours for label in range(scores.shape[1])] for ours in labels])
    present = truth.any(axis=0)
    return float(average_precision_score(truth[:, present], scores[:, present], average="macro"))


@pytest.mark.slow
def test_clip_ladder_is_measured_by_all_published_views(tmp_path: Path) -> None:
    seeds = range(10)
    bundle = add_separating_head(write_recorded(tmp_path / "bundles", "mae-st"), seeds)
    model = load(bundle).model
    best = {r: observe(model, seeds, r).argmax(axis=1) for r in (0, 4, 30)}
    labels = [(label + 1) % 11 if seed < 2 else label for seed, label in enumerate(best[0].tolist())]  # two are wrong
    for seed, label in enumerate(labels):
        folder = tmp_path / "files" / f"action {label}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{seed}.mkv").write_bytes(video(COUNT, FPS, seed=seed))
    inputs = ("--ladder", "--files", tmp_path / "files", "--r", "30", "--r", "4")
    refused = opsin("calibrate", bundle.path, *inputs)
    assert (refused.returncode, read(bundle.path)) == (2, bundle)
    assert "files holds 10 clips or sounds; fewer than 300 are not reliable (--force measures anyway)" in refused.stderr
    ended = opsin("calibrate", bundle.path, *inputs, "--force")
    assert ended.returncode == 0, ended.stderr
    after = read(bundle.path).spec
    assert [(rung.name, rung.schedule, rung.metric) for rung in after.ladder] == [("r4", 4, "top-1"), ("r30", 30, "top-1")]
    for rung in after.ladder:
        assert rung.accuracy == pytest.approx((best[rung.merge.r] == np.array(labels)).mean(), abs=1e-5) and rung.throughput is not None
    assert after.ladder[1].accuracy < 0.8, "merging changes labels of these clips"
    assert "off          top-1 0.8000 ± 0.1265  throughput 1.00×" in ended.stdout and "measured     on 10 clips;" in ended.stdout
    assert after.quality["ladder"][0] == {
        "rung": "off",
        "throughput": 1.0,
        "top-1": {"value": 0.8, "standard_error": 0.12649, "n": 10},
    }
    assert after.quality["throughput"]["what"] == "views per second as served, relative to merging off"
    assert after.model_copy(update={"ladder": [], "quality": {}}) == bundle.spec


def test_multi_label_audio_is_measured_by_mean_average_precision(tmp_path: Path) -> None:
    bundle = write_mavil(tmp_path / "bundles", "apart")
    labels = write_sounds(tmp_path / "sounds", 12)
    ended = opsin("calibrate", bundle.path, "--ladder", "--files", tmp_path / "sounds", "--force", "--r", "2", "--r", "6")
    assert ended.returncode == 0, ended.stderr
    unmerged = opsin("bundles", "list", "--bundles", tmp_path / "bundles").stdout.splitlines()[1]
    expected = {r: precision(hear(load(bundle).model, range(12), r), labels) for r in (0, 2, 6)}
    measured = read(bundle.path)
    after = replace_spec(measured, measured.spec.model_copy(update={"default_rung": "r6"})).spec
    assert [(rung.name, rung.metric) for rung in after.ladder] == [(name, "mean-average-precision") for name in ("r2", "r6")]
    assert [rung.accuracy for rung in after.ladder] == pytest.approx([expected[2], expected[6]], abs=1e-5)
    assert len(set(expected.values())) > 1, "merging changes how these sounds are ranked"
    assert unmerged.split()[-2:] == [f"{expected[0]:.1%}", "mean-average-precision"]
    off = after.quality["ladder"][0]["mean-average-precision"]
    assert off == {"value": pytest.approx(expected[0], abs=1e-5), "labels": 5, "n": 12} and after.quality["ladder_by"] == "sound"
    assert f"off          mean-average-precision {expected[0]:.4f}  throughput 1.00×" in ended.stdout
    assert "measured     on 12 sounds with 5 labels;" in ended.stdout
    listed = opsin("bundles", "list", "--bundles", tmp_path / "bundles").stdout.splitlines()[1]
    assert listed.split()[-2:] == [f"{after.ladder[1].accuracy:.1%}", "mean-average-precision"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bundles with ladders: `both` by rungs of two halves, on clips with sounds next to them, and `separate` by sight."""
    root = tmp_path_factory.mktemp("measured")
    (root / "pairs").mkdir()
    for seed in range(4):
        (root / "pairs" / f"{seed}.mkv").write_bytes(video(COUNT, FPS, seed=seed))
        (root / "pairs" / f"{seed}.wav").write_bytes(wav(samples(seed), RATE))
    write_table(root / "pairs", {f"{seed}.mkv": [f"action {seed}", f"action {seed + 1}"] for seed in range(4)})
    inputs = ("--ladder", "--files", root / "pairs", "--force")
    for name, rungs in (("both", ("--r", "6", "--r", "2", "--r-sight", "1", "--r-sight", "4")), ("apart", ("--r", "3", "--use", "sight"))):
        ended = opsin("calibrate", write_mavil(root / "bundles", name).path, *inputs, *rungs)
        assert ended.returncode == 0, ended.stderr
    both = read(root / "bundles" / "both" / "1")
    replace_spec(both, both.spec.model_copy(update={"default_rung": "r2-4"}))
    write_recorded(root / "bundles", "mae-st")
    return root / "bundles"


@pytest.mark.slow
def test_each_half_of_a_network_has_its_schedule(measured: Path) -> None:
    bundle = read(measured / "both" / "1")
    assert [(rung.name, rung.schedule, rung.schedule_sight) for rung in bundle.spec.ladder] == [("r2-4", 2, 4), ("r6-1", 6, 1)]
    labels = [[seed, seed + 1] for seed in range(4)]
    for rung in bundle.spec.ladder:
        expected = precision(both(load(bundle).model, range(4), rung.schedule, rung.schedule_sight), labels)
        assert (rung.metric, rung.accuracy) == ("mean-average-precision", pytest.approx(expected, abs=1e-5))
    assert bundle.spec.quality["ladder_by"] == "both" and read(measured / "apart" / "1").spec.quality["ladder_by"] == "sight"
    visible = " ".join(opsin("bundles", "show", "both", "--bundles", measured).stdout.split())
    assert f"r2-4 (default) 2, sight 4 {bundle.spec.ladder[0].accuracy:.1%} mean-average-precision" in visible


@pytest.fixture(scope="module")
def service(measured: Path) -> Iterator[Service]:
    """A service configured for 8-bit integers, which networks of clips and sound do not have."""
    with serve(measured, copied=True, backend="int8", dtype="bfloat16") as running:
        assert running.url
        yield running


def ask(service: Service, files: dict[str, bytes], **options: Any) -> Any:
    sent = {name: (name, data) for name, data in files.items()}
    return httpx2.post(f"{service.url}/v1/classify", files=sent, data=options, timeout=120).raise_for_status().json()["results"][0]


def test_the_bundle_that_was_measured_takes_the_rung_and_says_so(service: Service) -> None:
    files = {"video": video(COUNT, FPS), "audio": wav(samples(0), RATE)}
    by_rung, by_numbers = ask(service, files, model="both", merge="r2-4"), ask(service, files, model="both", merge=2, merge_sight=4)
    answer = {"schedule": [2, 2], "schedule_sight": [4, 4]}
    assert by_rung["merging"] == by_numbers["merging"] | {"rung": "r2-4"} and answer.items() <= by_rung["merging"].items()
    assert by_rung["predictions"] == by_numbers["predictions"]
    alone = ask(service, {"video": files["video"]}, model="apart", merge="r3")
    assert (alone["merging"]["rung"], alone["merging"]["schedule"]) == ("r3", [3, 3, 3]) and "schedule_sight" not in alone["merging"]
    halves = ask(service, files, model="both", merge="r2-4", merge_sight="r6-1")["merging"]
    assert (halves["rung"], halves["schedule"], halves["schedule_sight"]) == (None, [2, 2], [1, 1])
    for same in ({"merge": "r2-4", "merge_sight": "r2-4"}, {}):  # the second: the bundle's default rung
        assert ask(service, files, model="both", **same) == by_rung
    off = ask(service, files, model="both", merge="off")
    assert (off["merging"]["rung"], "schedule_sight" in off["merging"]) == (None, False) and off["predictions"] != by_rung["predictions"]


def test_the_list_of_models_says_what_a_rung_was_measured_by(service: Service, measured: Path) -> None:
    (first, _) = service.get("/v1/models/both").json()["ladder"]
    rung = read(measured / "both" / "1").spec.ladder[0]
    assert first == {
        "name": "r2-4",
        "schedule": 2,
        "schedule_sight": 4,
        "accuracy": rung.accuracy,
        "throughput": rung.throughput,
        "metric": "mean-average-precision",
    }
    assert "schedule_sight" not in service.get("/v1/models/apart").json()["ladder"][0]


def test_pytorch_alone_runs_clips_and_log_lists_omissions(service: Service) -> None:
    left_out = {record["bundle"]: record for record in service.events("backend left out")}
    for name, unit in (("both", "windows"), ("apart", "windows"), ("mae-st", "views")):
        model = service.get(f"/v1/models/{name}").json()
        assert (model["format"], [worker["backends"] for worker in model["workers"]]) == ("float32", [{}])
        answer = left_out[f"{name}@1"]
        assert answer["backend"] == "int8"
        assert answer["reason"] == f"its jobs take several steps ({unit}), and those PyTorch takes: `auto` and `eager` mean that"


@pytest.mark.slow
def test_a_rung_that_merges_most_tokens_away_is_faster(tmp_path: Path) -> None:
    """512 patches to 26 over four blocks: by arithmetic more than twice as fast."""
    config = VideoMAEConfig(image_size=64, patch_size=8, frames=16, patch_frames=2, width=192, depth=4, heads=3, classes=3)
    torch.manual_seed(0)
    pixels = Preprocess(image_size=64, short_side=64, interpolation="bilinear", mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))
    fields = {"name": "large", "version": "1", "task": "actions", "architecture": "video_mae", "license": "CC0-1.0", "weights": UNSEALED}
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "one.mkv").write_bytes(video(COUNT, FPS))
    spec = BundleSpec(config=asdict(config), preprocess=pixels, clip=Clip(frames=16, stride=4), labels=["a", "b", "c"], **fields)
    bundle = seal(tmp_path, spec, VideoMAE(config).state_dict())
    ended = opsin("calibrate", bundle.path, "--ladder", "--files", tmp_path / "clips", "--force", OPSIN_THREADS="1")
    assert ended.returncode == 0, ended.stderr
    ladder = read(bundle.path).spec.ladder
    assert [rung.name for rung in ladder] == ["r32", "r64", "r83", "r102", "r121"], "those of an import"
    assert ladder[-1].throughput > 1.25 and ladder[-1].throughput > ladder[0].throughput


def test_int8_and_graphs_of_networks_of_clips_are_refused(measured: Path, tmp_path: Path) -> None:
    before, image = read(measured / "mae-st" / "1"), tmp_path / "photo.png"
    ended = opsin("calibrate", before.path, "--files", tmp_path)
    assert (ended.returncode, ended.stderr) == (
        2,
        "opsin: mae-st@1: architecture video_mae cannot be served in int8 for task actions; only ViT classifiers of images can\n",
    )
    ended = opsin("export", before.path, "--onnx", "--image", image, "-o", tmp_path / "net.onnx")
    message = "mae-st@1: architecture video_mae, which takes clips, cannot be exported as ONNX; those that can are vit, diffmae, mcc"
    assert (ended.returncode, ended.stderr) == (2, f"opsin: {message}\n") and not (tmp_path / "net.onnx").exists()
    with pytest.raises(ExportError, match="both@1: architecture mavil, which takes clips and sound, cannot be exported as ONNX"):
        export(read(measured / "both" / "1"), tmp_path / "net.onnx")
    assert read(before.path) == before


def test_links_to_nothing_and_pipes_are_named(tmp_path: Path) -> None:
    spec = write_recorded(tmp_path / "bundles", "mae-st").spec
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.mkv").symlink_to(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"a\.mkv: not a file, or a broken link"):
        read_recordings(tmp_path / "links", spec, None)
    (tmp_path / "pipes").mkdir()
    os.mkfifo(tmp_path / "pipes" / "labels.csv")
    with pytest.raises(UsageError, match=r"labels\.csv: not a file"):
        read_recordings(tmp_path / "pipes", spec, None)


def test_unclassifiable_file_is_named_and_nothing_written(tmp_path: Path) -> None:
    bundle = write_recorded(tmp_path / "bundles", "mae-st")
    folder = tmp_path / "files" / "action 1"
    folder.mkdir(parents=True)
    (folder / "a.mkv").write_bytes(video(COUNT, FPS))
    (folder / "b.mkv").write_bytes(b"no video at all")
    ended = opsin("calibrate", bundle.path, "--ladder", "--files", tmp_path / "files", "--force")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith(f"opsin: --files: {folder / 'b.mkv'}: ") and "neither a video nor a sound" in ended.stderr
    assert read(bundle.path) == bundle
    (folder / "b.mkv").unlink()
    ended = opsin("calibrate", bundle.path, "--ladder", "--files", tmp_path / "files", "--force", OPSIN_MAX_BODY_BYTES="1000")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert f"{folder / 'a.mkv'}: {(folder / 'a.mkv').stat().st_size} bytes are above the limit of 1000 (OPSIN_MAX_BODY" in ended.stderr


def test_memory_that_does_not_suffice_is_a_sentence(measured: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Steps of sight that fit into memory one by one are measured one by one; those that do not fit at all end the measurement."""
    bundle = read(measured / "apart" / "1")
    loader = Loader(Layout(torch.device("cpu"), 1, 1, 8), "float32", LearnedCache(tmp_path), "eager")
    see = MAViL.forward_video

    def limit_memory(fitting: int) -> None:
        def small(self: MAViL, video: Tensor, **options: Any) -> Any:
            if len(video) > fitting:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return see(self, video, **options)

        monkeypatch.setattr(MAViL, "forward_video", small)

    limit_memory(1)
    assert measure_steps(bundle, "sight", loader).batch_size == 1
    limit_memory(0)
    with pytest.raises(BundleError, match="apart@1: out of memory during the measurement"):
        measure_steps(bundle, "sight", loader)


def test_a_bundle_that_only_hears_has_rungs_of_sound() -> None:
    rungs = [unmeasured_ladder(architectures()["mavil"], "audio-visual", mavil("apart").config, sees=sees) for sees in (True, False)]
    assert all(rung.schedule_sight for rung in rungs[0]) and rungs[1]
    assert [(rung.name, rung.schedule_sight) for rung in rungs[1]] == [(f"r{rung.schedule}", None) for rung in rungs[1]]


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BundleSpec]:
    root = tmp_path_factory.mktemp("specs")
    return {name: write_mavil(root, name).spec for name in ("both", "apart")} | {"mae-st": write_recorded(root, "mae-st").spec}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder: `a` is a clip with a sound next to it, `b` a clip with sound of its own, `c` a sound alone."""
    (tmp_path / "a.mkv").write_bytes(video(COUNT, FPS))
    (tmp_path / "b.mp4").write_bytes(clip(every(10, FPS), sound=True))
    for name in ("a", "c"):
        (tmp_path / f"{name}.wav").write_bytes(wav(samples(0), RATE))
    return tmp_path


def find_inputs(folder: Path, spec: BundleSpec, use: Any = None) -> list[set[str]]:
    _, inputs = read_recordings(folder, spec, use)
    return sorted([{file.name for file in one.files.values()} for one in inputs], key=sorted)


def test_a_sound_next_to_a_clip_is_its_sound(folder: Path, specs: dict[str, BundleSpec]) -> None:
    assert find_inputs(folder, specs["apart"], "sound") == [{"a.wav"}, {"b.mp4"}, {"c.wav"}]
    assert find_inputs(folder, specs["apart"], "sight") == [{"a.mkv"}, {"b.mp4"}]
    with pytest.raises(UsageError, match=r"c\.wav: a sound without a video of the same name next to it"):
        find_inputs(folder, specs["both"])
    with pytest.raises(UsageError, match=r"c\.wav: a sound, but mae-st@1 is measured on videos"):
        find_inputs(folder, specs["mae-st"])
    with pytest.raises(
        UsageError, match="--use: apart@1 classifies sound and sight separately, and there are clips and sounds; add --use sound"
    ):
        find_inputs(folder, specs["apart"])
    with pytest.raises(UsageError, match="--use sight: both@1 does not classify sound and sight separately"):
        find_inputs(folder, specs["both"], "sight")
    (folder / "c.wav").unlink()
    assert find_inputs(folder, specs["both"]) == [{"a.mkv", "a.wav"}, {"b.mp4"}]
    assert find_inputs(folder, specs["mae-st"]) == find_inputs(folder, specs["apart"], "sight") == [{"a.mkv"}, {"b.mp4"}]
    (folder / ".hidden").write_bytes(b"")
    write_table(folder, {"a.mkv": ["action 3"]})
    _, (one,) = read_recordings(folder, specs["both"], None)
    assert (one.labels, {part: file.name for part, file in one.files.items()}) == ((3,), {"video": "a.mkv", "audio": "a.wav"})


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("a.mkv\n", "labels.csv:1: a line is FILE,LABEL or FILE,LABEL;LABEL, in quotes if a name contains a comma"),
        ("file,labels\na.mkv,action 1,action 2\n", "labels.csv:2: a line is FILE,LABEL"),
        ("a.mkv,action 1\n\ngone.mkv,action 2\n", "labels.csv:3: .*gone.mkv: no such file"),
        ("a.mkv,action 1\na.mkv,action 2\n", "labels.csv:2: a.mkv is listed twice"),
        ("a.mkv,action 1;action 99\n", "labels.csv:1: 'action 99' is not a label of mae-st@1"),
        ("a.mkv,action 1;\n", "labels.csv:1: a label is missing"),
        ("a.mkv,\n", "labels.csv:1: a label is missing"),
        ('a.mkv,"action 1\n', "labels.csv: cannot be read as CSV in UTF-8"),
        ("file,labels\n", "has no files to measure mae-st@1 on"),
    ],
)
def test_a_table_of_labels_is_refused_by_line(folder: Path, specs: dict[str, BundleSpec], table: str, sentence: str) -> None:
    (folder / "labels.csv").write_text(table)
    with pytest.raises(UsageError, match=sentence):
        find_inputs(folder, specs["mae-st"])


def test_folders_of_labels_hold_all_files(folder: Path, specs: dict[str, BundleSpec]) -> None:
    (folder / "action 1").mkdir()
    with pytest.raises(
        UsageError, match=r"a\.mkv is next to the folders of labels; move it into one of them, or list its labels in .*labels\.csv"
    ):
        find_inputs(folder, specs["mae-st"])
    for name in ("a.mkv", "a.wav", "b.mp4", "c.wav"):
        shutil.move(folder / name, folder / "action 1" / name)
    assert [one.labels for one in read_recordings(folder, specs["apart"], "sound")[1]] == [(1,)] * 3
    (folder / "action 1" / "more").mkdir()
    with pytest.raises(
        UsageError, match=r"action 1/more is a folder inside that of a label; move its files up, or list them in .*labels\.csv"
    ):
        find_inputs(folder, specs["apart"], "sound")
    (folder / "action 1" / "more").rmdir()
    (folder / "strange").mkdir()
    with pytest.raises(UsageError, match=r"strange is not named after a label of apart@1"):
        find_inputs(folder, specs["apart"], "sound")


def test_labels_with_commas_stand_in_quotes(folder: Path, specs: dict[str, BundleSpec]) -> None:
    labels = [*specs["mae-st"].labels[:-1], "Male speech, man speaking"]
    (folder / "labels.csv").write_text('a.mkv,"action 2;Male speech, man speaking"\n')
    _, (one,) = read_recordings(folder, specs["mae-st"].model_copy(update={"labels": labels}), None)
    assert one.labels == (2, 10)


def test_video_schedule_needs_both_halves(specs: dict[str, BundleSpec]) -> None:
    rung = {"name": "fast", "schedule": 4, "accuracy": None, "throughput": None}
    plain = specs["mae-st"].model_copy(update={"ladder": [Rung(name="fast", schedule=4)]})
    assert json.loads(plain.to_bytes())["ladder"] == [rung]
    content = json.loads(specs["both"].to_bytes()) | {"ladder": [rung | {"schedule_sight": 9}]}
    assert BundleSpec.from_bytes(json.dumps(content).encode()).ladder[0].merge_sight == merging(9)
    with pytest.raises(Exception, match="ladder: schedule_sight needs sound and clip"):
        BundleSpec.from_bytes(json.dumps(json.loads(plain.to_bytes()) | {"ladder": [rung | {"schedule_sight": 9}]}).encode())


def test_options_that_go_with_nothing_are_refused(specs: dict[str, BundleSpec], tmp_path: Path) -> None:
    for arguments, sentence in (
        (["--use", "sound"], "--use: only valid with --ladder"),
        (["--ladder", "--use", "both"], "--use both: use sound or sight"),
        (["--r-sight", "2"], "--r-sight: only valid with --ladder"),
        (["--ladder", "--r", "2", "--r-sight", "2", "--r-sight", "3"], "--r-sight: 2 given for 1 of --r; give one for each"),
    ):
        ended = opsin("calibrate", tmp_path, "--files", tmp_path, *arguments)
        assert (ended.returncode, sentence in ended.stderr) == (2, True), ended.stderr
