"""The synchronous client is the asynchronous one: see `tests.opsin.synchronous`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.opsin.synchronous import derived, sources, target_of


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.name)
def test_it_is_derived_anew_where_the_asynchronous_one_changes(source: Path) -> None:
    assert target_of(source).read_text(encoding="utf-8") == derived(source), "`make client` writes it anew"
