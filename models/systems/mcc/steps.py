"""MCC level by level: a step queries some cells of many scenes in one batch, each scene by its own keys and values.

Encoders, and keys and values of every decoder layer, are computed once per scene. A job on an encoded scene brings its latent tokens
instead of an image. Recent scenes keep their keys and values here, and their predictions, so that another threshold, or a spacing whose
lattice nests, queries only new cells. Queries attend to their scene and themselves, so other queries in the batch change nothing but
rounding.
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
from models.layers.stepwise import BoundedCache, InProgress, JobState, StepCompletion, Tensors, keep_for_current_stream, synchronize
from models.systems.mcc.flood_fill import CellPredictions, FloodFill, FloodLimits, reusable_predictions
from models.systems.mcc.lattice import Lattice
from models.systems.mcc.model import MCC, MCCConfig, SceneCache, decode_colours

STEP_MACS = {"cpu": 2e10, "cuda": 2e12}
"""Multiply-accumulates per scene and step: about half a second of one CPU core, and a tenth of a second of a GPU, for which a short request
may have to wait."""
CPU_CACHE_BYTES = 12 * 2**20
"""Bytes of the widest activation of the queries that a CPU decodes together. Each layer reads the output of the one before, and memory
beyond the caches is slow."""
MIN_QUERIES, MAX_QUERIES = 256, 65_536
"""Minimum and maximum number of queries of one scene in one step."""
CACHE_BYTES = 64 * 2**20
"""Bytes of cached keys and values of recent scenes, and of their cached predictions."""
MAX_PREVIEW_POINTS = 20_000
MIN_FILL_RATIO = 0.75
"""Minimum ratio of a scene's queries to the most queries of its batch; they are padded to these."""
GEOMETRY_MACS = 2000
"""Multiply-accumulates of a query's geometric features."""
TEMPERATURE = 0.1
"""Temperature of colours, as in the published demo."""


@dataclass(frozen=True)
class ReconstructionState:
    scene: SceneCache
    """Keys and values of one scene, B = 1."""
    flood: FloodFill
    chunk: int
    returned: Tensors
    name: str = ""
    """Name under which the scene and its predictions are cached; empty: they are not."""
    done: int = 0

    @property
    def total(self) -> int:
        """Estimated number of steps; grows with every level that turns out to be needed."""
        levels = 0 if self.flood.limits.dense else 2 if self.flood.stride > 1 else 1
        return self.done + math.ceil(self.flood.remaining / self.chunk) + (0 if self.flood.is_done else levels)

    @cached_property
    def nbytes(self) -> int:
        return self.scene.nbytes + self.flood.nbytes + sum(array.nbytes for array in self.returned.values())

    @property
    def queries(self) -> int:
        return min(self.flood.remaining, self.chunk)


@dataclass(frozen=True)
class CachedPredictions:
    lattice: Lattice
    threshold: float
    predictions: CellPredictions

    @property
    def nbytes(self) -> int:
        return self.predictions.nbytes


