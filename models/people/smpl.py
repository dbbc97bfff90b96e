"""SMPL's body: its parameters as networks estimate them, and the mesh of a user's own model file.

SMPL's mesh is licensed to each user and cannot be shipped: nothing here contains it. Poses, shapes and cameras need no mesh. A user's
mesh is a file of named arrays, .npz or .safetensors, of which nothing is unpickled. Array names are those of the mesh in HMR2's checkpoints
without `smpl.`; other arrays are not read.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

JOINTS = 24
"""Number of joints; the first one is the orientation of the whole body."""
BETAS = 10
VERTEX_JOINTS, REGRESSED_JOINTS, OPENPOSE_JOINTS = 21, 19, 25
"""Number of joints that are vertices, that are regressed from all vertices, and that OpenPose's order has."""
STATE_VALUES = 6 * JOINTS + BETAS + 3
"""Number of values that a network estimates for a person: 24 rotations by 6 numbers each, the shape, a camera (scale, x, y)."""
CHECKPOINT_PREFIX = "smpl."
"""Prefix of the mesh's names in the checkpoints of HMR2 and LART."""


@dataclass(frozen=True)
class SMPLParameters:
    rotations: Tensor
    """(..., 24, 3, 3), each joint relative to its parent."""
    betas: Tensor
    """(..., 10), the shape."""
    camera: Tensor
    """(..., 3): scale and offset of a weak-perspective camera in a crop."""

    @property
    def pose(self) -> Tensor:
        """(..., 226): the rotations row by row, then the shape."""
        return torch.cat([self.rotations.flatten(-3), self.betas], dim=-1)


def rotations_from_6d(six_values: Tensor) -> Tensor:
    """Convert 6D rotations to matrices (arXiv 1812.07035): (..., 6) → (..., 3, 3), at least float32.

    Two columns made orthonormal, and their cross product.
    """
    first, second = six_values.to(torch.promote_types(six_values.dtype, torch.float32)).unflatten(-1, (2, 3)).unbind(-2)  # type: ignore[no-untyped-call]
    first = F.normalize(first, dim=-1, eps=1e-12)
    second = F.normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1, eps=1e-12)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)


class SMPLReadout(nn.Module):
    """Last layer of a regressor: the correction of an estimate that starts at the mean person."""

    init_body_pose: Tensor
    init_betas: Tensor
    init_cam: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.decpose = nn.Linear(width, 6 * JOINTS)
        self.decshape = nn.Linear(width, BETAS)
        self.deccam = nn.Linear(width, 3)
        self.register_buffer("init_body_pose", torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0, 0.0] * JOINTS]))
        self.register_buffer("init_betas", torch.zeros(1, BETAS))
        self.register_buffer("init_cam", torch.tensor([[1.0, 0.0, 0.0]]))

    def mean_state(self, *shape: int) -> Tensor:
        """Return the parameters of the mean person: (*shape, STATE_VALUES)."""
        return torch.cat([self.init_body_pose, self.init_betas, self.init_cam], dim=-1)[0].expand(*shape, STATE_VALUES)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the correction of an estimate: (..., width) → (..., STATE_VALUES)."""
        return torch.cat([self.decpose(x), self.decshape(x), self.deccam(x)], dim=-1)

    @staticmethod
    def to_parameters(state: Tensor) -> SMPLParameters:
        pose, betas, camera = state.split([6 * JOINTS, BETAS, 3], dim=-1)  # type: ignore[no-untyped-call]
        return SMPLParameters(rotations_from_6d(pose.unflatten(-1, (JOINTS, 6))), betas, camera)


class SMPLRegressor(nn.Module):
    """A regressor that corrects its estimate three times, from a token and the estimate (HMR, arXiv 1712.06584), as in LART and PHALP."""

    PASSES = 3

    def __init__(self, width: int, hidden: int = 1024, dropout: float = 0.5) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width + STATE_VALUES, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.readout = SMPLReadout(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> SMPLParameters:
        """Estimate parameters from tokens (..., width)."""
        state = self.readout.mean_state(*tokens.shape[:-1])
        for _ in range(self.PASSES):
            x = self.dropout(F.relu(self.fc1(torch.cat([tokens, state], dim=-1))))
            x = self.dropout(F.relu(self.fc2(x)))
            state = state + self.readout(x)
        return self.readout.to_parameters(state)


@dataclass(frozen=True)
class SMPLOutput:
    vertices: Tensor
    """(B, V, 3)."""
    keypoints: Tensor
    """(B, 44, 3): 25 in OpenPose's order, 19 regressed from the vertices. The pelvis is number 39."""


