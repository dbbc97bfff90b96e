"""`opsin zero-shot`: score images against your own labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from opsin.cli.bundles import class_names
from opsin.cli.classify import label_table
from opsin.cli.shared import image_files
from opsin.cli.shared.console import format_count
from opsin.cli.shared.errors import UsageError
from opsin.cli.shared.options import ImageTimeout, Merge, Model, Url


def zero_shot(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Image files.")],
    label: Annotated[list[str] | None, typer.Option("--label", help="A label, such as 'a red car'; repeatable.")] = None,
    labels: Annotated[Path | None, typer.Option(help="More labels: one per line, a JSON list, or a bundle.json.")] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            "--template", help="Sentence with one {} for the label; repeatable; {} alone: labels as they are. [default: the bundle's]"
        ),
    ] = None,
    url: Url = None,
    model: Model = None,
    merge: Merge = None,
    top_k: Annotated[int | None, typer.Option(help="Number of labels for each image.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Minimum cosine of the labels to print.")] = None,
    timeout: ImageTimeout = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per line, for each image.")] = False,
) -> None:
    """Score images against your own labels. Each file is sent as a separate request.

    Exit code 0 if every image was classified, 1 if one was not.
    """
    from opsin.client import Client
    from opsin.errors import OpsinError

    image_files.check_files(files)
    all_labels = [*(label or []), *(class_names.read(labels) if labels else [])]
    if not all_labels:
        raise UsageError("zero-shot: no labels are given; name some with --label TEXT or --labels FILE")
    options: Any = {"model": model, "merge": merge, "top_k": top_k, "threshold": threshold, "templates": template or None}
    with Client(url, timeout=timeout) as client:
        answers = image_files.answer_all(lambda file: client.zero_shot(file, all_labels, wait=True, **options), files, "Classifying")
    truncated = max((answer.labels.truncated for answer in answers.values() if not isinstance(answer, OpsinError)), default=0)
    if truncated:
        typer.echo(f"opsin: {truncated} of {format_count(len(all_labels), 'label')} truncated: longer than the bundle reads", err=True)
    image_files.report(answers, label_table, as_json=as_json)
