"""Adds to the metadata what pyproject.toml cannot say.

Wheels alone require the starters: a checkout serves its folder `bundles` and asks no index for them. The long description is README.md
without what leads into the repository, where an index shows nothing.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = r"\((?!https?://)[^)]*\)"
PICTURE = re.compile(rf"!\[[^\]]*\]{RELATIVE}\n*")
MAP = "## Repository layout"
"""Heading of the section about the repository, at which the description ends."""
LINK = re.compile(rf"\[([^\]]*)\]{RELATIVE}")


class StartersRequirement(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["dependencies"].append(self.config["requires"])


class Description(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text, _, _ = Path(self.root, "README.md").read_text(encoding="utf-8").partition(MAP)
        metadata["readme"] = {"content-type": "text/markdown", "text": LINK.sub(r"\1", PICTURE.sub("", text))}
