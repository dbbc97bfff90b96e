"""The packages of the engine (`server`, `models`, `kernels`, `training`), and how Opsin's own processes find them.

In a wheel they are in `opsin/engine.d`, which is not a valid module name: no module exists twice, and another program's `import server`
never finds Opsin's. In a checkout they are next to `opsin`. `python -P -m opsin.engine MODULE ARGUMENT…` runs one of their programs.
"""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

_WHEEL_ENGINE = Path(__file__).with_name("engine.d")
CHECKOUT = None if _WHEEL_ENGINE.is_dir() else Path(__file__).parents[1]
"""The folder of an editable installation (a checkout, or Opsin's container images); None in an installed wheel."""
FOLDER = CHECKOUT or _WHEEL_ENGINE
EXAMPLE = "`python -P -m opsin.engine training RECIPE.yaml`"
PACKAGES = ("server", "models", "kernels", "training")


def enter() -> None:
    """Let this process import the engine's packages, ahead of other packages of these names.

    Raises ImportError if the process has already imported another package of one of these names.
    """
    for name in PACKAGES:
        if (module := sys.modules.get(name)) is not None and not (imported_from := _location(module)).is_relative_to(FOLDER.resolve()):
            raise ImportError(
                f"`{name}` was imported from {imported_from} before Opsin's: call `opsin.engine.enter()` before you import yours"
            )
    if sys.path[:1] != [str(FOLDER)]:
        sys.path.insert(0, str(FOLDER))


def _location(module: ModuleType) -> Path:
    """Return the module's file, or the folder of a namespace package."""
    return Path(module.__file__ or next(iter(module.__path__))).resolve()


def _is_program(module: str) -> bool:
    """Return whether `python -m MODULE` can run it."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module exists, but a library that it imports does not
        return False
    return spec is not None and (spec.submodule_search_locations is None or _is_program(f"{module}.__main__"))


def main() -> None:
    """Run a program of the engine, as `python -m MODULE ARGUMENT…` would."""
    if len(sys.argv) < 2:
        print(f"opsin.engine: name a module, as in {EXAMPLE}", file=sys.stderr)
        sys.exit(2)
    enter()
    del sys.argv[0]
    if not _is_program(sys.argv[0]):
        print(f"opsin.engine: there is no program {sys.argv[0]}; name one, as in {EXAMPLE}", file=sys.stderr)
        sys.exit(2)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
