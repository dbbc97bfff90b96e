"""Labelled clips and sounds of a folder, for commands that measure a bundle."""

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

LABELS_FILE = "labels.csv"
"""Lines FILE,LABEL;LABEL, with paths relative to its folder; a first line `file,labels` is a header."""
HEADER = ("file", "labels")
LINE_FORMAT = "a line is FILE,LABEL or FILE,LABEL;LABEL, in quotes if a name contains a comma"

RecordingKind = Literal["video", "audio"]


@dataclass(frozen=True)
class ListedFile:
    """A file and the indices of its labels; empty if unknown."""

    path: Path
    labels: tuple[int, ...] = ()


def read_recordings(folder: Path, spec: BundleSpec, use: Use | None) -> tuple[Use, list[LabelledRecording]]:
    """Return which input to measure a bundle with, and the recordings of a folder that have it.

    Labels come from `labels.csv`, or from the names of the files' folders; otherwise they are unknown. A sound next to a video with an
    equal name is its sound. use: for a bundle that classifies sound and sight separately. Raises UsageError.
    """
    if not folder.is_dir():
        raise UsageError(f"--files: {folder} is not a folder")
    listed = _list_files(folder, spec)
    kinds = _KindCache()
    chosen = _choose_use(spec, use, {kinds.kind_of(file.path) for file in listed})
    selected = _select_sounds(listed, kinds) if chosen == "sound" else _select_videos(listed, kinds, spec, with_sound=chosen == "both")
    if not selected:
        raise UsageError(f"--files: {folder} has no files to measure {spec.id} on")
    return chosen, selected


def _list_files(folder: Path, spec: BundleSpec) -> list[ListedFile]:
    label_indices = {label: index for index, label in enumerate(spec.labels)}
    if (folder / LABELS_FILE).exists():
        return list(_read_table(folder / LABELS_FILE, label_indices, spec.id))
    paths = _visible(folder.iterdir())
    folders = [path for path in paths if path.is_dir()]
    if not folders:
        return [ListedFile(path) for path in paths]
    if stray := next((path for path in paths if path.is_file()), None):
        raise UsageError(
            f"--files: {stray} is next to the folders of labels; move it into one of them, or list its labels in {folder / LABELS_FILE}"
        )
    if unknown := next((folder_of_label for folder_of_label in folders if folder_of_label.name not in label_indices), None):
        raise UsageError(f"--files: {unknown} is not named after a label of {spec.id}; `opsin bundles show` lists them")
    labelled = [(folder_of_label, path) for folder_of_label in folders for path in _visible(folder_of_label.iterdir())]
    if deeper := next((path for _, path in labelled if path.is_dir()), None):
        raise UsageError(f"--files: {deeper} is a folder inside that of a label; move its files up, or list them in {folder / LABELS_FILE}")
    return [ListedFile(path, (label_indices[folder_of_label.name],)) for folder_of_label, path in labelled]


def _visible(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if not path.name.startswith("."))


def _read_table(table: Path, label_indices: Mapping[str, int], bundle: str) -> Iterable[ListedFile]:
    """Read a table of files and their labels. Raises UsageError naming the line."""
    if not table.is_file():
        raise UsageError(f"--files: {table}: not a file")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file, strict=True), start=1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--files: {table}: cannot be read as CSV in UTF-8 ({error})") from error
    seen = set[Path]()
    for number, row in rows:
        location, cells = f"--files: {table}:{number}", [cell.strip() for cell in row]
        if number == 1 and tuple(cells) == HEADER:
            continue
        if len(cells) != 2 or not cells[0]:
            raise UsageError(f"{location}: {LINE_FORMAT}")
        path, names = table.parent / cells[0], [name.strip() for name in cells[1].split(";")]
        if not path.is_file():
            raise UsageError(f"{location}: {path}: no such file")
        if path in seen:
            raise UsageError(f"{location}: {cells[0]} is listed twice; put all of its labels into one line")
        if unknown := next((name for name in names if name not in label_indices), None):
            raise UsageError(f"{location}: {unknown!r} is not a label of {bundle}; `opsin bundles show` lists them")
        if not all(names):
            raise UsageError(f"{location}: a label is missing; {LINE_FORMAT}")
        seen.add(path)
        yield ListedFile(path, tuple(sorted({label_indices[name] for name in names})))


