"""MCC: captures, depth maps and Hypersim frames → occupancy and colour, with labels, losses, gradients and metrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.checkpoints.checkpoint_file import read_checkpoint
from models.layers.patches import sincos_table
from models.systems.mcc.model import MCC, DropPathMasks, MCCConfig, SceneCache, decode_colours
from models.systems.mcc.point_embed import contract
from models.systems.mcc.queries import QueryLabels, cube_grid, half_ball_grid, label_queries, reconstruct, score_coverage
from models.systems.mcc.scene_inputs import (
    PerspectiveCamera,
    SceneAugmentation,
    box_around,
    capture_to_view,
    depth_to_seen_points,
    normalise_points,
    resize_mask,
)
from tests.golden.case import Case, Replay

FIELDS = {
    "image_size": "img_size",
    "patch_size": "patch_size",
    "channels": "in_chans",
    "width": "embed_dim",
    "depth": "depth",
    "heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "window": "xyz_window",
    "window_depth": "xyz_depth",
    "window_heads": "xyz_num_heads",
    "window_mlp_ratio": "xyz_mlp_ratio",
    "decoder_width": "decoder_embed_dim",
    "decoder_depth": "decoder_depth",
    "decoder_heads": "decoder_num_heads",
    "qkv_bias": "qkv_bias",
    "norm_eps": "norm_eps",
    "far": "shrink_threshold",
    "regress_colour": "regress_color",
    "occupancy_weight": "occupancy_weight",
    "colour_weight": "rgb_weight",
    "drop_path": "drop_path",
}
"""Fields of MCCConfig → those of a case's config. A field that a case lacks, here and below, has its published value."""
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
CHUNK = 2000
"""Queries of a forward pass in the demo."""


def replay(case: Case) -> Replay:
    config, inputs = case.config, case.inputs
    model, images, seen, queries = scene_of(case)
    labels = (
        label_queries(queries, inputs["gt_xyz"], inputs["gt_rgb"], config.get("train_dist_threshold", 0.1)) if "gt_xyz" in inputs else None
    )
    if config.get("mode") == "train":
        assert labels is not None
        return _training_step(case, model, images, seen, queries, labels)
    scene = model.cache_scene(model.encode(images, seen))
    chunk = config.get("max_queries_per_forward", CHUNK if "points" in inputs else queries.shape[1])
    predicted = torch.cat([model.predict_outputs(model.decode_queries(scene, part)) for part in torch.split(queries, chunk, dim=1)], dim=1)
    replayed = Replay({"pred": predicted}, _intermediates(case, model, images, seen, queries))
    replayed.outputs |= {"grid_xyz": queries, "unseen_xyz": queries, "occupancy_logits": predicted[..., 0]}
    if labels is not None:
        replayed.outputs |= _losses(model, predicted, labels, chunk) | _metrics(case, predicted, queries)
    if "points" in inputs or "score_thresholds" in config:
        replayed.outputs |= _cloud(case, model, scene, predicted, queries, chunk)
    return replayed


def scene_of(case: Case) -> tuple[MCC, Tensor, Tensor, Tensor]:
    """Return the model in evaluation mode, images (B, 3, S, S), seen points (B, n, n, 3) and queries (B, Q, 3)."""
    weights = read_checkpoint(case.checkpoint)
    config = mcc_config({"regress_color": weights["decoder_pred.bias"].shape == (4,), **case.config})
    model = MCC(config).eval()
    model.load_state_dict(weights)
    return model, *_view(case, config), _queries(case)


def mcc_config(recorded: dict[str, Any]) -> MCCConfig:
    config = MCCConfig(**{ours: recorded[theirs] for ours, theirs in FIELDS.items() if theirs in recorded})
    assert recorded.get("seen_xyz_size", config.seen_size) == config.seen_size, "one window per patch"
    return config


