"""READMEs of shipped bundles: a section, or a whole README, for each kind of measurement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from starters.evaluation.emoji_retrieval import FEATURES, RANKS
from starters.evaluation.emoji_retrieval import NETWORK as NAMING_NETWORK
from starters.evaluation.flags import NEAREST
from starters.evaluation.reconstruction.quality import METHODS
from starters.evaluation.reconstruction.quality import NETWORK as CELLS
from starters.evaluation.sounds import LOGISTIC
from training.evaluation.cards import card
from training.evaluation.cards.card import Sections
from training.evaluation.cards.figures import creators, figure, packages, share, table, verdict


def render(spec: BundleSpec) -> str:
    for measurement, sections in WHOLE.items():
        if measurement in spec.quality:
            return "\n".join(sections(spec))
    [section] = [section for measurement, section in SECTIONS.items() if measurement in spec.quality] or [card.describe_quality]
    return card.render(spec, section)


def flag_card(spec: BundleSpec) -> Iterator[str]:
    for part in (_flag_head, _accuracy_by_source, _calibration, _ladder_of_flags):
        yield from part(spec)


def _flag_head(spec: BundleSpec) -> Iterator[str]:
    data = spec.provenance["data"]
    yield from (
        f"# {spec.name} {spec.version}",
        "",
        f"{spec.description}. It knows *drawn* flags: photographs are untested.",
        "",
        f"- Made by `{spec.provenance['made_by']}` at revision {spec.provenance['revision']}.",
        f"- Trained on {data['drawings']['train']} drawings by three designers, rendered under wind, perspective, light, blur, occlusion,",
        f"  clutter and noise without end; {data['drawings']['val']} further drawings are for validation.",
        "- Tested on flags that others drew. Pictures, and what is left out of them, were chosen without looking at predictions.",
        f"- Packages: {packages(data)}.",
        f"- Licence: {spec.license}.",
        "",
    )


def _accuracy_by_source(spec: BundleSpec) -> Iterator[str]:
    yield from ("## Accuracy by source", "")
    yield from table(("pictures", "n", "top 1", "top 5", NEAREST, "better by"), map(_format_source, spec.quality["sources"]))
    yield from (
        "± is one standard error; that of a difference is of the paired difference. The nearest neighbour is among the drawings that this",
        "model was trained on; it sees 32 x 32 pixels, of clean pictures only the flag, cut out along its transparent margin. Distorted",
        "are renderings of the same pictures at random strength, none of them clean.",
        "",
    )


def _format_source(source: Mapping[str, Any]) -> tuple[object, ...]:
    nearest = [_one_error(source["baselines"][NEAREST][of]) for of in ("accuracy", "gain")]
    return source["name"], source["top1"]["n"], f"**{_one_error(source['top1'])}**", _one_error(source["top5"]), *nearest


def _calibration(spec: BundleSpec) -> Iterator[str]:
    errors = ", ".join(f"{source['name']} {100 * source['calibration_error']:.1f} %" for source in spec.quality["sources"])
    yield from (
        "## Calibration",
        "",
        "Confidence is calibrated on validation pictures: the weights of the head are divided by a temperature of",
        f"{spec.quality['temperature']:.3f}.",
        f"Expected calibration error (15 bins): {errors}.",
        "",
    )


def _ladder_of_flags(spec: BundleSpec) -> Iterator[str]:
    speed = spec.quality["throughput"]
    yield from (
        "## Ladder",
        "",
        f"Throughput is relative to merging off: batch {speed['batch_size']}, one thread, {speed['dtype']}.",
        f"Default rung: `{spec.default_rung}`, the {spec.quality['default_rung_chosen']}.",
        "",
    )
    measures = ("test_accuracy", "drop", "distorted_accuracy", "distorted_drop")
    rows = (
        (rung.name, f"`{rung.schedule}`", row["tokens_out"], f"{row['throughput']:.2f}x", *(_one_error(row[name]) for name in measures))
        for rung, row in zip(spec.ladder, spec.quality["ladder"], strict=True)
    )
    below = "below merging off by"
    yield from table(("rung", "schedule", "tokens out", "throughput", "clean", below, "distorted", below), rows)


def _one_error(measured: Mapping[str, Any]) -> str:
    """Format a share with one standard error."""
    return share(measured, errors=1)


def actions_section(spec: BundleSpec) -> Iterator[str]:
    actions = spec.quality["actions"]
    measured, unseen = actions["unseen"], actions["recordings"]["unseen"]
    methods = list(measured["accuracy"])
    yield from (
        "## Quality",
        "",
        f"Trained on {len(actions['recordings']['trained'])} recordings of motion capture, seen by virtual cameras: **few recordings stand",
        f"behind each class**. Evaluated on {len(unseen)} others ({', '.join(unseen)}), each moment from {actions['cameras']} cameras.",
        "They are too few to give errors: the figures describe these recordings, not how well a class is recognised in general.",
        "",
    )
    head = ("class", "recordings", "moments", *(f"{method}: right (AP)" for method in methods))
    rows = [
        (row["label"], len(row["recordings"]), row["moments"], *_format_class(row, "average_precision", methods))
        for row in measured["classes"]
    ]
    yield from table(head, (*rows, ("**all**", "", measured["moments"], *_format_class(measured, "map", methods))))
    yield from (
        "Right: share of a class's moments whose best score is right; AP: average precision, for all classes its mean. Logistic regression",
        "learns from mean, spread and speed of each value over a second of tracks drawn as in training.",
        "",
    )


def _format_class(row: Mapping[str, Any], precision: str, methods: list[str]) -> Iterator[str]:
    return (f"{100 * row['accuracy'][method]:.0f} % ({row[precision][method]:.2f})" for method in methods)


def pipeline_card(spec: BundleSpec) -> Iterator[str]:
    measured = spec.quality["pipeline"]
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
        "## Labels that can be relied on",
        "",
        "A second is `unsure` if its best label scores less than that label's threshold: the lowest score such that of all moments in",
        f"which the label scores as much {100 * measured['precision']:.0f} % have it. The second row is what to expect of other people:",
        "thresholds do not carry over to recordings on which they were not chosen.",
        "",
    )
    head = ("recordings", "moments", "best label right", "sure", "right of the sure", "right of the unsure")
    of = {"trained": "of training", "test": "of the test, thresholds chosen without them"}
    yield from table(head, (_format_reliance(of[name], one) for name, one in measured["reliance"].items()))


def _format_reliance(name: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    shares = [one[key] for key in ("right", "sure", "right_of_sure", "right_of_unsure")]
    return name, f"{one['moments']:,}", *("–" if share is None else f"{100 * share:.0f} %" for share in shares)


def clips_section(spec: BundleSpec) -> Iterator[str]:
    found, data = spec.quality["clips"], spec.provenance["data"]
    flow = found["baselines"]["optical flow"]
    yield from (
        "Turns are those of the camera, seen from behind it. In a second, a camera that slides looks like one that turns, and one that",
        "walks ahead like a lens that zooms: `pan`, `tilt` and `zoom` mean both. A clip of several moves gets the mean of its views.",
        "",
        "## Data",
        "",
        "Trained on clips that are made up anew for every sample: a camera that moves over a picture or through a room whose walls are",
        "pictures, with cutouts in front, some of which move by themselves; bars, captions, light, noise and codecs. No clip was filmed.",
        "",
        *(f"- {row['name']} {row['version']}: {row['license']}." for row in data["packages"]),
        "",
        f"Pictures by part: {', '.join(f'{name} {count}' for name, count in data['pictures'].items())}.",
        "",
        "## Quality",
        "",
        f"Judged once, as the service looks at videos, on {found['videos']} made-up videos of pictures that were not trained on,",
        "encoded by three codecs at 10 to 60 frames a second. ± is two standard errors; a difference is paired.",
        "",
        f"The primary figure, fixed before training: **{share(found['network'])}** are named right. Optical flow (Farneback), a similarity",
        f"fitted to each step by RANSAC and read by a random forest, names {share(flow['accuracy'])} right; the network is better by",
        f"{share(flow['gain'])}.",
        "",
    )


def depth_section(spec: BundleSpec) -> Iterator[str]:
    found, data = spec.quality["depth"], spec.provenance["data"]
    ratio = found["ratio"]
    yield from _rendered_data(data)
    yield from (
        *creators(data, "- {license}: objects"),
        "",
        "## Quality",
        "",
        f"Judged once, on {found['objects']} objects of categories that were not trained on, at most {found['views']} views each.",
        "Errors are mean absolute ones of depth over the object, after the scale and shift that fit best, in standard deviations of its",
        "depth: what tells nothing has about 0.8. The inflated outline is the silhouette, blown up as a balloon.",
        "",
        f"The primary figure, fixed before training, is the network's error over that of the inflated outline: **{ratio['value']:.3f}** ±",
        f"{2 * ratio['standard_error']:.3f} (two standard errors). The network is nearer on {found['better']} of the objects.",
        "",
    )
    ways = ("network", "inflated outline")
    yield from table(
        ("category", "objects", *ways),
        ((row["name"], row["objects"], f"{row['network']:.3f}", f"{row['inflated']:.3f}") for row in found["by_category"]),
    )


def reconstruction_section(spec: BundleSpec) -> Iterator[str]:
    found, data = spec.quality["reconstruction"], spec.provenance["data"]
    yield from _rendered_data(data)
    yield from (
        *creators(data, "- {license}: objects"),
        "",
        "## Quality",
        "",
        f"Judged once, on {found['objects']} objects of categories that were not trained on ({', '.join(found['categories'])}), at most",
        f"{found['views']} views each, with the noise and the holes of a depth sensor. Lengths are in units of the spread of the seen",
        "points. F1 is the harmonic mean of two shares: that of the reconstructed points that are nearer than",
        f"{found['distance']:g} to the true surface, and that of the true surface with a reconstructed point as near. ± is two standard",
        "errors of the mean over objects.",
        "",
        f"The primary figure, fixed before training, is the F1 of `{CELLS}`: the cells that the network calls occupied, asked in steps",
        f"of {found['spacing']:g} (adaptive). Joined is what the service answers. Extruded are the seen points and the same",
        f"{found['extrusion_depth']:g} farther away, the best depth on objects for choices, with walls between. Occupancy was shifted so",
        "that the best threshold on objects for choices became the service's.",
        "",
    )
    rows = (
        (
            row["name"],
            figure(row["f1"], 3),
            "" if row["name"] == CELLS else verdict(row["network_minus_this"], 3, lower_is_better=False),
        )
        for row in found["reconstruction"]
        if row["name"] in METHODS
    )
    yield from table(("reconstructed by", "F1", "the network is"), rows)


def _rendered_data(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield the section about rendered training data. data: the provenance's."""
    counted = ", ".join(f"{count} of {category}" for category, count in data["objects"].items())
    yield from (
        "## Data",
        "",
        f"Trained on {data['views']:,} renders of meshes ({counted}), and on no photographs. Meshes and textures come from packages:",
        "",
    )
    rows = ((package["name"], package["version"], package["license"]) for package in data["packages"])
    yield from table(("package", "version", "licence"), rows)


