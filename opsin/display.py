"""HTML that results are shown with: below a cell of a notebook, or in a browser by `show()`. Nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import sys
import webbrowser
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_POINTS = 20_000
"""More are thinned before they are drawn."""
CLOUD = Path(__file__).with_name("point_cloud.html")
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


def cloud(points: NDArray[np.float32], colours: NDArray[np.uint8], *facts: str) -> str:
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
    return f'<iframe sandbox="allow-scripts" title="Points in space" {size} srcdoc="{escape(page)}"></iframe>' + line(*facts)


def bar(share: float, colour: str) -> str:
    """A share from 0 to 1 as a bar."""
    inner = f'<div style="width:{100 * share:.1f}%;height:.6em;background:{colour};border-radius:3px"></div>'
    return f'<div style="width:12em;background:#8883;border-radius:3px">{inner}</div>'


def image(png: bytes, height: int | None = None) -> str:
    """A filled image; height: in pixels."""
    limit = "max-width:100%" if height is None else f"height:{height}px"
    return f'<img alt="The filled image" style="{limit}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def table(rows: Iterable[str], heads: Sequence[str] = ()) -> str:
    """rows: each a `<tr>`."""
    head = f"<thead><tr>{''.join(f'<th>{name}</th>' for name in heads)}</tr></thead>" if heads else ""
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def line(*texts: str) -> str:
    """A line of small print for each text that is not empty."""
    return "".join(f"<p><small>{escape(text)}</small></p>" for text in texts if text)


def _in_notebook() -> bool:
    """Whether this is a front end of IPython that shows HTML: terminals do not."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config
