"""LART: the network, whole tracks, tracklet files and AVA's metric, as config and files say.

Other entries of a description, such as the tracks' names, are input and copied."""

from __future__ import annotations

import numpy as np
import torch

from models.checkpoints import families, fit, read_checkpoint
from models.people.track_batch import TokenMask, TrackBatch, normalise_pose
from models.people.tracklets import build_clip, read_results, read_tracklet, tracklets_from_results
from models.systems.lart.model import LART, LARTConfig, predict_track
from tests.golden.case import Case, Replay, unpack
from tests.golden.replays.hmr2 import person_outputs
from training.evaluation.ava import ScoredTrack, evaluate, read_boxes, score_rows
from training.objectives.lart import GroundTruth, action_loss

GROUND_TRUTH = {"all": GroundTruth.ALL, "gt": GroundTruth.LABELS, "pseduo_gt": GroundTruth.PSEUDO}


def replay(case: Case) -> Replay:
    config = case.config
    if "step" in config:
        return _whole_track(case)
    if "mode" in config:
        return _network(case)
    if "test_type" in config:
        return _ava(case)
    if "appearance_dim" in config:
        return _loader(case)
    return _results(case)


def build(case: Case) -> LART:
    config = case.config
    settings = {"frames": config["frame_length"], "heads": config["transformer"]["heads"]}
    found = fit(read_checkpoint(case.checkpoint), families()["lart"], settings)
    assert found.perfect, found.mismatch_message()
    model = found.model()
    enabled = config["extra_feat"]["enable"]
    assert ((model.config.joints is not None), (model.config.appearance is not None)) == ("joints_3D" in enabled, "apperance" in enabled)
    return model


def _network(case: Case) -> Replay:
    inputs, model = case.inputs, build(case)
    tracks = TrackBatch(
        inputs["pose_shape"], inputs["has_detection"], inputs.get("joints_3D"), inputs.get("apperance_emb"), inputs.get("mask_detection")
    )
    hidden = TokenMask.from_missing(tracks) if case.config["mode"].startswith("zero") else _recorded_masks(case, tracks)
    answer = model(tracks, hidden)
    outputs = {
        "tokens": torch.cat([answer.class_tokens, answer.tokens.flatten(1, 2)], dim=1),
        "action_logits": answer.reading.actions,
        "kinetics_logits": answer.kinetics,
        "location": answer.reading.location,
        **person_outputs(answer.reading.person),
        "global_orient": answer.reading.person.rotations[..., 0, :, :],
    }
    if "action_label" in inputs:
        ground_truth = GROUND_TRUTH[case.config.get("ava", {}).get("gt_type", "all")]
        outputs["loss_action"] = action_loss(
            answer.reading.actions, inputs["action_label"], inputs["has_detection"], inputs["has_gt"], ground_truth
        )
    return Replay(outputs, intermediates={"mask_after": hidden.masked.float()}, recorded=case.recorded)


def _recorded_masks(case: Case, tracks: TrackBatch) -> TokenMask:
    """Return noise: the place of each detected token in its clip's permutation."""
    noise = torch.zeros_like(tracks.detected)
    for clip, detected in enumerate(tracks.detected != 0):
        permutation = case.inputs[f"perm_{clip}"].long()
        places = torch.empty(len(permutation)).index_copy_(0, permutation, torch.arange(len(permutation)).float())
        noise[clip][detected] = places
    return TokenMask.from_noise(tracks, case.config.get("mask_ratio", LARTConfig.mask_ratio), noise)


def _whole_track(case: Case) -> Replay:
    inputs, model = case.inputs, build(case)
    track = TrackBatch(
        normalise_pose(inputs["pose_shape"], inputs["mean_std"]).unsqueeze(0),
        inputs["has_detection"].unsqueeze(0),
        (inputs["3d_joints"] + inputs["camera"].unsqueeze(2)).flatten(2).unsqueeze(0) if model.config.joints else None,
        inputs["apperance_emb"].unsqueeze(0) if model.config.appearance else None,
    )
    reading = predict_track(model, track, step=case.config["step"], margin=case.config["window"])
    outputs = {"pose_camera": reading.pose[0], "camera": reading.location[0], "action_logits": reading.actions[0]}
    return Replay(outputs, recorded=case.recorded)


