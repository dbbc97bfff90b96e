"""Clips of ViZDoom, a game, in which the player turns or walks."""

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
"""Frames per second of the game."""
_MAPS = tuple(f"map{number:02d}" for number in range(1, 11))
"""Maps of Freedoom, phase 2."""
_TRIES = 200
_MIN_ALONG = 0.98
"""Minimum share of a walk that leads in the direction of view; along a wall the player slides sideways."""
_MIN_LATE_SPEED = 0.9
"""Minimum share of a walk's speed in its second half; a wall stops the player."""


@dataclass(frozen=True)
class Action:
    move: str
    """Label, one of `starters.data.clips.camera_paths.MOVES`."""
    name: str
    turns: tuple[float, float] = (0.0, 0.0)
    """Range of the turn to the right per frame, in degrees."""
    walks: tuple[float, float] = (0.0, 0.0)
    """Range of the speed ahead, in the game's units per frame."""


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


def record_clips(package: PyPIPackage, cache: Path, clips: int, seconds: float) -> Iterator[GameClip]:
    """Record clips, evenly over the actions and the same every time. Raises DataError."""
    generator = np.random.default_rng(35)
    with tempfile.TemporaryDirectory() as folder:
        game = _game(package, cache, Path(folder))
        try:
            for number in range(clips):
                yield _clip(game, ACTIONS[number % len(ACTIONS)], round(seconds * RATE), generator)
        finally:
            game.close()


def _game(package: PyPIPackage, cache: Path, workdir: Path) -> Any:
    """Start the game. workdir: folder for the files that it writes. Raises DataError."""
    folder = obtain(package, cache).resolve()
    (folder / "vizdoom" / "vizdoom").chmod(0o755)  # wheels lose the executable bit
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
    with contextlib.chdir(workdir):
        game.init()
    return game


def _clip(game: Any, action: Action, length: int, generator: np.random.Generator) -> GameClip:
    """Record one clip. Raises DataError if walls are in the way in every try."""
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
        if not walk or is_straight_walk(np.stack(places), math.copysign(1, walk)):
            return GameClip(np.stack(frames), action)
    raise DataError(f"vizdoom: in {_TRIES} tries no player {action.name} for {length} frames without a wall in the way")


def _stroll(game: Any, generator: np.random.Generator) -> None:
    """Walk to a random place near the start."""
    for _ in range(int(generator.integers(1, 8))):
        turn = float(generator.uniform(-12, 12))
        for _ in range(int(generator.integers(3, 15))):
            game.make_action([turn, float(generator.uniform(10, 25))])
    game.make_action([float(generator.uniform(-180, 180)), 0.0])
    for _ in range(RATE):
        game.make_action([0.0, 0.0])


def is_straight_walk(places: npt.NDArray[np.float64], sign: float) -> bool:
    """Return whether a walk is straight and not slowed down. places (T, 3): x, y and degrees. sign: 1 ahead, -1 backwards."""
    angle = math.radians(float(places[0, 2]))
    way = sign * np.array([math.cos(angle), math.sin(angle)])
    steps = np.diff(places[len(places) // 3 :, :2], axis=0)  # the player has its speed by then
    early, late = np.array_split(steps, 2)
    along = (float((part.sum(axis=0) @ way) / len(part)) for part in (early, late))
    speeds = (float(np.linalg.norm(part, axis=1).mean()) for part in (early, late))
    (early_along, late_along), (early_speed, late_speed) = along, speeds
    return (
        early_along > _MIN_ALONG * max(early_speed, 1.0)
        and late_along > _MIN_ALONG * late_speed
        and late_speed > _MIN_LATE_SPEED * early_speed
    )
