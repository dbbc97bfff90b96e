"""Fixtures of all packages: a real, private Valkey, started once and emptied for each test, and a separate cache folder."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from server.supervisor.private_valkey import PrivateValkey
from tests.support.redis import private_valkey

PAGES = Path(__file__).with_name("browser")

os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "numba"))
"""Compiled loops are the same for all tests."""

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
"""Otherwise each of some hundred processes that tests start would compile our code again, and pytest the assertions of all tests."""

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda _number, _frame: None)
    """Where tests run under `nohup`, the processes that they start shall not: unlike what is ignored, a handler is not inherited."""

gc.disable()
"""While tests are collected: what they import is a million objects and no garbage."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out tests that start processes, and files that take long")
    parser.addoption("--note-seconds", action="store_true", help="write how long files take into tests/seconds.json, too")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fast"):
        from tests.support.pytest_plugins import Fast

        config.pluginmanager.register(Fast(config))
    elif not hasattr(config, "workerinput"):
        from tests.support.pytest_plugins import DurationNotes

        config.pluginmanager.register(DurationNotes(for_all=config.getoption("--note-seconds")))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out tests of the pages, and what drives their browser, unless one of them runs."""
    return True if collection_path == PAGES and "not browser" in config.option.markexpr else None


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # modules look for leaks when the process ends


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.support.pytest_plugins import Together

    if config.getvalue("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False
    return Together(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        from tests.support.pytest_plugins import longest_first, seconds_noted

        longest_first(items, seconds_noted(config))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache of workers between starts, for the time of these tests.

    PyTorch alone runs their models, exactly as configured: networks of two blocks are faster without the merging under test."""
    with pytest.MonkeyPatch.context() as environment:
        folder = tmp_path_factory.mktemp("cache")
        environment.setenv("OPSIN_CACHE", str(folder))
        environment.setenv("OPSIN_BACKEND", "eager")
        environment.setenv("OPSIN_STARTERS", "false")  # whether or not they are installed here
        yield folder


@pytest.fixture(scope="session")
def valkey() -> Iterator[PrivateValkey]:
    with private_valkey() as server:
        yield server


@pytest.fixture
def url(valkey: PrivateValkey) -> str:
    """The URL of an empty Valkey."""
    with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
        client.flushall()
    return valkey.url
