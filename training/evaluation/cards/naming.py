"""The part of a bundle's README that says how well it names drawings and finds them, and what does it better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from training.evaluation.naming import NETWORK, RANKS


def section(spec: BundleSpec) -> Iterator[str]:
    report, data = spec.quality["naming"], spec.provenance["data"]
    artists = ", ".join(f"{artist['name']} ({artist['license']})" for artist in data["artists"])
    packages = ", ".join(f"{package['name']} {package['version']}" for package in data["packages"])
    count, primary = report["emoji"]["n"], report["emoji"]["ways"][NETWORK]["top1"]
    learnt = [row for row in report["languages"] if not row["held_back"]]
    held_back = [row for row in report["languages"] if row["held_back"]]
    yield from (
        "## Data",
        "",
        f"Emoji by {artists}, by names and keywords of Unicode's CLDR in",
        f"{len(learnt)} languages; and Open Clip Art (public domain) by titles and keywords. No photographs.",
        "",
        f"Packages: {packages}.",
        "",
        "## Quality",
        "",
        f"Judged once, on {count:,} emoji of {report['artist']}, an artist whom nothing was learnt from. The primary figure, fixed before",
        f"training, is the share that is named correctly among their {count:,} English names: **{_figure(primary)}**.",
        "",
        "± is two standard errors; differences are paired. The nearest neighbour is among the drawings that were trained on, by the cosine",
        f"of pixels or of features of EfficientNet-Lite0. Chance: {100 * report['emoji']['chance']['top1']:.2f} %.",
        "",
    )
    yield from _table(report["emoji"], "nearest neighbour by ")
    yield from (
        "### Clip art by its title",
        "",
        f"{report['titles']['n']} drawings of held-out series, each with a title of its own: how often it is among the first that its",
        "title finds. Words in titles: the middle of the five training drawings whose names and keywords share most with the title, rare",
        f"words first, finds the drawings most like it. Chance: {100 * report['titles']['chance']['top5']:.1f} % among the first five.",
        "",
    )
    yield from _table(report["titles"], "words in titles, ")
    yield from (
        "### Languages",
        "",
        "The same emoji, named among their names in one language.",
        "",
        "| language | learnt | named correctly | among the first five |",
        "|---|---|---|---|",
        *(
            f"| {row['language']} | {'no' if row['held_back'] else 'yes'} | {_figure(row['top1'])} | {_figure(row['top5'])} |"
            for row in (*learnt, *held_back)
        ),
        "",
    )


def _table(shares: Mapping[str, Any], prefix: str) -> Iterator[str]:
    names = [f"among the first {rank}" if rank > 1 else "first" for rank in RANKS]
    yield from (f"| way | {' | '.join(names)} | network minus this, first five |", f"|---|{'---|' * len(RANKS)}---|")
    for way, row in shares["ways"].items():
        cells = [_figure(row[f"top{rank}"]) for rank in RANKS]
        gain = "" if way == NETWORK else _figure(row["network_minus_this_top5"], "+")
        yield f"| {'this model' if way == NETWORK else prefix + way} | {' | '.join(cells)} | {gain} |"
    yield ""


def _figure(measured: Mapping[str, float], sign: str = "") -> str:
    return f"{100 * measured['value']:{sign}.1f} ± {200 * measured['standard_error']:.1f} %"
