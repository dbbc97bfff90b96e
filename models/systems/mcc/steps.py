"""MCC answers level by level: a step asks some cells of many scenes at once, each scene by its own keys and values.

Computed once for each scene: both encoders, and keys and values of every decoder layer. A scene that is asked again brings its latent
tokens instead of an image; those asked lately keep their keys and values here, and the answers, so that another threshold, or a spacing
whose lattice nests, asks only what is new. Queries see their scene and themselves, so the cells that
a scene asks, and the others in its batch, change nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from models.bundle import BundleSpec
from models.bundle_schema import QuerySpace
from models.layers.bounded_cache import BoundedCache
from models.layers.stepwise import Completed, InProgress, JobState, Tensors, synchronize
from models.systems.mcc.flood_fill import Answers, Flood, Limits, nested
from models.systems.mcc.lattice import Lattice
from models.systems.mcc.model import MCC, MCCConfig, Scene, decode_colours

WORK_OF_A_STEP = {"cpu": 2e10, "cuda": 2e12}
"""Multiply-accumulates that one scene may cost a step: about half a second of one CPU core, and a tenth of a GPU's second, for which a
short request may have to wait."""
IN_CACHE = 12 * 2**20
"""Bytes of the widest activation of the queries that go through the decoder of a CPU together. What a layer writes the next one reads,
and memory beyond the caches is slow."""
LEAST_QUERIES, MOST_QUERIES = 256, 65_536
"""Queries of one scene in one step."""
RECENT_BYTES = 64 * 2**20
"""Keys and values of scenes that were asked lately; and as much of what was answered of them."""
MOST_SHOWN = 20_000
"""Points of a preview."""
FILLED = 0.75
"""In one batch each scene asks at least this share of the most queries; the others are padded."""
WORK_OF_KNOWING = 2000
"""Multiply-accumulates of what a query knows of both sides."""
TEMPERATURE = 0.1
"""Temperature of colours, as in the published demo."""


@dataclass(frozen=True)
class Reconstruction:
    """How far one job has come."""

    scene: Scene
    """Scene of one sample, B = 1."""
    flood: Flood
    chunk: int
    """Queries of a step."""
    returned: Tensors
    """Given back with the answer."""
    name: str = ""
    """Under which the scene and its answers are kept here; empty: they are not."""
    done: int = 0

    @property
    def total(self) -> int:
        """Grows with every level that turns out to be needed."""
        levels = 0 if self.flood.limits.dense else 2 if self.flood.stride > 1 else 1
        return self.done + math.ceil(self.flood.left / self.chunk) + (0 if self.flood.ended else levels)

    @cached_property
    def nbytes(self) -> int:
        return self.scene.nbytes + self.flood.nbytes + sum(array.nbytes for array in self.returned.values())

    @property
    def queries(self) -> int:
        """Number of queries of its next step."""
        return min(self.flood.left, self.chunk)


@dataclass(frozen=True)
class Asked:
    """Answers that are kept of a scene since it was asked."""

    lattice: Lattice
    threshold: float
    known: Answers

    @property
    def nbytes(self) -> int:
        return self.known.nbytes


class ReconstructionSteps:
    """A job: `pixels` uint8 (S, S, 3) and `seen` float32 (n, n, 3), points in normalised units, not finite where there is none; or, of a
    scene that was encoded before, `latent` (1 + N, 2C) in place of `pixels`. `asks` int64 (2,): how many queries it may ask, and how
    many a dense grid would. Further arrays are given back.

    Its answer: `cells` int32 (P,), the occupied ones and what was asked around them, sorted; `occupancy` float32 (P,); `colours` uint8
    (P, 3), 0 where not occupied; `queries` int64 (2,), how many were asked and how many a dense grid would have asked; `levels` int32 ();
    `points` int64 (), how many are occupied; `latent` and `seen` of a scene that was encoded here; and the further arrays.
    """

    unit = "levels"

    def __init__(self, model: MCC, device: torch.device) -> None:
        self._model = model
        self._device = device
        work = WORK_OF_A_STEP.get(device.type, WORK_OF_A_STEP["cpu"])
        self._chunk = max(LEAST_QUERIES, min(MOST_QUERIES, int(work / work_of_a_query(model.config))))
        self._in_cache = max(1, IN_CACHE // (4 * int(model.config.decoder_width * model.config.mlp_ratio)))
        self._recent = BoundedCache[Scene](RECENT_BYTES)
        self._asked = BoundedCache[Asked](RECENT_BYTES)
        self.recent = (self._recent, self._asked)

    def start(self, arrays: Sequence[Tensors], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        """options: `space` (the fields of `models.bundle_schema.QuerySpace`), `spacing`, `threshold`, `mode` (`adaptive` or `dense`) and
        `scene`, the name under which keys and values are kept here; empty: they are not. Raises ExcessiveJob."""
        latents = self._latents(arrays)
        scenes = self._scenes(latents, [str(asked.get("scene", "")) for asked in options])
        return list[JobState](
            self._reconstruction(job, asked, latent, scene)
            for job, asked, latent, scene in zip(arrays, options, latents, scenes, strict=True)
        )

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[InProgress | Completed]:
        jobs = [state for state in states if isinstance(state, Reconstruction)]
        moved = {index: replace(job, done=job.done + 1) for index, job in enumerate(jobs)}
        asking = [index for index, job in enumerate(jobs) if not job.flood.ended]  # others were known from earlier questions
        for group in _groups([jobs[index].queries for index in asking]):
            chosen = [asking[place] for place in group]
            for index, answers in zip(chosen, self._ask([jobs[index] for index in chosen]), strict=True):
                moved[index] = replace(moved[index], flood=jobs[index].flood.answered(answers))
        return [self._outcome(moved[index], wanted) for index, wanted in enumerate(previews)]

    def cost(self, state: JobState) -> float:
        assert isinstance(state, Reconstruction)
        return max(1.0, float(state.queries))

    def _latents(self, arrays: Sequence[Tensors]) -> list[Tensor]:
        """(1 + N, 2C) of each job; images are encoded in one pass."""
        fresh = [job for job in arrays if "latent" not in job]
        encoded: Iterator[Tensor] = iter(())
        if fresh:
            images = torch.stack([job["pixels"] for job in fresh]).permute(0, 3, 1, 2).float() / 255  # (B, 3, S, S)
            encoded = iter(self._model.encode(images, torch.stack([job["seen"] for job in fresh])).unbind(0))
        return [job["latent"] if "latent" in job else next(encoded).clone() for job in arrays]

    def _scenes(self, latents: Sequence[Tensor], names: Sequence[str]) -> list[Scene]:
        known = [self._recent.find(name) for name in names]
        missing = [index for index, scene in enumerate(known) if scene is None]
        if missing:
            made = self._model.remember(torch.stack([latents[index] for index in missing]).to(self._model.cls_token.dtype))
            for row, index in enumerate(missing):
                known[index] = made.kept(row)
        scenes = [scene for scene in known if scene is not None]
        if missing and any(names):
            synchronize(self._device)
        for name, scene in zip(names, scenes, strict=True):
            self._recent.keep(name, scene)
        return scenes

    def _reconstruction(self, job: Tensors, asked: Mapping[str, Any], latent: Tensor, scene: Scene) -> Reconstruction:
        space = QuerySpace(**asked.get("space", {}))
        most, _ = job["asks"].tolist()
        limits = Limits(float(asked.get("threshold", 0.1)), asked.get("mode", "adaptive") == "dense", most)
        lattice, name = Lattice(space, float(asked.get("spacing", space.spacing))), str(asked.get("scene", ""))
        before = self._asked.find(name)
        memory = None if before is None else nested(before.known, before.lattice, before.threshold, lattice, limits.threshold)
        flood = Flood.start(lattice, limits, job["seen"], memory)
        returned = {name: array for name, array in job.items() if name not in ("pixels", "latent", "seen")}
        if "latent" not in job:
            returned |= {"latent": latent.float(), "seen": job["seen"]}
        return Reconstruction(scene, flood, self._chunk, returned, name)

    def _ask(self, jobs: Sequence[Reconstruction]) -> Iterator[Answers]:
        """The next cells of each job, in one batch."""
        cells = [job.flood.next_cells(job.chunk) for job in jobs]
        most = max(map(len, cells))
        queries = torch.stack([_padded(_points(job.flood.lattice, mine), most) for job, mine in zip(jobs, cells, strict=True)])
        scenes = Scene.cat([job.scene for job in jobs])
        at_once = most if self._device.type != "cpu" else max(1, self._in_cache // len(jobs))
        asked = torch.cat([self._model.ask(scenes, part) for part in torch.split(queries, at_once, dim=1)], dim=1)  # (B, Q, C)
        occupancy = self._model.predict_occupancy(asked).sigmoid()  # (B, Q)
        for job, mine, features, probabilities in zip(jobs, cells, asked, occupancy, strict=True):
            found = probabilities[: len(mine)].float()
            occupied = found > job.flood.limits.threshold
            colours = torch.zeros(len(mine), 3, dtype=torch.uint8, device=self._device)
            decoded = decode_colours(self._model.predict(features[: len(mine)][occupied]), TEMPERATURE)
            colours[occupied] = (decoded.clamp(0, 1) * 255).round().to(torch.uint8)
            yield Answers(mine, found.clone(), colours)

    def _outcome(self, job: Reconstruction, wanted: bool) -> InProgress | Completed:
        if job.flood.ended:
            if job.flood.asked and job.name:  # else the earlier answers held more
                synchronize(self._device)
                self._asked.keep(job.name, Asked(job.flood.lattice, job.flood.limits.threshold, job.flood.known.kept()))
            return Completed(self._answer(job))
        return InProgress(job, self._preview(job) if wanted else None)

    def _answer(self, job: Reconstruction) -> dict[str, Tensor]:
        surface = job.flood.surface()
        returned = {name: array for name, array in job.returned.items() if name != "asks"}
        return {
            "cells": surface.cells.int(),
            "occupancy": surface.occupancy,
            "colours": surface.colours,
            "queries": torch.tensor([job.flood.asked, int(job.returned["asks"][1])]),
            "levels": torch.tensor(job.flood.level, dtype=torch.int32),
            "points": (surface.occupancy > job.flood.limits.threshold).sum(),
            **returned,
        }

    def _preview(self, job: Reconstruction) -> dict[str, Tensor]:
        """Occupied cells found so far, evenly thinned: cells int32 (P,), colours uint8 (P, 3), level int32 (), and the further arrays that
        place them."""
        found = job.flood.occupied()
        shown = found.at(torch.arange(0, len(found.cells), math.ceil(len(found.cells) / MOST_SHOWN) or 1, device=self._device))
        placed = {name: array for name, array in job.returned.items() if name not in ("asks", "latent", "seen")}
        level = torch.tensor(job.flood.level, dtype=torch.int32)
        return {"cells": shown.cells.int(), "colours": shown.colours, "level": level, **placed}


def reconstruct_steps(model: nn.Module, _spec: BundleSpec, device: torch.device) -> ReconstructionSteps:
    assert isinstance(model, MCC)
    return ReconstructionSteps(model, device)


def work_of_a_query(config: MCCConfig) -> float:
    """Multiply-accumulates of one query in the decoder."""
    width = config.decoder_width
    block = (4 + 2 * config.mlp_ratio) * width**2 + 2 * (config.side**2 + 2) * width
    return config.decoder_depth * block + width + (0 if config.back is None else WORK_OF_KNOWING + width**2)


def _groups(counts: Sequence[int]) -> Iterator[list[int]]:
    """Indices of jobs that share a batch, by their numbers of queries."""
    group: list[int] = []
    for index in sorted(range(len(counts)), key=lambda index: -counts[index]):
        if group and counts[index] < FILLED * counts[group[0]]:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _points(lattice: Lattice, cells: Tensor) -> Tensor:
    """(P,) → (P, 3)."""
    axes = (torch.from_numpy(axis).to(cells.device) for axis in lattice.axes)
    return torch.stack([axis[place] for axis, place in zip(axes, lattice.places(cells), strict=True)], dim=1)


def _padded(points: Tensor, count: int) -> Tensor:
    """(P, 3) → (count, 3), by repeating the last one."""
    return points if len(points) == count else torch.cat([points, points[-1:].expand(count - len(points), 3)])
