"""Published checkpoints of the systems' authors, for `opsin import --list`.

The facts are those of their papers and repositories. Hardly any states bytes: the number of parameters indicates the size. A licence that
is not stated is empty. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedFile:
    system: str
    file: str
    address: str
    """Repository whose documentation links to it; `hf://…` if `opsin import` can download it."""
    license: str
    size: str
    """One of `models.registry`; empty: none of them."""
    headless: bool = False
    """Whether it lacks the size's head."""
    parameters: int = 0
    """Number of parameters, of a checkpoint whose size is none of these; 0: unknown."""


MAE, MAE_ST, MAWS, TOME = (f"github.com/facebookresearch/{name}" for name in ("mae", "mae_st", "maws", "ToMe"))
SLOWFAST, CIT, FLIP, MCC = (f"github.com/facebookresearch/{name}" for name in ("SlowFast", "CiT", "flip", "MCC"))
HUMANS, LART, PHALP = "github.com/shubham-goel/4D-Humans", "github.com/brjathu/LART", "github.com/brjathu/PHALP"
NON_COMMERCIAL = "CC-BY-NC-4.0"
UNPUBLISHED = ("DiffMAE",)


def published_files() -> Iterator[PublishedFile]:
    yield from _hub_files()
    yield PublishedFile("DeiT", "deit_base_patch16_224-b5f2ef4d.pth", "github.com/facebookresearch/deit", "Apache-2.0", "vit_base_patch16")
    for file, size in (
        ("f367470145_deit_T_r13.pth", "vit_tiny_patch16"),
        ("f367470145_deit_S_r13.pth", "vit_small_patch16"),
        ("f367082919_vit_B_16_r16.pth", "vit_base_patch16"),
        ("f366894475_vit_L_16_r8.pth", "vit_large_patch16"),
        ("f366895717_vit_H_14_r7.pth", "vit_huge_patch14"),
    ):
        yield PublishedFile("ToMe", file, TOME, NON_COMMERCIAL, size)
    for name, size in (("base", "vit_base_patch16"), ("large", "vit_large_patch16"), ("huge", "vit_huge_patch14")):
        yield PublishedFile("MAE", f"mae_pretrain_vit_{name}.pth", MAE, NON_COMMERCIAL, size, headless=True)
        yield PublishedFile("MAE", f"mae_finetuned_vit_{name}.pth", MAE, NON_COMMERCIAL, size)
    for name in ("large", "large_ganloss"):
        yield PublishedFile("MAE", f"mae_visualize_vit_{name}.pth", MAE, NON_COMMERCIAL, "mae_vit_large_patch16")
    yield from _maws_files()
    for name, size in (("S", "rev_vit_s"), ("B", "rev_vit_b")):
        yield PublishedFile("Rev-ViT", f"REV_VIT_{name}.pyth", SLOWFAST, "", size)
    yield PublishedFile("Rev-MViT", "REV_MVIT_B.pyth", SLOWFAST, "", "rev_mvit_b")
    yield PublishedFile("Rev-MViT", "REV_MVIT_B_16x4.pyth", SLOWFAST, "", "rev_mvit_b_16x4")
    for file, size in (
        ("MViTv2_S_16x4_k400_f302660347.pyth", "mvitv2_s_16x4"),
        ("MViTv2_B_32x3_k400_f304025456.pyth", "mvitv2_b_32x3"),
        ("MViTv2_L_40x3_k400_f306903192.pyth", "mvitv2_l_40x3"),
        ("MViTv2_S_16x4_ssv2_f308341823.pyth", "mvitv2_s_16x4"),
        ("MViTv2_B_32x3_ssv2_f305803282.pyth", "mvitv2_b_32x3"),
        ("MViTv2_L_40x3_ssv2_f309603968.pyth", "mvitv2_l_40x3"),
    ):
        yield PublishedFile("MViT", file, SLOWFAST, "", size)
    for size, name in (("large", "mae_video_vit_large_patch16"), ("huge", "mae_video_vit_huge_patch16")):
        for data in ("k400", "k600", "k700"):
            yield PublishedFile("MAE-ST", f"mae_pretrain_vit_{size}_{data}.pth", MAE_ST, NON_COMMERCIAL, name)
    yield PublishedFile("FLIP", "flip_large16_laion2b_v2.zip", FLIP, "", "flip_large16")
    yield PublishedFile("FLIP", "flip_huge14_laion2b_v2.zip", FLIP, "", "flip_huge14")
    for data in ("yfcc15m", "yfcc100m"):
        yield PublishedFile("CiT", f"{data}_in1k_mocob16/pytorch_model.bin", CIT, "", "cit_mocob16")
    yield PublishedFile("MAViL", "a base checkpoint", "github.com/roger-tseng/av-superb", "", "mavil_base")
    yield PublishedFile("MCC", "co3dv2_all_categories.pth", MCC, "", "mcc_vit_base_patch16")
    yield PublishedFile("HMR2", "hmr2_data.tar.gz", HUMANS, "", "hmr2_vit_huge_patch16")
    yield PublishedFile("HMR2", "hmr2a_model.tar.gz", HUMANS, "", "hmr2_vit_huge_patch16")
    yield PublishedFile("LART", "lart_hiera_001.tar.gz", LART, "", "lart_hiera")
    yield PublishedFile("LART", "lart_mvit.ckpt", LART, "", "lart_mvit")
    yield PublishedFile("PHALP", "pose_predictor.pth", PHALP, "", "")
    yield PublishedFile("PHALP", "hmar_v2_weights.pth", PHALP, "", "phalp_appearance")


