"""`opsin import --tokenizer` and `opsin bundles tokenizer`: pairs that read texts."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from models.bundle import read
from tests.support import vocabularies
from tests.support.processes import opsin

CHECKPOINT = Path(__file__).parents[1] / "golden/cit/moco_tiny/checkpoint.pth"
IMPORT: tuple[str | Path, ...] = ("import", CHECKPOINT, "--family", "cit", "--set", "heads=4", "--set", "text_heads=4")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bundles with a CiT that reads no texts."""
    folder = tmp_path_factory.mktemp("pair")
    ended = opsin(*IMPORT, "-o", folder / "cit")
    assert (ended.returncode, ended.stderr) == (0, "")
    return folder


def test_tokenizer_is_added_replaced_and_exported(pair: Path, tmp_path: Path) -> None:
    before = read(pair / "cit/1")
    assert (before.spec.text, before.spec.files) == (None, {})
    (tmp_path / "templates.txt").write_text("a photo of {}.\n")
    first = opsin(
        *("bundles", "tokenizer", "cit", vocabularies.small_bert(tmp_path, 120), "--templates", tmp_path / "templates.txt"),
        *("--bundles", pair),
    )
    assert (first.returncode, first.stderr) == (0, "")
    assert "after a restart" in first.stdout
    assert first.stdout.startswith("cit@1  at most 32 word pieces, padded to the longest, template 'a photo of {}.', scale 14.")
    added = read(pair / "cit/1")
    assert added.spec.digest() != before.spec.digest()
    assert added.spec.weights == before.spec.weights
    added.verify()

    second = opsin("bundles", "tokenizer", "cit@1", vocabularies.small_bert(tmp_path, 110), "--bundles", pair)
    assert (second.returncode, second.stderr) == (0, "")
    replaced = read(pair / "cit/1")
    assert replaced.spec.text == added.spec.text  # its templates stay
    assert replaced.spec.files != added.spec.files

    ended = opsin("export", pair / "cit/1", "-o", tmp_path / "cit.pth")
    assert (ended.returncode, ended.stderr) == (0, "")
    copied = tmp_path / "cit.tokenizer.json"
    assert copied.read_bytes() == (pair / "cit/1/tokenizer.json").read_bytes()
    back = shlex.split(ended.stdout.splitlines()[-1])
    made = opsin(*back[2:-1], tmp_path / "back/cit")
    assert (made.returncode, made.stderr) == (0, "")
    assert "texts         at most 32 word pieces, padded to the longest, template 'a photo of {}.'" in made.stdout
    again = read(tmp_path / "back/cit/1").spec
    assert (again.text, again.files) == (replaced.spec.text, replaced.spec.files)

    (pair / "cit/1/tokenizer.json").write_bytes(b"{}")
    checked = opsin("bundles", "verify", "--bundles", pair)
    assert (checked.returncode, checked.stderr.count("\n")) == (1, 1)
    assert "tokenizer.json: 2 bytes where bundle.json says" in checked.stderr


def test_unfit_tokenizer_is_refused_and_nothing_written(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "templates.npy").write_bytes(b"")
    words = vocabularies.small_bert(tmp_path, 121)
    target = tmp_path / "bundles/cit"
    for command, sentence in (
        ((*IMPORT, "-o", target, "--tokenizer", words), "the tokenizer has 121 tokens, and the network's table 120 rows"),
        ((*IMPORT, "-o", target, "--templates", words), "--templates: only valid with --tokenizer"),
        (
            ("bundles", "tokenizer", "cit", words, "--templates", tmp_path / "templates.npy", "--bundles", pair),
            "templates.npy: pickled files are never opened, since they can run code: give a text file in UTF-8",
        ),
    ):
        ended = opsin(*command)
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
        assert sentence in ended.stderr
    assert not (target / "1").exists()
