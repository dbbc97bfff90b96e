"""The source of `opsin import`: a local file or folder, or a repository of a hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.requirements import requires_extra

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")
"""Files of a repository that hold a tokenizer."""


@dataclass(frozen=True)
class ImportSource:
    """A file or folder to import."""

    path: Path
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Repository and commit, for the provenance; empty for local files."""

    @property
    def is_model(self) -> bool:
        """Whether it is a model folder as in hubs, with a config: failures are then not the user's mistake."""
        return (self.path / "config.json").is_file()

    @property
    def tokenizer(self) -> Path | None:
        """The folder, if it is a model folder that also has a tokenizer."""
        return self.path if self.is_model and any((self.path / name).is_file() for name in TOKENIZER_FILES) else None


def find(text: str) -> ImportSource:
    """Return the source named by a path, `hf://OWNER/REPO[@REVISION]` or `timm:NAME.TAG`, and download a repository.

    Raises UsageError, and CommandError if the download fails.
    """
    from opsin.hub.address import InvalidAddressError, is_address, parse

    if not is_address(text):
        return ImportSource(Path(text))
    try:
        address = parse(text)
    except InvalidAddressError as error:
        raise UsageError(f"import: {error}") from error
    with requires_extra("hub"):
        from opsin.hub.fetching import HubError, fetch
    try:
        snapshot = fetch(address)
    except HubError as error:
        raise CommandError(f"import: {error}") from error
    return ImportSource(snapshot.folder, {"repository": address.repository, "revision": snapshot.commit, "file": str(address)})
