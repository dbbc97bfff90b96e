"""PHALP: association over a video, the pose predictor, cameras and textures, as the config says."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.checkpoints import families, fit, read_checkpoint
from models.people.crops import FOCAL, SquareFrame
from models.people.smpl import SMPLParameters
from models.people.track_batch import TrackBatch
from models.people.tracklets import DEPTH_UNIT
from models.systems.phalp.association_cost import EQ_010, EQ_019, normalise_texture, update_texture
from models.systems.phalp.pose_predictor import PosePredictor, PosePredictorConfig, predict_pose
from models.systems.phalp.tracker import Observation, Tracker, TrackerConfig
from tests.golden.case import Case, Replay


def replay(case: Case) -> Replay:
    if "frames" in case.config:
        return _association(case)
    if "frame_length" in case.config:
        return _pose_predictor(case)
    return _cameras(case) if "render_res" in case.config else _texture(case)


def build(case: Case, config: dict[str, Any]) -> PosePredictor:
    conv = config["transformer"].get("conv", {})
    settings = {
        "heads": config["transformer"]["heads"],
        "conv_stride": conv.get("stride", PosePredictorConfig.conv_stride),
        "conv_padding": conv.get("pad", PosePredictorConfig.conv_padding),
    }
    found = fit(read_checkpoint(case.checkpoint), families()["phalp_pose"], settings)
    assert found.perfect, found.mismatch_message()
    model = found.model()
    assert isinstance(model, PosePredictor)
    assert model.config.frames == config["frame_length"]
    return model


def _pose_predictor(case: Case) -> Replay:
    inputs, model = case.inputs, build(case, case.config)
    answer = model(TrackBatch(inputs["seq_pose_shape"], inputs["seq_has_detection"], masked=inputs.get("seq_mask_detection")))
    return Replay(
        {
            "pred": predict_pose(model, inputs["time"], inputs["pose"], inputs["gap"], inputs["mean_std"]),
            "seq_tokens": torch.cat([answer.class_tokens, answer.tokens], dim=1),
            "seq_pose_camera": answer.head_outputs.pose.unsqueeze(2),
            "seq_action_logits": answer.head_outputs.actions.unsqueeze(2),
        }
    )


def tracker(case: Case) -> Tracker:
    """Build the recorded tracker. Fields that its config lacks have the published value."""
    config, usual = case.config, TrackerConfig()
    assert config.get("past_lookback", 1) == 1, "how several samples of a track are compared is not published"
    assert config.get("pose_distance", "smpl") == "smpl", "other distances of poses need the body mesh"
    predict = config.get("predict", "TPL")
    pose = None
    if "P" in predict:
        pose = partial(predict_pose, build(case, config["pose_predictor"]), mean_std=case.inputs["mean_std"])
    return Tracker(
        TrackerConfig(
            predict_location="L" in predict,
            predict_pose="P" in predict,
            compare_texture="T" in predict,
            compare_appearance="A" in predict,
            distance={"EQ_019": EQ_019, "EQ_010": EQ_010}[config.get("distance_type", "EQ_019")],
            threshold=config.get("hungarian_th", usual.threshold),
            history=config.get("track_history", usual.history),
            longest_gap=config.get("max_age_track", usual.longest_gap),
            confirmed_after=config.get("n_init", usual.confirmed_after),
            texture_rate=config.get("alpha", usual.texture_rate),
            match_identities=config.get("use_gt", False),
        ),
        predict_pose=pose,
    )


def detections(case: Case, frame: int) -> list[Observation]:
    """Return the detections of one frame, by the names of the published detection records. Only pose and place are required."""
    prefix = f"f{frame:02d}."
    values = {name.removeprefix(prefix): np.asarray(value, np.float64) for name, value in case.inputs.items() if name.startswith(prefix)}
    if "loca" not in values:
        return []
    count = len(values["loca"])
    looks, confidences = values.get("appe", np.zeros((count, 1))), values.get("conf", np.ones(count))
    annotated, identities = values.get("annotations", np.zeros(count)), values.get("ground_truth")
    return [
        Observation(
            time=frame,
            appearance=looks[row],
            pose=values["pose"][row],
            location=values["loca"][row],
            confidence=float(confidences[row]),
            annotated=bool(annotated[row]),
            identity=None if identities is None else int(identities[row]),
        )
        for row in range(count)
    ]


def _association(case: Case) -> Replay:
    film, outputs, intermediates = tracker(case), {}, {}
    shots = case.config.get("shot_frames", [])
    for frame in range(case.config["frames"]):
        answer = film.update(detections(case, frame), shot=frame in shots)
        name = f"f{frame:02d}"
        outputs[f"{name}.ids"] = torch.tensor(answer.track_numbers)
        states = [[track.number, track.state, track.hits, track.missed, track.age] for track in film.tracks]
        outputs[f"{name}.tracks"] = torch.tensor(states, dtype=torch.float64).view(-1, 5)
        outputs[f"{name}.pred_loca_last"] = _stack([track.predicted.location for track in film.tracks], 99)
        outputs[f"{name}.pred_pose_last"] = _stack([track.predicted.pose for track in film.tracks], 229)
        if answer.costs is not None:
            intermediates[f"{name}.cost"] = torch.from_numpy(answer.costs)
    return Replay(outputs, intermediates)


def _stack(rows: list[np.ndarray], width: int) -> Tensor:
    return torch.from_numpy(np.array(rows).reshape(-1, width))


def _cameras(case: Case) -> Replay:
    config, inputs = case.config, case.inputs
    height, width = config["image_size_hw"]
    frame = SquareFrame(width, height, config["render_res"], config.get("focal_length", FOCAL))
    camera = frame.translation(inputs["pred_cam"], inputs["boxes"])
    joints = torch.cat([inputs["joints"], torch.zeros_like(inputs["joints"][:, :1])], dim=1)
    person = SMPLParameters(torch.cat([inputs["global_orient"], inputs["body_pose"]], dim=1), inputs["betas"], inputs["pred_cam"])
    near = camera / torch.tensor([1.0, 1.0, DEPTH_UNIT])
    return Replay(
        {
            "camera": camera,
            "joints_3d": joints,
            "loca": torch.cat([frame.project_joints(joints, camera).flatten(1), camera, camera, camera], dim=1),
            "pose": torch.cat([person.pose, near], dim=1),
        }
    )


def _texture(case: Case) -> Replay:
    config, size = case.config, case.inputs["uv_image"].shape[-1]
    step = config.get("upsample", config["uv_size"] // size)  # what is recorded is every so manieth cell
    rate = config.get("alpha", TrackerConfig.texture_rate)
    sampled = case.inputs["uv_image"].repeat_interleave(step, -1).repeat_interleave(step, -2)
    textures = normalise_texture(sampled)
    states = [textures[0]]
    for texture, confidence in zip(textures[1:], case.inputs["conf"][1:].tolist(), strict=True):
        states.append(update_texture(states[-1], texture, rate, confidence))
    return Replay({"uv_state": torch.stack(states)[..., ::step, ::step]}, {"uv_vector": textures[..., ::step, ::step]})
