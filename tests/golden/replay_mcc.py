"""MCC: captures, depth maps and Hypersim frames → occupancy and colour, with labels, losses, gradients and metrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.layers.positions import sincos_table
from models.mcc import MCC, Kept, MCCConfig, contract, decode_colours
from models.mcc_queries import Labels, cube_grid, half_ball_grid, label, reconstruct, score
from models.mcc_scenes import Augmentation, Camera, box_around, normalise_points, resize_mask, seen_in_depth, view_of_capture
from models.published.container import read_checkpoint
from tests.golden.case import Case, Replayed


def replay(case: Case) -> Replayed:
    config = case.config
    model, images, seen, queries = scene_of(case)
    labels = (
        label(queries, case.inputs["gt_xyz"], case.inputs["gt_rgb"], config["train_dist_threshold"]) if "gt_xyz" in case.inputs else None
    )
    if config.get("mode") == "train":
        assert labels is not None
        return _training_step(case, model, images, seen, queries, labels)
    scene = model.remember(model.encode(images, seen))
    chunks = queries.split(config.get("max_queries_per_forward", queries.shape[1]), dim=1)
    predicted = torch.cat([model.predict(model.ask(scene, chunk)) for chunk in chunks], dim=1)
    replayed = Replayed({"pred": predicted}, _intermediates(case, model, images, seen, queries))
    replayed.outputs |= {"grid_xyz": queries, "unseen_xyz": queries, "occupancy_logits": predicted[..., 0]}
    if labels is not None:
        replayed.outputs |= _losses(model, predicted, labels)
    if "eval_dist_threshold" in config:
        replayed.outputs |= _metrics(case, predicted, queries)
    if "score_thresholds" in config:
        thresholds, temperature = config["score_thresholds"], config["temperature"]
        probability = predicted[..., 0].sigmoid()
        cloud = reconstruct(
            model, scene, queries[0], threshold=thresholds[-1], temperature=temperature, chunk=config.get("max_queries_per_forward", 2000)
        )
        replayed.outputs |= {
            "occupancy_prob": probability,
            "colors": decode_colours(predicted[0], temperature),
            "colors_argmax": decode_colours(predicted[0], 0),
            "selected": torch.stack([probability[0] > threshold for threshold in thresholds]).float(),
            "points_at_last_threshold": cloud.points,
            "colors_at_last_threshold": cloud.colours,
        }
    return replayed


def scene_of(case: Case) -> tuple[MCC, Tensor, Tensor, Tensor]:
    """The model in evaluation mode, images (B, 3, S, S), seen points (B, n, n, 3) and queries (B, Q, 3)."""
    model = MCC(mcc_config(case.config)).eval()
    model.load_state_dict(read_checkpoint(case.checkpoint))
    return model, *_view(case), _queries(case)


def mcc_config(config: dict[str, Any]) -> MCCConfig:
    side = config["img_size"] // config["patch_size"]
    assert config["seen_xyz_size"] == side * config["xyz_window"], "one window per patch"
    return MCCConfig(
        image_size=config["img_size"],
        patch_size=config["patch_size"],
        channels=config["in_chans"],
        width=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        window=config["xyz_window"],
        window_depth=config["xyz_depth"],
        window_heads=config["xyz_num_heads"],
        window_mlp_ratio=config["xyz_mlp_ratio"],
        decoder_width=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_heads=config["decoder_num_heads"],
        qkv_bias=config["qkv_bias"],
        norm_eps=config["norm_eps"],
        far=config["shrink_threshold"],
        regress_colour=config["regress_color"],
        occupancy_weight=config["occupancy_weight"],
        colour_weight=config["rgb_weight"],
        drop_path=config.get("drop_path", 0.0),
    )


def _view(case: Case) -> tuple[Tensor, Tensor]:
    """→ images (B, 3, S, S) and seen points (B, n, n, 3)."""
    config, inputs = case.config, case.inputs
    if "points" in inputs:
        view = view_of_capture(
            inputs["rgb"] / 255,
            inputs["points"],
            inputs["mask"],
            image_size=config["demo_rgb_size"],
            seen_size=config["seen_xyz_size"],
            margin=config["crop_margin"],
        )
        return view.image, view.seen
    if "depth_map" in inputs:
        camera = Camera(inputs["cam_R"], inputs["cam_T"], inputs["cam_focal_ndc"], inputs["cam_principal_ndc"])
        threshold = config.get("fg_mask_threshold", 0.5)
        seen = seen_in_depth(inputs["depth_map"], inputs["fg_mask"], camera, seen_size=config["seen_xyz_size"], threshold=threshold)
        return inputs["images"], seen
    return inputs["images"], inputs["seen_xyz_raw"]


def _queries(case: Case) -> Tensor:
    """(B, Q, 3), given or a grid."""
    config, inputs = case.config, case.inputs
    for name in ("unseen_xyz", "unseen_xyz_sampled"):
        if name in inputs:
            return inputs[name]
    spacing = config.get("granularity") or config["eval_granularity"]
    grid = (
        half_ball_grid(config["semisphere_size"], spacing) if config.get("use_hypersim") else cube_grid(config["co3d_world_size"], spacing)
    )
    return grid.expand(len(inputs["images"]) if "images" in inputs else 1, -1, -1)


def _losses(model: MCC, predicted: Tensor, labels: Labels) -> dict[str, Tensor]:
    losses = model.losses(predicted, labels.occupied, labels.colours)
    return {
        "labels": labels.occupied,
        "unseen_rgb": labels.colours,
        "loss": losses.total,
        "loss_occupancy": losses.occupancy,
        "loss_rgb": losses.colour,
    }


def _metrics(case: Case, predicted: Tensor, queries: Tensor) -> dict[str, Tensor]:
    occupied = predicted[..., 0].sigmoid() > case.config["eval_score_threshold"]
    scores = [
        score(points[kept], truth, case.config["eval_dist_threshold"])
        for points, kept, truth in zip(queries, occupied, case.inputs["gt_xyz"], strict=True)
    ]
    return {
        "eval_precision": torch.tensor([each.precision for each in scores]),
        "eval_recall_reference": torch.tensor([each.recall_as_published for each in scores]),
        "eval_f1_reference": torch.tensor([each.f1_as_published for each in scores]),
        "eval_recall_full": torch.tensor([each.recall for each in scores]),
        "eval_f1_full": torch.tensor([each.f1 for each in scores]),
    }


def _training_step(case: Case, model: MCC, images: Tensor, seen: Tensor, queries: Tensor, labels: Labels) -> Replayed:
    """The labels are those of the queries before augmentation."""
    inputs = case.inputs
    nothing = torch.zeros(3)
    augmentation = Augmentation(
        scale=inputs.get("aug_scale", nothing + 1),
        shift=inputs.get("aug_shift", nothing),
        degrees=inputs.get("aug_degrees_xyz", nothing),
        flip=bool(inputs.get("aug_flip", False)),
    )
    images, seen, queries = augmentation.images(images), augmentation.seen(seen), augmentation.points(queries)
    kept = None
    if "drop_keep_xyz" in inputs:
        kept = Kept(inputs["drop_keep_xyz"], inputs["drop_keep_rgb"], inputs["drop_keep_decoder"])
    with torch.enable_grad():
        predicted = model.train()(images, seen, queries, kept=kept)
        outputs = {"pred": predicted, **_losses(model, predicted, labels)}
        outputs["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    outputs["grad_norm"] = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    outputs |= {f"grad.{name}": gradient for name, gradient in gradients.items()}
    intermediates = {"images_aug": images, "unseen_xyz_aug": queries, "valid_seen_aug": seen.sum(dim=-1).isfinite().float()}
    intermediates |= {"labels": labels.occupied, "unseen_rgb": labels.colours, "xyz_tokens": model.embed_points(seen)}
    return Replayed(outputs, intermediates)


def _intermediates(case: Case, model: MCC, images: Tensor, seen: Tensor, queries: Tensor) -> dict[str, Tensor]:
    config = model.config
    tokens = model.embed_points(seen)
    intermediates = {
        "image_normed": model.normalise(images),
        "valid_seen": seen.sum(dim=-1).isfinite().float(),
        "unseen_xyz_shrunk": contract(queries, config.far),
        "xyz_tokens": tokens,
        "rgb_encoded": model.encode_picture(images),
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
