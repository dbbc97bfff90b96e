"""Models as ONNX graphs, run by ONNX Runtime."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from models.bundle import Bundle, read
from models.layers.forward import normalise
from models.loading import load
from models.merge_schedule import MergeSchedule
from models.systems.diffmae.decoder import DecoderType
from models.systems.diffmae.model import DiffMAE, DiffMAEConfig
from models.systems.mcc.model import MCC, MCCConfig
from models.systems.mcc.query_geometry import BackSurfaceConfig
from models.systems.onnx import export as onnx_export
from tests.support.bundles.onnx import colours, write_graph
from tests.support.bundles.vit import write_null, write_tiny_diffmae, write_tiny_vit
from tests.support.images import picture
from tests.support.processes import opsin

ROOT = Path(__file__).parents[4]
MCC_TINY = MCCConfig(
    image_size=32, patch_size=8, width=32, depth=1, heads=2, window=4, window_heads=2, decoder_width=32, decoder_depth=2, decoder_heads=2
)


def pixels(bundle: Bundle, count: int) -> np.ndarray:
    size = bundle.spec.image_preprocess.image_size
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def test_classifier_with_merging_gives_same_logits_for_any_batch(tmp_path: Path) -> None:
    bundle, image, target = write_tiny_vit(tmp_path), tmp_path / "photo.png", tmp_path / "tiny.onnx"
    image.write_bytes(picture(1))
    ended = opsin("export", bundle.path, "--onnx", "--rung", "fast", "--image", image, "-o", target)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "input    pixels (batch, 3, 32, 32)" in ended.stdout
    proto = onnx.load(target)
    onnx.checker.check_model(proto, full_check=True)
    assert str(ROOT).encode() not in target.read_bytes()  # nothing of the machine that made it

    images = normalise(torch.from_numpy(pixels(bundle, 7)), bundle.spec.image_preprocess, torch.float32).contiguous()
    with torch.inference_mode():
        expected = load(bundle).model(images, merge=MergeSchedule.constant(4)).logits
        plain = load(bundle).model(images).logits
    (found,) = onnxruntime.InferenceSession(target).run(None, {"pixels": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(torch.from_numpy(found), plain, atol=1e-2)


def trace(graph: onnx_export.ExportGraph) -> tuple[onnx_export.ExportGraph, onnx.ModelProto]:
    with torch.no_grad():
        return graph, onnx_export.trace(graph)


ENCODER = DiffMAEConfig(image_size=(16, 16), patch_size=4, width=24, depth=2, heads=2, time_width=8)
STEPS = dataclasses.replace(ENCODER, decoder_width=16, decoder_depth=2, decoder_heads=2)
"""The same settings as in `write_tiny_diffmae`."""


@pytest.fixture(scope="module")
def step() -> tuple[onnx_export.ExportGraph, onnx.ModelProto]:
    torch.manual_seed(0)
    return trace(onnx_export.denoising_graph(DiffMAE(STEPS).eval()))


@pytest.mark.slow
def test_a_step_of_a_sampler_runs_as_a_graph(step: tuple[onnx_export.ExportGraph, onnx.ModelProto]) -> None:
    with torch.no_grad():
        assert onnx_export.compare(*step) < 1e-5


def test_a_graph_that_differs_is_not_written(
    tmp_path: Path, step: tuple[onnx_export.ExportGraph, onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "trace", lambda graph: step[1])  # that of other weights
    with pytest.raises(onnx_export.ExportError, match="differs by"):
        onnx_export.export(write_tiny_diffmae(tmp_path), tmp_path / "step.onnx")
    assert not (tmp_path / "step.onnx").exists()


def test_what_is_no_number_counts_as_a_difference(step: tuple[onnx_export.ExportGraph, onnx.ModelProto]) -> None:
    graph, proto = step
    unknown = graph.inputs | {"noisy": torch.full_like(graph.inputs["noisy"], torch.nan)}
    with torch.no_grad():
        assert onnx_export.compare(dataclasses.replace(graph, inputs=unknown), proto) == math.inf


def test_a_link_stays_one_and_a_device_is_not_replaced(
    tmp_path: Path, step: tuple[onnx_export.ExportGraph, onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "trace", lambda graph: step[1])
    monkeypatch.setattr(onnx_export, "compare", lambda *_: 0.0)
    bundle, link, pipe = write_tiny_diffmae(tmp_path), tmp_path / "latest.onnx", tmp_path / "pipe"
    link.symlink_to(tmp_path / "step.onnx")
    onnx_export.export(bundle, link)
    assert link.is_symlink() and not (tmp_path / "step.onnx").is_symlink()
    os.mkfifo(pipe)
    with pytest.raises(onnx_export.ExportError, match="pipe: is not an ordinary file"):
        onnx_export.export(bundle, pipe)
    assert pipe.is_fifo()


@pytest.mark.slow
@pytest.mark.parametrize("back", [None, BackSurfaceConfig(widths=(8, 16))], ids=["published", "both sides"])
def test_queries_of_a_scene_run_as_a_graph(back: BackSurfaceConfig | None) -> None:
    torch.manual_seed(0)
    model = MCC(dataclasses.replace(MCC_TINY, back=back)).eval()
    with torch.no_grad():
        assert onnx_export.compare(*trace(onnx_export.query_decoder_graph(model))) < 1e-5


@pytest.mark.slow
def test_a_step_of_a_joint_decoder_runs_as_a_graph() -> None:
    torch.manual_seed(0)
    model = DiffMAE(dataclasses.replace(STEPS, decoder_type=DecoderType.JOINT)).eval()
    with torch.no_grad():
        assert onnx_export.compare(*trace(onnx_export.denoising_graph(model))) < 1e-5


FLAGS = read(ROOT / "bundles/flags/1.0.0")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rung", ["off", FLAGS.spec.default_rung, "early"])
def test_the_starter_gives_the_same_logits_on_flags_and_on_noise(rung: str, tmp_path: Path) -> None:
    """Off, the default rung, and one that merges as many tokens as can in one block."""
    drawn = [Image.open(path).convert("RGB").resize((112, 112)) for path in sorted((ROOT / "docs/pictures/flags").glob("*.png"))]
    found = FLAGS.spec.rung(rung)
    written = onnx_export.export(
        FLAGS,
        tmp_path / "flags.onnx",
        schedule=found.merge if found else MergeSchedule.off(),
        pixels=[*map(np.asarray, drawn), *pixels(FLAGS, 4)],
    )
    assert written.difference <= 1e-4


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["inpaint", "reconstruct"])
def test_the_other_starters_run_as_graphs(name: str, tmp_path: Path) -> None:
    written = onnx_export.export(read(next((ROOT / "bundles" / name).iterdir())), tmp_path / "part.onnx")
    assert written.difference <= 1e-4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--rung", "slow"], "--rung slow: tiny@1 has no such rung; available: off, full, fast"),
        (["--family", "timm"], "--family: an ONNX graph has no published layout"),
    ],
)
def test_misuse_is_named(options: list[str], sentence: str, tmp_path: Path) -> None:
    ended = opsin("export", write_tiny_vit(tmp_path).path, "--onnx", "-o", tmp_path / "tiny.onnx", *options)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert sentence in ended.stderr


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    with pytest.raises(onnx_export.ExportError, match="a classifier is checked on real images; give at least one \\(--image\\)"):
        onnx_export.export(write_tiny_vit(tmp_path), tmp_path / "tiny.onnx")
    with pytest.raises(onnx_export.ExportError, match="architecture null cannot be exported as ONNX; those that can are vit, diffmae, mcc"):
        onnx_export.export(write_null(tmp_path), tmp_path / "null.onnx")
    with pytest.raises(onnx_export.ExportError, match=r"nothing to export, its weights are an ONNX graph: .*model\.onnx"):
        onnx_export.export(write_graph(tmp_path / "graphs", colours()), tmp_path / "colours.onnx")
