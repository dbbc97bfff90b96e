"""Checks that tests of recorded systems share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.bundle_schema import TaskName
from models.checkpoints import detect, families, fit, import_checkpoint, read_checkpoint
from models.loading import LoadedModel, load, weight_mismatch
from models.registry import architectures
from tests.golden.case import Case, published_keys
from tests.golden.replays import mae_st as replay_mae_st
from tests.golden.replays import mavil as replay_mavil
from tests.golden.replays import mvit as replay_mvit
from tests.golden.replays import rev as replay_rev
from tests.support.bundles.vit import seal

RECORDED: dict[str, tuple[str, str, dict[str, str]]] = {
    "timm": ("tome/vit_timm", "classify", {"heads": "4"}),
    "mae": ("mae/finetune_gap", "classify", {"heads": "4"}),
    "swag": ("tome/vit_swag", "classify", {"heads": "4"}),
    "maws": ("maws/vision_features", "embed", {"heads": "5"}),
    "minrev": ("rev/minrev_tiny", "classify", {"heads": "4"}),
    "rev_vit": ("rev/rev_vit_tiny", "classify", {}),
    "rev_mvit": ("rev/rev_mvit_image_tiny", "classify", {}),
    "rev_mvit_fused": ("rev/rev_mvit_video_tiny", "actions", {}),
    "mvit": ("mvit/mvitv2_cls_tiny", "actions", {}),
    "mvit_separate": ("mvit/mvitv1_mlp_expand_tiny", "actions", {}),
    "mae_st": ("mae_st/finetune_sep_cls", "actions", {"heads": "4"}),
    "mae_pretrained": ("mae/pretrain_pixel", "autoencode", {"heads": "6", "decoder_heads": "3"}),
    "mae_st_pretrained": ("mae_st/pretrain_joint_nocls", "autoencode", {"heads": "4", "decoder_heads": "3", "frames": "6"}),
    "audio_mae": ("mavil/audio_mae_window_decoder", "autoencode", {"heads": "4", "decoder_heads": "3", "mel_bins": "64"}),
    "mavil_pretrained": (
        "mavil/pretrain_stage1",
        "autoencode",
        {"heads": "4", "decoder_heads": "3", "frames": "4", "mel_bins": "32"},
    ),
    "mavil": ("mavil/finetune_av", "audio-visual", {"heads": "4", "mel_bins": "32"}),
    "maws_clip": ("maws/clip", "zero-shot", {"heads": "5", "text_heads": "4"}),
    "flip": ("flip/tiny_m75", "zero-shot", {"heads": "4", "text_heads": "4"}),
    "cit": ("cit/moco_tiny", "zero-shot", {"heads": "4", "text_heads": "4"}),
    "cit_augreg": ("cit/augreg_tiny", "zero-shot", {"heads": "4", "text_heads": "4"}),
    "diffmae": ("diffmae/train_video_cross", "inpaint", {}),
    "mcc": ("mcc/co3d_forward", "reconstruct", {"heads": "4", "decoder_heads": "4"}),
    "lart": ("lart/pose_appearance", "actions", {"heads": "2", "conv_stride": "4", "frames": "12"}),
    "hmr2": ("hmr2/tiny_meanshape_ief", "body", {"heads": "4", "decoder_heads": "4", "passes": "3"}),
    "phalp_pose": ("phalp/pose_predictor", "track", {"heads": "2"}),
}
"""Family → a recorded checkpoint, its task, and what its small sizes do not determine."""


def full_sizes(system: str) -> dict[str, dict[str, Tensor]]:
    """Return the published checkpoints of a system by name: names and shapes, no storage."""
    content = published_keys(system)
    return {name: {key: torch.empty(shape, device="meta") for key, shape in entry["params"].items()} for name, entry in content.items()}


def loads_strictly(published: Mapping[str, Tensor], family: str) -> None:
    """Names and shapes of a full-size checkpoint are those of the model that its family builds for it."""
    found = fit(published, families()[family], {})
    assert found.perfect, found.mismatch_message()
    with torch.device("meta"):
        model = architectures()[families()[family].architecture].build(found.config())
    assert weight_mismatch(model, found.weights) is None


def detected_at_full_size(shapes: Mapping[str, list[int]]) -> nn.Module:
    """Require that one family knows a full-size checkpoint, which its model loads strictly and gives back. Return the model, without
    storage."""
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    (name,) = detect(weights)
    family = families()[name]
    found = fit(weights, family, {})
    with torch.device("meta"):
        model = architectures()[family.architecture].build(found.config())
    model.load_state_dict(found.weights, strict=True, assign=True)
    assert {name: list(value.shape) for name, value in family.export(model.state_dict()).items()} == shapes
    return model


def round_trips(published: Mapping[str, Tensor], family: str, settings: Mapping[str, object]) -> dict[str, Tensor]:
    """Import, export and import again: bit for bit the same. Returns what was exported."""
    first = fit(published, families()[family], dict(settings))
    assert first.perfect, first.mismatch_message()
    exported = families()[family].export(first.weights)
    assert all(torch.equal(published[key], value) for key, value in exported.items())
    second = fit(exported, families()[family], dict(settings))
    assert second.perfect, second.mismatch_message()
    assert first.weights.keys() == second.weights.keys()
    assert all(torch.equal(second.weights[name], value) for name, value in first.weights.items())
    return exported


def relative_deviation(got: Tensor, expected: Tensor) -> float:
    """Return the largest error, by the largest value expected."""
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())


def recorded_network(case: Case) -> Any:
    """Return a recorded classifier of images, clips or sounds, with its `config`."""
    if case.system == "mae_st":
        return replay_mae_st.load_finetuned(case).eval()
    if case.system == "mavil":
        return replay_mavil.load_finetuned(case).eval()
    choose = replay_mvit.choose if case.system == "mvit" else replay_rev.choose
    return fit(read_checkpoint(case.checkpoint), *choose(case.config)).model().eval()


Arrays = dict[str, NDArray[Any]]


def load_case(case: Case, root: Path, family: str, settings: Mapping[str, str], task: TaskName | None = None) -> LoadedModel:
    """Import a checkpoint, write it as a bundle that normalises nothing, and load it. task: another one than its family's."""
    plain = {"mean": "0,0,0", "std": "1,1,1"}
    file = case.checkpoint if case.checkpoint.is_file() else case.folder
    spec, weights = import_checkpoint(
        file, family=family, labels=None, overrides={**settings, **plain}, name="test", version="1", license="CC0-1.0"
    )
    if task is not None:
        spec = spec.model_copy(update={"task": task, "labels": []})
    return load(seal(root, spec, weights))


def pixels_of(images: Tensor) -> Arrays:
    """Convert recorded images (B, 3, S, S), which are normalised, to pixels that normalising by `load` turns into them."""
    return {"pixels": (images.permute(0, 2, 3, 1) * 255).numpy()}


def random_pixels(count: int, size: int) -> Arrays:
    """Bytes, as a job carries them."""
    return {"pixels": np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)}


def cosines(got: NDArray[Any] | Tensor, expected: NDArray[Any] | Tensor) -> NDArray[np.float64]:
    """Row by row, in float64."""
    one, other = (np.asarray(x.detach() if isinstance(x, Tensor) else x, np.float64) for x in (got, expected))
    assert one.shape == other.shape
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    result: NDArray[np.float64] = (one * other).sum(axis=-1) / lengths
    return result


def are_units(vectors: NDArray[Any]) -> bool:
    """Float32 of length 1 within 1e-6."""
    return vectors.dtype == np.float32 and bool(np.allclose(np.linalg.norm(vectors.astype(np.float64), axis=-1), 1, atol=1e-6, rtol=0))


def zero_parameters(model: LoadedModel, *names: str) -> None:
    """Fill parameters with zeros."""
    with torch.no_grad():
        for name in names:
            model.model.get_parameter(name).zero_()