class _KindCache:
    """The kinds of files, detected by content, and the sounds next to videos. Both are read once."""

    def __init__(self) -> None:
        self._kinds: dict[Path, RecordingKind] = {}
        self._sounds_by_stem: dict[Path, dict[str, Path]] = {}
        """Folder → stem → the sound with that stem."""

    def kind_of(self, path: Path) -> RecordingKind:
        """Return the kind of a file. Raises UsageError if it is neither a video nor a sound."""
        if path not in self._kinds:
            if not path.is_file():  # a pipe or a device may be endless
                raise UsageError(f"--files: {path}: not a file, or a broken link")
            try:
                kind = media_kinds.detect_file_kind(path)
            except OSError as error:
                raise UsageError(f"--files: {path}: {error.strerror}") from error
            if kind is None or kind == "image":
                raise UsageError(f"--files: {path}: neither a video nor a sound; move it elsewhere")
            self._kinds[path] = kind
        return self._kinds[path]

    def sound_of(self, video: Path) -> Path | None:
        """Return the sound next to a video, with an equal name except for the suffix."""
        folder = video.parent
        if folder not in self._sounds_by_stem:
            files = [path for path in _visible(folder.iterdir()) if path.is_file() and media_kinds.detect_file_kind(path) == "audio"]
            self._sounds_by_stem[folder] = {path.stem: path for path in files}
        return self._sounds_by_stem[folder].get(video.stem)


def _choose_use(spec: BundleSpec, use: Use | None, kinds: Collection[RecordingKind]) -> Use:
    """Return which input to measure the bundle with. Raises UsageError if it is ambiguous, or the bundle has no choice."""
    from opsin.measuring.clip_ladder import task_of

    task = task_of(spec)
    assert task is not None
    required = {part.name: part.required for part in task.accepted_parts(spec)}
    is_separate = len(required) == 2 and not any(required.values())
    if use is not None and not is_separate:
        raise UsageError(f"--use {use}: {spec.id} does not classify sound and sight separately; leave it out")
    if is_separate and use is None and len(kinds) > 1:
        raise UsageError(
            f"--use: {spec.id} classifies sound and sight separately, and there are clips and sounds; add --use sound or --use sight"
        )
    if is_separate:
        return use or ("sound" if "audio" in kinds else "sight")
    if len(required) == 2:
        return "both"
    return "sound" if "audio" in required else "sight"


def _select_videos(listed: Sequence[ListedFile], kinds: _KindCache, spec: BundleSpec, *, with_sound: bool) -> list[LabelledRecording]:
    """Return the videos. with_sound: with the sounds next to them; videos without one use their sound track.

    Other sounds are ignored if the bundle could use them, and an error otherwise.
    """
    from opsin.measuring.clip_ladder import LabelledRecording

    videos = [file for file in listed if kinds.kind_of(file.path) == "video"]
    if not with_sound and spec.sound is not None:
        return [LabelledRecording({"video": file.path}, file.labels) for file in videos]
    sounds = {file.path: kinds.sound_of(file.path) for file in videos}
    if stray := next((file.path for file in listed if kinds.kind_of(file.path) == "audio" and file.path not in sounds.values()), None):
        reason = "without a video of the same name next to it" if with_sound else f"but {spec.id} is measured on videos"
        raise UsageError(f"--files: {stray}: a sound{' ' if with_sound else ', '}{reason}")
    files = {
        path: {"video": path} if sound is None or not with_sound else {"video": path, "audio": sound} for path, sound in sounds.items()
    }
    return [LabelledRecording(files[file.path], file.labels) for file in videos]


def _select_sounds(listed: Sequence[ListedFile], kinds: _KindCache) -> list[LabelledRecording]:
    """Return the sounds, and the sound tracks of videos that have no sound next to them."""
    from opsin.measuring.clip_ladder import LabelledRecording

    sounds = [file for file in listed if kinds.kind_of(file.path) == "audio"]
    sound_paths = {file.path for file in sounds}
    recordings = [LabelledRecording({"audio": file.path}, file.labels) for file in sounds]
    for file in listed:
        sound = kinds.sound_of(file.path) if kinds.kind_of(file.path) == "video" else file.path
        if (sound or file.path) not in sound_paths:
            recordings.append(LabelledRecording({"audio": sound or file.path}, file.labels))
    return recordings