def _view(case: Case, model: MCCConfig) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, S, S) and seen points (B, n, n, 3)."""
    config, inputs = case.config, case.inputs
    if "points" in inputs:
        view = capture_to_view(
            inputs["rgb"] / 255,
            inputs["points"],
            inputs["mask"],
            image_size=config.get("demo_rgb_size", config.get("image_source_size", 800)),
            seen_size=model.seen_size,
            margin=config.get("crop_margin", 40),
        )
        return view.image, view.seen
    if "depth_map" in inputs:
        camera = PerspectiveCamera(inputs["cam_R"], inputs["cam_T"], inputs["cam_focal_ndc"], inputs["cam_principal_ndc"])
        threshold = config.get("fg_mask_threshold", 0.5)
        seen = depth_to_seen_points(inputs["depth_map"], inputs["fg_mask"], camera, seen_size=model.seen_size, threshold=threshold)
        return inputs["images"], seen
    return inputs["images"], inputs["seen_xyz_raw"]


def _queries(case: Case) -> Tensor:
    """Return queries (B, Q, 3), recorded or a grid."""
    config, inputs = case.config, case.inputs
    for name in ("unseen_xyz", "unseen_xyz_sampled"):
        if name in inputs:
            return inputs[name]
    if "points" in inputs:
        return cube_grid(config.get("co3d_world_size", 3.0), config.get("granularity", 0.05)).unsqueeze(0)
    spacing = config.get("eval_granularity", config.get("granularity", 0.1))
    if config.get("use_hypersim"):
        grid = half_ball_grid(config.get("semisphere_size", 6.0), spacing)
    else:
        grid = cube_grid(config.get("co3d_world_size", 3.0), spacing)
    return grid.expand(len(inputs["images"]), -1, -1)


def _losses(model: MCC, predicted: Tensor, labels: QueryLabels, chunk: int) -> dict[str, Tensor]:
    """Means over forward passes of so many queries."""
    parts = zip(*(torch.split(each, chunk, dim=1) for each in (predicted, labels.occupied, labels.colours)), strict=True)
    losses = [model.losses(*part) for part in parts]
    return {
        "labels": labels.occupied,
        "unseen_rgb": labels.colours,
        "loss": torch.stack([each.total for each in losses]).mean(),
        "loss_occupancy": torch.stack([each.occupancy for each in losses]).mean(),
        "loss_rgb": torch.stack([each.colour for each in losses]).mean(),
    }


def _metrics(case: Case, predicted: Tensor, queries: Tensor) -> dict[str, Tensor]:
    occupied = predicted[..., 0].sigmoid() > case.config.get("eval_score_threshold", 0.1)
    scores = [
        score_coverage(points[is_occupied], truth, case.config.get("eval_dist_threshold", 0.1))
        for points, is_occupied, truth in zip(queries, occupied, case.inputs["gt_xyz"], strict=True)
    ]
    return {
        "eval_precision": torch.tensor([each.precision for each in scores]),
        "eval_recall_reference": torch.tensor([each.recall_as_published for each in scores]),
        "eval_f1_reference": torch.tensor([each.f1_as_published for each in scores]),
        "eval_recall_full": torch.tensor([each.recall for each in scores]),
        "eval_f1_full": torch.tensor([each.f1 for each in scores]),
    }


def _cloud(case: Case, model: MCC, scene: SceneCache, predicted: Tensor, queries: Tensor, chunk: int) -> dict[str, Tensor]:
    """Return the cloud of the first scene."""
    thresholds, temperature = case.config.get("score_thresholds", THRESHOLDS), case.config.get("temperature", 0.1)
    cloud = reconstruct(model, scene, queries[0], threshold=thresholds[-1], temperature=temperature, chunk=chunk)
    probability = predicted[..., 0].sigmoid()
    return {
        "occupancy_prob": probability,
        "colors": decode_colours(predicted[0], temperature),
        "colors_argmax": decode_colours(predicted[0], 0),
        "selected": torch.stack([probability[0] > threshold for threshold in thresholds]).float(),
        "points_at_last_threshold": cloud.points,
        "colors_at_last_threshold": cloud.colours,
    }


def _training_step(case: Case, model: MCC, images: Tensor, seen: Tensor, queries: Tensor, labels: QueryLabels) -> Replay:
    """Take a step whose labels are those of the queries before augmentation. If no decisions of stochastic depth are recorded, nothing
    is dropped."""
    inputs = case.inputs
    moving = {} if case.config.get("use_hypersim") else inputs
    augmentation = SceneAugmentation(
        scale=inputs.get("aug_scale", torch.ones(3)),
        shift=moving.get("aug_shift", torch.zeros(3)),
        degrees=moving.get("aug_degrees_xyz", torch.zeros(3)),
        flip=bool(inputs.get("aug_flip", False)),
    )
    images, seen, queries = augmentation.transform_images(images), augmentation.transform_seen(seen), augmentation.transform_points(queries)
    keep_masks = None
    if "drop_keep_xyz" in inputs:
        keep_masks = DropPathMasks(inputs["drop_keep_xyz"], inputs["drop_keep_rgb"], inputs["drop_keep_decoder"])
    with torch.enable_grad():
        predicted = model.train(keep_masks is not None)(images, seen, queries, keep_masks=keep_masks)
        outputs = {"pred": predicted, **_losses(model, predicted, labels, queries.shape[1])}
        outputs["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    outputs["grad_norm"] = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    outputs |= {f"grad.{name}": gradient for name, gradient in gradients.items()}
    intermediates = {"images_aug": images, "unseen_xyz_aug": queries, "valid_seen_aug": seen.sum(dim=-1).isfinite().float()}
    intermediates |= {"labels": labels.occupied, "unseen_rgb": labels.colours, "xyz_tokens": model.embed_points(seen)}
    return Replay(outputs, intermediates)


def _intermediates(case: Case, model: MCC, images: Tensor, seen: Tensor, queries: Tensor) -> dict[str, Tensor]:
    config = model.config
    tokens = model.embed_points(seen)
    scene = model.decoder_embed(model.encode(images, seen)) + model.decoder_pos_embed
    query_tokens = model.decoder_xyz_pos_embed(contract(queries, config.far))
    intermediates = {
        "decoder_in": torch.cat([scene, query_tokens], dim=1),
        "image_normed": model.normalise(images),
        "seen_xyz_raw": seen,
        "valid_seen": seen.sum(dim=-1).isfinite().float(),
        "unseen_xyz_shrunk": contract(queries, config.far),
        "xyz_tokens": tokens,
        "rgb_encoded": model.encode_images(images),
        "xyz_encoded": model.encode_points(tokens),
        "sincos_pos_embed": sincos_table(config.width, config.side),
        "sincos_decoder_pos_embed": sincos_table(config.decoder_width, config.side),
        "sincos_xyz_two_d_pos_embed": sincos_table(config.width, config.window),
    }
    if "points" in case.inputs:
        mask = resize_mask(case.inputs["mask"], *case.inputs["rgb"].shape[:2])
        box = box_around(mask, case.config["crop_margin"])
        normalised, _, _ = normalise_points(case.inputs["points"].masked_fill(~mask.unsqueeze(-1), torch.inf))
        intermediates |= {
            "seen_rgb": images,
            "crop_box": torch.tensor([box.top, box.bottom, box.left, box.right]).float(),
            "points_normalised": normalised.where(normalised.isfinite(), torch.inf),
        }
    return intermediates
