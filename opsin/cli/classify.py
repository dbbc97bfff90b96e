"""`opsin classify`: classify images, clips and sound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsin.cli.shared import image_files, media_kinds
from opsin.cli.shared.console import escape_controls, escape_markup, make_table
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.options import Merge, Model, Url, require_positive
from opsin.cli.shared.service_calls import wait_with_progress

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from opsin.client import Client
    from opsin.errors import OpsinError
    from opsin.results import Classification, ViewScores
    from opsin.zero_shot import ZeroShotClassification

IMAGE_TIMEOUT_S = 60.0
UNKNOWN_KIND = "not an image, video or sound, judging by its first bytes"

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
"""Option → kinds of the files that it applies to."""

CallArguments = dict[Path, Mapping[str, Any]]
"""File → its arguments of `Client.classify`."""


def classify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Images, videos or sounds.")],
    audio: Annotated[Path | None, typer.Option(help="Audio file to use instead of the video's own sound track.")] = None,
    url: Url = None,
    model: Model = None,
    merge: Merge = None,
    merge_sight: Annotated[str | None, typer.Option(help="Merging in the video half of an audio-visual bundle.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Number of labels for each file.")] = None,
    views: Annotated[int | None, typer.Option(help="Number of views of a video. [default: the bundle's]")] = None,
    crops: Annotated[int | None, typer.Option(help="Crops of each view, 1 or 3. [default: the bundle's]")] = None,
    start: Annotated[float | None, typer.Option(help="Start of the part to classify, in seconds.")] = None,
    end: Annotated[float | None, typer.Option(help="End of the part to classify, in seconds.")] = None,
    windows: Annotated[int | None, typer.Option(help="Number of windows of sound. [default: all that fit]")] = None,
    use: Annotated[str | None, typer.Option(help="both, sound or sight, for bundles that accept either.")] = None,
    timeline: Annotated[bool, typer.Option("--timeline", help="Also print the best label of each view or window, with its time.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Timeout for each file, in seconds. [default: 60; an hour or OPSIN_JOB_TIMEOUT for clips, sound and jobs]",
            callback=require_positive,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per line, for each file.")] = False,
    later: Annotated[
        bool, typer.Option("--later", help="Submit each file as an asynchronous job and print `ID<TAB>FILE`; see `opsin jobs`.")
    ] = False,
) -> None:
    """Classify images, clips or sound. Each file is sent as a separate request, so a bad file does not affect the others.

    The kind of a file is detected from its content. A GIF is a clip for a --model that takes no images. Among files of several kinds,
    --views and --crops apply to videos, --windows to sounds, and none of them to images.

    Exit code 0 if every file was classified or submitted, 1 if one was not, 2 if one does not exist: nothing is sent then.
    """
    from opsin.client import Client

    arguments, rejected = _detect_parts(files, audio)
    if later and as_json:
        raise UsageError("--json: cannot be combined with --later; use `opsin jobs result` to get the answers as JSON")
    clip_options = {
        "merge_sight": merge_sight,
        "views": views,
        "crops": crops,
        "start_s": start,
        "end_s": end,
        "windows": windows,
        "use": use,
    }
    options: Any = {"model": model, "merge": merge, "top_k": top_k, "timeline": timeline or None, **clip_options}
    if later:
        _submit_jobs(url, arguments, rejected, {**options, "timeout": timeout})
        return
    with Client(url, timeout=IMAGE_TIMEOUT_S if timeout is None else timeout) as client:
        arguments = _gifs_as_videos(client, model, arguments)
        images = [file for file, parts in arguments.items() if "images" in parts]
        answers: dict[Path, Any] = dict(rejected)
        if images:
            image_options = _options_for(arguments[images[0]], arguments, options)
            answers |= image_files.answer_all(lambda file: client.classify(file, wait=True, **image_options), images, "Classifying")
        for file, parts in arguments.items():
            if "images" not in parts:
                file_options = {**parts, **_options_for(parts, arguments, options), "timeout": timeout}
                answers[file] = image_files.answer_or_error(_classify_as_job, client, file_options)
    image_files.report({file: answers[file] for file in files}, _tables_with_timeline if timeline else label_table, as_json=as_json)


def _detect_parts(files: list[Path], audio: Path | None) -> tuple[CallArguments, dict[Path, OpsinError]]:
    """Return the arguments of `Client.classify` for each file, and the errors of files that are not sent. Raises UsageError."""
    from opsin.errors import Refused

    image_files.check_files([*files, *([] if audio is None else [audio])], "images, videos or sounds")
    arguments: CallArguments = {}
    rejected: dict[Path, OpsinError] = {}
    for file in files:
        if argument := _argument_for(file):
            arguments[file] = {argument: file}
        else:
            rejected[file] = Refused(UNKNOWN_KIND if file.stat().st_size else "the file is empty")
    if audio is None:
        return arguments, rejected
    if len(set(files)) > 1 or "video" not in arguments.get(files[0], {}):
        raise UsageError("--audio: goes with one video; a sound alone is a FILE")
    return {files[0]: {"video": files[0], "audio": audio}}, rejected


def _argument_for(file: Path) -> str | None:
    try:
        kind = media_kinds.detect_file_kind(file)
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from error
    return "images" if kind == "image" else kind


def _gifs_as_videos(client: Client, model: str | None, arguments: CallArguments) -> CallArguments:
    """Send GIFs as videos if the named bundle takes videos and no images."""
    from opsin.errors import OpsinError

    gifs = [file for file, parts in arguments.items() if "images" in parts and media_kinds.is_gif(file)]
    if model is None or not gifs:
        return arguments
    try:
        part_names = {part["name"] for part in client.model(model).details["inputs"]}
    except OpsinError:  # the answer to each file reports it
        return arguments
    return arguments if "image" in part_names or "video" not in part_names else arguments | {file: {"video": file} for file in gifs}


def _options_for(parts: Mapping[str, Any], arguments: CallArguments, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options without those for other kinds among the files. Options for kinds that no file has are sent: the service rejects
    them."""
    kinds = {part for parts in arguments.values() for part in parts}
    others = {name for name, option_kinds in OPTION_KINDS.items() if option_kinds & kinds and not option_kinds & parts.keys()}
    return {name: value for name, value in options.items() if name not in others}