def _hub_files() -> Iterator[PublishedFile]:
    """Yield examples of checkpoints on hubs, of each class that is supported."""
    for system, repository, license_, size in (
        ("ViT", "timm/vit_base_patch16_224.augreg_in21k_ft_in1k", "Apache-2.0", "vit_base_patch16"),
        ("ViT", "google/vit-base-patch16-224", "Apache-2.0", "vit_base_patch16"),
        ("DeiT", "facebook/deit-base-patch16-224", "Apache-2.0", "vit_base_patch16"),
        ("MAE", "facebook/vit-mae-base", "Apache-2.0", "mae_vit_base_patch16"),
        ("VideoMAE", "MCG-NJU/videomae-base-finetuned-kinetics", NON_COMMERCIAL, 86_534_800),
        ("DINOv2", "facebook/dinov2-base", "Apache-2.0", 86_580_480),
        ("DINOv2", "facebook/dinov2-base-imagenet1k-1-layer", "Apache-2.0", 88_117_480),
        ("CLIP", "openai/clip-vit-base-patch32", "", "clip_base32"),
        ("SigLIP", "google/siglip-base-patch16-224", "Apache-2.0", 203_155_970),
    ):
        size_name, parameters = (size, 0) if isinstance(size, str) else ("", size)
        yield PublishedFile(system, "model.safetensors", f"hf://{repository}", license_, size_name, parameters=parameters)


def _maws_files() -> Iterator[PublishedFile]:
    names = ("vit_b16", "vit_l16", "vit_h14", "vit_2b14", "vit_6.5b14")
    folders = (("mae", names), ("mae_in1k", ("vit_2b14",)), ("mae_in21k", ("vit_l16",)), ("maws", names))
    for folder, encoders in folders:
        for name in encoders:
            yield PublishedFile("MAWS", f"pretrain/{folder}/{name}.pt", MAWS, NON_COMMERCIAL, f"maws_{name}")
    for name in names:
        pixels = 512 if name.endswith("16") else 518
        yield PublishedFile("MAWS", f"finetune/in1k/maws/{name}_{pixels}.pt", MAWS, NON_COMMERCIAL, f"maws_{name}_ft_in1k")
    for name in ("vit_b16_xlmr_b", "vit_l16_xlmr_l", "vit_h14_xlmr_l", "vit_2b14_xlmr_l"):
        yield PublishedFile("MAWS", f"pretrain/clip/{name}.pt", MAWS, NON_COMMERCIAL, f"maws_{name}")
