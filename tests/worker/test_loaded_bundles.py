"""Which bundles of a folder a worker loads, and in which order."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import torch

from models.bundle import Bundle, BundleError
from server.processes.supervisor_protocol import LOADING_FILE_VARIABLE
from server.scheduler.batcher import StepTimes
from server.worker import loaded_bundles
from server.worker.backends.learned_cache import LearnedBundle
from server.worker.backends.loading import ReadyBundle
from server.worker.loaded_bundles import LoadedBundles
from tests.fake_cuda.device import ERRORS
from tests.support.bundles.vit import write_null, write_tiny_vit


def ready() -> ReadyBundle:
    executor: Any = SimpleNamespace(unit="")
    return ReadyBundle(executor, StepTimes(1), LearnedBundle(1))


def test_the_smallest_is_ready_first_whatever_its_name(tmp_path: Path) -> None:
    write_tiny_vit(tmp_path, "a-large-one")
    write_null(tmp_path, "small")
    loaded: list[str] = []

    def load_bundle(bundle: Bundle) -> ReadyBundle:
        loaded.append(bundle.spec.name)
        raise RuntimeError("the order is all that is asked for")

    LoadedBundles(tmp_path, load_bundle, lambda spec: None, lambda: None).refresh({})
    assert loaded == ["small", "a-large-one"]


def test_first_comes_who_is_waited_for_then_the_defaults(tmp_path: Path) -> None:
    for name, milliseconds in (("small", 1), ("usual", 1000), ("waited-for", 1000000)):
        write_null(tmp_path, name, milliseconds=milliseconds)
    loaded: list[str] = []

    def load_bundle(bundle: Bundle) -> ReadyBundle:
        loaded.append(bundle.spec.name)
        raise RuntimeError("the order is all that is asked for")

    def waiting(queues: Sequence[str]) -> list[str]:
        return [queue for queue in queues if queue.startswith("waited-for@")]

    LoadedBundles(tmp_path, load_bundle, lambda spec: None, lambda: None, waiting, {"usual@1"}).refresh({})
    assert loaded == ["waited-for", "usual", "small"]


def test_all_bundles_are_known_before_the_first_is_loaded(tmp_path: Path) -> None:
    write_null(tmp_path, "one")
    write_null(tmp_path, "other")
    published: list[str] = []
    published_at_load: list[set[str]] = []

    def load_bundle(bundle: Bundle) -> Any:
        published_at_load.append(set(published))
        return ready()

    LoadedBundles(tmp_path, load_bundle, lambda spec: published.append(spec.name), lambda: None).refresh({})
    assert published_at_load == [{"one", "other"}] * 2


def test_copy_under_other_name_is_refused_and_hides_nothing(tmp_path: Path) -> None:
    original = write_null(tmp_path, "original")
    shutil.copytree(original.path, tmp_path / "copy" / "1")
    (tmp_path / "copy" / "1" / "model.safetensors").unlink()  # damaged, too, and first by name
    loaded: list[str] = []

    def load_bundle(bundle: Bundle) -> ReadyBundle:
        loaded.append(str(bundle.path))
        raise RuntimeError("the test needs no more than the path")

    bundles = LoadedBundles(tmp_path, load_bundle, lambda spec: None, lambda: None)
    bundles.refresh({})
    assert loaded == [str(original.path)]
    reasons = {bundle.name: bundle.reason for bundle in bundles.announcements(1)}
    assert reasons["copy"].startswith("copy/1/bundle.json: original@1 is at original/1; to serve a copy, too, ")


def test_copy_with_changed_name_is_a_bundle_of_its_own(tmp_path: Path) -> None:
    original = write_null(tmp_path, "original")
    copy = tmp_path / "copy" / "1"
    shutil.copytree(original.path, copy)
    (copy / "bundle.json").write_text((copy / "bundle.json").read_text().replace('"original"', '"copy"'))
    loaded: list[str] = []

    def load_bundle(bundle: Bundle) -> ReadyBundle:
        loaded.append(bundle.spec.name)
        raise RuntimeError("the test needs no more than the path")

    LoadedBundles(tmp_path, load_bundle, lambda spec: None, lambda: None).refresh({})
    assert sorted(loaded) == ["copy", "original"]


def test_loading_reads_again_what_was_unloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_bundles, "UNLOAD_GRACE_S", 0.0)
    edited = write_null(tmp_path, "model", "1", milliseconds=1)
    gone = write_null(tmp_path, "model", "2")
    contents: list[float] = []

    def load_bundle(bundle: Bundle) -> Any:
        contents.append(bundle.spec.config["milliseconds"])
        return ready()

    bundles = LoadedBundles(tmp_path, load_bundle, lambda spec: None, lambda: None)
    bundles.refresh({})
    for _ in range(2):  # it unloads, and then it has
        bundles.refresh({"model": "unloaded"})
    spec_file = edited.path / "bundle.json"
    spec_file.write_text(spec_file.read_text().replace('"milliseconds": 1', '"milliseconds": 7'))
    shutil.rmtree(gone.path)
    bundles.refresh({"model": "loaded"})
    first, second = sorted(bundles.announcements(1), key=lambda announcement: announcement.version)
    assert sorted(contents) == [1, 5, 7]
    assert (first.state, second.state) == ("ready", "unavailable")
    assert second.reason.startswith("model/2/bundle.json: cannot be read")


def test_loading_reads_again_what_was_replaced_while_it_unloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_bundles, "UNLOAD_GRACE_S", 0.0)
    replaced = write_null(tmp_path, "replaced", milliseconds=1)
    write_null(tmp_path, "same", milliseconds=2)
    contents: list[float] = []

    def load_bundle(bundle: Bundle) -> Any:
        contents.append(bundle.spec.config["milliseconds"])
        return ready()

    bundles = LoadedBundles(tmp_path, load_bundle, lambda spec: None, lambda: None)
    bundles.refresh({})
    bundles.refresh({"replaced": "unloaded", "same": "unloaded"})
    spec_file = replaced.path / "bundle.json"
    spec_file.write_text(spec_file.read_text().replace('"milliseconds": 1', '"milliseconds": 7'))
    for _ in range(2):
        bundles.refresh({"replaced": "loaded", "same": "loaded"})
    assert sorted(contents) == [1, 2, 7]
    assert [announcement.state for announcement in bundles.announcements(1)] == ["ready", "ready"]


@pytest.mark.parametrize("repository", [{}, {"model": "unloaded"}])
def test_lost_bundle_with_returned_files_is_reloaded(tmp_path: Path, repository: dict[str, str]) -> None:
    write_null(tmp_path, "model")
    bundles = LoadedBundles(tmp_path, lambda bundle: ready(), lambda spec: None, lambda: None)
    bundles.refresh({})
    bundles.refresh(repository)
    [queue] = bundles.list_queues()
    bundles.mark_lost(queue, "its file is missing")
    assert bundles.list_queues() == []
    bundles.refresh({})
    assert bundles.list_queues() == [queue]


def test_a_bundle_that_is_repaired_while_it_is_refused_is_loaded(tmp_path: Path) -> None:
    bundle = write_null(tmp_path, "model")
    refused: list[BundleError] = []

    def load_bundle(_bundle: Bundle) -> Any:
        if refused:
            return ready()
        refused.append(BundleError("damaged"))
        os.utime(bundle.weights_path, ns=(1, 1))  # as a repair does
        raise refused[0]

    bundles = LoadedBundles(tmp_path, load_bundle, lambda spec: None, lambda: None)
    bundles.refresh({})
    assert bundles.list_queues() == []
    bundles.refresh({})
    assert len(bundles.list_queues()) == 1


def states(bundles: LoadedBundles) -> dict[str, str]:
    return {bundle.name: bundle.state for bundle in bundles.announcements(1)}


def test_bundle_with_removed_folder_is_unloaded_and_unlisted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_bundles, "REMOVED_AFTER_S", 0.0)
    monkeypatch.setattr(loaded_bundles, "UNLOAD_GRACE_S", -1.0)
    for name in ("removed", "refused", "left"):
        write_null(tmp_path, name)

    def load_bundle(bundle: Bundle) -> ReadyBundle:
        if bundle.spec.name == "refused":
            raise BundleError("cannot be loaded")
        return ready()

    bundles = LoadedBundles(tmp_path, load_bundle, lambda spec: None, lambda: None)
    bundles.refresh({})
    for name in ("removed", "refused"):
        shutil.rmtree(tmp_path / name)
    for _ in range(3):
        bundles.refresh({})
    assert states(bundles) == {"left": "ready"}
    write_null(tmp_path, "removed")
    bundles.refresh({})
    assert states(bundles) == {"left": "ready", "removed": "ready"}


def test_a_folder_that_is_missing_for_a_moment_stays(tmp_path: Path) -> None:
    write_null(tmp_path / "bundles", "replaced")
    bundles = LoadedBundles(tmp_path / "bundles", lambda bundle: ready(), lambda spec: None, lambda: None)
    bundles.refresh({})
    (tmp_path / "bundles" / "replaced").rename(tmp_path / "aside")
    bundles.refresh({})
    assert states(bundles) == {"replaced": "ready"}


def test_while_the_bundles_cannot_be_read_all_of_them_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network drive that is unavailable has not lost them."""
    monkeypatch.setattr(loaded_bundles, "REMOVED_AFTER_S", 0.0)
    write_null(tmp_path / "drive", "kept")
    bundles = LoadedBundles(tmp_path / "drive", lambda bundle: ready(), lambda spec: None, lambda: None)
    bundles.refresh({})
    (tmp_path / "drive").rename(tmp_path / "away")
    for _ in range(3):
        bundles.refresh({})
    assert states(bundles) == {"kept": "ready"}


