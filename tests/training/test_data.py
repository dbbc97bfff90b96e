"""Every kind of data gives what `training.data.source` says, the same for the same draw, and says what is wrong with it."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
import wave
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from models.bundle_schema import Clip, Preprocess, Sound
from tests.support import vocabularies
from tests.training import tiny_recipe
from training import cli
from training.checkpoint import write_atomically
from training.data.audio_files import SoundFilesSettings
from training.data.captions import WordSettings, open_words
from training.data.image_folder import ImageFolderSettings
from training.data.image_text import PairsSettings
from training.data.rgbd_scenes import RGBDSettings
from training.data.sampler import BatchShare, EpochBatches
from training.data.source import Augment, SamplePreparation, SampleSource, UnreadableSample
from training.data.video_files import VideoFilesSettings
from training.data.webdataset import WebDatasetSettings
from training.errors import DataError
from training.recipe_settings import RecipeSettings

PREPROCESS = Preprocess(image_size=16, short_side=16, mean=(0.5,) * 3, std=(0.5,) * 3)
SOUND = Sound(frames=32, mel_bins=16, mean=-4.0, std=4.0)


@pytest.fixture
def preparation(tmp_path: Path) -> SamplePreparation:
    return SamplePreparation(PREPROCESS, Clip(frames=4, stride=2, rate=10), SOUND, Augment(), words=4, cache=tmp_path / "cache")


def png(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 24), colour).save(file, "PNG")
    return file.getvalue()


def shard(file: Path, samples: Mapping[str, Mapping[str, bytes]]) -> None:
    with tarfile.open(file, "w") as tar:
        for key, members in samples.items():
            for extension, content in members.items():
                entry = tarfile.TarInfo(f"{key}.{extension}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Twelve shards of five samples, each with its number in its image."""
    for number in range(12):
        samples = [5 * number + position for position in range(5)]
        members = {f"{s:04d}": {"png": png((s, s, s)), "cls": str(s % 3).encode(), "txt": b"a flag of blue"} for s in samples}
        shard(tmp_path / f"part-{number:02d}.tar", members)
    return str(tmp_path / "part-{00..11}.tar")


def test_shards_are_read_once_each_in_local_order(shards: str, preparation: SamplePreparation) -> None:
    source = WebDatasetSettings(shards=[shards], labels=["a", "b", "c"]).open(preparation)
    assert (len(source), source.labels) == (60, ("a", "b", "c"))
    batches = EpochBatches(source, BatchShare(4), seed=0)
    order = [draw.sample for batch in batches for draw in batch]
    assert sorted(order) == list(range(60))
    assert order != sorted(order)
    assert len({sample // 5 for sample in order[:40]}) == 8  # eight shards at a time
    for number in (0, 7, 59):
        sample = source.sample(number, 1)
        assert int(sample["label"]) == number % 3
        assert torch.allclose(sample["pixels"], torch.full((3, 16, 16), number / 255 * 2 - 1), atol=1e-6)


def test_shards_by_url_have_the_same_samples(shards: str, tmp_path: Path, preparation: SamplePreparation) -> None:
    near = WebDatasetSettings(shards=[shards]).open(preparation)
    far = WebDatasetSettings(shards=[f"local://{shards}"]).open(preparation)
    assert len(far) == 60
    assert torch.equal(near.sample(33, 5)["pixels"], far.sample(33, 5)["pixels"])


def test_a_broken_shard_is_named(tmp_path: Path, preparation: SamplePreparation) -> None:
    (tmp_path / "bad.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(DataError, match=r"bad\.tar: cannot be read as a tar shard"):
        WebDatasetSettings(shards=[str(tmp_path / "*.tar")]).open(preparation)
    with pytest.raises(DataError, match=r"none\.tar: there is no such file"):
        WebDatasetSettings(shards=[str(tmp_path / "none.tar")]).open(preparation)


def test_two_processes_may_list_a_shard_at_once(shards: str, preparation: SamplePreparation, monkeypatch: pytest.MonkeyPatch) -> None:
    both_write = threading.Barrier(2)
    fsync = os.fsync

    def joint(descriptor: int) -> None:
        fsync(descriptor)
        both_write.wait(10)

    monkeypatch.setattr(os, "fsync", joint)
    settings = WebDatasetSettings(shards=[shards.replace("{00..11}", "03")])
    with ThreadPoolExecutor(2) as processes:
        assert [len(source) for source in processes.map(WebDatasetSettings.open, [settings] * 2, [preparation] * 2)] == [5, 5]
    assert len(list((preparation.cache / "shards").iterdir())) == 1


def test_what_cannot_be_written_to_its_end_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "listing.json", "\ud800")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    model = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "flag": 3, "blue": 4, "red": 5}, unk_token="[UNK]"))
    model.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    file = tmp_path / "tokenizer.json"
    model.save(str(file))
    return file


