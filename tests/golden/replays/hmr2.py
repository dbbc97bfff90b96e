"""HMR2: the network with the body of its checkpoint, or the crops and cameras around it, as the config says."""

from __future__ import annotations

import torch

from models.checkpoints import families, fit, read_checkpoint
from models.checkpoints.family import IMAGENET_MEAN, IMAGENET_STD
from models.people.crops import ASPECT, FOCAL, crop, expand, image_focal, image_translation, normalise, project, square_boxes
from models.people.smpl import CHECKPOINT_PREFIX, SMPLBody, SMPLParameters
from models.systems.hmr2.model import HMR2, HMR2Config
from tests.golden.case import Case, Replay


def replay(case: Case) -> Replay:
    return _network(case) if "vit" in case.config else _crops(case)


def build(case: Case) -> HMR2:
    """Build the recorded network. Fields that its config lacks have the published value."""
    backbone, head = case.config["vit"], case.config["smpl_head"]
    settings = {
        "image_size": case.config["image_size"],
        "side_cut": case.config.get("side_crop", HMR2Config.side_cut),
        "patch_ratio": backbone.get("ratio", 1),
        "heads": backbone["num_heads"],
        "drop_path": backbone.get("drop_path_rate", HMR2Config.drop_path),
        "decoder_heads": head["TRANSFORMER_DECODER"]["heads"],
        "query": head.get("TRANSFORMER_INPUT", "zero"),
        "passes": head.get("IEF_ITERS", 1),
        "focal": case.config.get("focal_length", FOCAL),
    }
    found = fit(read_checkpoint(case.checkpoint), families()["hmr2"], settings)
    assert found.perfect, found.mismatch_message()
    model = found.model()
    assert isinstance(model, HMR2)
    return model


def _network(case: Case) -> Replay:
    model = build(case)
    answer = model(case.inputs["img"])
    outputs = {**person_outputs(answer.person), "pred_cam": answer.person.camera, "pred_cam_t": answer.translation}
    weights = read_checkpoint(case.checkpoint)
    if any(name.startswith(CHECKPOINT_PREFIX) for name in weights):
        posed = SMPLBody.from_checkpoint(weights)(answer.person)
        seen = project(posed.keypoints, answer.translation, model.config.focal / model.config.image_size)
        outputs |= {"keypoints_3d": posed.keypoints, "vertices": posed.vertices, "keypoints_2d": seen}
    return Replay(outputs, {"features": answer.features.transpose(1, 2).unflatten(2, model.config.grid)})


def person_outputs(person: SMPLParameters) -> dict[str, torch.Tensor]:
    return {"global_orient": person.rotations[..., :1, :, :], "body_pose": person.rotations[..., 1:, :, :], "betas": person.betas}


def _crops(case: Case) -> Replay:
    config, inputs = case.config, case.inputs
    size, aspect = config["image_size"], tuple(config.get("bbox_shape_wh", ASPECT))
    mean, std = tuple(config.get("mean", IMAGENET_MEAN)), tuple(config.get("std", IMAGENET_STD))
    picture, boxes = inputs["image_bgr"].to(torch.uint8), inputs["boxes"]
    height, width, _ = picture.shape
    expanded = expand(boxes, aspect)
    centres, sides = square_boxes(boxes, aspect)
    focal = image_focal(width, height, size, config.get("focal_length", FOCAL))
    outputs = {
        "img": normalise(crop(picture, centres, sides, size, blur=True), mean, std),
        "box_center": centres,
        "box_size": sides,
        "img_size": torch.tensor([width, height]).expand(len(boxes), 2),
        "cam_t_full": image_translation(inputs["pred_cam"], centres, sides, width, height, focal),
        "scaled_focal": torch.tensor(focal),
        "expanded_boxes": expanded,
        "phalp_img": normalise(crop(picture, *square_boxes(expanded), size), mean, std),
    }
    if "mask" in inputs:
        outputs["phalp_mask"] = crop(inputs["mask"].unsqueeze(2), *square_boxes(expanded), size).movedim(-1, 1)
    return Replay(outputs)
