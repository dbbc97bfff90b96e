"""Fields of a bundle's spec."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from models.bundle import Bundle, BundleError, BundleSpec, read, replace_files, write
from models.bundle_schema import Clip, Sound, TextSpec

PICTURES = {"image_size": 32, "short_side": 36, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def spec(**changes: Any) -> BundleSpec:
    content = {
        "name": "test",
        "version": "1",
        "task": "classify",
        "architecture": "vit",
        "config": {},
        "preprocess": PICTURES,
        "labels": ["a", "b"],
        "license": "CC0-1.0",
        "weights": {"sha256": "0" * 64, "bytes": 0},
    }
    content |= changes
    return BundleSpec.from_bytes(json.dumps({key: value for key, value in content.items() if value is not None}).encode())


def test_bundles_from_before_other_tasks_load_unchanged() -> None:
    plain = spec()
    assert (plain.task, plain.schema_version, plain.labels) == ("classify", 1, ["a", "b"])
    assert (plain.image_preprocess.image_width, plain.image_preprocess.fit, plain.clip, plain.sound) == (None, "crop", None, None)
    assert BundleSpec.from_bytes(plain.to_bytes()).digest() == plain.digest()


def test_what_a_bundle_does_not_say_is_not_in_its_bytes() -> None:
    """Versions of Opsin that do not know a field must agree on the digest."""
    rule = {"method": "exemplar", "thickness": 9, "side": None}
    message = {"trained_on": "ten drawings", "note": "For tests.", "preset": "fast", "fill": [rule]}
    silent, informative = spec(), spec(**message)
    assert not message.keys() & json.loads(silent.to_bytes()).keys()
    answer = json.loads(informative.to_bytes())
    assert {name: answer[name] for name in message} == message
    assert BundleSpec.from_bytes(informative.to_bytes()) == informative


@pytest.mark.timeout(20)
def test_a_pipe_is_refused_instead_of_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "bundle.json")
    with pytest.raises(BundleError, match=r"bundle\.json: is not an ordinary file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(BundleError, match=r"model\.safetensors: is not an ordinary file"):
        Bundle(path=tmp_path, spec=spec(weights={"sha256": "0" * 64, "bytes": 0})).verify()


def test_weights_that_cannot_be_read_are_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("/proc/self/mem")  # an ordinary file without bytes, of which each read fails
    with pytest.raises(BundleError, match=r"model\.safetensors: cannot be read \(Input/output error\)"):
        Bundle(path=tmp_path, spec=spec(weights={"sha256": "0" * 64, "bytes": 0})).verify()


def test_a_task_has_only_what_it_needs() -> None:
    sound = {"frames": 1024, "mel_bins": 128, "mean": 0, "std": 1}
    audible = spec(task="audio-visual", clip={"frames": 8, "stride": 1, "rate": 2}, sound=sound)
    assert audible.clip == Clip(frames=8, stride=1, rate=2)
    assert audible.sound == Sound(sample_rate=16_000, frames=1024, mel_bins=128, mean=0, std=1)
    tracked = spec(task="track", preprocess=None, labels=None)
    assert (tracked.preprocess, tracked.labels) == (None, [])
    with pytest.raises(BundleError, match="test@1: task track takes no pictures"):
        _ = tracked.image_preprocess
    oblong = spec(task="inpaint", labels=None, preprocess={**PICTURES, "image_width": 64, "short_side": 32})
    assert (oblong.image_preprocess.image_size, oblong.image_preprocess.image_width) == (32, 64)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": "Paint it"}, "task: String should match pattern"),
        ({"config": {"depth": 60_000_000}}, "config: .*depth 60000000 is more than 1024 blocks"),
        ({"config": {"depth": 6e7}}, "config: .*depth 60000000.0 is more than 1024 blocks"),
        ({"config": {"depth": "twelve"}}, "config: .*depth 'twelve' must be an integer"),
        ({"config": {"patch_size": [16]}}, "config: .*patch_size \\[16\\] must be an integer"),
        ({"config": {"depth": 10**400}}, "is more than 1024 blocks"),
        ({"config": {"text_depth": "60000000"}}, "config: .*text_depth 60000000 is more than 1024 blocks"),
        ({"ladder": [{"name": "far", "schedule": 65_537}]}, "ladder.0.schedule: .*no block merges more than 65536 tokens"),
        ({"ladder": [{"name": "far", "schedule": {"r": 10**400, "inflection": 0}}]}, "no block merges more than 65536 tokens"),
        ({"ladder": [{"name": "far", "schedule": [1, 65_537]}]}, "no block merges more than 65536 tokens"),
        ({"labels": ["cat\u001b[31m", "dog"]}, "labels.0: .*holds control characters"),
        ({"note": "n" * 2001}, "2001 characters; every answer repeats it, so at most 2000 are taken"),
        ({"license": "mine\nor yours"}, "license: .*holds control characters"),
        ({"preprocess": None}, "task classify needs preprocess and labels"),
        ({"labels": None}, "task classify needs preprocess and labels"),
        ({"preprocess": {**PICTURES, "image_width": 24}}, "task classify takes square pictures, without image_width"),
        ({"task": "inpaint"}, "labels: task inpaint has none"),
        ({"preprocess": {**PICTURES, "short_side": 31}}, "short_side 31 is smaller than image_size 32"),
        ({"clip": {"frames": 8, "stride": 0}}, "clip.stride: Input should be greater than 0"),
    ],
)
def test_what_does_not_belong_together_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BundleError, match=sentence):
        spec(**changes)


PAIR = {"name": "pair", "task": "zero-shot", "architecture": "cit", "config": {"joint_width": 24, "width": 8}, "labels": None}
TOKENIZER = {"tokenizer.json": {"sha256": "0" * 64, "bytes": 5}}
TEXT = {"length": 32, "scale": 14.5}

DIGESTS = {
    "actions@1.1.0": "e5db7472091b6b25f499a6a8fa0ff5b2fa1c28ef1129fab935cf67b8adef8f4f",
    "actions-lart@1.0.0": "2f6a728fa88457985623d12133dccc63698ae7a62f986cb24c3b97964b29a1c2",
    "flags@1.0.0": "95d397a28b094ccfc1763489dacb0ab5f9bee715503198867ca852dd4a073521",
    "inpaint@1.1.0": "47d6539303755e1433584844e1837e045d130d4841c14b0943a8dcfc3ba13086",
    "movenet@1.0.0": "52f8670151af30cb18f323445f491252fdc09822643851b09d93c1eae088eb69",
    "photos@1.0.0": "ddd66e3e7907975c1a57a48f8f63c8c49ef0f9c628f0e24af728a690e0209e6d",
}
"""Digests of starters, as they were before bundles had files and texts. A starter that is made again gets a line of its own."""


def test_bundles_from_before_files_and_texts_keep_their_digests() -> None:
    shipped = [read(file.parent).spec for file in (Path(__file__).parents[2] / "bundles").glob("*/*/bundle.json")]
    known_values = {spec.id: spec.digest() for spec in shipped if spec.id in DIGESTS}
    assert len(known_values) >= 4
    assert known_values == {name: DIGESTS[name] for name in known_values}


def test_bundle_states_text_convention_and_extra_files() -> None:
    silent, informative = spec(**PAIR), spec(**PAIR, text={**TEXT, "templates": ["a photo of {}."]}, files=TOKENIZER)
    assert not {"text", "files"} & json.loads(silent.to_bytes()).keys()
    assert BundleSpec.from_bytes(informative.to_bytes()) == informative
    assert informative.text == TextSpec(
        length=32, padding="longest", empty=True, templates=["a photo of {}."], scale=14.5, scores="softmax"
    )
    assert spec(**PAIR, text=TEXT, files=TOKENIZER).digest() != informative.digest() != silent.digest()
    assert (informative.size, silent.size) == (5, 0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text": TEXT}, r"text: needs tokenizer\.json in files"),
        ({"task": "embed", "text": TEXT, "files": TOKENIZER}, "text: task embed reads none; only zero-shot does"),
        ({"text": {**TEXT, "length": 0}, "files": TOKENIZER}, "text.length: Input should be greater than 0"),
        ({"text": {**TEXT, "scale": 0}, "files": TOKENIZER}, "text.scale: Input should be greater than 0"),
        ({"text": {**TEXT, "padding": "left"}, "files": TOKENIZER}, "text.padding: Input should be 'longest' or 'length'"),
        ({"text": {**TEXT, "templates": []}, "files": TOKENIZER}, "text.templates: List should have at least 1 item"),
        ({"text": {**TEXT, "templates": ["{}", "a photo"]}, "files": TOKENIZER}, r"template 2, 'a photo': exactly one \{\} is needed"),
        ({"text": {**TEXT, "templates": ["{} {}"]}, "files": TOKENIZER}, r"template 1, '\{\} \{\}': exactly one \{\} is needed"),
        ({"text": {**TEXT, "templates": ["{}" + "a" * 255]}, "files": TOKENIZER}, "template 1: 257 characters are more than 256"),
        *(
            ({"files": {name: TOKENIZER["tokenizer.json"]}}, "files: .*is not a plain name of a further file")
            for name in ("../up", "a/b", ".hidden", "", "bundle.json", "model.safetensors", "model.onnx", "a" * 65)
        ),
    ],
)
def test_texts_and_files_that_cannot_be_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BundleError, match=sentence):
        spec(**{**PAIR, **changes})


@pytest.mark.parametrize(
    ("changes", "width"),
    [
        (PAIR, 24),
        ({"task": "embed", "config": {"width": 8}, "labels": None}, 8),
        ({"task": "embed", "config": {"width": 8, "reversible": True}, "labels": None}, 16),
        ({"task": "autoencode", "architecture": "mae", "config": {"width": 12, "decoder_width": 6}, "labels": None}, 12),
    ],
)
def test_the_width_of_vectors_follows_from_the_config(changes: dict[str, Any], width: int) -> None:
    assert spec(**changes).embedding_dim == width


def test_a_bundle_without_vectors_says_so() -> None:
    with pytest.raises(BundleError, match="test@1: task classify has no vectors"):
        _ = spec().embedding_dim
    with pytest.raises(BundleError, match="pair@1: config: joint_width None must be a positive integer"):
        _ = spec(**{**PAIR, "config": {"width": 8}}).embedding_dim


@pytest.fixture
def pair(tmp_path: Path) -> Bundle:
    (tmp_path / "weights").write_bytes(b"weights")
    (tmp_path / "words").write_bytes(b"words")
    informative = spec(**PAIR, text=TEXT, files=TOKENIZER)
    return write(tmp_path / "bundles", informative, tmp_path / "weights", files={"tokenizer.json": tmp_path / "words"})


def test_further_files_are_written_counted_and_verified(pair: Bundle) -> None:
    assert {file.name for file in pair.path.iterdir()} == {"bundle.json", "model.safetensors", "tokenizer.json"}
    assert pair.spec.size == len(b"weights") + len(b"words")
    assert read(pair.path).spec == pair.spec
    pair.verify()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"tokenizer\.json: missing"),
        (b"word", r"tokenizer\.json: 4 bytes where bundle\.json says 5: truncated or another file"),
        (b"wards", r"tokenizer\.json: its SHA-256 is not the one in bundle\.json: damaged or another file"),
    ],
)
def test_a_further_file_that_is_missing_or_damaged_is_found(pair: Bundle, content: bytes | None, sentence: str) -> None:
    (pair.path / "tokenizer.json").unlink()
    if content is not None:
        (pair.path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BundleError, match=sentence):
        pair.verify()


def test_files_are_replaced_and_everything_else_stays(pair: Bundle, tmp_path: Path) -> None:
    (pair.path / "README.md").write_text("a card")
    (pair.path / "figures").mkdir()
    (pair.path / "figures" / "recall.csv").write_text("0.5")
    (tmp_path / "words").write_bytes(b"other words")
    changed = replace_files(pair, pair.spec, {"tokenizer.json": tmp_path / "words"})
    assert (changed.path, changed.spec.weights) == (pair.path, pair.spec.weights)
    assert changed.spec.digest() != pair.spec.digest()
    assert read(pair.path).spec == changed.spec
    changed.verify()
    assert (pair.path / "README.md").read_text() == "a card"
    assert (pair.path / "figures" / "recall.csv").read_text() == "0.5"
    assert [folder.name for folder in pair.path.parent.iterdir()] == ["1"]


class Meanwhile:
    """A file of weights: while it is read, another process writes the same bundle."""

    def __init__(self, file: Path, root: Path) -> None:
        self.file, self.root = file, root

    def __fspath__(self) -> str:
        if not (self.root / "test/1").exists():
            write(self.root, spec(), self.file)
        return str(self.file)


def test_second_simultaneous_writer_of_a_version_is_refused(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"weights")
    with pytest.raises(BundleError, match=r"test/1: another command has just written it; choose another version, or remove it"):
        write(tmp_path, spec(labels=["c", "d"]), Meanwhile(weights, tmp_path))
    assert read(tmp_path / "test/1").spec.labels == ["a", "b"]
    assert [path.name for path in (tmp_path / "test").iterdir()] == ["1"]


def test_a_bundle_that_cannot_be_written_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path, spec(), tmp_path / "absent")
    assert not any(tmp_path.iterdir())