def _results(case: Case) -> Replay:
    tracks = tracklets_from_results(read_results(case.folder / "phalp_demo.pkl"))
    outputs = {}
    for number, track in tracks.items():
        arrays = {
            "fid": track.frames[:, None, None],
            "pose_shape": track.pose[:, None],
            "3d_joints": track.joints[:, None],
            "camera": track.camera[:, None],
            "camera_bbox": track.crop_camera[:, None],
            "has_detection": track.detected[:, None, None],
            "frame_bbox": track.boxes,
            "frame_size": track.sizes,
            "frame_conf": track.confidences,
        }
        outputs |= {f"track{number}.{name}": torch.from_numpy(np.asarray(values, np.float64)) for name, values in arrays.items()}
    names = {str(number): list(track.names) for number, track in tracks.items()}
    return Replay(outputs, recorded={**case.recorded, "track_frame_names": names})


def _loader(case: Case) -> Replay:
    config, content = case.config, case.recorded
    ego, *others = (read_tracklet(unpack(case.folder) / name) for name in content["load_order"])
    clip = build_clip(
        ego,
        others,
        frames=config["frame_length"],
        people=config["max_people"],
        mean_std=case.inputs["mean_std"],
        classes=tuple(case.inputs["valid_classes"].long().tolist()) if config.get("predict_valid", True) else None,
        appearance=config["appearance_dim"],
    )
    inputs, targets = clip.tracks, clip.targets
    outputs = {
        "input.fid": clip.frames,
        "input.pose_shape": inputs.pose[0],
        "input.has_detection": inputs.detected[0],
        "input.mask_detection": torch.zeros_like(inputs.detected[0]),
        "input.relative_pose": torch.zeros(*inputs.detected.shape[1:3], 16),
        "target.pose_shape": targets.pose.unsqueeze(2),
        "target.has_detection": targets.detected.unsqueeze(2),
        "target.has_gt": targets.labelled.unsqueeze(2),
        "target.action_label_ava": targets.actions.unsqueeze(2),
        "meta.frame_bbox": clip.boxes,
        "meta.frame_size": clip.sizes,
        "meta.frame_conf": clip.confidences,
    }
    if "joints_3D" in config["extra_feat"]:
        outputs["input.joints_3D"] = inputs.joints[0]
    if "apperance" in config["extra_feat"]:
        outputs["input.apperance_emb"] = inputs.appearance[0]
    return Replay(outputs, recorded={**content, "frame_names": list(clip.names)})


def _ava(case: Case) -> Replay:
    inputs, content = case.inputs, case.recorded
    tracked = [
        ScoredTrack(
            name=name,
            frame_names=tuple(frames),
            logits=inputs["logits"][index].numpy(),
            detected=inputs["has_detection"][index].flatten().numpy() != 0,
            boxes=inputs["bbox_xywh"][index].numpy(),
            confidences=inputs["conf"][index].numpy(),
            sizes=inputs["size_hw"][index].numpy(),
        )
        for index, (name, frames) in enumerate(zip(content["names"], content["frame_names"], strict=True))
    ]
    rows = score_rows(tracked, case.config["test_type"])
    videos, table = rows.to_sorted_table()
    result = evaluate(read_boxes(case.folder / "ava_val.csv"), read_boxes(case.folder / "gt.csv"))
    return Replay(
        outputs={
            "rows": torch.from_numpy(table),
            "ap": torch.from_numpy(np.nan_to_num(result.average_precision, nan=-1.0)),
            "map": torch.tensor(result.mean, dtype=torch.float64),
        },
        recorded={**content, "row_video_ids": videos},
    )
