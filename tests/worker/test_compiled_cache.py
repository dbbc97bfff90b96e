"""What was compiled is kept within a bound."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.worker import backends


def test_the_oldest_files_go_where_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backends.COMPILED_FOLDER, raising=False)
    backends.keep_compiled(tmp_path)
    for age, name in enumerate(("newest", "new", "old", "oldest")):
        file = tmp_path / name[:2] / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(100))
        os.utime(file, (1000 - age, 1000 - age))
    backends.trim_compiled(tmp_path, most_bytes=250)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["new", "newest"]


def test_a_folder_that_the_operator_has_chosen_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.COMPILED_FOLDER, str(tmp_path / "mine"))
    monkeypatch.setattr(backends, "MOST_COMPILED", 0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_bytes(b"kept")
    backends.keep_compiled(tmp_path / "ours")
    assert (tmp_path / "mine" / "file").exists()
    assert os.environ[backends.COMPILED_FOLDER] == str(tmp_path / "mine")


def test_a_folder_that_may_only_be_read_keeps_no_worker_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.COMPILED_FOLDER, "elsewhere")
    monkeypatch.setattr(backends, "MOST_COMPILED", -1)
    backends.keep_compiled(Path("/proc/self/fdinfo"))  # nobody, not even root, can delete its files
