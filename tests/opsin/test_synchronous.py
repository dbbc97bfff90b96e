"""The synchronous client is the asynchronous one: see `tools.derive_client`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import derive_client
from tools.derive_client import differing, main, out_of_date

AWAITS = """async def answer(job):
    \"\"\"Give the answer.

    found = await job.result()
    \"\"\"
    return await job.result()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of one asynchronous module, with the twin that it gives."""
    monkeypatch.setattr(derive_client, "OPSIN", tmp_path)
    (tmp_path / "async_one.py").write_text(AWAITS)
    (tmp_path / "one.py").write_text(AWAITS.replace("async ", "").replace("await ", ""))
    return tmp_path


def test_it_is_derived_again_if_the_asynchronous_one_changes() -> None:
    assert [out_of_date(path) for path in differing()] == []


def test_a_change_of_a_derived_file_names_its_source(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (main(["--check"]), capsys.readouterr().err) == (0, "")
    with (package / "one.py").open("a") as twin:
        twin.write("MINE = 1\n")
    assert main(["--check"]) == 1
    answer = "opsin/one.py is derived and out of date: change async_one.py, not one.py, then `make client`\n"
    assert capsys.readouterr().err == answer and "MINE" in (package / "one.py").read_text(), "nothing is lost by a check"
    assert (main([]), capsys.readouterr().out, main([]), capsys.readouterr().out) == (0, "opsin/one.py\n", 0, "")


@pytest.mark.parametrize(
    ("old", "new", "answer"),
    [
        ("Give the answer.", "Do not await it in a loop.", "opsin/async_one.py:2: `make client` would leave 'await' out of this sentence"),
        ("    return", "    # await it\n    return", "opsin/async_one.py:6: `make client` would leave 'await' out of this sentence"),
        ("(job):", "(job:", "opsin/async_one.py:1: '(' was never closed"),
        (
            "def answer",
            "def answer(): pass\n\n\nasync def answer",
            "opsin/async_one.py: what is derived from it is refused by ruff check:\n",
        ),
    ],
    ids=["a sentence", "a comment", "a syntax error", "what ruff refuses"],
)
def test_underivable_code_is_reported_and_nothing_changes(
    package: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, answer: str
) -> None:
    source, twin = package / "async_one.py", (package / "one.py").read_text()
    source.write_text(source.read_text().replace(old, new, 1))
    assert main([]) == 1
    assert capsys.readouterr().err.startswith(answer) and (package / "one.py").read_text() == twin