class ReconstructionSteps:
    """Stepwise reconstruction.

    A job: `pixels` uint8 (S, S, 3) and `seen` float32 (n, n, 3), points in normalised units, not finite where there is none; or, for a
    scene that was encoded before, `latent` (1 + N, 2C) instead of `pixels`. `asks` int64 (2,): the maximum number of queries, and the
    number in a dense grid. Further arrays are returned.

    Its output: `cells` int32 (P,), occupied cells and their queried neighbours, sorted; `occupancy` float32 (P,); `colours` uint8 (P, 3), 0
    if not occupied; `queries` int64 (2,), the number of queries and that of a dense grid; `levels` int32 (); `points` int64 (), the number
    of occupied cells; `latent` and `seen` of a scene that was encoded here; and the further arrays.
    """

    unit = "levels"

    def __init__(self, model: MCC, device: torch.device) -> None:
        self._model = model
        self._device = device
        macs = STEP_MACS.get(device.type, STEP_MACS["cpu"])
        self._chunk = max(MIN_QUERIES, min(MAX_QUERIES, int(macs / query_macs(model.config))))
        self._cpu_queries = max(1, CPU_CACHE_BYTES // (4 * int(model.config.decoder_width * model.config.mlp_ratio)))
        self._scene_cache = BoundedCache[SceneCache](CACHE_BYTES)
        self._prediction_cache = BoundedCache[CachedPredictions](CACHE_BYTES)
        self.caches = (self._scene_cache, self._prediction_cache)

    def start(self, arrays: Sequence[Tensors], options: Sequence[Mapping[str, Any]]) -> list[JobState]:
        """Start jobs. Raises JobTooLarge.

        options: `space` (the fields of `models.bundle_schema.QuerySpace`), `spacing`, `threshold`, `mode` (`adaptive` or `dense`) and
        `scene`, the name under which keys and values are cached; empty: they are not.
        """
        latents = self._latents(arrays)
        scenes = self._scenes(latents, [str(job_options.get("scene", "")) for job_options in options])
        return list[JobState](
            self._start_state(job, job_options, latent, scene)
            for job, job_options, latent, scene in zip(arrays, options, latents, scenes, strict=True)
        )

    def step(self, states: Sequence[JobState], previews: Sequence[bool]) -> list[InProgress | StepCompletion]:
        jobs = [state for state in states if isinstance(state, ReconstructionState)]
        moved = {index: replace(job, done=job.done + 1) for index, job in enumerate(jobs)}
        unfinished = [index for index, job in enumerate(jobs) if not job.flood.is_done]  # others were cached by earlier jobs
        for group in _group_jobs([jobs[index].queries for index in unfinished]):
            indices = [unfinished[position] for position in group]
            for index, predictions in zip(indices, self._predict_cells([jobs[index] for index in indices]), strict=True):
                moved[index] = replace(moved[index], flood=jobs[index].flood.update(predictions))
        return [self._outcome(moved[index], preview) for index, preview in enumerate(previews)]

    def cost(self, state: JobState) -> float:
        assert isinstance(state, ReconstructionState)
        return max(1.0, float(state.queries))

    def _latents(self, arrays: Sequence[Tensors]) -> list[Tensor]:
        """Return the latent tokens (1 + N, 2C) of each job; images are encoded in one pass."""
        new_jobs = [job for job in arrays if "latent" not in job]
        encoded: Iterator[Tensor] = iter(())
        if new_jobs:
            images = torch.stack([job["pixels"] for job in new_jobs]).permute(0, 3, 1, 2).float() / 255  # (B, 3, S, S)
            encoded = iter(self._model.encode(images, torch.stack([job["seen"] for job in new_jobs])).unbind(0))
        return [job["latent"] if "latent" in job else next(encoded).clone() for job in arrays]

    def _scenes(self, latents: Sequence[Tensor], names: Sequence[str]) -> list[SceneCache]:
        cached = [self._scene_cache.get(name) for name in names]
        missing = [index for index, scene in enumerate(cached) if scene is None]
        if missing:
            caches = self._model.cache_scene(torch.stack([latents[index] for index in missing]).to(self._model.cls_token.dtype))
            for row, index in enumerate(missing):
                cached[index] = caches.copy_row(row)
        scenes = [scene for scene in cached if scene is not None]
        if missing and any(names):
            synchronize(self._device)
        for name, scene in zip(names, scenes, strict=True):
            self._scene_cache.put(name, scene)
        return scenes

    def _start_state(self, job: Tensors, options: Mapping[str, Any], latent: Tensor, scene: SceneCache) -> ReconstructionState:
        space = QuerySpace(**options.get("space", {}))
        max_queries, _ = job["asks"].tolist()
        limits = FloodLimits(float(options.get("threshold", 0.1)), options.get("mode", "adaptive") == "dense", max_queries)
        lattice, name = Lattice(space, float(options.get("spacing", space.spacing))), str(options.get("scene", ""))
        cached = None
        if (entry := self._prediction_cache.get(name)) is not None:
            predictions = entry.predictions
            for tensor in (predictions.cells, predictions.occupancy, predictions.colours):
                keep_for_current_stream(tensor)  # another thread may evict the entry, whose stream is that of the job that made it
            cached = reusable_predictions(predictions, entry.lattice, entry.threshold, lattice, limits.threshold)
        flood = FloodFill.start(lattice, limits, job["seen"], cached)
        returned = {name: array for name, array in job.items() if name not in ("pixels", "latent", "seen")}
        if "latent" not in job:
            returned |= {"latent": latent.float(), "seen": job["seen"]}
        return ReconstructionState(scene, flood, self._chunk, returned, name)

    def _predict_cells(self, jobs: Sequence[ReconstructionState]) -> Iterator[CellPredictions]:
        """Predict the next cells of each job, in one batch."""
        cells = [job.flood.next_cells(job.chunk) for job in jobs]
        max_cells = max(map(len, cells))
        queries = torch.stack(
            [_pad_points(_cell_points(job.flood.lattice, job_cells), max_cells) for job, job_cells in zip(jobs, cells, strict=True)]
        )
        scenes = SceneCache.cat([job.scene for job in jobs])
        at_once = max_cells if self._device.type != "cpu" else max(1, self._cpu_queries // len(jobs))
        decoded = torch.cat([self._model.decode_queries(scenes, part) for part in torch.split(queries, at_once, dim=1)], dim=1)  # (B, Q, C)
        occupancy = self._model.predict_occupancy(decoded).sigmoid()  # (B, Q)
        for job, job_cells, features, probabilities in zip(jobs, cells, decoded, occupancy, strict=True):
            job_probabilities = probabilities[: len(job_cells)].float()
            occupied = job_probabilities > job.flood.limits.threshold
            colours = torch.zeros(len(job_cells), 3, dtype=torch.uint8, device=self._device)
            decoded_colours = decode_colours(self._model.predict_outputs(features[: len(job_cells)][occupied]), TEMPERATURE)
            colours[occupied] = (decoded_colours.clamp(0, 1) * 255).round().to(torch.uint8)
            yield CellPredictions(job_cells, job_probabilities.clone(), colours)

    def _outcome(self, job: ReconstructionState, wants_preview: bool) -> InProgress | StepCompletion:
        if job.flood.is_done:
            if job.flood.query_count and job.name:  # else the cache has more already
                synchronize(self._device)
                self._prediction_cache.put(
                    job.name, CachedPredictions(job.flood.lattice, job.flood.limits.threshold, job.flood.predictions.copy())
                )
            return StepCompletion(self._outputs(job))
        return InProgress(job, self._preview(job) if wants_preview else None)

    def _outputs(self, job: ReconstructionState) -> dict[str, Tensor]:
        surface = job.flood.surface()
        returned = {name: array for name, array in job.returned.items() if name != "asks"}
        return {
            "cells": surface.cells.int(),
            "occupancy": surface.occupancy,
            "colours": surface.colours,
            "queries": torch.tensor([job.flood.query_count, int(job.returned["asks"][1])]),
            "levels": torch.tensor(job.flood.level, dtype=torch.int32),
            "points": (surface.occupancy > job.flood.limits.threshold).sum(),
            **returned,
        }

    def _preview(self, job: ReconstructionState) -> dict[str, Tensor]:
        """Return occupied cells found so far, evenly thinned: cells int32 (P,), colours uint8 (P, 3), level int32 (), and the arrays that
        give their positions."""
        occupied = job.flood.occupied_cells()
        preview_cells = occupied.select(
            torch.arange(0, len(occupied.cells), math.ceil(len(occupied.cells) / MAX_PREVIEW_POINTS) or 1, device=self._device)
        )
        passed_on = {name: array for name, array in job.returned.items() if name not in ("asks", "latent", "seen")}
        level = torch.tensor(job.flood.level, dtype=torch.int32)
        return {"cells": preview_cells.cells.int(), "colours": preview_cells.colours, "level": level, **passed_on}


def reconstruct_steps(model: nn.Module, _spec: BundleSpec, device: torch.device) -> ReconstructionSteps:
    assert isinstance(model, MCC)
    return ReconstructionSteps(model, device)


def query_macs(config: MCCConfig) -> float:
    """Return the multiply-accumulates of one query in the decoder."""
    width = config.decoder_width
    block = (4 + 2 * config.mlp_ratio) * width**2 + 2 * (config.side**2 + 2) * width
    return config.decoder_depth * block + width + (0 if config.back is None else GEOMETRY_MACS + width**2)


def _group_jobs(counts: Sequence[int]) -> Iterator[list[int]]:
    """Yield indices of jobs that share a batch, by their numbers of queries."""
    group: list[int] = []
    for index in sorted(range(len(counts)), key=lambda index: -counts[index]):
        if group and counts[index] < MIN_FILL_RATIO * counts[group[0]]:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _cell_points(lattice: Lattice, cells: Tensor) -> Tensor:
    """Return the coordinates (P, 3) of cells (P,)."""
    axes = (torch.from_numpy(axis).to(cells.device) for axis in lattice.axes)
    return torch.stack([axis[index] for axis, index in zip(axes, lattice.axis_indices(cells), strict=True)], dim=1)


def _pad_points(points: Tensor, count: int) -> Tensor:
    """Pad points (P, 3) to (count, 3), by repeating the last one."""
    return points if len(points) == count else torch.cat([points, points[-1:].expand(count - len(points), 3)])