def test_captions_become_token_ids_cut_or_padded(tmp_path: Path, tokenizer: Path, preparation: SamplePreparation) -> None:
    captions = ["a\u2028blue flag", "red", "a red flag a blue flag"]
    for number, caption in enumerate(captions):
        (tmp_path / f"{number}.png").write_bytes(png((number, 0, 0)))
        with (tmp_path / "captions.jsonl").open("a") as file:
            file.write(json.dumps({"image": f"{number}.png", "caption": caption}, ensure_ascii=False) + "\n")
    words = WordSettings(tokenizer=tokenizer, special=False)
    source = PairsSettings(path=tmp_path, words=words).open(preparation)
    assert [source.sample(number, 0)["words"].tolist() for number in range(3)] == [[2, 4, 3, 0], [5, 0, 0, 0], [2, 5, 3, 2]]


def test_captions_keep_their_special_tokens_when_they_are_cut(tmp_path: Path) -> None:
    words = vocabularies.small_bert(tmp_path, 120)
    captions = open_words(WordSettings(tokenizer=words), 5, ["red dog", "a red dog of a cat"])
    pieces = words.read_text().split("\n")
    assert [[pieces[number] for number in row] for row in captions.read(torch.tensor([0, 1])).tolist()] == [
        ["[CLS]", "red", "dog", "[SEP]", "[PAD]"],
        ["[CLS]", "a", "red", "dog", "[SEP]"],
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"data\.words\.tokenizer: .*tokenizer\.json: cannot be read \(No such file or directory\)"),
        ("{", r"data\.words\.tokenizer: .*tokenizer\.json: not JSON of the library tokenizers"),
        ('{"model": {"type": "Neural"}}', r"data\.words\.tokenizer: .*tokenizer\.json: model\.type: 'Neural' is not accepted"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_named(content: str | None, sentence: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=sentence):
        open_words(WordSettings(tokenizer=tmp_path / "tokenizer.json"), 5, ["red"])


def test_pairs_are_read_from_shards_too(shards: str, tokenizer: Path, preparation: SamplePreparation) -> None:
    source = PairsSettings(shards=[shards], words=WordSettings(tokenizer=tokenizer, special=False)).open(preparation)
    assert source.sample(11, 0)["words"].tolist() == [2, 3, 1, 4]


@pytest.mark.parametrize("changed", ["an image", "the tokenizer"])
def test_pairs_are_others_after_a_change(changed: str, tmp_path: Path, tokenizer: Path, preparation: SamplePreparation) -> None:
    image = tmp_path / "0.png"
    image.write_bytes(png((9, 9, 9)))
    (tmp_path / "captions.jsonl").write_text('{"image": "0.png", "caption": "a flag"}\n{"image": "none.png", "caption": "red"}')
    pairs = PairsSettings(path=tmp_path, words=WordSettings(tokenizer=tokenizer, special=False))
    before = pairs.open(preparation).identity()
    assert pairs.open(preparation).identity() == before
    if changed == "an image":
        Image.new("RGB", (99, 99)).save(image)
    else:
        tokenizer.write_text(tokenizer.read_text().replace("flag", "flags"))
    assert pairs.open(preparation).identity() != before


def test_pairs_of_shards_are_others_with_another_tokenizer(shards: str, tokenizer: Path, preparation: SamplePreparation) -> None:
    pairs = PairsSettings(shards=[shards], words=WordSettings(tokenizer=tokenizer, special=False))
    before = pairs.open(preparation).identity()
    tokenizer.write_text(tokenizer.read_text().replace("flag", "flags"))
    assert pairs.open(preparation).identity() != before


def video(file: Path, frames: int, colour: int, *, sound: bool = False) -> None:
    """10 frames a second; the brightness of frame n is `colour` + 4 n."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        voice = container.add_stream("aac", rate=16000) if sound else None
        for number in range(frames):
            pixels = np.full((24, 32, 3), colour + 4 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
        if voice is not None:
            tone = np.sin(np.arange(16000 * frames // 10) * 0.3).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = 16000, Fraction(1, 16000), 0
            container.mux(voice.encode(frame))
            container.mux(voice.encode())


def test_a_clip_is_frames_at_the_wanted_distance_with_its_sound(tmp_path: Path, preparation: SamplePreparation) -> None:
    video(tmp_path / "videos/dark/one.mp4", 30, 20, sound=True)
    video(tmp_path / "videos/light/two.mp4", 30, 100, sound=True)
    source = VideoFilesSettings(path=tmp_path / "videos", sound=True).open(preparation)
    assert source.labels == ("dark", "light")
    starts = set()
    for draw in range(4):
        sample = source.sample(0, draw)
        levels = (sample["clip"] * 127.5 + 127.5).mean(dim=(0, 2, 3))  # (T,)
        assert sample["clip"].shape == (3, 4, 16, 16)
        assert float(levels[-1] - levels[0]) == pytest.approx(4 * 7, abs=5)  # four frames spread over eight, the ends included
        assert (levels.diff() > 4).all()
        assert sample["spectrogram"].shape == (1, 32, 16)
        assert int(sample["label"]) == 0
        starts.add(round(float(levels[0])))
    assert len(starts) > 1
    assert torch.equal(source.sample(1, 9)["clip"], source.sample(1, 9)["clip"])


def test_sounds_become_spectrograms_with_several_labels(tmp_path: Path, preparation: SamplePreparation) -> None:
    for name, pitch in (("low", 200), ("high", 3000)):
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes((np.sin(np.arange(8000) * pitch * 2 * np.pi / 8000) * 20000).astype(np.int16).tobytes())
    rows = [{"file": "low.wav", "labels": ["hum"]}, {"file": "high.wav", "labels": ["beep", "loud"]}]
    (tmp_path / "labels.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    source = SoundFilesSettings(path=tmp_path).open(preparation)
    low, high = source.sample(0, 0), source.sample(1, 0)
    assert source.labels == ("beep", "hum", "loud")
    assert (low["labels"].tolist(), high["labels"].tolist()) == ([0, 1, 0], [1, 0, 1])
    assert low["spectrogram"].shape == (1, 32, 16)
    assert int(low["spectrogram"].mean(dim=1).argmax()) < int(high["spectrogram"].mean(dim=1).argmax())


def test_depth_and_camera_give_the_points_of_a_scene(tmp_path: Path, preparation: SamplePreparation) -> None:
    scene = tmp_path / "scenes/one"
    scene.mkdir(parents=True)
    Image.new("RGB", (16, 16), (255, 0, 0)).save(scene / "image.png")
    depth = np.full((16, 16), 2.0, np.float32)
    depth[:4] = 0
    np.save(scene / "depth.npy", depth)
    (scene / "camera.json").write_text(json.dumps({"focal": [16, 16], "centre": [8, 8]}))
    np.save(scene / "surface.npy", np.tile(np.array([[0, 0, 2, 1, 0, 0]], np.float32), (5, 1)))
    source = RGBDSettings(path=tmp_path / "scenes", surface_points=7, seen_size=16, normalise=False).open(preparation)
    sample = source.sample(0, 1)
    assert sample["valid"].tolist() == [[False] * 16] * 4 + [[True] * 16] * 12
    assert torch.allclose(sample["points"][8, 12], torch.tensor([2 * 4.5 / 16, 2 * 0.5 / 16, 2.0]))
    assert sample["surface"].shape == sample["colours"].shape == (7, 3)
    normalised = RGBDSettings(path=tmp_path / "scenes", surface_points=7, seen_size=16).open(preparation).sample(0, 1)
    assert normalised["points"][normalised["valid"]].mean(dim=0).abs().max() < 0.1


def test_an_image_is_augmented_by_its_draw_alone(colours: Path, preparation: SamplePreparation) -> None:
    augment = Augment(crop_scale=(0.3, 1.0), rand_augment="rand-m9-mstd0.5-inc1", erase=1.0)
    source = ImageFolderSettings(path=colours).open(SamplePreparation(PREPROCESS, augment=augment))
    before = torch.random.get_rng_state()
    first = [source.sample(3, draw)["pixels"] for draw in range(4)]
    assert all(torch.equal(image, source.sample(3, draw)["pixels"]) for draw, image in enumerate(first))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ImageFolderSettings(path=Path("nowhere")), "data.path: nowhere is not a folder"),
        (SoundFilesSettings(path=Path("nowhere")), "data.path: nowhere is not a folder"),
        (RGBDSettings(path=Path("docs")), "data.path: docs has no scenes"),
        (VideoFilesSettings(path=Path("docs")), "data.path: docs has no files of kind"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, RecipeSettings) else "",
)
def test_missing_data_is_explained(settings: RecipeSettings, message: str, preparation: SamplePreparation) -> None:
    with pytest.raises(DataError, match=message):
        settings.open(preparation)


def broken(folder: Path, count: int) -> Path:
    tiny_recipe.draw(folder, 24)
    for number in range(count):
        (folder / f"red/{number}.png").write_bytes(b"no image")
    return folder


def test_an_unreadable_image_gives_way_to_another_and_is_named(
    tmp_path: Path, preparation: SamplePreparation, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = broken(tmp_path / "data", 1)
    source: SampleSource = ImageFolderSettings(path=folder).open(preparation)
    with pytest.raises(UnreadableSample, match=r"red/0\.png"):
        source.sample(48, 0)
    file = tiny_recipe.write(tiny_recipe.recipe(folder), tmp_path / "recipe.yaml")
    run = [str(file), "--phase", "pretrain", "--runs", str(tmp_path), "--no-tensorboard", "phases.0.loop.max_unreadable=0.1"]
    assert cli.main(run) == 0
    assert "red/0.png" in capsys.readouterr().err.replace("\n", "")


def test_too_many_unreadable_images_stop_run_with_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny_recipe.write(tiny_recipe.recipe(broken(tmp_path / "data", 6)), tmp_path / "recipe.yaml")
    assert cli.main([str(file), "--phase", "pretrain", "--runs", str(tmp_path), "--no-tensorboard"]) == 2
    output = capsys.readouterr().err
    assert "1 of 72 images could not be read, and loop.max_unreadable allows 1.0%" in output
    assert ".png: cannot identify image file" in output