class SMPLBody(nn.Module):
    """A user's SMPL model (doi 10.1145/2816795.2818013). Buffers have their names in HMR2's checkpoints without `smpl.`.

    The lists of joints and vertices come from the file, too, so that other meshes work.
    """

    v_template: Tensor
    shapedirs: Tensor
    posedirs: Tensor
    J_regressor: Tensor
    lbs_weights: Tensor
    parents: Tensor
    joint_map: Tensor
    joint_regressor_extra: Tensor

    def __init__(self, vertices: int = 6890, faces: int = 13776) -> None:
        super().__init__()
        floats = {
            "v_template": (vertices, 3),
            "shapedirs": (vertices, 3, BETAS),
            "posedirs": (9 * (JOINTS - 1), 3 * vertices),
            "J_regressor": (JOINTS, vertices),
            "lbs_weights": (vertices, JOINTS),
            "joint_regressor_extra": (REGRESSED_JOINTS, vertices),
        }
        integers = {"parents": (JOINTS,), "faces_tensor": (faces, 3), "joint_map": (OPENPOSE_JOINTS,)}
        for name, shape in floats.items():
            self.register_buffer(name, torch.zeros(shape))
        for name, shape in integers.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int64))
        self.vertex_joint_selector = nn.Module()
        self.vertex_joint_selector.register_buffer("extra_joints_idxs", torch.zeros(VERTEX_JOINTS, dtype=torch.int64))

    @classmethod
    def from_checkpoint(cls, weights: Mapping[str, Tensor]) -> SMPLBody:
        """Load the body `smpl.*` of a checkpoint, ignoring all else. Raises KeyError or RuntimeError if it has no such body."""
        buffers = {name.removeprefix(CHECKPOINT_PREFIX): value for name, value in weights.items() if name.startswith(CHECKPOINT_PREFIX)}
        body = cls(buffers["v_template"].shape[0], buffers["faces_tensor"].shape[0])
        body.load_state_dict(buffers)
        return body

    def forward(self, person: SMPLParameters) -> SMPLOutput:
        """Pose the mesh, one person per row: rotations (B, 24, 3, 3), betas (B, 10). Computes in the mesh's precision, not the
        network's."""
        rotations, betas = person.rotations.to(self.v_template), person.betas.to(self.v_template)
        shaped = self.v_template + torch.einsum("vdk,bk->bvd", self.shapedirs, betas)  # (B, V, 3)
        at_rest = self.J_regressor @ shaped  # (B, 24, 3)
        pose_offsets = (rotations[:, 1:] - torch.eye(3, dtype=shaped.dtype, device=shaped.device)).flatten(1)  # (B, 207)
        vertices = shaped + (pose_offsets @ self.posedirs).unflatten(1, (-1, 3))  # type: ignore[no-untyped-call]
        global_rotations, positions = self._forward_kinematics(rotations, at_rest)
        shifts = positions - (global_rotations @ at_rest.unsqueeze(-1)).squeeze(-1)  # of a point at rest: R p + t - R j
        skinning = torch.einsum(
            "vj,bjrc->bvrc", self.lbs_weights, torch.cat([global_rotations, shifts.unsqueeze(-1)], dim=-1)
        )  # (B, V, 3, 4)
        vertices = (skinning[..., :3] @ vertices.unsqueeze(-1)).squeeze(-1) + skinning[..., 3]
        vertex_indices = self.vertex_joint_selector.get_buffer("extra_joints_idxs")
        joints = torch.cat([positions, vertices[:, vertex_indices]], dim=1)[:, self.joint_map]  # (B, 25, 3)
        return SMPLOutput(vertices, torch.cat([joints, self.joint_regressor_extra @ vertices], dim=1))

    def _forward_kinematics(self, local: Tensor, at_rest: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotations (B, 24, 3, 3) and positions (B, 24, 3) of all joints in the body's frame, from rotations relative to their
        parents."""
        global_rotations, positions = [local[:, 0]], [at_rest[:, 0]]
        for joint, parent in list(enumerate(self.parents.tolist()))[1:]:
            global_rotations.append(global_rotations[parent] @ local[:, joint])
            bone = at_rest[:, joint] - at_rest[:, parent]
            positions.append(positions[parent] + (global_rotations[parent] @ bone.unsqueeze(-1)).squeeze(-1))
        return torch.stack(global_rotations, dim=1), torch.stack(positions, dim=1)


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
