"""`opsin calibrate --ladder` as a user meets it. What it writes is computed here again, from what the networks say of the same images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from models.bundle import Bundle, BundleSpec, read, replace_spec
from models.bundle_schema import Accuracies, Comparison, FormatComparison, Int8, Preprocess, Rung
from models.loading import load
from models.systems.mae.model import MAE, MAEConfig
from models.systems.vit.model import ViT, ViTConfig
from server.tasks.embedding import vector_jobs
from tests.support.bundles.image_text import write_tiny_pair
from tests.support.bundles.vit import UNSEALED, seal, write_null, write_tiny_encoder, write_tiny_vit, write_unserved
from tests.support.processes import opsin

COUNT = 300
WORDS = ("dog", "cat", "car", "red", "blue", "green", "house", "eat")
CAPTIONS = [f"a photo of the {one} {other}" for one in WORDS for other in WORDS if one != other]
Vectors = NDArray[np.float32]


def pixels_of(count: int) -> NDArray[np.uint8]:
    """Random images (count, 32, 32, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


def write_images(folder: Path, pixels: NDArray[np.uint8]) -> list[Path]:
    folder.mkdir(parents=True)
    files = [folder / f"{number:04}.png" for number in range(len(pixels))]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    return files


def answers(bundle: Bundle, pixels: NDArray[np.uint8], *merge: int) -> Vectors:
    """Logits or vectors of one batch."""
    name = "logits" if bundle.spec.task == "classify" else "embedding"
    return load(bundle).forward({"pixels": pixels}, {"merge": merge})[name]


def vectors_of(bundle: Bundle, captions: Sequence[str]) -> Vectors:
    model, outputs = load(bundle), []
    for job in vector_jobs.pack_texts(captions):
        answer = model.forward({name: array[None] for name, array in job.items()}, {})
        outputs.append({**{name: rows[0] for name, rows in answer.items()}, **job})
    found = vector_jobs.vectors(outputs)
    return np.stack([found[place][0] for place in range(len(captions))])


def write_tiny_mae(root: Path) -> Bundle:
    config = MAEConfig(image_size=32, patch_size=8, width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2)
    torch.manual_seed(0)
    model = MAE(config)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    spec = BundleSpec(
        name="mae",
        version="1",
        task="autoencode",
        architecture="mae",
        config=asdict(config),
        preprocess=Preprocess(image_size=32, short_side=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        license="CC0-1.0",
        weights=UNSEALED,
    )
    return seal(root, spec, model.state_dict())


def test_accuracy_of_each_rung_is_written_into_a_classifier(tmp_path: Path) -> None:
    bundle = write_tiny_vit(tmp_path / "bundles")
    retained = Accuracies(float32=0.5, int8=0.5)
    compared = [FormatComparison(format="float32", merging=merging, max_difference=1e-5, same_labels=9) for merging in ("off", "fast")]
    quality = {"comparison": Comparison(images=9, results=compared).model_dump()}
    int8 = Int8(bound=0.1, images=9, rungs={"off": retained, "fast": retained})
    bundle = replace_spec(bundle, bundle.spec.model_copy(update={"int8": int8, "quality": quality}))
    pixels = pixels_of(COUNT)
    best = {name: answers(bundle, pixels, *merge).argmax(axis=1) for name, merge in (("off", (0, 0)), ("r2", (2, 2)), ("r7", (7, 7)))}
    labels = np.where(np.arange(COUNT) % 5 == 0, (best["off"] + 1) % 10, best["off"])  # one of five is wrong
    for number, label in enumerate(labels):
        folder = tmp_path / "images" / bundle.spec.labels[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(folder / f"{number}.png")
    images = ("--images", tmp_path / "images")
    ended = opsin("calibrate", bundle.path, "--ladder", *images, "--r", "7", "--r", "2", OPSIN_BACKEND="eager")  # "auto" is the next test's
    assert ended.returncode == 0, ended.stderr
    after = read(bundle.path)
    after.verify()
    assert [(rung.name, rung.schedule, rung.metric) for rung in after.spec.ladder] == [("r2", 2, "top-1"), ("r7", 7, "top-1")]
    for rung in after.spec.ladder:
        assert rung.accuracy == pytest.approx((best[rung.name] == labels).mean(), abs=1e-5)
        assert rung.throughput is not None and f"{rung.name:<12} top-1 {rung.accuracy:.4f} ± " in ended.stdout
    assert 0.1 < after.spec.ladder[1].accuracy < 0.8 and "off          top-1 0.8000 ± 0.0231  throughput 1.00×" in ended.stdout
    rows = after.spec.quality["ladder"]
    assert rows[0] == {"rung": "off", "throughput": 1.0, "top-1": {"value": 0.8, "standard_error": 0.02309, "n": COUNT}}
    assert [row["rung"] for row in rows] == ["off", "r2", "r7"]
    assert after.spec.int8 is not None and set(after.spec.int8.rungs) == {"off"}, "a rung that is gone"
    assert [one["merging"] for one in after.spec.quality["comparison"]["results"]] == ["off"], "the same rung"
    assert after.spec.digest() != bundle.spec.digest() and f"digest {after.spec.digest()[:12]}" in ended.stdout
    changed = {"ladder", "quality", "int8"}
    assert after.spec.model_dump(exclude=changed) == bundle.spec.model_dump(exclude=changed)


def test_without_labels_it_is_agreement_with_merging_off(tmp_path: Path) -> None:
    bundle = write_tiny_vit(tmp_path / "bundles")
    pixels = pixels_of(20)
    write_images(tmp_path / "images", pixels)
    refused = opsin("calibrate", bundle.path, "--ladder", "--images", tmp_path / "images")
    assert refused.returncode == 2 and "holds 20 images; fewer than 300 are not reliable" in refused.stderr
    assert read(bundle.path) == bundle
    ended = opsin("calibrate", bundle.path, "--ladder", "--images", tmp_path / "images", "--force")
    assert ended.returncode == 0, ended.stderr
    full, fast = read(bundle.path).spec.ladder
    assert (full.name, full.schedule, full.accuracy, full.throughput, full.metric) == ("full", 0, 1.0, 1.0, "agreement")
    off, merged = (answers(bundle, pixels, *merge).argmax(axis=1) for merge in ((0, 0), (4, 4)))
    assert (fast.name, fast.schedule, fast.accuracy) == ("fast", 4, pytest.approx((off == merged).mean(), abs=1e-5))
    visible = " ".join(opsin("bundles", "show", "tiny", "--bundles", tmp_path / "bundles").stdout.split())
    assert f"fast 4 {fast.accuracy:.1%} agreement" in visible


@pytest.mark.parametrize("make", [write_tiny_encoder, write_tiny_mae, lambda root: write_tiny_pair(root, tokenizer=False)])
def test_vectors_are_measured_by_retrieval_after_merging(make: Callable[[Path], Bundle], tmp_path: Path) -> None:
    (tmp_path / "bundles").mkdir()
    bundle = make(tmp_path / "bundles")
    pixels = pixels_of(COUNT)
    write_images(tmp_path / "images" / "inner", pixels)
    ended = opsin("calibrate", bundle.path, "--ladder", "--images", tmp_path / "images", "--r", "1", "--r", "8")
    assert ended.returncode == 0, ended.stderr
    off = answers(bundle, pixels)
    for rung in read(bundle.path).spec.ladder:
        merged = answers(bundle, pixels, *[rung.merge.r] * 2)
        found = [int(max(range(COUNT), key=(off @ vector).__getitem__)) for vector in merged]
        assert (rung.metric, rung.accuracy) == ("image-recall", pytest.approx((np.array(found) == np.arange(COUNT)).mean(), abs=1e-5))
    assert "off          image-recall 1.0000 ± 0.0000  throughput 1.00×" in ended.stdout


def test_pairs_are_measured_by_whether_captions_find_their_image(tmp_path: Path) -> None:
    bundle = write_tiny_pair(tmp_path / "bundles", architecture="flip")
    pixels = pixels_of(40)
    files = write_images(tmp_path / "images", pixels)
    words, off = vectors_of(bundle, CAPTIONS), answers(bundle, pixels)
    nearest = (words @ off.T).argmax(axis=1)
    seen = [*nearest, *(number for number in range(40) if number not in nearest)]  # whatever nothing finds is described wrongly
    captions = [*CAPTIONS, *CAPTIONS[: len(seen) - len(CAPTIONS)]]
    rows = [{"image": files[number].name, "caption": caption} for number, caption in zip(seen, captions, strict=True)]
    (tmp_path / "images" / "captions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    ended = opsin("calibrate", bundle.path, "--ladder", "--images", tmp_path / "images", "--r", "8", "--force")
    assert ended.returncode == 0, ended.stderr
    merged = (vectors_of(bundle, captions) @ answers(bundle, pixels, 8, 8).T).argmax(axis=1)
    (rung,) = read(bundle.path).spec.ladder
    assert (rung.metric, rung.accuracy) == ("text-recall", pytest.approx((merged == seen).mean(), abs=1e-5))
    first = read(bundle.path).spec.quality["ladder"][0]["text-recall"]
    assert (first["value"], first["n"]) == (pytest.approx(len(CAPTIONS) / len(seen), abs=1e-5), len(seen))
    assert rung.accuracy < first["value"]


@pytest.mark.slow
def test_a_rung_that_merges_half_of_the_work_away_is_faster(tmp_path: Path) -> None:
    """196 tokens to 16 over four blocks: by arithmetic more than twice as fast."""
    config = ViTConfig(image_size=112, patch_size=8, classes=0, width=192, depth=4, heads=3)
    torch.manual_seed(0)
    preprocess = Preprocess(image_size=112, short_side=112, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    fields = {"name": "large", "version": "1", "task": "embed", "architecture": "vit", "license": "CC0-1.0", "weights": UNSEALED}
    bundle = seal(tmp_path, BundleSpec(config=asdict(config), preprocess=preprocess, **fields), ViT(config).state_dict())
    write_images(tmp_path / "images", pixels_of(4))
    ended = opsin("calibrate", bundle.path, "--ladder", "--images", tmp_path / "images", "--force", OPSIN_THREADS="1")
    assert ended.returncode == 0, ended.stderr
    ladder = read(bundle.path).spec.ladder
    assert [rung.name for rung in ladder] == ["r12", "r24", "r31", "r39", "r46"], "those of an import"
    assert ladder[-1].throughput > 1.25 and ladder[-1].throughput > ladder[0].throughput


@pytest.mark.slow
def test_misuse_is_named_and_changes_nothing(tmp_path: Path) -> None:
    classifier, pair = write_tiny_vit(tmp_path / "bundles"), write_tiny_pair(tmp_path / "bundles")
    classifier = replace_spec(classifier, classifier.spec.model_copy(update={"default_rung": "fast"}))
    write_images(tmp_path / "images", pixels_of(2))
    write_images(tmp_path / "captioned", pixels_of(2))
    captions = tmp_path / "captioned" / "captions.jsonl"
    images, captioned = ("--images", tmp_path / "images"), ("--images", tmp_path / "captioned")
    (tmp_path / "empty").mkdir()
    for arguments, sentence in (
        ([classifier.path, *images, "--r", "3"], "--r: only valid with --ladder"),
        ([classifier.path, *images, "--ladder", "--r", "65537"], "--r 65537: a block cannot merge more than 65536 tokens"),
        (
            [classifier.path, *images, "--ladder", "--bound", "0.1"],
            "--bound: cannot be combined with --ladder, which does not measure int8",
        ),
        ([classifier.path, *images, "--ladder", "--r", "3"], "--r: the default rung of tiny@1, fast, is missing"),
        ([classifier.path, "--images", tmp_path / "none", "--ladder"], "none is not a folder"),
        ([classifier.path, "--images", tmp_path / "empty", "--ladder"], "empty: contains no images"),
        ([pair.path, *images], "words@1: vectors (task zero-shot) are only served in float32, since an index must not mix number formats"),
        (
            [write_unserved(tmp_path / "bundles").path, *images, "--ladder"],
            "its task is depth; ladders can be measured for classify, embed",
        ),
        ([write_null(tmp_path / "bundles").path, *images, "--ladder"], "null@1: has no rungs; specify some with --r"),
    ):
        ended = opsin("calibrate", *arguments)
        assert (ended.returncode, sentence in ended.stderr) == (2, True), ended.stderr
    for content, code, sentence in (
        ('{"image": "0000.png", "caption": "a\u2028dog"}\n{}\n', 2, "captions.jsonl:2: must be a JSON object"),
        ('{"image": "0000.png"}\n', 2, 'captions.jsonl:1: must be a JSON object like {"image": FILE, "caption": TEXT}'),
        ('\n{"image": "0000.png", "caption": " "}\n', 2, "captions.jsonl:2: image and caption must be texts that are not empty"),
        ('{"image": "gone.png", "caption": "a dog"}\n', 2, "gone.png"),
        ("\n", 2, "captions.jsonl: has no lines"),
    ):
        captions.write_text(content)
        ended = opsin("calibrate", pair.path, *captioned, "--ladder", "--r", "2", "--force")
        assert (ended.returncode, sentence in ended.stderr) == (code, True), ended.stderr
    assert (read(classifier.path), read(pair.path)) == (classifier, pair)


def test_rung_keeps_name_and_figures_in_bytes_of_bundle(tmp_path: Path) -> None:
    spec = write_tiny_vit(tmp_path).spec
    usual = spec.model_copy(update={"ladder": [Rung(name="fast", schedule=4, accuracy=0.5)]})
    other = spec.model_copy(update={"ladder": [Rung(name="fast", schedule=4, accuracy=0.5, metric="agreement")]})
    assert json.loads(usual.to_bytes())["ladder"] == [{"name": "fast", "schedule": 4, "accuracy": 0.5, "throughput": None}]
    assert json.loads(other.to_bytes())["ladder"][0]["metric"] == "agreement"
    assert BundleSpec.from_bytes(other.to_bytes()) == other and BundleSpec.from_bytes(usual.to_bytes()) == usual
