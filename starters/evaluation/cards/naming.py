"""Section of a README on the quality of naming and retrieval of drawings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from starters.evaluation.emoji_retrieval import NETWORK, RANKS
from training.evaluation.cards.figures import packages, share, table


def section(spec: BundleSpec) -> Iterator[str]:
    report, data = spec.quality["naming"], spec.provenance["data"]
    artists = ", ".join(f"{artist['name']} ({artist['license']})" for artist in data["artists"])
    count, primary = report["emoji"]["n"], report["emoji"]["ways"][NETWORK]["top1"]
    languages = sorted(report["languages"], key=lambda row: bool(row["held_back"]))
    learnt = len({row["language"].partition("-")[0] for row in languages if not row["held_back"]})  # zh-hant is one with zh
    yield from (
        "## Data",
        "",
        f"Emoji by {artists}, by names and keywords of Unicode's CLDR in",
        f"{learnt} languages; and Open Clip Art (public domain) by titles and keywords."
        " No photographs but those that the first layers of EfficientNet-Lite0 have seen.",
        "",
        f"Packages: {packages(data)}.",
        "",
        "## Quality",
        "",
        f"Judged on {count:,} emoji of {report['artist']}, an artist whom nothing was learnt from. The primary figure, fixed before",
        f"training, is the share that is named correctly among their {count:,} English names: **{share(primary)}**.",
        "",
        *(line for text in (spec.note, spec.quality.get("remarks")) if text for line in (text, "")),
        "± is two standard errors; differences are paired. The nearest neighbour is among the drawings that were trained on, by the cosine",
        f"of pixels or of features of EfficientNet-Lite0. Chance: {100 * report['emoji']['chance']['top1']:.2f} %.",
        "",
    )
    yield from _ways(report["emoji"], "nearest neighbour by ")
    yield from (
        "### Clip art by its title",
        "",
        f"{report['titles']['n']} drawings of held-out series, each with a title of its own: how often it is among the first that its",
        "title finds. Words in titles: the middle of the five training drawings whose names and keywords share most with the title, rare",
        f"words first, finds the drawings most like it. Chance: {100 * report['titles']['chance']['top5']:.1f} % among the first five.",
        "",
    )
    yield from _ways(report["titles"], "words in titles, ")
    yield from ("### Languages", "", "The same emoji, named among their names in one language.", "")
    rows = ((row["language"], "no" if row["held_back"] else "yes", share(row["top1"]), share(row["top5"])) for row in languages)
    yield from table(("language", "learnt", "named correctly", "among the first five"), rows)


def _ways(shares: Mapping[str, Any], prefix: str) -> Iterator[str]:
    names = [f"among the first {rank}" if rank > 1 else "first" for rank in RANKS]
    rows = (
        (
            "this model" if way == NETWORK else prefix + way,
            *(share(row[f"top{rank}"]) for rank in RANKS),
            "" if way == NETWORK else share(row["network_minus_this_top5"], sign="+"),
        )
        for way, row in shares["ways"].items()
    )
    yield from table(("way", *names, "network minus this, first five"), rows)
