"""HTML of results: below a cell of a notebook, or in a browser by `show()`. It loads nothing from the network."""

from __future__ import annotations

import base64
import sys
import webbrowser
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_DRAWN_POINTS = 20_000
"""Maximum number of drawn points; larger clouds are thinned."""
POINT_CLOUD_PAGE = Path(__file__).with_name("point_cloud.html")
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Opsin</title>
<style>body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color-scheme: light dark; }}
td, th {{ padding: .2rem .8rem .2rem 0; text-align: left; }}</style>{}</html>
"""


class HtmlResult:
    """Base of results that notebooks and browsers show."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        raise NotImplementedError

    def show(self) -> Path | None:
        """Show the result below the cell in a notebook, else in the browser, from a file in the temporary folder. Return the file."""
        if _is_notebook():
            from IPython.display import display  # type: ignore[import-not-found]

            display(self)
            return None
        with NamedTemporaryFile("w", prefix="opsin-", suffix=".html", delete=False, encoding="utf-8") as file:
            file.write(PAGE.format(self._repr_html_()))
        path = Path(file.name)
        webbrowser.open(path.as_uri())
        return path


def render_points(points: NDArray[np.float32], colours: NDArray[np.uint8], *facts: str) -> str:
    """Render coloured points that can be rotated with the mouse. points (P, 3): x to the right, y down, z forward."""
    step = slice(None, None, -(-len(points) // MAX_DRAWN_POINTS) or 1)
    positions = np.ascontiguousarray(points[step], np.float32)
    middle = (positions.max(axis=0) + positions.min(axis=0)) / 2 if len(positions) else np.zeros(3, np.float32)
    radius = float(np.linalg.norm(positions - middle, axis=1).max(initial=1e-9))
    grid = np.rint((positions - middle) / radius * 32_000).astype("<i2")
    page = POINT_CLOUD_PAGE.read_text(encoding="utf-8")
    for name, values in (("PLACES", grid), ("COLOURS", np.ascontiguousarray(colours[step], np.uint8))):
        page = page.replace(name, base64.b64encode(values.tobytes()).decode())
    size = 'width="480" height="360" style="border:0"'
    return f'<iframe sandbox="allow-scripts" title="Points in space" {size} srcdoc="{escape(page)}"></iframe>' + render_small_print(*facts)


def render_bar(share: float, colour: str) -> str:
    """Render a share from 0 to 1 as a bar."""
    inner = f'<div style="width:{100 * share:.1f}%;height:.6em;background:{colour};border-radius:3px"></div>'
    return f'<div style="width:12em;background:#8883;border-radius:3px">{inner}</div>'


def render_image(png: bytes, height: int | None = None) -> str:
    """Render a filled image; height: in pixels."""
    limit = "max-width:100%" if height is None else f"height:{height}px"
    return f'<img alt="The filled image" style="{limit}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def render_table(rows: Iterable[str], heads: Sequence[str] = ()) -> str:
    """Render a table of rows, each a `<tr>`."""
    head = f"<thead><tr>{''.join(f'<th>{name}</th>' for name in heads)}</tr></thead>" if heads else ""
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def render_small_print(*texts: str) -> str:
    """Render each text that is not empty as a line of small print."""
    return "".join(f"<p><small>{escape(text)}</small></p>" for text in texts if text)


def _is_notebook() -> bool:
    """Return whether this is a front end of IPython that shows HTML; terminals do not."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config
