"""The plots of docs/how-it-works.md, of what the benchmarks wrote with --json: `python -m benchmarks.plots [FOLDER]`.

FOLDER (docs/pictures/plots by default) holds `serving.json` and `restarts.json`; the plots are written next to them, as SVG that
follows the reader's light or dark theme. Each names the machine, the command and the day.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

FOLDER = Path("docs/pictures/plots")
WIDTH, LEFT, RIGHT, TOP, FOOT = 760, 150, 30, 92, 52
"""Size of a plot in pixels; the plotted area is between these margins."""
PHASES = {"prepare": "prepare_ms", "queue": "queue_ms", "batch": "batch_wait_ms", "model": "inference_ms"}
STYLE = """<style>
.ground { fill: #ffffff } .line { stroke: #d9d5e6 } text { fill: #1d1a2b } .dim { fill: #5a5570 } .mark { stroke: #b3261e }
.c0 { fill: #5b3fc4; stroke: #5b3fc4 } .c1 { fill: #c77700; stroke: #c77700 } .c2 { fill: #0a7d8c; stroke: #0a7d8c }
.c3 { fill: #b0307a; stroke: #b0307a } .c4 { fill: #767089; stroke: #767089 }
@media (prefers-color-scheme: dark) {
.ground { fill: #1d1a26 } .line { stroke: #3a3549 } text { fill: #ece9f5 } .dim { fill: #aaa4be } .mark { stroke: #ffb4ab }
.c0 { fill: #b9a5ff; stroke: #b9a5ff } .c1 { fill: #f0b35b; stroke: #f0b35b } .c2 { fill: #5fcbd8; stroke: #5fcbd8 }
.c3 { fill: #f08cc4; stroke: #f08cc4 } .c4 { fill: #9b95ae; stroke: #9b95ae }
}
</style>"""
"""Colours of the playground's themes. The ground is drawn, so that a plot is legible where the page's theme is not the system's."""
Result = Mapping[str, Any]


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for name, (source, draw) in PLOTS.items():
        (folder / f"{name}.svg").write_text(draw(json.loads((folder / source).read_text())))
        print(folder / f"{name}.svg")


def request(result: Result) -> str:
    """Plot the phases of a request: the median time of each, by load."""
    bursts = {"one client": result["open"]["closed"][0]}
    bursts |= {f"{float(share):.0%} of capacity": burst for share, burst in result["open"]["open"].items()}
    parts = {name: {phase: burst["timing"][key] for phase, key in PHASES.items()} for name, burst in bursts.items()}
    for name, phases in parts.items():
        phases["rest"] = max(0.0, bursts[name]["timing"]["total_ms"] - sum(phases.values()))
    bottom = TOP + 46 * len(bursts)
    x = scale(0, max(sum(phases.values()) for phases in parts.values()), LEFT, WIDTH - RIGHT - 170)

    def elements() -> Iterator[str]:
        yield from legend([*PHASES, "rest"])
        for row, (name, phases) in enumerate(parts.items()):
            y, start = TOP + 46 * row, 0.0
            yield text(LEFT - 10, y + 20, name, "end")
            for colour, milliseconds in enumerate(phases.values()):
                yield bar(x(start), y + 4, x(start + milliseconds) - x(start), 24, colour)
                start += milliseconds
            latency = bursts[name]["latency_ms"]
            yield text(x(start) + 8, y + 20, f"p50 {latency['p50']:.0f} ms, p99 {latency['p99']:.0f} ms", kind="dim")

    says = "Medians of the phases of a classification, and the latency that its client sees. Arrivals are random."
    return plot("Where the time of a request goes", says, result, bottom, elements())


def batching(result: Result) -> str:
    """Images per second and mean batch by the number of clients that wait for answers."""
    bursts = result["open"]["closed"]
    bottom, slot = TOP + 200, (WIDTH - 80 - RIGHT) / len(bursts)
    y = scale(0, max(burst["per_second"] for burst in bursts), bottom, TOP + 30)

    def elements() -> Iterator[str]:
        yield text(24, bottom + 20, "clients", kind="dim")
        yield text(24, bottom + 40, "mean batch", kind="dim")
        for number, burst in enumerate(bursts):
            middle, top = 80 + slot * (number + 0.5), y(burst["per_second"])
            yield bar(middle - 26, top, 52, bottom - top, 0)
            yield text(middle, top - 8, f"{burst['per_second']:.1f}/s", "middle")
            yield text(middle, bottom + 20, str(burst["clients"]), "middle")
            yield text(middle, bottom + 40, f"{burst['batch_size']:.1f}", "middle")
        yield line(80, bottom, WIDTH - RIGHT, bottom)

    says = "Images per second by clients that each send the next request when the last is answered."
    return plot("Batches grow with what waits", says, result, bottom + 44, elements())


def plot_killed(result: Result) -> str:
    """Latency of each request over the time of its arrival, with a worker killed among them."""
    answers, at = result["killed"]["answers"], result["killed"]["at_s"]
    bottom = TOP + 210
    across = scale(0, math.ceil(max(sent for sent, _, _ in answers)), 70, WIDTH - RIGHT)
    y = scale(0, max(seconds for _, seconds, _ in answers), bottom, TOP + 14)

    def elements() -> Iterator[str]:
        for tick in ticks(math.ceil(max(sent for sent, _, _ in answers))):
            yield text(across(tick), bottom + 20, f"{tick:g} s", "middle", "dim")
        for tick in ticks(max(seconds for _, seconds, _ in answers)):
            yield line(70, y(tick), WIDTH - RIGHT, y(tick))
            yield text(62, y(tick) + 4, f"{tick:g} s", "end", "dim")
        yield f'<line class="mark" x1="{across(at):.1f}" y1="{TOP - 6}" x2="{across(at):.1f}" y2="{bottom}" stroke-dasharray="5 4"/>'
        yield text(across(at) + 8, TOP, "kill -9 of the only worker")
        for sent, seconds, status in answers:
            if status == 200:
                yield f'<circle class="c0" cx="{across(sent):.1f}" cy="{y(seconds):.1f}" r="2.5"/>'
            else:
                yield text(across(sent), y(seconds), f"× {status}", "middle")

    lost = sum(status != 200 for _, _, status in answers)
    outcome = f"{len(answers) - lost} were answered, {lost} were not"
    says = f"Seconds that each of {len(answers)} classifications took, by when it was sent. {outcome}."
    title = "A killed worker" if lost else "A killed worker costs time, not answers"
    return plot(title, says, result, bottom + 24, elements())


PLOTS: dict[str, tuple[str, Callable[[Result], str]]] = {
    "request": ("serving.json", request),
    "batching": ("serving.json", batching),
    "killed": ("restarts.json", plot_killed),
}


def plot(title: str, says: str, result: Result, bottom: float, elements: Iterator[str]) -> str:
    """Assemble an SVG. bottom: y of the end of the plot, below which its source is printed."""
    machine = result["machine"]
    vectors = [flag for flag in machine["flags"] if flag in ("avx2", "avx512f", "amx_tile")]
    source = f"{machine['cpu']}, {machine['cpus']} CPUs, {' '.join(vectors)}; {result['day']}"
    height = round(bottom + FOOT)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(f"{title}. {says}")}" '
            'font-family="system-ui, sans-serif" font-size="13">',
            STYLE,
            f'<rect class="ground" width="{WIDTH}" height="{height}" rx="8"/>',
            f'<text x="24" y="30" font-size="17" font-weight="600">{escape(title)}</text>',
            text(24, 52, says, kind="dim"),
            *elements,
            f'<text class="dim" x="24" y="{height - 29}" font-size="11">{escape(source)}</text>',
            f'<text class="dim" x="24" y="{height - 12}" font-size="11">{escape(result["command"])}</text>',
            "</svg>\n",
        ]
    )


def legend(names: Sequence[str]) -> Iterator[str]:
    at = 24.0
    for colour, name in enumerate(names):
        yield bar(at, 66, 11, 11, colour)
        yield text(at + 17, 76, name, kind="dim")
        at += 34 + 7.2 * len(name)


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    placed = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}"{placed}>{escape(words)}</text>'


def bar(x: float, y: float, width: float, height: float, colour: int) -> str:
    return f'<rect class="c{colour}" stroke-width="0" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="line" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    """Return a linear map from values to pixels."""
    return lambda value: first + (last - first) * (value - low) / ((high - low) or 1)


def ticks(highest: float) -> Iterator[float]:
    """Round values from 0 up, five at most besides it."""
    power = 10 ** math.floor(math.log10(highest / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if highest / (factor * power) <= 5)
    yield from (number * step for number in range(math.floor(highest / step) + 1))


if __name__ == "__main__":
    main()
