"""The application of the command line: its commands, and the messages and exit codes of errors."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from opsin import __version__
from opsin.cli import actions, ask, bench, classify, embed, inpaint, jobs, keys, reconstruct, search, services, zero_shot
from opsin.cli.batch import command as batch_command
from opsin.cli.bundles import calibrate, compare, export_command, import_command, import_tracklets, published_models, train
from opsin.cli.bundles import command as bundles_command
from opsin.cli.capacity import command as capacity_command
from opsin.cli.demo import command as demo_command
from opsin.cli.shared.console import escape_controls
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.interrupts import EXIT_INTERRUPTED, exit_now
from opsin.errors import OpsinError

# typer contains click or, in older versions, depends on it: in both cases this public class is a subclass of click's UsageError
ClickUsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="opsin",
    help="Serve the masked-autoencoder family of vision models: fast, batched, observable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

SERVICE, WORK, BUNDLES = "The service", "Images and jobs", "Bundles and figures"
app.command(rich_help_panel=SERVICE)(services.serve)
app.command(rich_help_panel=SERVICE)(services.gateway)
app.command(rich_help_panel=SERVICE)(services.worker)
app.command(hidden=True)(services.template)
app.add_typer(keys.app, name="keys", rich_help_panel=SERVICE)
app.command(rich_help_panel=SERVICE)(capacity_command.capacity)
app.command(rich_help_panel=WORK)(demo_command.demo)
app.command(rich_help_panel=WORK)(classify.classify)
app.command("zero-shot", rich_help_panel=WORK)(zero_shot.zero_shot)
app.command(rich_help_panel=WORK)(embed.embed)
app.command(rich_help_panel=WORK)(search.search)
app.command(rich_help_panel=WORK)(inpaint.inpaint)
app.command(rich_help_panel=WORK)(actions.actions)
app.command(rich_help_panel=WORK)(reconstruct.reconstruct)
app.command(rich_help_panel=WORK)(ask.ask)
app.command(rich_help_panel=WORK)(batch_command.batch)
app.add_typer(jobs.app, name="jobs", rich_help_panel=WORK)
app.command("import", cls=import_command.ImportCommand, rich_help_panel=BUNDLES)(import_command.import_)
app.command("import-tracklets", rich_help_panel=BUNDLES)(import_tracklets.import_tracklets)
app.command(rich_help_panel=BUNDLES)(export_command.export)
app.command(rich_help_panel=BUNDLES)(compare.compare)
app.command(rich_help_panel=BUNDLES)(calibrate.calibrate)
app.command(rich_help_panel=BUNDLES)(train.train)
app.add_typer(bundles_command.app, name="bundles", rich_help_panel=BUNDLES)
app.command(rich_help_panel=BUNDLES)(published_models.models)
app.command(rich_help_panel=BUNDLES, add_help_option=False, context_settings=bench.PASS_THROUGH)(bench.bench)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"opsin {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Run the command line of this process. Exit codes: 0 success, 1 failure, 2 usage error, 130 interrupted."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:  # closed, as by `>&-`: no file or socket of this process may take its number
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name that is not valid UTF-8 must not hide all answers
    try:
        code = app(prog_name="opsin", standalone_mode=False)
    except ClickUsageError as error:
        message = error.format_message().replace(": Value error, ", ": ", 1)  # type: ignore[attr-defined]  # typer quotes pydantic
        _print_error(message, getattr(error.ctx, "command_path", "opsin"))  # type: ignore[attr-defined]
        code = 2
    except UsageError as error:
        _print_error(str(error))
        code = 2
    except CommandError as error:
        for sentence in error.sentences:
            _print_error(sentence)
        code = 1
    except OpsinError as error:
        _print_error(str(error))
        code = 1
    except (typer.Abort, KeyboardInterrupt) as error:
        code = EXIT_INTERRUPTED
        if isinstance(error.__cause__, EOFError):  # click reads it as Ctrl-D at a prompt, which no command has
            _print_error(str(error.__cause__) or "unexpected end of file")
            code = 1
    except BrokenPipeError:
        # the reader of the output has closed it, as in `opsin bundles list | head`; Python would report it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except ValueError as error:
        if isinstance(error, UnicodeEncodeError):
            _print_error(f"{error.object[:80]!r} is not valid UTF-8")
        elif isinstance(error.__cause__, UnicodeEncodeError):
            _print_error(str(error))
        else:
            raise
        code = 2
    except OSError as error:  # usually of a file that cannot be read
        _print_error(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        code = 1
    if code == EXIT_INTERRUPTED:  # typer may return it, too
        exit_now()
    sys.exit(code or 0)


def _print_error(sentence: str, command: str = "opsin") -> None:
    if sentence:  # empty if typer has shown the help instead
        typer.echo(escape_controls(f"{command}: {' '.join(sentence.split())}"), err=True)
