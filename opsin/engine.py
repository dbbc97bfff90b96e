"""The engine behind the front door (`server`, `models`, `kernels`, `training`), and how our own processes find it.

A wheel keeps it in `opsin/engine.d`, which is no identifier: no module exists twice, and `import server` of another program never finds
ours. In a checkout it lies beside `opsin`. `python -P -m opsin.engine MODULE ARGUMENT…` runs one of its programs.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

_OF_THE_WHEEL = Path(__file__).with_name("engine.d")
CHECKOUT = None if _OF_THE_WHEEL.is_dir() else Path(__file__).parents[1]
"""The folder of an editable installation (a checkout, or our images); None where a wheel is installed."""
FOLDER = CHECKOUT or _OF_THE_WHEEL


def enter() -> None:
    """Let this process import the engine: before what strangers have installed, or keep in the working folder, under the same names."""
    if sys.path[:1] != [str(FOLDER)]:
        sys.path.insert(0, str(FOLDER))


def main() -> None:
    """Be `python -m MODULE ARGUMENT…` of the engine."""
    if len(sys.argv) < 2:
        print("opsin.engine: name a module, as in `python -P -m opsin.engine training RECIPE.yaml`", file=sys.stderr)
        sys.exit(2)
    enter()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
