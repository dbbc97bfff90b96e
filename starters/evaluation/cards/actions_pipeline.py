"""README of an action pipeline: recall of people in real clips, and the reliability of labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from models.bundle import BundleSpec
from training.evaluation.cards.figures import table


def sections(spec: BundleSpec) -> Iterator[str]:
    measured = spec.quality["pipeline"]
    yield from _head(spec)
    yield from _people(spec, measured["detail"])
    yield from _labels(spec, measured)
    yield from _seconds(spec, measured["detail"])


def _head(spec: BundleSpec) -> Iterator[str]:
    members = ", ".join(f"`{member.id}` ({role})" for role, member in spec.members.items())
    yield from (
        f"# {spec.name} {spec.version}",
        "",
        f"{spec.description}.",
        "",
        f"- **{spec.note}**",
        f"- Made by `{spec.provenance['made_by']}` of {members}, whose cards say how they were trained and measured.",
        f"- Trained on {spec.trained_on}.",
        f"- Licence: {spec.license}.",
        f"- `detail` is `{spec.config['detail']}` unless a request says otherwise.",
        "",
    )


def _people(spec: BundleSpec, details: Mapping[str, Any]) -> Iterator[str]:
    clips = next(iter(details.values()))
    yield from (
        "## People who are seen",
        "",
        "Person-frames: frames in which somebody who was marked by hand is to be seen, and in how many of them a box of the answer",
        "overlaps the mark by 0.3 (intersection over union) and no other mark more. Marks were made before any of this was measured; no",
        "picture is kept. `demo` is PyPI sports2d 0.8.34's clip, `laboratory` camera 1 of PyPI pose2sim 0.10.49's people (the woman is",
        "drawn into it), `square` the first ten seconds of Debian opencv-doc's `vtest.avi`, whose people are 30 to 120 of 768 pixels tall.",
        "",
    )
    head = ("clip, person", "frames", *details, f"longest gap, {' / '.join(details)}")
    yield from table(head, (row for clip in clips for row in _rows(clip, [measured[clip] for measured in details.values()])))
    yield from (f"The usual detail is `{spec.config['detail']}`: {_reason_for(spec.config['detail'], details)}.", "")


def _rows(clip: str, found: Sequence[Mapping[str, Any]]) -> Iterator[tuple[object, ...]]:
    """Yield rows of a clip and of each of its people. found: by detail."""
    yield f"**{clip}**", found[0]["frames"], *(f"**{100 * one['share']:.0f} %**" for one in found), ""
    for person in found[0]["people"]:
        people = [one["people"][person] for one in found]
        gaps = " / ".join(f"{one['longest_gap_s']:g}" for one in people)
        yield f"{clip}, {person}", people[0]["frames"], *(f"{100 * one['seen'] / one['frames']:.0f} %" for one in people), f"{gaps} s"


def _reason_for(usual: str, details: Mapping[str, Any]) -> str:
    short = [clip for clip, one in details[usual].items() if one["share"] < 0.85]
    if not short:
        return "the least that sees 85 % of the people in each clip"
    return f"none sees 85 % of the people in {', '.join(short)}, and it sees most"


def _labels(spec: BundleSpec, measured: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        "## Labels that can be relied on",
        "",
        "A second is `unsure` if its best label scores less than that label's threshold: the least score such that of all moments in",
        f"which the label scores as much {100 * measured['precision']:.0f} % have it. They were chosen on the recordings of training and",
        "of validation, from cameras that nothing was trained on, and by no recording of the test.",
        "",
    )
    head = ("moments", "best label right", "sure", "right of the sure", "right of the unsure")
    yield from table(head, (_shares(ROWS[name], one) for name, one in measured["reliance"].items()))
    yield from ("The rows of the test are what to expect of other people.", "")
    thresholds = zip(spec.labels, spec.config["thresholds"], strict=True)
    yield from table(("label", "threshold"), ((label, f"{threshold:.2f}") for label, threshold in thresholds))


ROWS = {
    "trained": "recordings of training",
    "val": "recordings of validation",
    "test": "recordings of the test",
}


def _shares(name: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    shares = [one[key] for key in ("right", "sure", "right_of_sure", "right_of_unsure")]
    return f"{one['moments']:,}, {name}", *("–" if share is None else f"{100 * share:.0f} %" for share in shares)


def _seconds(spec: BundleSpec, details: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        "## What is said of the demo's clip",
        "",
        "Person 1 stands on a wall and waves both arms (to 3 s), walks to its edge, turns over in the air (5.2 to 6.3 s), lands in a squat",
        "and runs off; person 2 walks.",
        "",
    )
    rows = [{(row["person"], int(row["begin"])): row for row in measured["demo"]["seconds"]} for measured in details.values()]
    seconds = sorted({key for one in rows for key in one})
    yield from table(("person", "second", *details), ((*key, *(_format_label(one.get(key)) for one in rows)) for key in seconds))


def _format_label(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    text = f"{row['label']} {row['score']:.2f}"
    return f"unsure: {text}" if row["unsure"] else text
