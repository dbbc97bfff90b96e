"""Addresses of repositories: `hf://OWNER/REPO[@REVISION]`, and `timm:NAME.TAG[@REVISION]`, short for `hf://timm/NAME.TAG`."""

from __future__ import annotations

import re
from dataclasses import dataclass

HUB, TIMM = "hf://", "timm:"
TIMM_OWNER = "timm"
NAME_PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9_]|-(?!-)|\.(?!\.)){0,95}(?<![.-])(?<!\.git)"
"""Names of owners and repositories: no `--` or `..`, and neither `-`, `.` nor `.git` at the end."""
REVISION_PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)|/(?=[A-Za-z0-9_])){0,199}"
"""Names of revisions in git: no `..` or `//`, and no `/` at the end. The cache uses them as paths."""


class InvalidAddressError(ValueError):
    """An address that is not valid; the message shows a valid one."""


@dataclass(frozen=True)
class Address:
    """A repository and a revision of it."""

    owner: str
    name: str
    revision: str | None = None
    """A branch, tag or commit; None: the default branch."""

    @property
    def repository(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def lacks_tag(self) -> bool:
        """Whether it names a network of timm without the tag of its weights."""
        return self.owner == TIMM_OWNER and "." not in self.name

    def __str__(self) -> str:
        return f"{HUB}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_address(text: str) -> bool:
    return text.startswith((HUB, TIMM))


def parse(text: str) -> Address:
    """Parse an address. Raises InvalidAddressError."""
    if text.startswith(TIMM):
        parts = re.fullmatch(rf"{TIMM}({NAME_PATTERN})(?:@({REVISION_PATTERN}))?", text)
        if parts is None:
            raise InvalidAddressError(f"{text}: write timm:NAME.TAG, as in timm:vit_base_patch16_224.augreg_in21k_ft_in1k")
        return Address(TIMM_OWNER, parts[1], parts[2])
    parts = re.fullmatch(rf"{HUB}({NAME_PATTERN})/({NAME_PATTERN})(?:@({REVISION_PATTERN}))?", text)
    if parts is None:
        raise InvalidAddressError(f"{text}: write hf://OWNER/REPO or hf://OWNER/REPO@REVISION, as in hf://google/vit-base-patch16-224")
    return Address(parts[1], parts[2], parts[3])
