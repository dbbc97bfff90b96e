"""`opsin keys`: create, list and revoke API keys of the service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsin.cli.shared.console import make_console, make_table
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.requirements import requires_extra

if TYPE_CHECKING:
    from server.gateway.auth.key_file import ParsedKeyFile

app = typer.Typer(help="Create, list and revoke API keys of the service.", no_args_is_help=True)

SHOWN_HASH_CHARS = 12
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key's holder, who owns the jobs and scenes created with it.")]
KeysFile = Annotated[Path, typer.Option("--file", envvar="OPSIN_API_KEYS_FILE", help="The service's file of keys.")]


@app.command()
def new(
    name: Name,
    max_items: Annotated[int | None, typer.Option(min=1, help="Maximum number of unfinished items.")] = None,
    rate: Annotated[float | None, typer.Option(min=1e-3, max=999_999_999, help="Maximum number of requests per second.")] = None,
    priority: Annotated[str, typer.Option(help="Highest priority that the key may request: high, normal or low.")] = "high",
    metrics: Annotated[bool, typer.Option("--metrics", help="May read /metrics and /v1/status.")] = False,
    admin: Annotated[bool, typer.Option("--admin", help="May also load and unload bundles.")] = False,
) -> None:
    """Create a key. Its line for the key file is printed to stdout, after an empty line, and the key itself, once, to stderr.

    `opsin keys new alice >> keys.txt` takes effect within a second. The file never contains the key.
    """
    with requires_extra("gateway"):
        from server.gateway.auth.key_file import ApiKey, format_line, hash_key, new_key, validated_key

    try:
        holder = validated_key(ApiKey(name, max_items or 0, rate or 0.0, priority, metrics, admin))  # type: ignore[arg-type]
    except ValueError as error:
        raise UsageError(f"keys new: {error}") from error
    key = new_key()
    # after an empty line, since the last line of an edited file may lack its newline
    typer.echo(f"\n{format_line(holder, hash_key(key.encode()))}")
    typer.echo(key, err=True)


@app.command("list")
def list_(file: KeysFile) -> None:
    """List the keys of a file, by name. Exit code 1 if there are invalid lines, which the service ignores."""
    lines = _read(file)[1]
    table = make_table("Line", "Name", "SHA-256", "Items", "Requests/s", "Priority", "May")
    for digest, key in sorted(lines.keys.items(), key=lambda item: (item[1].name, lines.line_numbers[item[0]])):
        rights = ", ".join(right for right in ("metrics", "admin") if getattr(key, right))
        hash_prefix = digest.hex()[:SHOWN_HASH_CHARS]
        limits = str(key.max_items or "–"), f"{key.rate:g}" if key.rate else "–"
        table.add_row(str(lines.line_numbers[digest]), key.name, hash_prefix, *limits, key.priority, rights or "–")
    make_console().print(table)
    if lines.invalid_lines:
        raise CommandError(*(f"{file}: line {number} is ignored: {reason}" for number, reason in sorted(lines.invalid_lines.items())))


@app.command()
def revoke(
    name: Name,
    file: KeysFile,
    sha256: Annotated[str, typer.Option(help="Only revoke the key whose hash starts with this, as shown by `list`.")] = "",
) -> None:
    """Revoke all keys of a name by removing them from the key file. Takes effect within a second.

    Running jobs of the name run to their end, but no one can read their results, unless another key of the name is left.
    """
    with requires_extra("gateway"):
        from server.gateway.auth.key_file import matching_lines, rewrite

    is_written = False
    while not is_written:  # another process may add a line in between
        content, lines = _read(file)
        revoked = matching_lines(content, name, sha256)
        if not revoked:
            names = ", ".join(sorted({key.name for key in lines.keys.values()})) or "none"
            raise CommandError(f"keys revoke: {file} has no such key of {name}; names in it: {names}")
        remaining = [line for number, line in enumerate(content.split(b"\n"), start=1) if number not in revoked]
        try:
            is_written = rewrite(file, content, b"\n".join(remaining))
        except OSError as error:
            raise CommandError(f"keys revoke: {file} cannot be written: {error.strerror}") from error
    typer.echo(f"{len(revoked)} key{'s' if len(revoked) > 1 else ''} of {name} revoked")


def _read(file: Path) -> tuple[bytes, ParsedKeyFile]:
    """Read the key file. Raises CommandError."""
    with requires_extra("gateway"):
        from server.gateway.auth.key_file import parse_key_file, read_file

    try:
        content = read_file(file)
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}") from error
    return content, parse_key_file(content)
