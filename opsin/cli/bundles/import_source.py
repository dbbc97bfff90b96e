"""Where `opsin import` finds what it imports: a file or folder of this computer, or a repository of a hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opsin.cli.shared.errors import Failure, Misuse
from opsin.cli.shared.requirements import libraries

TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")
"""Files of a repository that say how texts are cut."""


@dataclass(frozen=True)
class Source:
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


def find(text: str) -> Source:
    """A path, `hf://OWNER/REPO[@REVISION]` or `timm:NAME.TAG`, whose files are fetched. Raises Misuse, and Failure where they do not
    come."""
    from opsin.hub.address import BadAddress, is_address, parse

    if not is_address(text):
        return Source(Path(text))
    try:
        address = parse(text)
    except BadAddress as error:
        raise Misuse(f"import: {error}") from error
    with libraries("hub"):
        from opsin.hub.fetching import HubError, fetch
    try:
        snapshot = fetch(address)
    except HubError as error:
        raise Failure(f"import: {error}") from error
    return Source(snapshot.folder, {"repository": address.repository, "revision": snapshot.commit, "file": str(address)})
