"""Bundles of classifiers of clips: the recorded networks of every architecture, small, with their weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from models.bundle import Bundle, BundleSpec, write
from models.mavil.loudness import AUDIOSET
from models.mavil.model import MAViL, MAViLConfig
from models.published import fit, read_checkpoint
from models.spec import Clip, Preprocess, Sound, Task
from tests.bundles import UNSEALED
from tests.golden import replay_mae_st, replay_mavil, replay_mvit, replay_rev
from tests.golden.case import Case, read_case

GOLDEN = Path(__file__).parents[1] / "golden"
SIDE, SHORT_SIDE = 32, 36
MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)


@dataclass(frozen=True)
class Recorded:
    """A recorded network and what its published test does."""

    folder: str
    architecture: str
    views: int
    crops: int
    offset: bool
    """Whether whole steps lie between views."""

    @property
    def case(self) -> Case:
        return read_case(GOLDEN / self.folder)

    def model(self) -> Any:
        """The network, with its `config`."""
        case = self.case
        if self.architecture == "video_mae":
            return replay_mae_st.load_finetuned(case).eval()
        choose = replay_mvit.choose if self.architecture == "mvit" else replay_rev.choose
        return fit(read_checkpoint(case.checkpoint), *choose(case.config)).model().eval()


NETWORKS = {
    "mae-st": Recorded("mae_st/finetune_sep_cls", "video_mae", 7, 3, True),
    "mvit2": Recorded("mvit/mvitv2_cls_tiny", "mvit", 5, 1, True),
    "mvit1": Recorded("mvit/mvitv1_mlp_expand_tiny", "mvit", 5, 1, False),
    "rev-mvit": Recorded("rev/rev_mvit_video_tiny", "rev_mvit", 5, 1, False),
}
"""By the names of their bundles."""


OF_SOUND = {"both": "mavil/finetune_av", "apart": "mavil/finetune_uni"}
"""MAViLs by the names of their bundles: one goes by sound and sight together, one by either."""
LOUDNESS = AUDIOSET


def mavil(name: str) -> MAViL:
    return replay_mavil.load_finetuned(read_case(GOLDEN / OF_SOUND[name])).eval()


HEARING = MAViLConfig(audio_frames=64, mel_bins=32, width=32, depth=2, heads=4, fusion_depth=0, sees=False, multi_label=False, classes=5)


def hearing() -> MAViL:
    """A network that only hears, with weights of its own."""
    torch.manual_seed(0)
    model = MAViL(HEARING)
    torch.nn.init.normal_(model.head["a"].weight)
    return model.eval()


def write_hearing(root: Path) -> Bundle:
    sound = Sound(frames=HEARING.audio_frames, mel_bins=HEARING.mel_bins, mean=LOUDNESS.mean, std=LOUDNESS.std)
    return _written(root, "sound-alone", "audio-visual", "mavil", hearing(), None, None, sound)


def write_recorded(root: Path, name: str) -> Bundle:
    recorded = NETWORKS[name]
    prepare = Preprocess(image_size=SIDE, short_side=SHORT_SIDE, interpolation="bilinear", mean=MEAN, std=STD)
    model = recorded.model()
    return _written(root, name, "actions", recorded.architecture, model, prepare, Clip(frames=model.config.frames, stride=4))


def write_mavil(root: Path, name: str) -> Bundle:
    model = mavil(name)
    config = model.config
    side, sound = config.image_size, Sound(frames=config.audio_frames, mel_bins=config.mel_bins, mean=LOUDNESS.mean, std=LOUDNESS.std)
    prepare = Preprocess(image_size=side, short_side=side, fit="squeeze", interpolation="bilinear", mean=MEAN, std=STD)
    return _written(root, name, "audio-visual", "mavil", model, prepare, Clip(frames=config.frames, stride=1, rate=2), sound)


def _written(
    root: Path,
    name: str,
    task: Task,
    architecture: str,
    model: Any,
    prepare: Preprocess | None,
    clip: Clip | None,
    sound: Sound | None = None,
) -> Bundle:
    spec = BundleSpec(
        name=name,
        version="1",
        task=task,
        architecture=architecture,
        config=dataclasses.asdict(model.config),
        preprocess=prepare,
        clip=clip,
        sound=sound,
        labels=[f"action {index}" for index in range(model.config.classes)],
        license="CC0-1.0",
        weights=UNSEALED,
    )
    with TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
        return write(root, spec, file)
