"""The published sizes of every system by name: each model's own file says what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.diffmae import model as diffmae
from models.hmr2 import model as hmr2
from models.lart import model as lart
from models.mae import model as mae
from models.mae_st import model as video_mae
from models.mae_st import pretraining as video_mae_pretraining
from models.mavil import audio_mae
from models.mavil import model as mavil
from models.mavil import pretraining as mavil_pretraining
from models.mcc import model as mcc
from models.mvit import model as mvit
from models.mvit import reversible as mvit_reversible
from models.pairs import cit, flip, maws
from models.phalp import appearance as phalp_appearance
from models.vit import model as vit


@dataclass(frozen=True)
class Size:
    name: str
    system: str
    architecture: str
    config: Any
    source: str
    """The paper."""


TABLES: tuple[tuple[str, str, str, Mapping[str, Any]], ...] = (
    ("ViT", "vit", "arXiv 2010.11929", vit.SIZES),
    ("MAE", "mae", "arXiv 2111.06377", mae.SIZES),
    ("MAE-ST", "video_mae", "arXiv 2205.09113", video_mae.SIZES),
    ("MAE-ST", "video_mae_pretraining", "arXiv 2205.09113", video_mae_pretraining.PRETRAINING_SIZES),
    ("MAWS", "vit", "arXiv 2303.13496", {f"maws_{name}": config for name, config in maws.VISION.items()}),
    ("MAWS", "maws_clip", "arXiv 2303.13496", {f"maws_{name}": config for name, config in maws.CLIP.items()}),
    ("FLIP", "flip", "arXiv 2212.00794", flip.PUBLISHED),
    ("CiT", "cit", "arXiv 2301.02241", cit.PUBLISHED),
    ("DiffMAE", "diffmae", "arXiv 2304.03283", diffmae.SIZES),
    ("MCC", "mcc", "arXiv 2301.08247", mcc.PUBLISHED),
    ("MViT", "mvit", "arXiv 2112.01526", mvit.PUBLISHED),
    ("Rev-ViT", "vit", "arXiv 2302.04869", mvit_reversible.PUBLISHED_VITS),
    ("Rev-MViT", "rev_mvit", "arXiv 2302.04869", mvit_reversible.PUBLISHED),
    ("MAViL", "mavil", "arXiv 2212.08071", mavil.SIZES),
    ("MAViL", "mavil_pretraining", "arXiv 2212.08071", mavil_pretraining.PRETRAINING_SIZES),
    ("Audio-MAE", "audio_mae", "arXiv 2207.06405", audio_mae.SIZES),
    ("HMR2", "hmr2", "arXiv 2305.20091", hmr2.PUBLISHED),
    ("LART", "lart", "arXiv 2304.01199", lart.PUBLISHED),
    ("PHALP", "phalp_appearance", "arXiv 2112.04477", phalp_appearance.PUBLISHED),
)

SIZES: Mapping[str, Size] = {
    name: Size(name, system, architecture, config, source)
    for system, architecture, source, configs in TABLES
    for name, config in configs.items()
}
