"""The README of a bundle: what its `bundle.json` says, for people."""

from __future__ import annotations

from collections.abc import Mapping

from models.bundle import BundleSpec


def render(spec: BundleSpec) -> str:
    data, quality = spec.provenance["data"], spec.quality
    speed = quality["throughput"]
    counts = data["pictures"]
    packages = ", ".join(f"{package['name']} {package['version']}" for package in data["packages"])
    lines = [
        f"# {spec.name} {spec.version}",
        "",
        f"{spec.description}. Labels: {', '.join(spec.labels)}.",
        "",
        f"- Made by `{spec.provenance['made_by']}` at revision {spec.provenance['revision']}.",
        f"- Data: Open Clip Art as Debian ships it ({packages}), {data['license']}. {counts['pretrain']} pictures for pre-training without",
        f"  labels, {counts['train']} labelled ones for fine-tuning, {counts['val']} for validation, {counts['test']} for the test.",
        "  Near-duplicates and numbered series are never on both sides of a split.",
        f"- Licence: {spec.license}.",
        "- Fit for demonstrations and tests. It knows clip art, not photographs, and a good share of its labels are folders' habits.",
        "",
        f"## Accuracy (test split, n = {quality['test_accuracy']['n']:.0f})",
        "",
        "| model | accuracy | this model is better by |",
        "|---|---|---|",
        f"| **this model, merging off** | {_percent(quality['test_accuracy'])} | |",
        *(f"| {rival['name']} | {_percent(rival['accuracy'])} | {_percent(rival['gain'])} |" for rival in quality["baselines"]),
        "",
        "± is one standard error; that of a difference is of the paired difference.",
        "",
        "## Ladder",
        "",
        f"Throughput is relative to merging off: batch {speed['batch_size']}, one thread, {speed['dtype']}.",
        f"Default rung: `{spec.default_rung}`, the {quality['default_rung_chosen']}.",
        "",
        "| rung | schedule | tokens out | throughput | test accuracy | below merging off by |",
        "|---|---|---|---|---|---|",
        *(
            f"| {rung.name} | `{rung.schedule}` | {row['tokens_out']} | {row['throughput']:.2f}x "
            f"| {_percent(row['test_accuracy'])} | {_percent(row['drop'])} |"
            for rung, row in zip(spec.ladder, quality["ladder"], strict=True)
        ),
        "",
    ]
    return "\n".join(lines)


def _percent(measured: Mapping[str, float]) -> str:
    return f"{100 * measured['value']:.1f} ± {100 * measured['standard_error']:.1f} %"