def _classify_as_job(client: Client, arguments: Mapping[str, Any]) -> Classification:
    """Classify a clip or sound as a job, with a progress bar on a terminal. Ctrl-C cancels it."""
    result: Classification = wait_with_progress(client.classify(**arguments, wait=False), "Classifying")
    return result


def _submit_jobs(url: str | None, arguments: CallArguments, rejected: Mapping[Path, OpsinError], options: dict[str, Any]) -> None:
    """Submit each file as a job and print its id. Raises CommandError with the files that the service rejected."""
    from opsin.client import Client
    from opsin.errors import OpsinError

    failures = [f"{file}: {error}" for file, error in rejected.items()]
    with Client(url) as client:
        arguments = _gifs_as_videos(client, options["model"], arguments)
        for file, parts in arguments.items():
            job: Any = image_files.answer_or_error(client.classify, **parts, wait=False, **_options_for(parts, arguments, options))
            if isinstance(job, OpsinError):
                failures.append(f"{file}: {job}")
            else:
                typer.echo(escape_controls(f"{job.id}\t{file}"))
    if failures:
        raise CommandError(*failures)


def label_table(rows: Iterable[tuple[str, Classification | ZeroShotClassification]]) -> Table:
    """Return a table with a row for each result: best labels, sampled views or windows of clips and sounds, tokens before and after merging
    if there are any, and the times of the service and the network."""
    results = list(rows)
    has_merging, summaries = any(found.merging for _, found in results), [_input_summary(found) for _, found in results]
    heads = ("File", "Labels", "Input") if any(summaries) else ("Image", "Labels")
    figures = ("Tokens", "Latency", "Network") if has_merging else ("Latency", "Network")
    table = make_table(*heads, *figures, right=figures)
    for (name, result), summary in zip(results, summaries, strict=True):
        tokens = f"{result.merging.tokens_in} → {result.merging.tokens_out}" if result.merging else ""
        times = f"{result.timing.total_ms:.1f} ms", f"{result.timing.inference_ms:.1f} ms"
        table.add_row(
            escape_markup(name), _format_labels(result), *([summary] if any(summaries) else []), *([tokens] if has_merging else []), *times
        )
    return table


def _tables_with_timeline(rows: Iterable[tuple[str, Classification]]) -> Group:
    """Return `label_table`, and a table of the best label of each view or window."""
    from rich.console import Group

    results = list(rows)
    table = make_table("File", "Seconds", "Label")
    for name, result in results:
        for view in result.timeline or ():
            table.add_row(escape_markup(name), f"{view.start_s:.2f} – {view.end_s:.2f}", _format_labels(view, 1))
    return Group(label_table(results), "", table)


def _input_summary(result: Classification | ZeroShotClassification) -> str:
    from opsin.results import Classification

    return result.looked_at.replace("; ", "\n") if isinstance(result, Classification) else ""


def _format_labels(result: Classification | ZeroShotClassification | ViewScores, count: int = 3) -> str:
    """Format the best labels as rich markup, the first of them bold: `fruit 97 %  vegetables 2 %`."""
    if not result.predictions:  # no label reaches the threshold
        return "[dim]none[/]"
    first, *others = [f"{escape_markup(prediction.label)} {prediction.score:.0%}" for prediction in result.predictions[:count]]
    return "  ".join([f"[bold]{first}[/]", *(f"[dim]{other}[/]" for other in others)])
