"""Addresses of repositories: `hf://OWNER/REPO[@REVISION]`, and `timm:NAME.TAG[@REVISION]`, which is `hf://timm/NAME.TAG`."""

from __future__ import annotations

import re
from dataclasses import dataclass

HUB, TIMM = "hf://", "timm:"
TIMM_OWNER = "timm"
PART = r"[A-Za-z0-9](?:[A-Za-z0-9_]|-(?!-)|\.(?!\.)){0,95}(?<![.-])(?<!\.git)"
"""The names that a hub has: no `--` or `..`, and neither `-`, `.` nor `.git` at the end."""
REVISION = r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)|/(?=[A-Za-z0-9_])){0,199}"
"""Names that git has: no `..` or `//`, and no `/` at the end. The cache keeps them as paths."""


class BadAddress(ValueError):
    """An address that cannot be read; the message says how one is written."""


@dataclass(frozen=True)
class Address:
    """A repository, and which state of it."""

    owner: str
    name: str
    revision: str | None = None
    """A branch, tag or commit; None: the branch that the hub shows."""

    @property
    def repository(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def lacks_tag(self) -> bool:
        """Whether it names a network of timm without the tag that says which weights."""
        return self.owner == TIMM_OWNER and "." not in self.name

    def __str__(self) -> str:
        return f"{HUB}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_address(text: str) -> bool:
    return text.startswith((HUB, TIMM))


def parse(text: str) -> Address:
    """Raises BadAddress."""
    if text.startswith(TIMM):
        found = re.fullmatch(rf"{TIMM}({PART})(?:@({REVISION}))?", text)
        if found is None:
            raise BadAddress(f"{text}: write timm:NAME.TAG, as in timm:vit_base_patch16_224.augreg_in21k_ft_in1k")
        return Address(TIMM_OWNER, found[1], found[2])
    found = re.fullmatch(rf"{HUB}({PART})/({PART})(?:@({REVISION}))?", text)
    if found is None:
        raise BadAddress(f"{text}: write hf://OWNER/REPO or hf://OWNER/REPO@REVISION, as in hf://google/vit-base-patch16-224")
    return Address(found[1], found[2], found[3])
