"""Reconstruction of held-out objects: occupancy queries as in the service, and simple shapes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import binary_fill_holes

from models.arrays import Float32Array
from models.bundle_schema import QuerySpace
from models.systems.mcc.flood_fill import CellPredictions, FloodFill, FloodLimits
from models.systems.mcc.lattice import MAX_CELLS, Lattice
from models.systems.mcc.model import MCC, MEAN, STD
from models.systems.mcc.surfaces import VisibleSurface, fit_camera, reconstruct_hidden_surface
from starters.data.renders.scenes import RenderedScenes
from starters.evaluation.reconstruction.surfaces import extrude, sample_surface
from training.data.source import Sample
from training.errors import TrainingError

SEEN, EXTRUDED = "seen points", "seen points, extruded"
JOINED = "joined with the seen points"
_CHUNK = 4000
_WALL_STEP = 0.05
_DENSITY = 400.0
"""Number of points per unit of area, one per square of half the matching distance."""


def views_of(source: RenderedScenes, count: int) -> dict[str, list[int]]:
    """Return the indices of the first views by object."""
    views: dict[str, list[int]] = {}
    for index, name in enumerate(source.objects):
        if len(views.setdefault(name, [])) < count:
            views[name].append(index)
    return views


@torch.inference_mode()
def occupancies(
    model: MCC, sample: Sample, space: QuerySpace, spacing: float, threshold: float | None = None
) -> tuple[Float32Array, npt.NDArray[np.float32]]:
    """Return queried points (Q, 3) and their occupancy (Q,).

    threshold: None for a dense grid; otherwise points are queried as in the service's mode `adaptive`.
    """
    seen = sample["points"].masked_fill(~sample["valid"].unsqueeze(-1), torch.inf)
    scene = model.cache_scene(model.encode(image_of(sample)[None], seen[None]))
    lattice = Lattice(space, spacing)
    flood = FloodFill.start(lattice, FloodLimits(threshold or 0.0, dense=threshold is None, max_queries=MAX_CELLS), seen)
    while not flood.is_done:
        cells = flood.next_cells(_CHUNK)
        points = torch.from_numpy(lattice.points(cells.numpy()))
        occupancy = model.predict_occupancy(model.decode_queries(scene, points[None]))[0].sigmoid()
        flood = flood.update(CellPredictions(cells, occupancy, torch.zeros(len(cells), 3, dtype=torch.uint8)))
    return lattice.points(flood.predictions.cells.numpy()), flood.predictions.occupancy.numpy()


def front_of(sample: Sample) -> VisibleSurface:
    """Return the visible surface of a sample, as in a request without a mask: enclosed pixels belong to the object."""
    from_camera = (sample["points"] - sample["camera"]).numpy()
    valid = sample["valid"].numpy()
    camera = fit_camera(from_camera, valid)
    if camera is None:
        raise TrainingError("data: no camera projects the points of a view to their pixels")
    height, width = valid.shape
    mask = binary_fill_holes(valid)
    frame = np.array([0, 0, width, height], np.float32)
    depth = np.where(valid, from_camera[..., 2], np.nan).astype(np.float32)
    return VisibleSurface(depth, mask, camera, frame, -sample["camera"].numpy())


def sample_joined_surface(
    front: VisibleSurface,
    space: QuerySpace,
    spacing: float,
    points: Float32Array,
    probability: npt.NDArray[np.float32],
    threshold: float,
    seed: int,
) -> Float32Array:
    """Sample the service's surface evenly, its visible and hidden part. points (Q, 3): queries."""
    lattice = Lattice(space, spacing)
    places = np.rint((points - np.array(lattice.origin, np.float32)) / lattice.pitch).astype(np.int64)
    cells = np.ravel_multi_index(tuple(places.T), lattice.shape)
    guessed = reconstruct_hidden_surface(lattice, cells, probability, np.zeros((len(cells), 3), np.uint8), threshold, front)
    seen, dice = front.mesh(lattice.pitch), np.random.default_rng(seed)
    parts = [sample_surface(mesh.vertices, mesh.faces, _DENSITY, dice) for mesh in (seen, guessed)]
    return np.concatenate(parts)


def image_of(sample: Sample) -> torch.Tensor:
    """Return the image (3, S, S) in 0..1, the input of the network."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return sample["pixels"] * std + mean


def extruded_points(sample: Sample, depth: float) -> Float32Array:
    """Extrude the visible points to a depth, as a hollow body."""
    return extrude(sample["points"].numpy(), sample["valid"].numpy(), sample["camera"].numpy(), depth, _WALL_STEP)
