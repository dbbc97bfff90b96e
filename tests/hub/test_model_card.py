"""The licence that a model card states."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.checkpoints.hf_folder import read_licence

CARDS = {
    "---\nlicense: apache-2.0\n---\n# Model\n": "Apache-2.0",
    "---\r\nlicense: cc-by-nc-4.0\r\n---\r\n": "CC-BY-NC-4.0",
    "\ufeff---\ntags:\n- a\nlicense: [mit, apache-2.0]\n---\n": "MIT, Apache-2.0",
    "---\nlicense: other\nlicense_name: house-rules\nlicense_link: LICENSE.md\n---\n": "house-rules (LICENSE.md)",
    "---\nlicense: openrail\n---\n": "openrail",
    "---\ntags: [a]\n---\nlicense: mit\n": "",
    "# Model\nlicense: mit\n": "",
    "---\nlicense: [unclosed\n---\n": "",
    "---\n- license\n---\n": "",
    "---\ndate: 2024-02-30\nlicense: mit\n---\n": "MIT",
    "---\nlicense: null\n---\n": "",
    "---\nlicense: mit\nx: " + "[" * 3000 + "\n---\n": "",
    "---\na: &a [x, x]\nb: &b [*a, *a]\nlicense: [*b, mit]\n---\n": "MIT",
    '---\nlicense: "\\e[31mmit"\n---\n': "",
    "---" + "\n" * 300_000: "",
    "": "",
}


@pytest.mark.parametrize("card", CARDS, ids=range(len(CARDS)))
def test_the_front_matter_states_the_licence(card: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card, encoding="utf-8", newline="")
    assert read_licence(tmp_path) == CARDS[card]


def test_a_folder_without_a_card_states_none(tmp_path: Path) -> None:
    assert read_licence(tmp_path) == ""
