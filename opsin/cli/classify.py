"""`opsin classify`: label images, clips and sound through a running service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsin.cli.shared import image_files, media_kinds
from opsin.cli.shared.console import escape_controls, escape_markup, make_table
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.job_progress import wait_with_progress
from opsin.cli.shared.options import Merge, Model, Url, positive

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from opsin.client import Client
    from opsin.errors import OpsinError
    from opsin.results import Classification, ViewScores
    from opsin.zero_shot import ZeroShotClassification

IMAGE_TIMEOUT_S = 60.0
UNKNOWN = "its first bytes are of no image, video or sound"

OPTION_KINDS = {
    "views": {"video"},
    "crops": {"video"},
    "merge_sight": {"video"},
    "windows": {"audio"},
    "start_s": {"video", "audio"},
    "end_s": {"video", "audio"},
    "use": {"video", "audio"},
    "timeline": {"video", "audio"},
}
"""Option → the files that it is meant for, among files of several kinds."""

CallArguments = dict[Path, Mapping[str, Any]]
"""File → the arguments of `Client.classify` that it is sent by."""


def classify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Images, videos or sounds.", show_default=False)],
    audio: Annotated[Path | None, typer.Option(help="Sound beside one video, in place of its own.", show_default=False)] = None,
    url: Url = None,
    model: Model = None,
    merge: Merge = None,
    merge_sight: Annotated[str | None, typer.Option(help="The same for a video beside its sound.", show_default=False)] = None,
    top_k: Annotated[int | None, typer.Option(help="Labels per file.", show_default=False)] = None,
    views: Annotated[int | None, typer.Option(help="Views of a video. [default: the bundle's]", show_default=False)] = None,
    crops: Annotated[int | None, typer.Option(help="Crops of each view, 1 or 3. [default: the bundle's]", show_default=False)] = None,
    start: Annotated[float | None, typer.Option(help="Second at which what is classified begins.", show_default=False)] = None,
    end: Annotated[float | None, typer.Option(help="Second at which it ends.", show_default=False)] = None,
    windows: Annotated[int | None, typer.Option(help="Windows of sound. [default: all that fit]", show_default=False)] = None,
    use: Annotated[str | None, typer.Option(help="both, sound or sight, of bundles that can do with either.", show_default=False)] = None,
    timeline: Annotated[bool, typer.Option("--timeline", help="Also the best label of each view or window, with its seconds.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds per file. [default: 60; of clips, sound and jobs an hour, or OPSIN_JOB_TIMEOUT]",
            callback=positive,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line and file.")] = False,
    later: Annotated[
        bool, typer.Option("--later", help="Make a job of each file and print its id, a tab and the file: see opsin jobs.")
    ] = False,
) -> None:
    """Label images, clips or sound with a running service; each file is a request of its own, so one bad file does not spoil the others.

    What a file is, its bytes tell; a GIF is a clip to a --model that takes no images. Among files of several kinds --views and --crops
    go with the videos alone, --windows with the sounds, and images are asked without any of these.

    Exit code 0 if every file was labelled, or taken for later, 1 if one was not, 2 if one is not there: nothing is asked then.
    """
    from opsin.client import Client

    sent, unknown = _parts(files, audio)
    if later and as_json:
        raise UsageError("--json: with --later there are no answers yet; opsin jobs result prints them as JSON")
    of_clips = {"merge_sight": merge_sight, "views": views, "crops": crops, "start_s": start, "end_s": end, "windows": windows, "use": use}
    options: Any = {"model": model, "merge": merge, "top_k": top_k, "timeline": timeline or None, **of_clips}
    if later:
        _ask_later(url, sent, unknown, {**options, "timeout": timeout})
        return
    with Client(url, timeout=IMAGE_TIMEOUT_S if timeout is None else timeout) as client:
        sent = _as_asked(client, model, sent)
        images = [file for file, parts in sent.items() if "images" in parts]
        answers: dict[Path, Any] = dict(unknown)
        if images:
            of_images = _options_for(sent[images[0]], sent, options)
            answers |= image_files.answers(lambda file: client.classify(file, wait=True, **of_images), images, "Classifying")
        for file, parts in sent.items():
            if "images" not in parts:
                of_clip = {**parts, **_options_for(parts, sent, options), "timeout": timeout}
                answers[file] = image_files.answer(_followed, client, of_clip)
    image_files.report({file: answers[file] for file in files}, _tables if timeline else label_table, as_json=as_json)


def _parts(files: list[Path], audio: Path | None) -> tuple[CallArguments, dict[Path, OpsinError]]:
    """Return what is sent of each file, as arguments of `Client.classify`; and why others are not sent. Raises UsageError."""
    from opsin.errors import Refused

    image_files.check([*files, *([] if audio is None else [audio])], "images, videos or sounds")
    sent: CallArguments = {}
    unknown: dict[Path, OpsinError] = {}
    for file in files:
        if argument := _argument(file):
            sent[file] = {argument: file}
        else:
            unknown[file] = Refused(UNKNOWN if file.stat().st_size else "the file is empty")
    if audio is None:
        return sent, unknown
    if len(set(files)) > 1 or "video" not in sent.get(files[0], {}):
        raise UsageError("--audio: goes with one video; a sound alone is a FILE")
    return {files[0]: {"video": files[0], "audio": audio}}, unknown


def _argument(file: Path) -> str | None:
    try:
        kind = media_kinds.kind_of(file)
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from error
    return "images" if kind == "image" else kind


def _as_asked(client: Client, model: str | None, sent: CallArguments) -> CallArguments:
    """GIFs as videos where a bundle is named that takes no images."""
    from opsin.errors import OpsinError

    gifs = [file for file, parts in sent.items() if "images" in parts and media_kinds.is_gif(file)]
    if model is None or not gifs:
        return sent
    try:
        takes = {part["name"] for part in client.model(model).details["inputs"]}
    except OpsinError:  # the answer to each file says it
        return sent
    return sent if "image" in takes or "video" not in takes else sent | {file: {"video": file} for file in gifs}


def _options_for(parts: Mapping[str, Any], sent: CallArguments, options: dict[str, Any]) -> dict[str, Any]:
    """The options without those that are meant for files of another kind. One that is meant for none of the files is left for the service
    to judge."""
    kinds = {part for parts in sent.values() for part in parts}
    others = {name for name, meant in OPTION_KINDS.items() if meant & kinds and not meant & parts.keys()}
    return {name: value for name, value in options.items() if name not in others}


def _followed(client: Client, asked: Mapping[str, Any]) -> Classification:
    """The answer to a clip or sound, as a job, whose progress a terminal shows and Ctrl-C ends."""
    found: Classification = wait_with_progress(client.classify(**asked, wait=False), "Classifying")
    return found


def _ask_later(url: str | None, sent: CallArguments, unknown: Mapping[Path, OpsinError], options: dict[str, Any]) -> None:
    """Print the id of each file's job; raises Failure with those that the service did not take."""
    from opsin.client import Client
    from opsin.errors import OpsinError

    refused = [f"{file}: {error}" for file, error in unknown.items()]
    with Client(url) as client:
        sent = _as_asked(client, options["model"], sent)
        for file, parts in sent.items():
            job: Any = image_files.answer(client.classify, **parts, wait=False, **_options_for(parts, sent, options))
            if isinstance(job, OpsinError):
                refused.append(f"{file}: {job}")
            else:
                typer.echo(escape_controls(f"{job.id}\t{file}"))
    if refused:
        raise CommandError(*refused)


