"""Clips of a game whose player turns or walks: ViZDoom tells what was done and where the player stands. Nothing of it is trained on."""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.arrays import UInt8Array
from training.data.packages import PyPIPackage, obtain
from training.errors import DataError

RATE = 35
"""Frames a second of the game."""
_MAPS = tuple(f"map{number:02d}" for number in range(1, 11))
"""Maps of Freedoom, phase 2."""
_TRIES = 200
_ALONG = 0.98
"""Share of a walk's way that leads where the player looks, at least: along a wall the player slides aside."""
_ON = 0.9
"""Share of its speed that is left in its second half, at least: a wall stops the player."""


@dataclass(frozen=True)
class Action:
    move: str
    """One of `starters.data.clips.camera_paths.MOVES`."""
    name: str
    turns: tuple[float, float] = (0.0, 0.0)
    """Degrees to the right in a frame, from and to."""
    walks: tuple[float, float] = (0.0, 0.0)
    """Speed ahead, in the game's units of a step."""


ACTIONS = (
    Action("pan left", "turns left", turns=(-0.6, -3.0)),
    Action("pan right", "turns right", turns=(0.6, 3.0)),
    Action("zoom in", "walks ahead", walks=(6.0, 25.0)),
    Action("zoom out", "walks backwards", walks=(-6.0, -25.0)),
)


@dataclass(frozen=True)
class GameClip:
    frames: UInt8Array
    """(T, 240, 320, 3)."""
    action: Action


def played(package: PyPIPackage, cache: Path, clips: int, seconds: float) -> Iterator[GameClip]:
    """So many clips, as many of each action: the same every time. Raises DataError."""
    generator = np.random.default_rng(35)
    with tempfile.TemporaryDirectory() as folder:
        game = _game(package, cache, Path(folder))
        try:
            for number in range(clips):
                yield _clip(game, ACTIONS[number % len(ACTIONS)], round(seconds * RATE), generator)
        finally:
            game.close()


def _game(package: PyPIPackage, cache: Path, writes: Path) -> Any:
    """writes: the folder where the game leaves its settings and maps that it prepared. Raises DataError."""
    folder = obtain(package, cache).resolve()
    (folder / "vizdoom" / "vizdoom").chmod(0o755)  # archives of Python forget that it is a program
    sys.path.append(str(folder))
    try:
        vizdoom = import_module("vizdoom")
    except ImportError as error:
        raise DataError(f"{folder}: {package.name} cannot be imported ({error})") from error
    finally:
        sys.path.remove(str(folder))
    game = vizdoom.DoomGame()
    game.set_doom_game_path(str(folder / "vizdoom" / "freedoom2.wad"))
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_320X240)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_window_visible(False)
    for hide in (game.set_render_hud, game.set_render_weapon, game.set_render_crosshair):
        hide(False)
    game.set_seed(35)
    game.set_episode_timeout(0)
    game.set_available_buttons([vizdoom.Button.TURN_LEFT_RIGHT_DELTA, vizdoom.Button.MOVE_FORWARD_BACKWARD_DELTA])
    game.set_available_game_variables([getattr(vizdoom.GameVariable, name) for name in ("POSITION_X", "POSITION_Y", "ANGLE")])
    game.add_game_args("+sv_cheats 1 +god 1 +notarget 1")
    with contextlib.chdir(writes):
        game.init()
    return game


def _clip(game: Any, action: Action, length: int, generator: np.random.Generator) -> GameClip:
    """Raises DataError where the player finds no way."""
    for _ in range(_TRIES):
        game.set_doom_map(str(generator.choice(_MAPS)))
        game.new_episode()
        _stroll(game, generator)
        share = generator.random()
        turn, walk = (low + share * (high - low) for low, high in (action.turns, action.walks))
        frames, places = [], []
        for _ in range(length):
            state = game.get_state()
            frames.append(np.asarray(state.screen_buffer))
            places.append(np.array(state.game_variables))
            game.make_action([turn, walk])
        if not walk or walks_on(np.stack(places), math.copysign(1, walk)):
            return GameClip(np.stack(frames), action)
    raise DataError(f"vizdoom: in {_TRIES} tries nobody {action.name} for {length} frames without a wall in the way")


def _stroll(game: Any, generator: np.random.Generator) -> None:
    """To somewhere near the start."""
    for _ in range(int(generator.integers(1, 8))):
        turn = float(generator.uniform(-12, 12))
        for _ in range(int(generator.integers(3, 15))):
            game.make_action([turn, float(generator.uniform(10, 25))])
    game.make_action([float(generator.uniform(-180, 180)), 0.0])
    for _ in range(RATE):
        game.make_action([0.0, 0.0])


def walks_on(places: npt.NDArray[np.float64], sign: float) -> bool:
    """places (T, 3): x, y and degrees. sign: 1 for a walk ahead, -1 for one backwards."""
    angle = math.radians(float(places[0, 2]))
    way = sign * np.array([math.cos(angle), math.sin(angle)])
    steps = np.diff(places[len(places) // 3 :, :2], axis=0)  # the player has its speed by then
    early, late = np.array_split(steps, 2)
    along = (float((part.sum(axis=0) @ way) / len(part)) for part in (early, late))
    speeds = (float(np.linalg.norm(part, axis=1).mean()) for part in (early, late))
    (early_along, late_along), (early_speed, late_speed) = along, speeds
    return early_along > _ALONG * max(early_speed, 1.0) and late_along > _ALONG * late_speed and late_speed > _ON * early_speed
