"""`opsin keys`: make, list and revoke API keys of the service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsin.cli.shared.console import make_console, make_table
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.requirements import requires_extra

if TYPE_CHECKING:
    from server.gateway.auth.key_file import KeyLines

app = typer.Typer(help="Make, list and revoke API keys of the service.", no_args_is_help=True)

SHOWN_HASH_CHARS = 12
Name = Annotated[str, typer.Argument(metavar="NAME", help="The holder, who owns jobs and scenes.", show_default=False)]
File = Annotated[Path, typer.Option("--file", envvar="OPSIN_API_KEYS_FILE", help="The service's file of keys.", show_default=False)]


@app.command()
def new(
    name: Name,
    max_items: Annotated[int | None, typer.Option(min=1, help="Most unfinished items at once.", show_default=False)] = None,
    rate: Annotated[float | None, typer.Option(min=1e-3, max=999_999_999, help="Most requests a second.", show_default=False)] = None,
    priority: Annotated[str, typer.Option(help="The highest that may be asked for: high, normal or low.")] = "high",
    metrics: Annotated[bool, typer.Option("--metrics", help="May read /metrics and /v1/status.")] = False,
    admin: Annotated[bool, typer.Option("--admin", help="May also load and unload bundles.")] = False,
) -> None:
    """Make a key: its line for the service's file goes to stdout, behind an empty one, the key itself once to stderr.

    `opsin keys new alice >> keys.txt` lets alice in within a second; the file never holds the key.
    """
    _require()
    from server.gateway.auth.key_file import ApiKey, checked, digest_of, line_of, new_key

    try:
        holder = checked(ApiKey(name, max_items or 0, rate or 0.0, priority, metrics, admin))  # type: ignore[arg-type]
    except ValueError as error:
        raise UsageError(f"keys new: {error}") from error
    key = new_key()
    # behind an empty line, since the last line of a file that somebody has edited may have no end
    typer.echo(f"\n{line_of(holder, digest_of(key.encode()))}")
    typer.echo(key, err=True)


@app.command("list")
def list_(file: File) -> None:
    """List the keys of a file, by name. Exit code 1 if lines cannot be understood, which admit nobody."""
    _require()
    lines = _read(file)[1]
    table = make_table("Line", "Name", "SHA-256", "Items", "Requests/s", "Priority", "May")
    for digest, key in sorted(lines.keys.items(), key=lambda item: (item[1].name, lines.numbers[item[0]])):
        may = ", ".join(right for right in ("metrics", "admin") if getattr(key, right))
        shown = digest.hex()[:SHOWN_HASH_CHARS]
        limits = str(key.max_items or "–"), f"{key.rate:g}" if key.rate else "–"
        table.add_row(str(lines.numbers[digest]), key.name, shown, *limits, key.priority, may or "–")
    make_console().print(table)
    if lines.bad:
        raise CommandError(*(f"{file}: line {number} admits nobody: {why}" for number, why in sorted(lines.bad.items())))


@app.command()
def revoke(
    name: Name,
    file: File,
    sha256: Annotated[str, typer.Option(help="Only the key whose hash begins so, as `list` shows it.", show_default=False)] = "",
) -> None:
    """Take the keys of a name out of a file, which is written in place: within a second they let nobody in.

    What the name has asked for runs to its end and answers nobody, unless another key of the name is left.
    """
    _require()
    from server.gateway.auth.key_file import lines_of, rewrite

    is_written = False
    while not is_written:  # somebody may add a line meanwhile
        content, lines = _read(file)
        gone = lines_of(content, name, sha256)
        if not gone:
            known = ", ".join(sorted({key.name for key in lines.keys.values()})) or "none"
            raise CommandError(f"keys revoke: {file} has no such key of {name}; names in it: {known}")
        kept = [line for number, line in enumerate(content.split(b"\n"), start=1) if number not in gone]
        try:
            is_written = rewrite(file, content, b"\n".join(kept))
        except OSError as error:
            raise CommandError(f"keys revoke: {file} cannot be written: {error.strerror}") from error
    typer.echo(f"{len(gone)} key{'s' if len(gone) > 1 else ''} of {name} revoked")


def _read(file: Path) -> tuple[bytes, KeyLines]:
    """Raises Failure."""
    from server.gateway.auth.key_file import read_file, read_lines

    try:
        content = read_file(file)
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}") from error
    return content, read_lines(content)


def _require() -> None:
    """Raises UsageError where the service is not installed."""
    with requires_extra("gateway"):
        import server.gateway.auth.key_file  # noqa: F401
