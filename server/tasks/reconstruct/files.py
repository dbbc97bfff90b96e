"""Outputs of a network for a scene, and the seen front → points and files: GLB, PLY and NPZ, in the camera's frame, in metres."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.systems.mcc import hidden_surface
from models.systems.mcc.visible_surface import VisibleSurface
from server.media import mcc_inputs, meshes
from server.tasks.base import Outputs
from server.tasks.reconstruct.schema import Format, ReconstructPlan

SIZE = 0.7
"""Size of a guessed point, in spacings: vertices lie so near to each other that the surface looks closed."""


Answer = tuple[NDArray[np.float32], bytes]
"""Points (P, 3) in metres, and the file."""


def network_answer(found: Outputs, plan: ReconstructPlan, kind: Format) -> Answer:
    """The occupied cells, and a surface between them and their empty neighbours."""
    lattice, occupied = plan.lattice, found["occupancy"] > plan.threshold
    places = np.stack(lattice.axis_indices(found["cells"].astype(np.int64)), axis=1)
    points, colours = _in_metres(lattice.points(found["cells"][occupied]), found), found["colours"][occupied]
    if kind == "ply":
        return points, meshes.to_ply(points, colours, spacing_of(found, plan))
    if kind == "npz":
        arrays = {
            "points": points,
            "colours": colours,
            "occupancy": found["occupancy"][occupied],
            "cells": places[occupied].astype(np.int32),
        }
        return points, meshes.to_npz(arrays | _placed(found, plan))
    mesh = meshes.surface(meshes.Cells(places, found["occupancy"], found["colours"]), plan.threshold)
    units = np.array(lattice.origin, np.float32) + mesh.vertices * np.float32(lattice.pitch)
    return points, meshes.to_glb([meshes.Primitive(_in_metres(units, found), mesh.faces, {"COLOR_0": meshes.linear(mesh.colours)})])


def joined_answer(found: Outputs, plan: ReconstructPlan, front: VisibleSurface, kind: Format) -> Answer:
    """The seen front, point by point, and the surface behind it that the network makes of the rest. Heavy: run it in a child process."""
    pitch = plan.lattice.pitch
    guess = hidden_surface.reconstruct_hidden_surface(
        plan.lattice, found["cells"], found["occupancy"], found["colours"], plan.threshold, front
    )
    photograph = mcc_inputs.front_colours(found, front)
    guessed = guess.vertices[~guess.joins_visible]
    points = _in_metres(np.concatenate([front.points, guessed]), found)
    if kind == "glb":
        return points, meshes.to_glb([_seen(found, front, photograph, pitch), _guessed(found, guess)])
    colours = np.concatenate([photograph, guess.colours[~guess.joins_visible]])
    seen = np.repeat(np.array([1, 0], np.uint8), (len(front.points), len(guessed)))
    if kind == "ply":
        width = float(np.median(front.pixel_widths) * found["scale"][0])
        return points, meshes.to_ply(points, colours, spacing_of(found, plan), meshes.SeenPoints(seen, width))
    sizes = np.concatenate([np.minimum(front.pixel_widths, pitch), np.full(len(guessed), SIZE * pitch)]) * found["scale"][0]
    arrays = {"points": points, "colours": colours, "seen": seen, "sizes": sizes.astype(np.float32)}
    return points, meshes.to_npz(arrays | _placed(found, plan))


def _seen(found: Outputs, front: VisibleSurface, photograph: NDArray[np.uint8], pitch: float) -> meshes.Primitive:
    """The depth map in triangles, under the photograph. glTF multiplies textures with COLOR_0, so colours have a name of their own."""
    mesh = front.mesh(pitch)
    height, width = front.mask.shape
    attributes = {
        "TEXCOORD_0": (mesh.corners / np.array([width, height])).astype(np.float32),
        "_SEEN": np.ones((len(mesh.vertices), 1), np.float32),
        "_COLOR": meshes.linear(photograph[mesh.pixels]),
    }
    return meshes.Primitive(_in_metres(mesh.vertices, found), mesh.faces, attributes, "seen", found["front"].tobytes())


def _guessed(found: Outputs, guess: hidden_surface.HiddenSurface) -> meshes.Primitive:
    attributes = {"COLOR_0": meshes.linear(guess.colours), "_SEEN": np.zeros((len(guess.vertices), 1), np.float32)}
    return meshes.Primitive(_in_metres(guess.vertices, found), guess.faces, attributes, "guessed")


def _placed(found: Outputs, plan: ReconstructPlan) -> dict[str, NDArray[Any]]:
    """Where the lattice lies."""
    origin, pitch = np.array(plan.lattice.origin, np.float32), np.array(plan.lattice.pitch, np.float32)
    return {"origin": origin, "pitch": pitch, "scale": found["scale"][0], "centre": found["centre"]}


def spacing_of(found: Outputs, plan: ReconstructPlan) -> float:
    """Metres between cells."""
    return float(plan.lattice.pitch * found["scale"][0])


def _in_metres(points: NDArray[np.float32], found: Outputs) -> NDArray[np.float32]:
    return mcc_inputs.to_metres(points, float(found["scale"][0]), found["centre"])
