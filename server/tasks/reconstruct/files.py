"""Outputs of a network for a scene, and its seen front → points and files (GLB, PLY, NPZ) in the camera's frame, in metres."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.systems.mcc.surfaces import HiddenSurface, VisibleSurface, reconstruct_hidden_surface
from server.media import mcc_inputs, meshes
from server.tasks.base import Outputs
from server.tasks.reconstruct.schema import Format, ReconstructPlan

GUESSED_POINT_SIZE = 0.7
"""Size of a guessed point, in spacings: vertices are so near to each other that the surface looks closed."""


Answer = tuple[NDArray[np.float32], bytes]
"""Points (P, 3) in metres, and the file."""


def network_answer(outputs: Outputs, plan: ReconstructPlan, kind: Format) -> Answer:
    """Present the occupied cells, and a surface between them and their empty neighbours."""
    lattice, occupied = plan.lattice, outputs["occupancy"] > plan.threshold
    places = np.stack(lattice.axis_indices(outputs["cells"].astype(np.int64)), axis=1)
    points, colours = _to_metres(lattice.points(outputs["cells"][occupied]), outputs), outputs["colours"][occupied]
    if kind == "ply":
        return points, meshes.to_ply(points, colours, spacing_of(outputs, plan))
    if kind == "npz":
        arrays = {
            "points": points,
            "colours": colours,
            "occupancy": outputs["occupancy"][occupied],
            "cells": places[occupied].astype(np.int32),
        }
        return points, meshes.to_npz(arrays | _lattice_arrays(outputs, plan))
    mesh = meshes.surface(meshes.Cells(places, outputs["occupancy"], outputs["colours"]), plan.threshold)
    units = np.array(lattice.origin, np.float32) + mesh.vertices * np.float32(lattice.pitch)
    return points, meshes.to_glb([meshes.Primitive(_to_metres(units, outputs), mesh.faces, {"COLOR_0": meshes.linear(mesh.colours)})])


def joined_answer(outputs: Outputs, plan: ReconstructPlan, front: VisibleSurface, kind: Format) -> Answer:
    """Join the seen front, point by point, with the surface behind it that the network guesses. Heavy: run it in a child process."""
    pitch = plan.lattice.pitch
    guess = reconstruct_hidden_surface(plan.lattice, outputs["cells"], outputs["occupancy"], outputs["colours"], plan.threshold, front)
    photograph = mcc_inputs.front_colours(outputs, front)
    guessed = guess.vertices[~guess.joins_visible]
    points = _to_metres(np.concatenate([front.points, guessed]), outputs)
    if kind == "glb":
        return points, meshes.to_glb([_seen_primitive(outputs, front, photograph, pitch), _guessed_primitive(outputs, guess)])
    colours = np.concatenate([photograph, guess.colours[~guess.joins_visible]])
    seen = np.repeat(np.array([1, 0], np.uint8), (len(front.points), len(guessed)))
    if kind == "ply":
        width = float(np.median(front.pixel_widths) * outputs["scale"][0])
        return points, meshes.to_ply(points, colours, spacing_of(outputs, plan), meshes.SeenPoints(seen, width))
    sizes = np.concatenate([np.minimum(front.pixel_widths, pitch), np.full(len(guessed), GUESSED_POINT_SIZE * pitch)]) * outputs["scale"][0]
    arrays = {"points": points, "colours": colours, "seen": seen, "sizes": sizes.astype(np.float32)}
    return points, meshes.to_npz(arrays | _lattice_arrays(outputs, plan))


def _seen_primitive(outputs: Outputs, front: VisibleSurface, photograph: NDArray[np.uint8], pitch: float) -> meshes.Primitive:
    """Return the depth map as triangles under the photograph. glTF multiplies textures with COLOR_0, so colours have their own name."""
    mesh = front.mesh(pitch)
    height, width = front.mask.shape
    attributes = {
        "TEXCOORD_0": (mesh.corners / np.array([width, height])).astype(np.float32),
        "_SEEN": np.ones((len(mesh.vertices), 1), np.float32),
        "_COLOR": meshes.linear(photograph[mesh.pixels]),
    }
    return meshes.Primitive(_to_metres(mesh.vertices, outputs), mesh.faces, attributes, "seen", outputs["front"].tobytes())


def _guessed_primitive(outputs: Outputs, guess: HiddenSurface) -> meshes.Primitive:
    attributes = {"COLOR_0": meshes.linear(guess.colours), "_SEEN": np.zeros((len(guess.vertices), 1), np.float32)}
    return meshes.Primitive(_to_metres(guess.vertices, outputs), guess.faces, attributes, "guessed")


def _lattice_arrays(outputs: Outputs, plan: ReconstructPlan) -> dict[str, NDArray[Any]]:
    """Return the position of the lattice."""
    origin, pitch = np.array(plan.lattice.origin, np.float32), np.array(plan.lattice.pitch, np.float32)
    return {"origin": origin, "pitch": pitch, "scale": outputs["scale"][0], "centre": outputs["centre"]}


def spacing_of(outputs: Outputs, plan: ReconstructPlan) -> float:
    """Return the distance between cells in metres."""
    return float(plan.lattice.pitch * outputs["scale"][0])


def _to_metres(points: NDArray[np.float32], outputs: Outputs) -> NDArray[np.float32]:
    return mcc_inputs.to_metres(points, float(outputs["scale"][0]), outputs["centre"])
