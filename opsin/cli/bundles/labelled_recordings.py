"""Labelled clips and sounds of a folder, for commands that measure a bundle on them."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from opsin.cli.shared import media_kinds
from opsin.cli.shared.errors import UsageError

if TYPE_CHECKING:
    from models.bundle import BundleSpec
    from opsin.measuring.clip_ladder import LabelledRecording
    from server.tasks.classify.clips import Use

LABELS = "labels.csv"
"""Lines FILE,LABEL;LABEL, files from its folder; a first line `file,labels` is a header."""
HEADER = ("file", "labels")
FORM = "a line is FILE,LABEL or FILE,LABEL;LABEL, in quotes where a name holds a comma"

Kind = Literal["video", "audio"]


@dataclass(frozen=True)
class Listed:
    """A file and the indices of its labels; none: unknown."""

    path: Path
    labels: tuple[int, ...] = ()


def recordings(folder: Path, spec: BundleSpec, use: Use | None) -> tuple[Use, list[LabelledRecording]]:
    """Return what a bundle is to go by, and the recordings of a folder that have it.

    Labels are those of `labels.csv` in it, or the names of the folders that the files lie in; files of a folder without either have none.
    A sound beside a video of the same name is its sound. use: of a bundle that classifies sound and sight apart. Raises UsageError."""
    if not folder.is_dir():
        raise UsageError(f"--files: {folder} is no folder")
    listed = _listed(folder, spec)
    kinds = _Kinds()
    chosen = _use(spec, use, {kinds.of(file.path) for file in listed})
    found = _by_sight(listed, kinds, spec) if chosen == "sight" else _by_sound(listed, kinds) if chosen == "sound" else _both(listed, kinds)
    if not found:
        raise UsageError(f"--files: {folder} holds nothing to measure {spec.id} on")
    return chosen, found


def _listed(folder: Path, spec: BundleSpec) -> list[Listed]:
    places = {label: index for index, label in enumerate(spec.labels)}
    if (folder / LABELS).exists():
        return list(_read_table(folder / LABELS, places, spec.id))
    inner = _visible(folder.iterdir())
    parts = [path for path in inner if path.is_dir()]
    if not parts:
        return [Listed(path) for path in inner]
    if stray := next((path for path in inner if path.is_file()), None):
        raise UsageError(f"--files: {stray} lies beside folders of labels, in none of them; move it, or name its labels in {folder / LABELS}")
    if unknown := next((part for part in parts if part.name not in places), None):
        raise UsageError(f"--files: {unknown} is named after no label of {spec.id}; `opsin bundles show` lists them")
    found = [(part, path) for part in parts for path in _visible(part.iterdir())]
    if deeper := next((path for _, path in found if path.is_dir()), None):
        raise UsageError(f"--files: {deeper} is a folder within that of a label; move its files up, or name them in {folder / LABELS}")
    return [Listed(path, (places[part.name],)) for part, path in found]


def _visible(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if not path.name.startswith("."))


def _read_table(table: Path, places: Mapping[str, int], bundle: str) -> Iterable[Listed]:
    """Files that a table names and their labels. Raises UsageError naming the line."""
    if not table.is_file():
        raise UsageError(f"--files: {table}: no file")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file, strict=True), start=1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--files: {table}: cannot be read as a table of UTF-8 ({error})") from error
    seen = set[Path]()
    for number, row in rows:
        where, cells = f"--files: {table}:{number}", [cell.strip() for cell in row]
        if number == 1 and tuple(cells) == HEADER:
            continue
        if len(cells) != 2 or not cells[0]:
            raise UsageError(f"{where}: {FORM}")
        path, names = table.parent / cells[0], [name.strip() for name in cells[1].split(";")]
        if not path.is_file():
            raise UsageError(f"{where}: {path}: no such file")
        if path in seen:
            raise UsageError(f"{where}: {cells[0]} is named twice; all of its labels stand in one line")
        if unknown := next((name for name in names if name not in places), None):
            raise UsageError(f"{where}: {unknown!r} is no label of {bundle}; `opsin bundles show` lists them")
        if not all(names):
            raise UsageError(f"{where}: a label is missing; {FORM}")
        seen.add(path)
        yield Listed(path, tuple(sorted({places[name] for name in names})))


class _Kinds:
    """Kinds of files by their bytes, and sounds that lie beside videos."""

    def __init__(self) -> None:
        self._known: dict[Path, Kind] = {}
        self._sounds: dict[Path, dict[str, Path]] = {}
        """Folder → stem → the sound of that name."""

    def of(self, path: Path) -> Kind:
        """Raises UsageError for whatever is neither a video nor a sound."""
        if path not in self._known:
            if not path.is_file():  # a pipe or a device may be read for ever
                raise UsageError(f"--files: {path}: no file, or a link to none")
            try:
                found = media_kinds.kind_of(path)
            except OSError as error:
                raise UsageError(f"--files: {path}: {error.strerror}") from error
            if found is None or found == "image":
                raise UsageError(f"--files: {path}: neither a video nor a sound; move it elsewhere")
            self._known[path] = found
        return self._known[path]

    def sound_of(self, video: Path) -> Path | None:
        """The sound beside a video, of the same name but for the suffix."""
        folder = video.parent
        if folder not in self._sounds:
            files = [path for path in _visible(folder.iterdir()) if path.is_file() and media_kinds.kind_of(path) == "audio"]
            self._sounds[folder] = {path.stem: path for path in files}
        return self._sounds[folder].get(video.stem)


def _use(spec: BundleSpec, use: Use | None, kinds: Collection[Kind]) -> Use:
    """Return what the bundle goes by. Raises UsageError where that is open, or beyond it."""
    from opsin.measuring.clip_ladder import task_of

    task = task_of(spec)
    assert task is not None
    required = {part.name: part.required for part in task.takes(spec)}
    apart = len(required) == 2 and not any(required.values())
    if use is not None and not apart:
        raise UsageError(f"--use {use}: {spec.id} does not classify sound and sight apart; leave it out")
    if apart and use is None and len(kinds) > 1:
        raise UsageError(f"--use: {spec.id} classifies sound and sight apart, and there are clips and sounds; say --use sound or --use sight")
    if apart:
        return use or ("sound" if "audio" in kinds else "sight")
    if len(required) == 2:
        return "both"
    return "sound" if "audio" in required else "sight"


def _by_sight(listed: Sequence[Listed], kinds: _Kinds, spec: BundleSpec) -> list[LabelledRecording]:
    """Return the videos. A bundle that could go by sound, too, passes over sounds; for others they are a mistake."""
    from opsin.measuring.clip_ladder import LabelledRecording

    videos = [file for file in listed if kinds.of(file.path) == "video"]
    if spec.sound is None and (stray := _without_video(listed, videos, kinds)):
        raise UsageError(f"--files: {stray}: a sound, and {spec.id} is measured on videos")
    return [LabelledRecording({"video": file.path}, file.labels) for file in videos]


def _by_sound(listed: Sequence[Listed], kinds: _Kinds) -> list[LabelledRecording]:
    """Sounds, and the own sound of videos that have none beside them."""
    from opsin.measuring.clip_ladder import LabelledRecording

    sounds = [file for file in listed if kinds.of(file.path) == "audio"]
    heard = {file.path for file in sounds}
    found = [LabelledRecording({"audio": file.path}, file.labels) for file in sounds]
    for file in listed:
        beside = kinds.sound_of(file.path) if kinds.of(file.path) == "video" else file.path
        if (beside or file.path) not in heard:
            found.append(LabelledRecording({"audio": beside or file.path}, file.labels))
    return found


def _both(listed: Sequence[Listed], kinds: _Kinds) -> list[LabelledRecording]:
    """Videos, with the sound beside them where there is one: others bring their own."""
    from opsin.measuring.clip_ladder import LabelledRecording

    videos = [file for file in listed if kinds.of(file.path) == "video"]
    if stray := _without_video(listed, videos, kinds):
        raise UsageError(f"--files: {stray}: a sound without a video of the same name beside it")
    beside = {file.path: kinds.sound_of(file.path) for file in videos}
    return [
        LabelledRecording({"video": path} | ({} if (sound := beside[path]) is None else {"audio": sound}), labels)
        for path, labels in ((file.path, file.labels) for file in videos)
    ]


def _without_video(listed: Sequence[Listed], videos: Sequence[Listed], kinds: _Kinds) -> Path | None:
    """The first sound that belongs to no video."""
    owned = {kinds.sound_of(file.path) for file in videos}
    return next((file.path for file in listed if kinds.of(file.path) == "audio" and file.path not in owned), None)
