"""A pipeline of bodies in the published layouts and sizes, with random weights, end to end: `python -m benchmarks.bodies CLIP`.

Writes HMR 2.0 (ViT-H/16, 670 M parameters) and LART without joints and appearance (poses alone) as the published files are, imports them
with `opsin import`, joins them with the shipped detector, starts `opsin serve`, and sends a clip to `POST /v1/actions`. With
`--layout mvit` LART reads joints and appearance, too: of a made-up mesh of SMPL's size, and of MViTv2-L 40x3 with a box head. Prints how
long it took, by stage and for each person in a frame, the longest time that the worker was silent, and its memory. What the random network
says of the people means nothing; `--depth` makes the networks shallower.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Literal, get_args

import httpx2
import numpy as np
import psutil
import torch
from safetensors.torch import save_file

from benchmarks import machine, process_stats
from benchmarks.service import running
from models.checkpoints.export_bundle import write
from models.people.smpl import SMPLBody
from models.systems.actions.job_stats import STAGES
from models.systems.hmr2.checkpoint import FAMILY as HMR2_FAMILY
from models.systems.hmr2.model import HMR2, PUBLISHED
from models.systems.lart.checkpoint import FAMILY as LART_FAMILY
from models.systems.lart.model import LART, LART_MVIT, LART_POSE
from models.systems.mvit.checkpoint import FAMILY as MVIT_FAMILY
from models.systems.mvit.model import PUBLISHED as MVIT_PUBLISHED
from models.systems.mvit.model import Activation, MViT, MViTConfig
from models.systems.mvit.roi_pool import BoxPooling
from opsin import Client
from opsin.actions import VideoActions

DETECTOR = Path("bundles/movenet")
NAME = "bodies"
TIMEOUT_S = 3600.0
Layout = Literal["pose", "mvit"]
"""Inputs of LART: poses alone, or also joints and MViT's appearance."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--seconds", type=float, default=1.0, help="how much of the clip is watched")
    parser.add_argument("--depth", type=int, help="blocks of the networks, the published ones unless given")
    parser.add_argument("--layout", choices=get_args(Layout), default="pose", help="what LART reads")
    parser.add_argument("--folder", type=Path, help="where the bundles are kept; made there unless they are")
    options = parser.parse_args()
    print("\n".join(machine.describe().lines()))
    with tempfile.TemporaryDirectory() as folder:
        root = options.folder or Path(folder)
        if not (root / NAME).exists():
            make(root, options.depth, options.layout)
        pids: set[int] = set()
        watched = process_stats.largest(partial(_watch, pids), every=0.2)
        with running(root, job_timeout=TIMEOUT_S) as url, Client(url, timeout=TIMEOUT_S) as client, watched as peaks:
            started_at = time.perf_counter()
            found = client.actions(options.clip, end_s=options.seconds, top_k=1, timeout=TIMEOUT_S)
            seconds = time.perf_counter() - started_at
            time.sleep(1.0)  # what the worker counted is seen
        _print(found, seconds, peaks, len(pids))


def make(root: Path, depth: int | None = None, layout: Layout = "pose") -> None:
    """Write bundles of the networks and of the pipeline by the commands that a user would type, and the mesh next to them."""
    torch.manual_seed(0)
    body, lart = PUBLISHED["hmr2_vit_huge_patch16"], LART_MVIT if layout == "mvit" else LART_POSE
    if depth is not None:
        body, lart = replace(body, depth=depth, decoder_depth=min(depth, body.decoder_depth)), replace(lart, depth=depth)
    root.mkdir(parents=True, exist_ok=True)
    copytree(DETECTOR, root / "movenet")
    statistics = root / "mean_std.npy"
    _save_statistics(statistics)
    with tempfile.TemporaryDirectory(dir=root, prefix=".published-") as folder:
        file = Path(folder, "network.ckpt")
        write(file, HMR2_FAMILY, HMR2_FAMILY.export(HMR2(body).state_dict()), {})
        _opsin("import", str(file), "--family", "hmr2", "-o", str(root / "hmr2"))
        write(file, LART_FAMILY, LART_FAMILY.export(LART(lart).state_dict()), {})
        _opsin("import", str(file), "--family", "lart", "-o", str(root / "lart"), "--set", f"mean_std={statistics}")
        if layout == "mvit":
            _make_mvit(root, file, depth)
    statistics.unlink()
    members = ["--pose", "hmr2", "--detector", "movenet", "--actions", "lart"]
    if layout == "mvit":
        members += ["--appearance", "mvit", "--body", str(_save_mesh(root / "body.safetensors"))]
    _opsin("bundles", "join", NAME, *members, "--bundles", str(root))


