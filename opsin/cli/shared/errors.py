"""How a command ends when it does not end well: a sentence for each thing that went wrong, on stderr, and an exit code."""


class UsageError(Exception):
    """The command was called in a way that cannot work; exit code 2. The message says what to do instead."""


class CommandError(Exception):
    """The command was right and its work failed; exit code 1."""

    def __init__(self, *sentences: str) -> None:
        super().__init__(*sentences)
        self.sentences = sentences
