"""A user's SMPL mesh as a file of named arrays, .npz or .safetensors. Nothing in it is unpickled.

The mesh is licensed to each user, so the file stays where its user keeps it. Array names are those of the mesh in HMR2's checkpoints
without `smpl.`; other arrays in the file are not read.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.people.smpl import JOINTS, VERTEX_JOINTS, SMPLBody

EXTRA_JOINTS = "vertex_joint_selector.extra_joints_idxs"
FLOAT_ARRAYS = ("v_template", "shapedirs", "posedirs", "J_regressor", "lbs_weights", "joint_regressor_extra")
INTEGER_ARRAYS = ("parents", "joint_map", EXTRA_JOINTS)
"""Names of the arrays; `models.people.smpl.SMPLBody` has their shapes."""
SUFFIXES = (".npz", ".safetensors")


def read_body(path: Path) -> SMPLBody:
    """Read a user's body. Raises ValueError that names the file, the array, what is wrong with it and what is needed."""
    arrays = _read_arrays(path)
    vertices = arrays["v_template"].shape[0] if arrays["v_template"].dim() == 2 else 0
    if not vertices:
        raise ValueError(f"{path}: v_template: shape {tuple(arrays['v_template'].shape)} where (V, 3) with V vertices is needed")
    body = SMPLBody(vertices, faces=0)
    expected = body.state_dict()
    for name in (*FLOAT_ARRAYS, *INTEGER_ARRAYS):
        if arrays[name].shape != expected[name].shape:
            shape, needed = tuple(arrays[name].shape), tuple(expected[name].shape)
            raise ValueError(f"{path}: {name}: shape {shape} where {needed} is needed for a mesh of {vertices} vertices")
    _check_values(path, arrays, vertices)
    converted = {name: arrays[name].to(expected[name].dtype) for name in (*FLOAT_ARRAYS, *INTEGER_ARRAYS)}
    body.load_state_dict(expected | converted)
    return body.eval().requires_grad_(False)


def _check_values(path: Path, arrays: Mapping[str, Tensor], vertices: int) -> None:
    for name in FLOAT_ARRAYS:
        if not arrays[name].is_floating_point():
            raise ValueError(f"{path}: {name}: {arrays[name].dtype} where floating-point numbers are needed")
        if not torch.isfinite(arrays[name]).all():
            raise ValueError(f"{path}: {name}: holds infinite values or NaN")
    for name in INTEGER_ARRAYS:
        if arrays[name].is_floating_point() or arrays[name].is_complex():
            raise ValueError(f"{path}: {name}: {arrays[name].dtype} where integers are needed")
    for joint, parent in list(enumerate(arrays["parents"].tolist()))[1:]:
        if not 0 <= parent < joint:
            raise ValueError(f"{path}: parents: joint {joint} has parent {parent} where one of 0 to {joint - 1} is needed")
    for name, count in (("joint_map", JOINTS + VERTEX_JOINTS), (EXTRA_JOINTS, vertices)):
        lowest, highest = int(arrays[name].min()), int(arrays[name].max())
        if lowest < 0 or highest >= count:
            raise ValueError(f"{path}: {name}: {lowest} to {highest} where numbers of 0 to {count - 1} are needed")


def _read_arrays(path: Path) -> dict[str, Tensor]:
    """Read the arrays that a body needs."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: a body's file is an .npz or a .safetensors of arrays; others are not opened, since nothing is unpickled")
    try:
        arrays = _from_npz(path) if path.suffix == ".npz" else _from_safetensors(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read as {path.suffix} of arrays ({error})") from error
    if missing := [name for name in (*FLOAT_ARRAYS, *INTEGER_ARRAYS) if name not in arrays]:
        raise ValueError(f"{path}: lacks {', '.join(missing)}")
    return arrays


def _from_npz(path: Path) -> dict[str, Tensor]:
    """Read an .npz. Raises ValueError for arrays of Python objects, which would have to be unpickled."""
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("one array without a name")
    with file:
        return {name: _tensor(name, file[name]) for name in (*FLOAT_ARRAYS, *INTEGER_ARRAYS) if name in file.files}


def _tensor(name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name}: {array.dtype} where numbers are needed")
    native = array.astype(np.int64 if array.dtype.kind in "iu" else np.float64 if array.dtype.itemsize > 4 else np.float32)
    return torch.from_numpy(native)


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        return {name: file.get_tensor(name) for name in (*FLOAT_ARRAYS, *INTEGER_ARRAYS) if name in names}
