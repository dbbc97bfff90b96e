"""Section of a README on the quality of naming and retrieval of drawings."""

from __future__ import annotations

from collections.abc import Iterator

from models.bundle import BundleSpec
from starters.evaluation.emoji_retrieval import FEATURES, NETWORK, RANKS
from training.evaluation.cards.figures import packages, share, table


def section(spec: BundleSpec) -> Iterator[str]:
    report, data = spec.quality["naming"], spec.provenance["data"]
    artists = ", ".join(f"{artist['name']} ({artist['license']})" for artist in data["artists"])
    count, primary = report["emoji"]["n"], report["emoji"]["ways"][NETWORK]["top1"]
    languages = len({"en", *(language.partition("-")[0] for language in data["languages"])})  # zh-hant is one with zh
    yield from (
        "## Data",
        "",
        f"Emoji by {artists}, by names and keywords of Unicode's CLDR in",
        f"{languages} languages; and Open Clip Art (public domain) by titles and keywords."
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
        "± is two standard errors; the difference is paired. The nearest neighbour is among the drawings that were trained on, by the",
        f"cosine of features of EfficientNet-Lite0. Chance: {100 * report['emoji']['chance']['top1']:.2f} %.",
        "",
    )
    rows = (
        (
            "this model" if way == NETWORK else f"nearest neighbour by {way}",
            *(share(row[f"top{rank}"]) for rank in RANKS),
            "" if way == NETWORK else share(row["network_minus_this_top5"], sign="+"),
        )
        for way, row in ((way, report["emoji"]["ways"][way]) for way in (NETWORK, FEATURES))
    )
    yield from table(("method", "first", "among the first 5", "network minus this, first five"), rows)
