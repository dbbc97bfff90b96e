"""Errors of commands. The command line prints their sentences on stderr and exits with their code."""


class UsageError(Exception):
    """The command was called in a way that cannot work: exit code 2. The message says what to do instead."""


class CommandError(Exception):
    """The command was valid, but its work failed: exit code 1."""

    def __init__(self, *sentences: str) -> None:
        super().__init__(*sentences)
        self.sentences = sentences
