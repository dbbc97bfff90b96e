"""Adds what only wheels require: `opsin[server]` brings the starters. A checkout serves its folder `bundles` and asks no index for them."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StartersRequirement(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["dependencies"].append(self.config["requires"])