def label_table(rows: Iterable[tuple[str, Classification | ZeroShotClassification]]) -> Table:
    """A row for each name and what was found: best labels, what of clips and sounds was looked at, tokens into and out of the network
    where it has any, the service's time and the network's."""
    found_in = list(rows)
    merges, looked_at = any(found.merging for _, found in found_in), [_looked_at(found) for _, found in found_in]
    heads = ("File", "Labels", "Looked at") if any(looked_at) else ("Image", "Labels")
    figures = ("Tokens", "Latency", "Network") if merges else ("Latency", "Network")
    table = make_table(*heads, *figures, right=figures)
    for (name, found), facts in zip(found_in, looked_at, strict=True):
        tokens = f"{found.merging.tokens_in} → {found.merging.tokens_out}" if found.merging else ""
        times = f"{found.timing.total_ms:.1f} ms", f"{found.timing.inference_ms:.1f} ms"
        table.add_row(escape_markup(name), _labels(found), *([facts] if any(looked_at) else []), *([tokens] if merges else []), *times)
    return table


def _tables(rows: Iterable[tuple[str, Classification]]) -> Group:
    """`label_table`, and the best label of each view or window of each file."""
    from rich.console import Group

    found_in = list(rows)
    table = make_table("File", "Seconds", "Label")
    for name, found in found_in:
        for view in found.timeline or ():
            table.add_row(escape_markup(name), f"{view.start_s:.2f} – {view.end_s:.2f}", _labels(view, 1))
    return Group(label_table(found_in), "", table)


def _looked_at(found: Classification | ZeroShotClassification) -> str:
    from opsin.results import Classification

    return found.looked_at.replace("; ", "\n") if isinstance(found, Classification) else ""


def _labels(found: Classification | ZeroShotClassification | ViewScores, count: int = 3) -> str:
    """The best labels as rich markup, the first of them bold: `fruit 97 %  vegetables 2 %`."""
    if not found.predictions:  # none reaches the threshold
        return "[dim]none[/]"
    first, *others = [f"{escape_markup(prediction.label)} {prediction.score:.0%}" for prediction in found.predictions[:count]]
    return "  ".join([f"[bold]{first}[/]", *(f"[dim]{other}[/]" for other in others)])
