"""SMPL's body: how networks tell its pose, and the mesh that a user's own model file gives.

SMPL's mesh is licensed and not ours: nothing here holds it. Poses, shapes and cameras need no mesh.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

JOINTS = 24
"""The first one is the orientation of the whole body."""
BETAS = 10
CHOSEN, EXTRA, OPENPOSE = 21, 19, 25
"""Vertices that count as joints, joints that are regressed from all vertices, and keypoints in OpenPose's order."""
STATE = 6 * JOINTS + BETAS + 3
"""Number of values that a network estimates for a person: 24 rotations in 6 numbers each, the shape, a camera (scale, x, y)."""
PREFIX = "smpl."
"""Prefix of the mesh's names in the checkpoints of HMR2 and LART."""


@dataclass(frozen=True)
class Person:
    rotations: Tensor
    """(..., 24, 3, 3), each joint relative to its parent."""
    betas: Tensor
    """(..., 10), the shape."""
    camera: Tensor
    """(..., 3): scale and place of a weak-perspective camera in a crop."""

    @property
    def pose(self) -> Tensor:
        """(..., 226): the rotations row by row, then the shape."""
        return torch.cat([self.rotations.flatten(-3), self.betas], dim=-1)


def rotations(six: Tensor) -> Tensor:
    """(..., 6) → (..., 3, 3): two columns made orthonormal and their cross product (arXiv 1812.07035). In float32 at least."""
    first, second = six.to(torch.promote_types(six.dtype, torch.float32)).unflatten(-1, (2, 3)).unbind(-2)  # type: ignore[no-untyped-call]
    first = F.normalize(first, dim=-1, eps=1e-12)
    second = F.normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1, eps=1e-12)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)


class Readout(nn.Module):
    """The last layer of a regressor: what to add to an estimate that starts at the mean person."""

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

    def start(self, *shape: int) -> Tensor:
        """The mean person: (*shape, STATE)."""
        return torch.cat([self.init_body_pose, self.init_betas, self.init_cam], dim=-1)[0].expand(*shape, STATE)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) → (..., STATE), to be added."""
        return torch.cat([self.decpose(x), self.decshape(x), self.deccam(x)], dim=-1)

    @staticmethod
    def person(state: Tensor) -> Person:
        pose, betas, camera = state.split([6 * JOINTS, BETAS, 3], dim=-1)  # type: ignore[no-untyped-call]
        return Person(rotations(pose.unflatten(-1, (JOINTS, 6))), betas, camera)


class Regressor(nn.Module):
    """An estimate corrected three times from a token and itself (HMR, arXiv 1712.06584), as in LART and PHALP."""

    PASSES = 3

    def __init__(self, width: int, hidden: int = 1024, dropout: float = 0.5) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width + STATE, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.readout = Readout(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Person:
        """(..., width)."""
        state = self.readout.start(*tokens.shape[:-1])
        for _ in range(self.PASSES):
            x = self.dropout(F.relu(self.fc1(torch.cat([tokens, state], dim=-1))))
            x = self.dropout(F.relu(self.fc2(x)))
            state = state + self.readout(x)
        return self.readout.person(state)


@dataclass(frozen=True)
class Posed:
    vertices: Tensor
    """(B, V, 3)."""
    keypoints: Tensor
    """(B, 44, 3): 25 in OpenPose's order, 19 regressed from the vertices. The pelvis is number 39."""


class Body(nn.Module):
    """A user's SMPL model (doi 10.1145/2816795.2818013), by the names it has in HMR2's checkpoints without `smpl.`.

    Its lists of joints and vertices are taken from the file too, so that other meshes work.
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
            "joint_regressor_extra": (EXTRA, vertices),
        }
        integers = {"parents": (JOINTS,), "faces_tensor": (faces, 3), "joint_map": (OPENPOSE,)}
        for name, shape in floats.items():
            self.register_buffer(name, torch.zeros(shape))
        for name, shape in integers.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int64))
        self.vertex_joint_selector = nn.Module()
        self.vertex_joint_selector.register_buffer("extra_joints_idxs", torch.zeros(CHOSEN, dtype=torch.int64))

    @classmethod
    def of_checkpoint(cls, weights: Mapping[str, Tensor]) -> Body:
        """From a checkpoint with `smpl.*`, everything else in it aside. Raises KeyError or RuntimeError where it has no such body."""
        own = {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}
        body = cls(own["v_template"].shape[0], own["faces_tensor"].shape[0])
        body.load_state_dict(own)
        return body

    def forward(self, person: Person) -> Posed:
        """One person a row: rotations (B, 24, 3, 3), betas (B, 10). In the mesh's precision, whatever a network's is."""
        rotations, betas = person.rotations.to(self.v_template), person.betas.to(self.v_template)
        shaped = self.v_template + torch.einsum("vdk,bk->bvd", self.shapedirs, betas)  # (B, V, 3)
        at_rest = self.J_regressor @ shaped  # (B, 24, 3)
        bent = (rotations[:, 1:] - torch.eye(3, dtype=shaped.dtype, device=shaped.device)).flatten(1)  # (B, 207)
        vertices = shaped + (bent @ self.posedirs).unflatten(1, (-1, 3))  # type: ignore[no-untyped-call]
        turns, places = self._walk(rotations, at_rest)
        shifts = places - (turns @ at_rest.unsqueeze(-1)).squeeze(-1)  # of a point at rest: R p + t - R j
        skinning = torch.einsum("vj,bjrc->bvrc", self.lbs_weights, torch.cat([turns, shifts.unsqueeze(-1)], dim=-1))  # (B, V, 3, 4)
        vertices = (skinning[..., :3] @ vertices.unsqueeze(-1)).squeeze(-1) + skinning[..., 3]
        chosen = self.vertex_joint_selector.get_buffer("extra_joints_idxs")
        joints = torch.cat([places, vertices[:, chosen]], dim=1)[:, self.joint_map]  # (B, 25, 3)
        return Posed(vertices, torch.cat([joints, self.joint_regressor_extra @ vertices], dim=1))

    def _walk(self, local: Tensor, at_rest: Tensor) -> tuple[Tensor, Tensor]:
        """Down the tree of joints: rotations (B, 24, 3, 3) and places (B, 24, 3) in the body's frame."""
        turns, places = [local[:, 0]], [at_rest[:, 0]]
        for joint, parent in list(enumerate(self.parents.tolist()))[1:]:
            turns.append(turns[parent] @ local[:, joint])
            bone = at_rest[:, joint] - at_rest[:, parent]
            places.append(places[parent] + (turns[parent] @ bone.unsqueeze(-1)).squeeze(-1))
        return torch.stack(turns, dim=1), torch.stack(places, dim=1)
