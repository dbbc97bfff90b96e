"""Every objective around a tiny network, with a batch of four samples that have different counts of whatever it counts.

Networks with dropout are in evaluation mode: dropout is drawn from torch's generator, not per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.people.heads import TrackFeatureDims
from models.systems.depth.model import LiteDepth, LiteDepthConfig
from models.systems.diffmae.model import DiffMAE, DiffMAEConfig
from models.systems.image_text.cit import CiT, CiTConfig, VisionTower
from models.systems.image_text.flip import FLIP, FLIPConfig
from models.systems.image_text.maws import MAWSClip, MAWSClipConfig
from models.systems.lart.model import LART, LARTConfig
from models.systems.mae.model import MAE, MAEConfig
from models.systems.mae_st.model import VideoMAE, VideoMAEConfig
from models.systems.mae_st.pretraining import VideoMAEPretraining, VideoMAEPretrainingConfig
from models.systems.mavil.audio_mae import AudioMAE, AudioMAEConfig
from models.systems.mavil.model import MAViL, MAViLConfig
from models.systems.mavil.pretraining import MAViLPretraining, MAViLPretrainingConfig
from models.systems.mcc.model import MCC, MCCConfig
from models.systems.mcc.query_geometry import BackSurfaceConfig
from models.systems.vit.model import Pool, Stem, ViT, ViTConfig
from training.curation import Curation, Curator
from training.objectives.back_surface import BackSettings
from training.objectives.cit import CiTObjective, CiTSettings
from training.objectives.contrastive import ContrastiveSettings
from training.objectives.depth import DepthSettings
from training.objectives.diffmae import DiffMAEObjective, DiffMAESettings
from training.objectives.hashtags import HashtagSettings
from training.objectives.lart import LARTSettings
from training.objectives.linear_probe import LinearProbeSettings
from training.objectives.mae import MAESettings
from training.objectives.mavil import AudioVisualSettings, MAViLPretrainingObjective, MAViLSettings
from training.objectives.mcc import MCCSettings
from training.objectives.protocols import ObjectiveContext
from training.objectives.proxy_nca import ProxiesSettings
from training.objectives.supervised import SupervisedSettings

BATCH = 4
FACTS = ObjectiveContext()
Case = tuple[nn.Module, dict[str, Tensor]]

MAE_CONFIG = MAEConfig(16, 4, 3, 16, 2, 2, 8, 1, 2, mask_ratio=0.75, normalise_targets=True)
VIT_CONFIG = ViTConfig(image_size=16, patch_size=4, classes=3, width=16, depth=2, heads=2, pool=Pool.MEAN)
TOWERS = {
    "audio_frames": 32,
    "mel_bins": 16,
    "audio_patch_size": 8,
    "frames": 2,
    "image_size": 16,
    "patch_frames": 1,
    "patch_size": 8,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "fusion_depth": 1,
}
MAVIL_CONFIG = MAViLPretrainingConfig(**TOWERS, decoder_width=8, decoder_depth=1, decoder_heads=2, mask_ratio=0.5)  # type: ignore[arg-type]
DIFFMAE_CONFIG = DiffMAEConfig(
    image_size=(16, 16), patch_size=4, width=16, depth=2, heads=2, decoder_width=8, decoder_depth=2, decoder_heads=2, time_width=8
)
FLIP_CONFIG = FLIPConfig(
    image_size=16,
    patch_size=4,
    width=16,
    depth=1,
    heads=2,
    text_width=16,
    text_depth=1,
    text_heads=2,
    text_hidden=32,
    vocabulary=40,
    text_length=6,
    joint_width=8,
)
TEXT = {"vocabulary": 40, "positions": 12, "text_width": 16, "text_depth": 1, "text_heads": 2, "text_hidden": 32, "joint_width": 8}
TOWER = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 1, "heads": 2}
CIT_CONFIG = CiTConfig(**TOWER, **TEXT, tower=VisionTower.AUGREG)  # type: ignore[arg-type]
LART_CONFIG = LARTConfig(
    frames=6,
    pose=TrackFeatureDims(229, 8, 8),
    joints=TrackFeatureDims(135, 8, 8),
    appearance=None,
    depth=1,
    heads=2,
    head_dim=8,
    hidden=16,
    actions=5,
    kinetics_classes=4,
    times=8,
    people=3,
    regressor_hidden=8,
    dropout=0.0,
    drop_path=0.0,
)
MCC_CONFIG = MCCConfig(
    image_size=32, patch_size=16, width=24, depth=1, heads=2, window=4, window_heads=2, decoder_width=16, decoder_depth=2, decoder_heads=2
)


def normal(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 5) -> Tensor:
    return torch.rand(BATCH, *shape, generator=torch.Generator().manual_seed(seed))


def draw() -> Tensor:
    return torch.tensor([11, 7_000_000_000_000, 3, 42])


def mae() -> Case:
    return MAESettings().build(MAE(MAE_CONFIG), FACTS), {"pixels": normal(3, 16, 16)}


def mae_st() -> Case:
    config = VideoMAEPretrainingConfig(
        image_size=16,
        patch_size=8,
        frames=4,
        width=16,
        depth=1,
        heads=2,
        decoder_width=8,
        decoder_depth=1,
        decoder_heads=2,
        predicted_frames=2,
        mask_ratio=0.5,
    )
    return MAESettings().build(VideoMAEPretraining(config), FACTS), {"clip": normal(3, 4, 16, 16)}


def audio_mae() -> Case:
    config = AudioMAEConfig(
        audio_frames=32,
        mel_bins=16,
        patch_size=8,
        width=16,
        depth=1,
        heads=2,
        decoder_width=8,
        decoder_depth=2,
        decoder_heads=2,
        window=(2, 2),
    )
    return MAESettings().build(AudioMAE(config), FACTS).eval(), {"spectrogram": normal(1, 32, 16)}


def make_supervised() -> Case:
    settings = SupervisedSettings(label_smoothing=0.1, mixup=0.8, cutmix=1.0, merge=[0, 3, 5])
    return settings.build(ViT(replace(VIT_CONFIG, drop_path=0.5)), FACTS), {
        "pixels": normal(3, 16, 16),
        "label": torch.tensor([0, 1, 2, 0]),
    }


def supervised_reversible() -> Case:
    model = ViT(replace(VIT_CONFIG, drop_path=0.5, reversible=True, class_token=False))
    return SupervisedSettings().build(model, FACTS), {"pixels": normal(3, 16, 16), "label": torch.tensor([0, 1, 2, 0])}


def supervised_clips() -> Case:
    model = VideoMAE(VideoMAEConfig(image_size=16, patch_size=8, frames=4, width=16, depth=2, heads=2, classes=3, drop_path=0.5))
    settings = SupervisedSettings(multi_label=True, mixup=0.8)
    return settings.build(model, FACTS), {"clip": normal(3, 4, 16, 16), "labels": uniform(3).round()}


def linear_probe() -> Case:
    return LinearProbeSettings().build(ViT(VIT_CONFIG), FACTS), {"pixels": normal(3, 16, 16), "label": torch.tensor([0, 1, 2, 0])}


def hashtags() -> Case:
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    return HashtagSettings().build(ViT(VIT_CONFIG), FACTS), {"pixels": normal(3, 16, 16), "labels": labels}


def diffmae() -> Case:
    settings = DiffMAESettings.model_validate({"masks": {"random": 1, "block": 1, "boxes": 1, "strokes": 1}})
    return settings.build(DiffMAE(DIFFMAE_CONFIG), FACTS), {"pixels": normal(3, 16, 16)}


def diffmae_clip() -> Case:
    model = DiffMAE(replace(DIFFMAE_CONFIG, clip_width=16, clip_weight=0.5))
    teacher = FLIP(FLIP_CONFIG)
    return DiffMAEObjective(model, DiffMAESettings.model_validate({"masks": {"random": 1, "centre": 1}}), teacher), {
        "pixels": normal(3, 16, 16)
    }


def flip() -> Case:
    words = (uniform(6) * 40).long()
    return ContrastiveSettings().build(FLIP(FLIP_CONFIG), FACTS), {"pixels": normal(3, 16, 16), "words": words}


def proxies() -> Case:
    model = FLIP(replace(FLIP_CONFIG, image_size=32, patch_size=16, stem=Stem.LITE))
    words = (uniform(2, 6) * 40).long()
    batch = {"pixels": normal(3, 32, 32), "words": words, "label": torch.tensor([2, 0, 1, 2])}
    return ProxiesSettings(frozen_stages=4, stem_scale=0.3).build(model, ObjectiveContext(labels=("one", "two", "three"))), batch


def lit() -> Case:
    model = MAWSClip(MAWSClipConfig(**TOWER, **TEXT))  # type: ignore[arg-type]
    objective = ContrastiveSettings(freeze_vision=True).build(model, FACTS)
    return objective.eval(), {"pixels": normal(3, 16, 16), "words": 2 + (uniform(6) * 38).long()}


def cit() -> Case:
    words = 1 + (uniform(6) * 39).long()
    words[1, 4:] = 0
    return CiTObjective(CiT(CIT_CONFIG), CiTSettings()).eval(), {"pixels": normal(3, 16, 16), "words": words}


def mavil() -> Case:
    return MAViLSettings().build(MAViLPretraining(MAVIL_CONFIG), FACTS), {"spectrogram": normal(1, 32, 16), "clip": normal(3, 2, 16, 16)}


def mavil_taught() -> Case:
    teacher, student = MAViLPretraining(MAVIL_CONFIG), MAViLPretraining(replace(MAVIL_CONFIG, predict_features=True))
    return MAViLPretrainingObjective(student, teacher), {"spectrogram": normal(1, 32, 16), "clip": normal(3, 2, 16, 16)}


def audio_visual() -> Case:
    model = MAViL(MAViLConfig(**TOWERS, classes=3))  # type: ignore[arg-type]
    batch = {"spectrogram": normal(1, 32, 16), "clip": normal(3, 2, 16, 16), "labels": uniform(3).round()}
    return AudioVisualSettings(time_mask=0.3, mel_mask=0.5, video_mask=0.3).build(model, FACTS), batch


def lart() -> Case:
    shape = (6, 3)
    batch = {
        "pose": normal(*shape, 229),
        "joints": normal(*shape, 135),
        "detected": (uniform(*shape, 1, seed=1) < torch.tensor([0.9, 0.3, 0.6, 0.1]).view(-1, 1, 1, 1)).float(),
        "labelled": (uniform(*shape, 1, seed=2) * 3).floor(),
        "actions": uniform(*shape, 5),
        "raw_pose": normal(*shape, 229, seed=3),
        "kinetics": torch.tensor([[0, 1, 2], [3, 3, 3], [0, 0, 0], [1, 2, 3]]),
    }
    settings = LARTSettings(pose_weight=0.5, location_weight=1.0, kinetics_weight=0.1, power=2)
    return settings.build(LART(LART_CONFIG), FACTS).eval(), batch


def lart_actions() -> Case:
    _, batch = lart()
    return LARTSettings().build(LART(LART_CONFIG), FACTS), {name: batch[name] for name in batch if name not in ("raw_pose", "kinetics")}


def mcc() -> Case:
    batch = {
        "pixels": uniform(3, 40, 40),
        "points": normal(8, 8, 3),
        "valid": uniform(8, 8) < 0.8,
        "surface": torch.tensor([1.0, 4.0, 0.5, 30.0]).view(-1, 1, 1) * normal(60, 3),
        "colours": uniform(60, 3),
    }
    settings = MCCSettings(queries=40, size=3.0, threshold=0.6, near=0.2)
    return settings.build(MCC(replace(MCC_CONFIG, drop_path=0.5)), FACTS), batch


BACK_CONFIG = replace(MCC_CONFIG, back=BackSurfaceConfig(widths=(8, 16)))


def mcc_knowing() -> Case:
    _, batch = mcc()
    settings = MCCSettings(queries=40, size=3.0, threshold=0.6, near=0.2, degrees=0)
    return settings.build(MCC(BACK_CONFIG), FACTS), batch


def back() -> Case:
    _, batch = mcc()
    behind = {"back": batch["points"] + uniform(8, 8, 1) * batch["points"], "back_colours": uniform(8, 8, 3)}
    return BackSettings().build(MCC(BACK_CONFIG), FACTS), batch | behind


def depth() -> Case:
    batch = {"pixels": normal(3, 32, 32), "points": normal(16, 16, 3), "valid": uniform(16, 16) < 0.8}
    return DepthSettings().build(LiteDepth(LiteDepthConfig(image_size=32, widths=(8, 8, 8, 8))), FACTS), batch


CASES: Mapping[str, Callable[[], Case]] = {
    case.__name__: case
    for case in (
        mae,
        mae_st,
        audio_mae,
        make_supervised,
        supervised_reversible,
        supervised_clips,
        linear_probe,
        hashtags,
        diffmae,
        diffmae_clip,
        flip,
        proxies,
        lit,
        cit,
        mavil,
        mavil_taught,
        audio_visual,
        lart,
        lart_actions,
        mcc,
        mcc_knowing,
        back,
        depth,
    )
}


def make(name: str) -> Case:
    """Build an objective, the same on every call and in every process."""
    torch.manual_seed(0)
    objective, batch = CASES[name]()
    return objective, batch | {"draw": draw()}


def gradients(loss: Tensor, objective: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of all trained parameters."""
    named = {name: parameter for name, parameter in objective.named_parameters() if parameter.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def assert_same_gradients(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    """Require each within `tolerance` of the parameter's largest gradient, or of a thousandth of the network's."""
    assert got.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        scale = max(float(value.abs().max()), largest / 1000)
        assert float((got[name] - value).abs().max()) <= tolerance * scale, name


COUNT = 50


class NumberedCaptions:
    """Caption n is the single token n, and a label is a number."""

    def __init__(self, count: int = COUNT) -> None:
        self._count = count
        self.read_ids: list[int] = []

    def __len__(self) -> int:
        return self._count

    def read(self, ids: Tensor) -> Tensor:
        self.read_ids += ids.tolist()
        return ids.unsqueeze(1)

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[int(text)] for text in texts])


def describe(words: Tensor) -> Tensor:
    """Return a caption's direction in the plane, by its number."""
    angle = words[:, 0].double() * 0.7
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def curator(*, threshold: float = 0.8, warm_up: int = 0, pool: int = 7) -> Curator:
    return Curator(Curation(target=0, threshold=threshold, min_ratio=None), [("0",), ("3", "5")], pool=pool, warm_up=warm_up, seed=4)


def curate_rounds() -> Tensor:
    """Return the choices of three rounds, joined."""
    ours, captions = curator(), NumberedCaptions()
    return torch.cat([ours.choose(number, captions, 6, describe) for number in range(3)])
