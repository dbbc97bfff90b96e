"""ToMe: the matching alone, whole models with merging, or the image of merged tokens, as the config says."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from kernels import ops
from kernels.ops import Matching
from models.checkpoints import families, fit, read_checkpoint
from models.checkpoints.family import Family
from models.layers.token_merging import border_colours, paint_merged_tokens
from models.merge_schedule import MergeSchedule
from tests.golden.case import Case, Replay

SIZES = {"num_heads": "heads", "norm_eps": "norm_eps", "num_frames": "frames", "img_size": "image_size", "image_size": "image_size"}
"""Published name → ours, for fields that the weights of a classifier do not determine."""


def replay(case: Case) -> Replay:
    if "subcases" in case.config:
        return _matchings(case)
    if "source" in case.inputs:
        return _picture(case)
    return _model(case)


def _matchings(case: Case) -> Replay:
    config, inputs = case.config, case.inputs
    metric, x = inputs["metric"], inputs["x"]
    outputs: dict[str, Tensor] = {}
    for name, flags in config["subcases"].items():
        outputs |= {f"{name}.{key}": value for key, value in _subcase(flags, inputs).items()}
    for k in config.get("kth", []):
        matching = ops.kth_match(metric, k)
        outputs |= {f"kth{k}.{key}": value for key, value in _variant(matching, x).items()}
    for r in config.get("random_r", []):
        matching = ops.random_match(metric, r, noise=inputs["rand"].squeeze(-1))
        outputs |= {f"random{r}.{key}": value for key, value in _variant(matching, x).items()}
    if "chain" in config:
        outputs |= _chain(config, metric, x)
    recorded = {}
    if "schedules" in case.recorded:
        recorded["schedules"] = {key: _schedule(json.loads(key), kind) for key, (_, kind) in case.recorded["schedules"].items()}
    return Replay(outputs, recorded=recorded)


def _count_protected(flags: dict[str, Any]) -> int:
    return int(flags.get("class_token", False)) + int(flags.get("distill_token", False))


def _subcase(flags: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    metric, x, size = inputs["metric"], inputs["x"], inputs["size"]
    protected = _count_protected(flags)
    matching = ops.bipartite_match(metric, flags["r"], protected=protected)
    weighted, sizes = ops.merge(x, size, matching)
    weighted_1, sizes_1 = ops.merge(x, None, matching)
    pairs = torch.stack([matching.src // 2, matching.unmerged.gather(1, matching.dst) // 2], dim=-1)  # (B, r, 2)
    even = matching.unmerged % 2 == 0
    return {
        "merge_mean": ops.reduce(x, matching, "mean"),
        "merge_sum": ops.reduce(x, matching, "sum"),
        "merge_amax": ops.reduce(x, matching, "amax"),
        "merge_mean_default": ops.reduce(x, matching),
        "unmerge_of_mean": ops.unmerge(ops.reduce(x, matching), matching),
        "wavg_x": weighted,
        "wavg_size": sizes,
        "wavg1_x": weighted_1,
        "wavg1_size": sizes_1,
        "source": ops.merge_source(None, matching),
        "unm_idx": matching.unmerged[even].view(x.shape[0], -1) // 2,
        "src_idx_sorted_pairs": torch.stack([sample[sample[:, 0].argsort()] for sample in pairs]),
        "r_effective": torch.tensor([ops.effective_r(x.shape[1], flags["r"], protected)]),
    }


def _variant(matching: Matching, x: Tensor) -> dict[str, Tensor]:
    mean = ops.reduce(x, matching, "mean")
    return {
        "merge_mean": mean,
        "merge_sum": ops.reduce(x, matching, "sum"),
        "unmerge_of_mean": ops.unmerge(mean, matching),
        "dst_idx": matching.dst,
    }


def _chain(config: dict[str, Any], metric: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Match twice in a row, the second time by the merged metric."""
    flags = config["subcases"][config["chain"]["first"]]
    first = ops.bipartite_match(metric, flags["r"], protected=_count_protected(flags))
    merged_metric, _ = ops.merge(metric, None, first)
    x, size = ops.merge(x, None, first)
    source = ops.merge_source(None, first)
    second = ops.bipartite_match(merged_metric, config["chain"]["second_r"], protected=_count_protected(flags))
    x, size = ops.merge(x, size, second)
    return {"chain.x": x, "chain.size": size, "chain.source": ops.merge_source(source, second)}


def _schedule(key: list[Any], kind: str) -> list[Any]:
    depth, r = key
    return [list(merge_schedule(r, kind).expand(depth)), kind]


def merge_schedule(r: Any, kind: str) -> MergeSchedule:
    """Read the three forms of the recorded cases: an int, a list, and (r, inflection)."""
    return MergeSchedule.linear(*r) if kind == "tuple" else MergeSchedule.parse(r)


def _picture(case: Case) -> Replay:
    source = case.inputs["source"][0]
    patch_size, special = case.config.get("patch_size", 16), int(case.config.get("class_token", True))
    picture = paint_merged_tokens(case.inputs["img"].to(torch.uint8), source, patch_size, special=special)
    return Replay({"vis": picture, "colormap": border_colours(source.shape[0])})


def _model(case: Case) -> Replay:
    weights = read_checkpoint(case.checkpoint)
    settings = {ours: case.config[theirs] for theirs, ours in SIZES.items() if theirs in case.config}
    family = _family(case.config, weights)
    pixels = case.inputs["video" if "num_frames" in case.config else "img"]
    outputs, intermediates = {}, {}
    plain = fit(weights, family, settings).model()
    outputs["unpatched"] = plain(pixels).logits
    for name, run in case.config["runs"].items():
        attention = {"proportional_attention": run["prop_attn"]} if "prop_attn" in run else {}
        model = fit(weights, family, {**settings, **attention}).model()
        metrics = _record_metrics(model)
        schedule = merge_schedule(run["r"], run.get("r_type", "list or int"))
        answer = model(pixels, merge=schedule, trace=True)
        values = {"logits": answer.logits, "size": answer.size, "source": answer.source}
        outputs |= {f"{name}.{key}": value for key, value in values.items() if value is not None}
        first = next((block for block, r in enumerate(schedule.expand(len(metrics))) if r > 0), None)
        if first is not None:
            intermediates[f"{name}.first_metric"] = metrics[first]
    return Replay(outputs, intermediates)


def _family(config: dict[str, Any], weights: dict[str, Tensor]) -> Family:
    if "num_frames" in config:
        return families()["mae_st"]
    if "hidden_dim" in config:
        return families()["swag"]
    if "global_pool" in config:
        return families()["mae"]
    return families()["deit" if "dist_token" in weights else "timm"]


def _record_metrics(model: nn.Module) -> list[Tensor]:
    """Record the metric of every block in the next forward pass."""
    metrics: list[Tensor] = []
    for block in model.get_submodule("blocks").children():
        block.get_submodule("attn").register_forward_hook(lambda attention, inputs, outputs: metrics.append(outputs[1].mean(dim=1)))
    return metrics
