"""`opsin models` as a user meets it."""

from __future__ import annotations

import json

from tests.support.processes import opsin


def test_published_sizes_are_listed_with_what_they_cost() -> None:
    ended = opsin("models", "vit_tiny", "lart_pose")
    assert (ended.returncode, ended.stderr) == (0, "")
    header, *rows = [line.split() for line in ended.stdout.splitlines()]
    assert header == ["Name", "System", "Parameters", "GFLOPs", "per", "Tokens", "Source"]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("vit_tiny_patch16", "ViT", "2010.11929"),
        ("lart_pose", "LART", "2304.01199"),
    ]


def test_a_program_reads_them_as_json_lines() -> None:
    (size,) = (json.loads(line) for line in opsin("models", "vit_tiny", "--json").stdout.splitlines())
    assert (size["name"], size["architecture"], size["tokens"], size["config"]["width"]) == ("vit_tiny_patch16", "vit", 197, 192)
    assert size["parameters"] == 5_717_416


def test_a_name_that_is_none_is_answered_with_those_there_are() -> None:
    ended = opsin("models", "resnet")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "no name contains resnet; available: vit_tiny_patch16, " in ended.stderr
