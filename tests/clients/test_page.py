"""The Python of docs/openai.md, each block as a program of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.docs.code_blocks import ROOT, Block, Desk, read_blocks
from tests.support.fake_worker import picture
from tests.support.gateway_process import Gateway

BLOCKS = [block for block in read_blocks("docs/openai.md") if block.language == "python"]


def is_large(block: Block) -> bool:
    """Return whether its client comes with the extra `clients` alone."""
    return "from openai" not in block.code


def run(block: Block, gateway: Gateway, folder: Path) -> str:
    (folder / "cat.jpg").write_bytes(picture(3, kind="JPEG"))
    return Desk(folder, gateway.url, {**os.environ, "PYTHONPATH": str(ROOT)}).python(block.code)


@pytest.mark.parametrize("block", [block for block in BLOCKS if not is_large(block)], ids=lambda block: block.name)
def test_openais_sdk_does_what_the_page_says(gateway: Gateway, tmp_path: Path, block: Block) -> None:
    assert any(word in run(block, gateway, tmp_path) for word in ("words@1", "cosine"))


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in BLOCKS if is_large(block)], ids=lambda block: block.name)
def test_other_clients_do_what_the_page_says(gateway: Gateway, tmp_path: Path, block: Block) -> None:
    module = block.code.split()[1].partition(".")[0]
    pytest.importorskip(module, reason="the extra `clients` is not installed")
    assert int(run(block, gateway, tmp_path)) in (2, 4)
