"""ToMe: the matching alone, whole models with merging, and the picture of merged tokens. The config tells which of these a case is."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from kernels import ops
from kernels.ops import Matching
from models.merge_schedule import MergeSchedule
from models.published import FAMILIES, fit, read_checkpoint
from models.token_merging import border_colours, merged_picture
from tests.golden.case import Case, Replayed


def replay(case: Case) -> Replayed:
    if "subcases" in case.config:
        return _matchings(case)
    if "source" in case.inputs:
        return _picture(case)
    return _model(case)


def _matchings(case: Case) -> Replayed:
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
    return Replayed(outputs, recorded=recorded)


def _protected(flags: dict[str, Any]) -> int:
    return int(flags["class_token"]) + int(flags["distill_token"])


def _subcase(flags: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    metric, x, size = inputs["metric"], inputs["x"], inputs["size"]
    protected = _protected(flags)
    matching = ops.bipartite_match(metric, flags["r"], protected=protected)
    weighted, sizes = ops.merge(x, size, matching)
    weighted_1, sizes_1 = ops.merge(x, None, matching)
    pairs = torch.stack([matching.sources // 2, matching.kept.gather(1, matching.into) // 2], dim=-1)  # (B, r, 2)
    even = matching.kept % 2 == 0
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
        "unm_idx": matching.kept[even].view(x.shape[0], -1) // 2,
        "src_idx_sorted_pairs": torch.stack([sample[sample[:, 0].argsort()] for sample in pairs]),
        "r_effective": torch.tensor([ops.effective_r(x.shape[1], flags["r"], protected)]),
    }


def _variant(matching: Matching, x: Tensor) -> dict[str, Tensor]:
    mean = ops.reduce(x, matching, "mean")
    return {
        "merge_mean": mean,
        "merge_sum": ops.reduce(x, matching, "sum"),
        "unmerge_of_mean": ops.unmerge(mean, matching),
        "dst_idx": matching.into,
    }


def _chain(config: dict[str, Any], metric: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Two matchings in a row, the second by the merged metric."""
    flags = config["subcases"][config["chain"]["first"]]
    first = ops.bipartite_match(metric, flags["r"], protected=_protected(flags))
    merged_metric, _ = ops.merge(metric, None, first)
    x, size = ops.merge(x, None, first)
    source = ops.merge_source(None, first)
    second = ops.bipartite_match(merged_metric, config["chain"]["second_r"], protected=_protected(flags))
    x, size = ops.merge(x, size, second)
    return {"chain.x": x, "chain.size": size, "chain.source": ops.merge_source(source, second)}


def _schedule(key: list[Any], kind: str) -> list[Any]:
    depth, r = key
    return [list(merge_schedule(r, kind).expand(depth)), kind]


def merge_schedule(r: Any, kind: str) -> MergeSchedule:
    """The three forms of the recorded cases: an int, a list, and (r, inflection)."""
    return MergeSchedule.linear(*r) if kind == "tuple" else MergeSchedule.parse(r)


def _picture(case: Case) -> Replayed:
    source = case.inputs["source"][0]
    picture = merged_picture(case.inputs["img"].to(torch.uint8), source, case.config["patch_size"], special=int(case.config["class_token"]))
    return Replayed({"vis": picture, "colormap": border_colours(source.shape[0])})


def _model(case: Case) -> Replayed:
    weights = read_checkpoint(case.checkpoint)
    settings = {"heads": case.config["num_heads"], "norm_eps": case.config["norm_eps"]}
    if "num_frames" in case.config:
        family, settings["frames"] = "mae_st", case.config["num_frames"]
    elif "hidden_dim" in case.config:
        family = "swag"
    elif "global_pool" in case.config:
        family = "mae"
    else:
        family = "deit" if "dist_token" in weights else "timm"
    pixels = case.inputs["video" if "num_frames" in case.config else "img"]
    outputs, intermediates = {}, {}
    plain = fit(weights, FAMILIES[family], settings).model()
    outputs["unpatched"] = plain(pixels).logits
    for name, run in case.config["runs"].items():
        model = fit(weights, FAMILIES[family], {**settings, "proportional_attention": run["prop_attn"]}).model()
        metrics = _record_metrics(model)
        answer = model(pixels, merge=merge_schedule(run["r"], run["r_type"]), trace=True)
        values = {"logits": answer.logits, "size": answer.size, "source": answer.source}
        outputs |= {f"{name}.{key}": value for key, value in values.items() if value is not None}
        first = next((block for block, r in enumerate(merge_schedule(run["r"], run["r_type"]).expand(len(metrics))) if r > 0), None)
        if first is not None:
            intermediates[f"{name}.first_metric"] = metrics[first]
    return Replayed(outputs, intermediates)


def _record_metrics(model: nn.Module) -> list[Tensor]:
    """The metric of every block of the next forward pass."""
    metrics: list[Tensor] = []
    for block in model.blocks:
        block.attn.register_forward_hook(lambda attention, inputs, outputs: metrics.append(outputs[1].mean(dim=1)))
    return metrics
