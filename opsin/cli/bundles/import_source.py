"""Where `opsin import` finds what it imports: a file or folder of this computer, or a repository of a hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.requirements import requires_extra

TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")
"""Files of a repository that say how texts are cut."""


@dataclass(frozen=True)
class ImportSource:
    """A file or folder that is imported."""

    path: Path
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Repository and commit, for the provenance; empty for what was on this computer."""

    @property
    def is_model(self) -> bool:
        """Whether it is a folder as hubs have them, whose files say everything: what cannot be imported is nobody's mistake."""
        return (self.path / "config.json").is_file()

    @property
    def tokenizer(self) -> Path | None:
        """Such a folder that holds a tokenizer, too."""
        return self.path if self.is_model and any((self.path / name).is_file() for name in TOKENIZERS) else None


def find(text: str) -> ImportSource:
    """A path, `hf://OWNER/REPO[@REVISION]` or `timm:NAME.TAG`, whose files are fetched. Raises UsageError, and Failure where they do not
    come."""
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