def inpainting_section(spec: BundleSpec) -> Iterator[str]:
    quality, data = spec.quality, spec.provenance["data"]
    drawings = f"{data['drawings']['train']:,} drawings of {packages(data)}"
    yield from (
        "## Data",
        "",
        f"Trained on {drawings}, and on no photographs.",
        "",
        "## Quality",
        "",
        f"Evaluated on {quality['images']} drawings, one of each held-out series, none of which was trained on. Each has one hole, a box",
        "of 10 to 25 % of the area. The first row is the primary figure, fixed before training.",
        "",
        "± is two standard errors of the mean over drawings. Perceptual distance is the mean squared difference of unit-length features of",
        "EfficientNet-Lite0 at five depths, over the whole image (lower is better); PSNR is of the pixels in the hole (higher is better).",
        "It rewards blurred fillings, which are near to everything that could be there.",
        "",
    )
    rows = ((row["name"], figure(row["perceptual"], 4), figure(row["psnr"], 2)) for row in quality["inpainting"])
    yield from table(("filled by", "perceptual distance", "PSNR, dB"), rows)


def naming_section(spec: BundleSpec) -> Iterator[str]:
    report, data = spec.quality["naming"], spec.provenance["data"]
    artists = ", ".join(f"{artist['name']} ({artist['license']})" for artist in data["artists"])
    count, primary = report["emoji"]["n"], report["emoji"]["ways"][NAMING_NETWORK]["top1"]
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
            "this model" if way == NAMING_NETWORK else f"nearest neighbour by {way}",
            *(share(row[f"top{rank}"]) for rank in RANKS),
            "" if way == NAMING_NETWORK else share(row["network_minus_this_top5"], sign="+"),
        )
        for way, row in ((way, report["emoji"]["ways"][way]) for way in (NAMING_NETWORK, FEATURES))
    )
    yield from table(("method", "first", "among the first 5", "network minus this, first five"), rows)


