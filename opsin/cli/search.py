"""`opsin search`: find the image files that match a text or an image best, in a file of vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from opsin.cli.shared.console import escape_markup, make_console, make_table, print_note
from opsin.cli.shared.errors import UsageError
from opsin.cli.shared.options import Timeout, Url


def search(
    vectors: Annotated[Path, typer.Argument(metavar="FILE.npz", help="File written by `opsin embed`.")],
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Text to search for, such as 'something to eat'.")] = None,
    image: Annotated[Path | None, typer.Option(help="Image file to search for, instead of a text.")] = None,
    count: Annotated[int, typer.Option("-k", "--count", help="Number of files to print.")] = 10,
    url: Url = None,
    timeout: Timeout = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per line, for each file.")] = False,
) -> None:
    """Find the files that match a text or an image best, by exact cosine similarity, best first.

    The service embeds only the text or image; the vectors stay on this machine. Exit code 1 if the bundle's content has changed.
    """
    from opsin.client import Client
    from opsin.gallery import Gallery
    from opsin.vector_file import FileVectors

    if (text is None) == (image is None):
        raise UsageError("search: give either a text or --image FILE")
    if image is not None and not image.is_file():
        raise UsageError(f"--image: {image}: no such file")
    if count < 1:
        raise UsageError(f"-k: {count}; it must be at least 1")
    try:
        files = FileVectors.load(vectors)
    except FileNotFoundError as error:
        raise UsageError(f"{vectors}: no such file; `opsin embed FOLDER -o {vectors}` writes it") from error
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    with Client(url, timeout=timeout) as client:
        matches = Gallery(files, (), client.embed, client.model).search(text, image=image, k=count)
        bundle = client.model(files.model)
    if as_json:
        for match in matches:
            typer.echo(json.dumps({"path": str(match.path), "cosine": match.cosine}, ensure_ascii=False))
        return
    table = make_table("Cosine", "File")
    for match in matches:
        table.add_row(f"{match.cosine:.4f}", escape_markup(str(match.path)))
    make_console().print(table)
    print_note(bundle.id, bundle.note)
