"""`python -m tests.golden [DIR ...]`: replay recorded cases and print one line for each.

`system/case  worst-abs  worst-rel  ok|FAIL|no replay for this system`, no other line ends in ` ok`.
What failed is explained below its line. Exit code 1 if any case failed or had no replay, or if there was none; 2 for a folder that does
not exist.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

import torch

from tests.golden.case import find_cases, read_case
from tests.golden.compare import Deviation, compare, compare_intermediates
from tests.golden.replays import REPLAYS

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description="Replay recorded cases.")
    parser.add_argument("folders", nargs="*", type=Path, default=[HERE], metavar="DIR", help="folders to search for cases")
    folders = parser.parse_args(arguments).folders
    absent = [str(folder) for folder in folders if not folder.is_dir()]
    if absent:
        print(f"{', '.join(absent)}: no such folder", file=sys.stderr)
        return 2
    cases = list(find_cases(*folders))
    if not cases:
        print(f"no case under {', '.join(map(str, folders))}", file=sys.stderr)
        return 1
    passed = [run(folder) for folder in cases]  # all of them, even after a failure
    return 0 if all(passed) else 1


def run(folder: Path) -> bool:
    """Replay one case and print its line. True if everything that was recorded came out."""
    try:
        case = read_case(folder)
    except Exception:  # whatever is wrong with one case, the others are run
        return _print_line(f"{folder.parent.name}/{folder.name}", "-", "-", "FAIL", traceback.format_exc())
    title = f"{case.system}/{folder.name}"
    replay = REPLAYS.get(case.system)
    if replay is None:
        return _print_line(title, "-", "-", "no replay for this system")
    try:
        with torch.no_grad():
            replayed = replay(case)
        deviations = compare(case, replayed)
    except Exception:
        return _print_line(title, "-", "-", "FAIL", traceback.format_exc())
    failed = [deviation for deviation in deviations if deviation.problem]
    verdict = "FAIL" if failed or not deviations else "ok"
    details = [*compare_intermediates(case, replayed), *failed] if failed else []
    worst_absolute = max((deviation.absolute for deviation in deviations), default=0.0)
    worst_relative = max((deviation.relative for deviation in deviations), default=0.0)
    return _print_line(title, f"{worst_absolute:.2e}", f"{worst_relative:.2e}", verdict, "\n".join(map(_describe, details)))


def _describe(deviation: Deviation) -> str:
    return f"{deviation.name}  {deviation.absolute:.2e}  {deviation.relative:.2e}  {deviation.problem or 'within tolerance'}"


def _print_line(title: str, worst_absolute: str, worst_relative: str, verdict: str, details: str = "") -> bool:
    print(f"{title}  {worst_absolute}  {worst_relative}  {verdict}", flush=True)
    for line in details.splitlines():
        print(f"    {line.rstrip()}.", flush=True)  # the full stop keeps any such line from ending like a verdict
    return verdict == "ok"


if __name__ == "__main__":
    sys.exit(main())
