"""The engine behind the front door (`server`, `models`, `kernels`, `training`), and how our own processes find it.

A wheel keeps it in `opsin/engine.d`, which is no identifier: no module exists twice, and `import server` of another program never finds
ours. In a checkout it lies beside `opsin`. `python -P -m opsin.engine MODULE ARGUMENT…` runs one of its programs.
"""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

_OF_THE_WHEEL = Path(__file__).with_name("engine.d")
CHECKOUT = None if _OF_THE_WHEEL.is_dir() else Path(__file__).parents[1]
"""The folder of an editable installation (a checkout, or our images); None where a wheel is installed."""
FOLDER = CHECKOUT or _OF_THE_WHEEL
EXAMPLE = "`python -P -m opsin.engine training RECIPE.yaml`"
PACKAGES = ("server", "models", "kernels", "training")


def enter() -> None:
    """Let this process import the engine: before what strangers have installed, or keep in the working folder, under the same names.

    Raises ImportError where the process has imported one of theirs already.
    """
    for name in PACKAGES:
        if (module := sys.modules.get(name)) is not None and not (place := _place(module)).is_relative_to(FOLDER.resolve()):
            raise ImportError(f"`{name}` was imported from {place} before Opsin's: call `opsin.engine.enter()` before you import yours")
    if sys.path[:1] != [str(FOLDER)]:
        sys.path.insert(0, str(FOLDER))


def _place(module: ModuleType) -> Path:
    """Its file, or the folder of one that has none."""
    return Path(module.__file__ or next(iter(module.__path__))).resolve()


def _runs(module: str) -> bool:
    """Whether `python -m MODULE` finds it."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and a library that it imports is not
        return False
    return spec is not None and (spec.submodule_search_locations is None or _runs(f"{module}.__main__"))


def main() -> None:
    """Be `python -m MODULE ARGUMENT…` of the engine."""
    if len(sys.argv) < 2:
        print(f"opsin.engine: name a module, as in {EXAMPLE}", file=sys.stderr)
        sys.exit(2)
    enter()
    del sys.argv[0]
    if not _runs(sys.argv[0]):
        print(f"opsin.engine: there is no program {sys.argv[0]}; name one, as in {EXAMPLE}", file=sys.stderr)
        sys.exit(2)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
