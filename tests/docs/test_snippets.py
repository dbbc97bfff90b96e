"""Every code block of README and docs: it runs, or its commands are ones that the command line takes."""

from __future__ import annotations

import shlex

import pytest
import typer
from typer.main import get_command

from opsin.cli.app import app
from tests.docs.code_blocks import Block, Desk, blocks, commands, read_blocks

RUN = (
    "README.md-2",
    "docs/api.md",
    "docs/cli.md-2",
    "docs/cli.md-3",
    "docs/cli.md-4",
    "docs/cli.md-5",
    "docs/cli.md-7",
    "docs/cli.md-8",
    "docs/jobs.md",
    "docs/keys.md-1",
    "docs/open-inference.md-2",
    "docs/open-inference.md-3",
    "docs/openai.md-1",
    "docs/quickstart.md-3",
    "docs/quickstart.md-5",
    "docs/tasks/actions.md-1",
    "docs/tasks/actions.md-3",
    "docs/tasks/clips-and-sound.md-1",
    "docs/tasks/clips-and-sound.md-2",
    "docs/tasks/inpainting.md-1",
    "docs/tasks/inpainting.md-3",
    "docs/tasks/reconstruction.md-1",
    "docs/tasks/reconstruction.md-3",
    "docs/tasks/words.md-1",
    "docs/tasks/words.md-3",
)
"""Blocks of the shell that run as they are, or all of a page. The others start services, build images, train, or name files of yours."""
SOON = ("README.md", "docs/api.md", "docs/jobs.md", "docs/open-inference.md", "docs/openai.md", "docs/quickstart.md")
"""Pages whose blocks are not left to the slow tests."""
ELSEWHERE = ("docs/extending.md", "docs/openai.md", "docs/steps.md")
"""Python that other tests run, and an outline of a protocol."""
OF_CHECKPOINTS = ("docs/checkpoints.md-18",)
"""Python for a published file, which `test_checkpoints` runs with a small one."""


def runs(block: Block) -> bool:
    return block.name in RUN or block.page in RUN


SHELL = blocks("sh")
COMMANDS = get_command(app)
PYTHON = sorted({block.page for block in blocks("python")} - set(ELSEWHERE))


@pytest.mark.parametrize(
    "block", [pytest.param(block, id=block.name, marks=() if block.page in SOON else pytest.mark.slow) for block in SHELL if runs(block)]
)
def test_what_is_typed_into_a_shell_works(desk: Desk, block: Block) -> None:
    desk.shell(block.code)


@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_runs_from_top_to_bottom(desk: Desk, page: str) -> None:
    run = (block for block in read_blocks(page) if block.language == "python" and block.name not in OF_CHECKPOINTS)
    desk.python("\n".join(block.code for block in run))


@pytest.mark.parametrize("block", [block for block in SHELL if commands(block)], ids=lambda block: block.name)
def test_commands_and_their_options_exist(block: Block) -> None:
    for line in commands(block):
        words = shlex.split(line)[1:]
        command = COMMANDS
        context = typer.Context(command)
        while words and isinstance(command, typer.core.TyperGroup):
            name = words.pop(0)
            found = command.get_command(context, name)
            assert found is not None, f"{line}: there is no command {name}"
            command = found
        if command.context_settings.get("ignore_unknown_options"):
            continue  # it hands them on
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in words:
            if word.startswith("-"):
                assert word.split("=")[0] in options, f"{line}: there is no option {word}"


def test_every_block_that_should_run_is_there() -> None:
    names = {block.name for block in SHELL} | {block.page for block in SHELL}
    assert set(RUN) <= names
