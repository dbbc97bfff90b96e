"""README of an action pipeline: recall of people in real clips, and the reliability of labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from training.evaluation.cards.figures import table


def sections(spec: BundleSpec) -> Iterator[str]:
    measured = spec.quality["pipeline"]
    yield from _head(spec)
    yield from _people(measured["detail"])
    yield from _labels(measured)


def _head(spec: BundleSpec) -> Iterator[str]:
    members = ", ".join(f"`{member.id}` ({role})" for role, member in spec.members.items())
    yield from (
        f"# {spec.name} {spec.version}",
        "",
        f"{spec.description}.",
        "",
        f"- **{spec.note}**",
        f"- Made by `{spec.provenance['made_by']}` of {members}, whose cards describe their training and evaluation.",
        f"- Trained on {spec.trained_on}.",
        f"- Licence: {spec.license}.",
        f"- `detail` is `{spec.config['detail']}` unless a request says otherwise.",
        "",
    )


def _people(details: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        "## Detected people",
        "",
        "Person-frames are frames in which someone is visible who was marked by hand. The table shows the share of them in which a",
        "detected box overlaps the mark by 0.3 (intersection over union) and no other mark more. Marks were made before this was",
        "measured; no picture is kept. `demo` is the clip of PyPI sports2d 0.8.34, `laboratory` is camera 1 of the people of PyPI",
        "pose2sim 0.10.49 (the woman is drawn into it), `square` is the first ten seconds of `vtest.avi` in Debian's opencv-doc, whose",
        "people are 30 to 120 of 768 pixels tall.",
        "",
    )
    clips = {clip: [detail[clip] for detail in details.values()] for clip in next(iter(details.values()))}
    rows = ((clip, found[0]["frames"], *(f"{100 * one['share']:.0f} %" for one in found)) for clip, found in clips.items())
    yield from table(("clip", "person-frames", *details), rows)


def _labels(measured: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        "## Labels that can be relied on",
        "",
        "A second is `unsure` if its best label scores less than that label's threshold: the lowest score such that of all moments in",
        f"which the label scores as much {100 * measured['precision']:.0f} % have it. The second row is what to expect of other people:",
        "thresholds do not carry over to recordings on which they were not chosen.",
        "",
    )
    head = ("recordings", "moments", "best label right", "sure", "right of the sure", "right of the unsure")
    yield from table(head, (_format_shares(ROWS[name], one) for name, one in measured["reliance"].items()))


ROWS = {"trained": "of training", "test": "of the test, thresholds chosen without them"}


def _format_shares(name: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    shares = [one[key] for key in ("right", "sure", "right_of_sure", "right_of_unsure")]
    return name, f"{one['moments']:,}", *("–" if share is None else f"{100 * share:.0f} %" for share in shares)
