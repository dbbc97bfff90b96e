"""Results as HTML: what notebooks show below a cell, and what `show()` opens in a browser. Nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import sys
import webbrowser
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opsin.actions import VideoActions
    from opsin.inpainting import Inpainting
    from opsin.mapping import Outcomes
    from opsin.results import Classification

MOST_POINTS = 20_000
"""More are thinned before they are drawn."""
MOST_ROWS = 100
CLOUD = Path(__file__).with_name("cloud.html")
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Opsin</title>
<style>body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color-scheme: light dark; }}
td, th {{ padding: .2rem .8rem .2rem 0; text-align: left; }}</style>{}</html>
"""


class Showable(Protocol):
    def _repr_html_(self) -> str: ...


def show(result: Showable) -> Path | None:
    """Below the cell in a notebook; else in the browser, from a file in the temporary folder, which is returned."""
    if _in_notebook():
        from IPython.display import display  # type: ignore[import-not-found]

        display(result)
        return None
    with NamedTemporaryFile("w", prefix="opsin-", suffix=".html", delete=False, encoding="utf-8") as file:
        file.write(PAGE.format(result._repr_html_()))
    path = Path(file.name)
    webbrowser.open(path.as_uri())
    return path


def classification(result: Classification) -> str:
    """Labels as bars."""
    rows = (
        f"<tr><td>{escape(found.label)}</td><td>{_bar(found.score, COLOURS[2])}</td><td>{found.score:.1%}</td></tr>"
        for found in result.predictions
    )
    merged = f"{result.merging.tokens_out} of {result.merging.tokens_in} tokens, " if result.merging else ""
    return _table(rows) + _line(f"{result.model}@{result.version}, {merged}{result.timing.total_ms:.0f} ms")


def inpainting(result: Inpainting) -> str:
    """The samples side by side."""
    shown = "".join(
        f'<figure style="display:inline-block;margin:0 1em 1em 0">{_image(sample.png)}<figcaption>seed {sample.seed}</figcaption></figure>'
        for sample in result.samples
    )
    how = "with patches from around the hole" if result.method == "exemplar" else f"in {result.steps} steps of {escape(result.sampler)}"
    facts = f"{result.masked_pixels:,} pixels filled {how}, {result.timing.total_ms:.0f} ms"
    return f"<div>{shown}</div>{_line(facts)}"


def cloud(points: NDArray[np.float32], colours: NDArray[np.uint8], facts: str) -> str:
    """Coloured points that turn with the mouse. points (P, 3): x to the right, y down, z forward."""
    thinned = slice(None, None, -(-len(points) // MOST_POINTS) or 1)
    placed = np.ascontiguousarray(points[thinned], np.float32)
    middle = (placed.max(axis=0) + placed.min(axis=0)) / 2 if len(placed) else np.zeros(3, np.float32)
    radius = float(np.linalg.norm(placed - middle, axis=1).max(initial=1e-9))
    grid = np.rint((placed - middle) / radius * 32_000).astype("<i2")
    page = CLOUD.read_text(encoding="utf-8")
    for name, values in (("PLACES", grid), ("COLOURS", np.ascontiguousarray(colours[thinned], np.uint8))):
        page = page.replace(name, base64.b64encode(values.tobytes()).decode())
    size = 'width="480" height="360" style="border:0"'
    return f'<iframe sandbox="allow-scripts" title="Points in space" {size} srcdoc="{escape(page)}"></iframe>' + _line(facts)


def actions(result: VideoActions) -> str:
    """Who does what when: seconds with the same best label are one row."""
    rows: list[str] = []
    for person in result.people:
        for run in [run for run in person.runs if run.labels]:
            mark = f'<span style="color:{COLOURS[(person.person - 1) % len(COLOURS)]}">●</span> person {person.person}'
            when, best = f"{run.start_s:.1f} – {run.end_s:.1f} s", run.labels[0]
            label = f"{best.label} (unsure)" if run.unsure else best.label
            rows.append(f"<tr><td>{mark}</td><td>{when}</td><td>{escape(label)}</td><td>{best.score:.2f}</td></tr>")
    return _table(rows, ("who", "when", "what", "score")) if rows else "<p>Nobody was found.</p>"


def outcomes(result: Outcomes[Any]) -> str:
    """A row for each input, and how many failed."""
    rows = []
    for one in result.all[:MOST_ROWS]:
        source = escape(str(one.source)[-80:])
        told = _brief(one.result) if one.error is None else f'<span style="color:#c33">{escape(str(one.error))}</span>'
        rows.append(f"<tr><td>{source}</td><td>{told}</td></tr>")
    more = f", the first {MOST_ROWS} are shown" if len(result.all) > MOST_ROWS else ""
    return _table(rows, ("input", "result")) + _line(f"{len(result.all)} inputs, {len(result.failures)} failed{more}")


def _brief(result: Any) -> str:
    """A result in one cell of a table."""
    if hasattr(result, "label"):
        return f"{escape(result.label)} {result.score:.1%}"
    if hasattr(result, "samples"):
        return _image(result.samples[0].png, 96)
    if hasattr(result, "people"):
        return f"{len(result.people)} people"
    return f"{result.count:,} points"


def _bar(share: float, colour: str) -> str:
    inner = f'<div style="width:{100 * share:.1f}%;height:.6em;background:{colour};border-radius:3px"></div>'
    return f'<div style="width:12em;background:#8883;border-radius:3px">{inner}</div>'


def _image(png: bytes, height: int | None = None) -> str:
    limit = "max-width:100%" if height is None else f"height:{height}px"
    return f'<img alt="The filled image" style="{limit}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _table(rows: Iterable[str], heads: Sequence[str] = ()) -> str:
    head = f"<thead><tr>{''.join(f'<th>{name}</th>' for name in heads)}</tr></thead>" if heads else ""
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def _line(text: str) -> str:
    return f"<p><small>{escape(text)}</small></p>"


def _in_notebook() -> bool:
    """Of IPython's front ends, terminals show no HTML."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config