def sounds_section(spec: BundleSpec) -> Iterator[str]:
    found, data = spec.quality["sounds"], spec.provenance["data"]
    groups = [group for group in found["groups"] if not group.get("seen")]  # of 1.1.0 also the tests of an earlier version
    primary = groups[0]
    yield from (
        *(
            f"- {part}: {package['name']} {package['version']} ({package['license']})."
            for part, packages in data["packages"].items()
            for package in packages
        ),
        "",
        f"Labels: {', '.join(spec.labels)}.",
        "",
        "## Quality",
        "",
        "Looked at once. The primary figure, fixed before training, is the share of the notes of a font by another maker,",
        f"{primary['name']}, whose best label is right: **{share(primary['top1'])}**. None of that font was trained on. ± is two",
        "standard errors over presets, keys of drums, or files: sounds of one of them are no independent tries. Gain is the accuracy of",
        "the network less the baseline's.",
        "",
    )
    yield from table(("sounds", "n", "top 1", "top 5", "logistic regression", "gain"), map(_format_group, groups))
    yield from (
        "Logistic regression sees the mean of a sound's log-mel spectrogram over time and learnt from sounds like the network's.",
        "*In rooms* are the same notes with drawn equalisers, rooms, noise and levels. Of recorded samples all windows are heard, as the",
        "service does it. Confidence is calibrated on presets for choices: the weights of the head are divided by a temperature of",
        f"{found['temperature']:.3f}.",
        "",
    )


def _format_group(group: Mapping[str, Any]) -> tuple[object, ...]:
    rival, top1 = group["baselines"][LOGISTIC], group["top1"]
    return group["name"], top1["n"], f"**{share(top1)}**", share(group["top5"]), share(rival["accuracy"]), share(rival["gain"])


WHOLE: Mapping[str, Sections] = {"pipeline": pipeline_card, "sources": flag_card}
"""Lines of a separate README by measurement."""
SECTIONS: Mapping[str, Sections] = {
    "actions": actions_section,
    "clips": clips_section,
    "depth": depth_section,
    "inpainting": inpainting_section,
    "naming": naming_section,
    "reconstruction": reconstruction_section,
    "sounds": sounds_section,
}
"""Section of the README by measurement."""
