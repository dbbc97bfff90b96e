"""The part of `opsin demo` about words."""

from __future__ import annotations

import re

from rich.console import Console

from opsin.cli.demo.labels import DRAWING_NAMES, LABELS, TOP_K, show_words
from opsin.client import Client
from tests.support.task_clients import Speaker


def test_the_demo_says_which_words_fit_each_drawing(speaker: Speaker) -> None:
    console = Console(record=True, width=200)
    with Client(str(speaker.gateway.http.base_url)) as client:
        show_words(client, next(model for model in client.models() if model.task == "zero-shot"), console)
    lines = console.export_text().splitlines()
    for name in DRAWING_NAMES:
        (line,) = (line for line in lines if line.startswith(f"{name}.png"))
        assert len(re.findall(r"\d+%", line)) == TOP_K and any(label in line for label in LABELS)
