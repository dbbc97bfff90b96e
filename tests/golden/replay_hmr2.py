"""HMR2: the network with the body of its checkpoint, or the crops and cameras around it. The config tells which."""

from __future__ import annotations

import torch

from models.cameras import picture_focal, picture_translation, project
from models.hmr2 import HMR2
from models.person_crops import crop, expand, normalise, squares
from models.published import FAMILIES, fit, read_checkpoint
from models.smpl import Body, Person
from tests.golden.case import Case, Replayed


def replay(case: Case) -> Replayed:
    return _network(case) if "vit" in case.config else _crops(case)


def build(case: Case) -> HMR2:
    """The recorded network."""
    backbone, head = case.config["vit"], case.config["smpl_head"]
    settings = {
        "image_size": case.config["image_size"],
        "side_cut": case.config["side_crop"],
        "heads": backbone["num_heads"],
        "drop_path": backbone["drop_path_rate"],
        "decoder_heads": head["TRANSFORMER_DECODER"]["heads"],
        "query": head.get("TRANSFORMER_INPUT", "zero"),
        "passes": head.get("IEF_ITERS", 1),
    }
    found = fit(read_checkpoint(case.checkpoint), FAMILIES["hmr2"], settings)
    assert found.perfect, found.complaint()
    assert backbone["ratio"] == 1, "the spec knows one ratio of patches to strides"
    model = found.model()
    assert model.config.decoder_head_dim == head["TRANSFORMER_DECODER"]["dim_head"]
    return model


def _network(case: Case) -> Replayed:
    size, focal = case.config["image_size"], case.config["focal_length"]
    answer = build(case)(case.inputs["img"])
    rows, columns = (side // case.config["vit"]["patch_size"] for side in case.config["vit"]["img_size"])
    posed = Body.of_checkpoint(read_checkpoint(case.checkpoint))(answer.person)
    return Replayed(
        outputs={
            **person_outputs(answer.person),
            "pred_cam": answer.person.camera,
            "pred_cam_t": answer.translation,
            "keypoints_3d": posed.keypoints,
            "vertices": posed.vertices,
            "keypoints_2d": project(posed.keypoints, answer.translation, focal / size),
        },
        intermediates={"features": answer.features.transpose(1, 2).unflatten(2, (rows, columns))},
    )


def person_outputs(person: Person) -> dict[str, torch.Tensor]:
    return {"global_orient": person.rotations[..., :1, :, :], "body_pose": person.rotations[..., 1:, :, :], "betas": person.betas}


def _crops(case: Case) -> Replayed:
    config, inputs = case.config, case.inputs
    size, aspect = config["image_size"], tuple(config["bbox_shape_wh"])
    mean, std = tuple(config["mean"]), tuple(config["std"])
    picture, boxes = inputs["image_bgr"].to(torch.uint8), inputs["boxes"]
    height, width, _ = picture.shape
    expanded = expand(boxes, aspect)
    centres, sides = squares(expanded)
    focal = picture_focal(width, height, size)
    return Replayed(
        outputs={
            "img": normalise(crop(picture, centres, sides, size, blur=True), mean, std),
            "box_center": centres,
            "box_size": sides,
            "img_size": torch.tensor([width, height]).expand(len(boxes), 2),
            "cam_t_full": picture_translation(inputs["pred_cam"], centres, sides, width, height, focal),
            "scaled_focal": torch.tensor(focal),
            "expanded_boxes": expanded,
            "phalp_img": normalise(crop(picture, centres, sides, size), mean, std),
            "phalp_mask": crop(inputs["mask"].unsqueeze(2), centres, sides, size).movedim(-1, 1),
        }
    )