def _make_mvit(root: Path, file: Path, depth: int | None) -> None:
    """MViTv2-L 40x3 at 312 pixels with AVA's box head. depth: keeps at least the last block that changes the width."""
    published = MVIT_PUBLISHED["mvitv2_l_40x3"]
    if depth is not None:
        growth = tuple((block, 2.0) for block in (1, 2, 3))
        strides = tuple((block, 1, 2, 2) if block else (block, 1, 1, 1) for block in range(max(4, depth)))
        published = replace(published, depth=max(4, depth), width_growth=growth, head_growth=growth, q_strides=strides)
    config = replace(published, classes=80, activation=Activation.SIGMOID, boxes=BoxPooling())
    write(file, MVIT_FAMILY, MVIT_FAMILY.export(MViT(config).state_dict()), {})
    chosen = {name: value for name, value in asdict(config).items() if value != getattr(MViTConfig, name)}
    settings = [word for name, value in chosen.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    _opsin("import", str(file), "--family", "mvit", "-o", str(root / "mvit"), *settings)


def _save_mesh(file: Path) -> Path:
    """Write a mesh of SMPL's size and tree, whose vertices are random."""
    body, generator = SMPLBody().state_dict(), torch.Generator().manual_seed(0)
    mesh = {
        name: torch.randn(value.shape, generator=generator) / 100 if value.is_floating_point() else torch.zeros_like(value)
        for name, value in body.items()
    }
    mesh["parents"] = torch.arange(-1, len(mesh["parents"]) - 1)
    save_file(mesh, file)
    return file


def _save_statistics(file: Path) -> None:
    """Write the means and standard deviations of the first 226 values of a pose, in the format of the published file."""
    np.save(file, np.stack([np.zeros((1, 226)), np.ones((1, 226))]))


def _opsin(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "opsin", *arguments], check=True)


def _print(found: VideoActions, seconds: float, peaks: dict[str, float], workers: int) -> None:
    seen = sum(len(person.boxes) for person in found.people)
    print(f"{len(found.people)} people, seen {seen} times; {seconds:.1f} s, {seconds / max(1, seen):.2f} for each sighting")
    print("  ".join(f"{stage} {peaks.get(stage, 0):.1f} s" for stage in STAGES))
    print(
        f"worker: silent for at most {peaks.get('silent', 0):.1f} s, at most {peaks.get('bytes', 0) / 2**30:.2f} GiB, {workers} process(es)"
    )


def _watch(pids: set[int]) -> dict[str, float]:
    """Figures of the worker; nothing while it does not answer. pids: what has been the worker."""
    with suppress(psutil.Error, httpx2.HTTPError, ValueError):
        if (worker := process_stats.worker()) is not None:
            pids.add(worker.pid)
            return _figures(worker)
    return {}


def _figures(worker: psutil.Process) -> dict[str, float]:
    [port] = [one.laddr.port for one in psutil.net_connections("inet") if (one.pid, one.status) == (worker.pid, "LISTEN")]
    figures = {"bytes": float(worker.memory_info().rss)}
    for line in httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text.splitlines():
        if line.startswith("opsin_worker_last_progress_age_seconds "):
            figures["silent"] = float(line.split()[-1])
        for stage in STAGES:
            if line.startswith("opsin_video_stage_seconds_total") and f'stage="{stage}"' in line:
                figures[stage] = float(line.split()[-1])
    return figures


if __name__ == "__main__":
    main()