def test_nothing_is_announced_before_all_of_the_folder_is_known(tmp_path: Path) -> None:
    """Gateways would take the only announced bundle of a task for its default."""
    for name in ("one", "other", "third"):
        write_tiny_vit(tmp_path, name)
    announced: list[list[str]] = []

    def announce(*_: object) -> None:
        announced.append([bundle.name for bundle in bundles.announcements(1)])

    bundles = LoadedBundles(tmp_path, lambda _bundle: ready(), announce, lambda: announce())
    bundles.refresh({})
    assert {len(names) for names in announced} == {0, 3}


def ended_in_time(bundles: LoadedBundles, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Names and contents of what is ready, once nothing changes any more."""
    monkeypatch.setattr(loaded_bundles, "UNLOAD_GRACE_S", 0.0)
    for _ in range(4):
        bundles.refresh({})
    return [(bundle.name, float(bundle.version)) for bundle in bundles.announcements(1) if bundle.state == "ready"]


def test_starters_are_served_with_bundles_of_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_null(tmp_path / "own", "flags", version="2")
    write_null(tmp_path / "starters", "flags")
    write_null(tmp_path / "starters", "photos")
    bundles = LoadedBundles(tmp_path / "own", lambda bundle: ready(), lambda spec: None, lambda: None, starters=tmp_path / "starters")
    assert ended_in_time(bundles, monkeypatch) == [("flags", 2), ("photos", 1)]


@dataclass
class BundlesWithStarter:
    """Bundles in a folder with one starter, flags@1, and paths of what was loaded, in order."""

    bundles: LoadedBundles
    root: Path
    loaded: list[str]
    damaged: set[str]
    """`name/version` that cannot be loaded."""

    def after(self, looks: int) -> dict[str, str]:
        """Refresh this often; return the state of each bundle."""
        for _ in range(looks):
            self.bundles.refresh({})
        return {f"{bundle.name}@{bundle.version}": bundle.state for bundle in self.bundles.announcements(1)}


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BundlesWithStarter:
    monkeypatch.setattr(loaded_bundles, "UNLOAD_GRACE_S", -1.0)
    (tmp_path / "own").mkdir()
    write_null(tmp_path / "starters", "flags")
    loaded: list[str] = []
    damaged: set[str] = set()

    def load_bundle(bundle: Bundle) -> ReadyBundle:
        loaded.append(str(bundle.path.relative_to(tmp_path)))
        if loaded[-1] in damaged:
            raise BundleError(f"{bundle.path}: damaged")
        return ready()

    bundles = LoadedBundles(tmp_path / "own", load_bundle, lambda spec: None, lambda: None, starters=tmp_path / "starters")
    return BundlesWithStarter(bundles, tmp_path / "own", loaded, damaged)


@pytest.mark.parametrize("version", ["1", "2"])
def test_bundle_replaces_starter_of_its_name_at_runtime(repo: BundlesWithStarter, version: str) -> None:
    assert repo.after(1) == {"flags@1": "ready"}
    write_null(repo.root, "flags", version=version)
    assert repo.after(4) == {f"flags@{version}": "ready"}
    assert repo.loaded == ["starters/flags/1", f"own/flags/{version}"]


def test_name_is_served_while_version_replaces_its_starter(repo: BundlesWithStarter) -> None:
    repo.after(1)
    write_null(repo.root, "flags", version="2")
    states = [repo.after(1) for _ in range(4)]
    assert all("ready" in state.values() for state in states), states


@pytest.mark.parametrize("version", ["1", "2"])
def test_starter_returns_if_its_replacement_is_removed(repo: BundlesWithStarter, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_null(repo.root, "flags", version=version)
    assert repo.after(2) == {f"flags@{version}": "ready"}
    shutil.rmtree(written.path.parent)
    assert repo.after(2) == {f"flags@{version}": "ready"}  # it may be there again in a moment
    monkeypatch.setattr(loaded_bundles, "REMOVED_AFTER_S", 0.0)
    assert repo.after(4) == {"flags@1": "ready"}
    assert repo.loaded == [f"own/flags/{version}", "starters/flags/1"]


def test_starter_stays_replaced_while_bundles_are_unreadable(repo: BundlesWithStarter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_bundles, "REMOVED_AFTER_S", 0.0)
    write_null(repo.root, "flags", version="2")
    repo.after(1)
    repo.root.rename(repo.root.with_name("away"))
    assert repo.after(4) == {"flags@2": "ready"}


@pytest.mark.parametrize("running", [False, True])
def test_a_bundle_that_is_refused_leaves_its_starter_in_place(repo: BundlesWithStarter, running: bool) -> None:
    repo.after(int(running))
    (repo.root / "flags" / "2").mkdir(parents=True)
    (repo.root / "flags" / "2" / "bundle.json").write_text("{")
    write_null(repo.root, "flags", version="3")
    repo.damaged.add("own/flags/3")
    assert repo.after(4) == {"flags@1": "ready", "flags@2": "unavailable", "flags@3": "unavailable"}
    assert repo.loaded.count("starters/flags/1") == 1


def test_no_reason_shows_a_client_where_the_folders_are(repo: BundlesWithStarter) -> None:
    repo.after(1)
    write_null(repo.root, "flags")
    (repo.root / "flags").rename(repo.root / "mine")  # it says that it is flags@1
    repo.after(1)
    [reason] = [bundle.reason for bundle in repo.bundles.announcements(1) if bundle.reason]
    assert reason == "mine/1/bundle.json: flags@1 is already at flags/1"


def test_folder_with_the_starters_serves_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_null(tmp_path, "photos")
    bundles = LoadedBundles(tmp_path, lambda bundle: ready(), lambda spec: None, lambda: None, starters=tmp_path)
    assert ended_in_time(bundles, monkeypatch) == [("photos", 1)]


def test_folders_that_are_no_bundle_are_warned_of_once(tmp_path: Path) -> None:
    served = write_null(tmp_path, "served")
    (tmp_path / "flat").mkdir()
    shutil.copy(served.path / "bundle.json", tmp_path / "flat")
    for folder in ("rawonnx", "nojson/1"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.onnx").touch()
    (tmp_path / "served" / "export.onnx").touch()  # next to a version: not a bundle that is missed
    bundles = LoadedBundles(tmp_path, lambda bundle: ready(), lambda spec: None, lambda: None)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            bundles.refresh({})
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == [
        "no bundle: flat: bundle.json lies one level too high; NAME/VERSION/ is needed",
        "no bundle: nojson/1: has no bundle.json; opsin import makes one",
        "no bundle: rawonnx: has no bundle.json; opsin import makes one",
    ]


def test_a_bundle_that_did_not_fit_into_memory_is_loaded_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_null(tmp_path, "large")
    outcomes = [ERRORS["out of memory elsewhere"]]

    def load_bundle(bundle: Bundle) -> ReadyBundle:
        if outcomes:
            raise outcomes.pop()
        return ready()

    bundles = LoadedBundles(tmp_path, load_bundle, lambda spec: None, lambda: None)
    bundles.refresh({})
    bundles.refresh({})
    [announced] = bundles.announcements(1)
    assert (announced.state, announced.reason) == ("unavailable", "it did not fit into memory: it is loaded again in 30 seconds")
    now = time.monotonic()
    monkeypatch.setattr(loaded_bundles, "time", SimpleNamespace(monotonic=lambda: now + loaded_bundles.RETRY_LOADING_S))
    bundles.refresh({})
    assert [bundle.state for bundle in bundles.announcements(1)] == ["ready"]


def test_a_bundle_that_breaks_the_device_is_named_by_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor counts such bundles, and refuses them after the second time."""
    write_null(tmp_path / "bundles", "bad")
    monkeypatch.setenv(LOADING_FILE_VARIABLE, str(tmp_path / "loading"))

    def load_bundle(bundle: Bundle) -> ReadyBundle:
        raise ERRORS["illegal access"]

    with pytest.raises(torch.AcceleratorError):
        LoadedBundles(tmp_path / "bundles", load_bundle, lambda spec: None, lambda: None).refresh({})
    assert (tmp_path / "loading").read_text().startswith("bad@1:")
