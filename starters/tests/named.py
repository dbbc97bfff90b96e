"""Twelve made-up things with names in three languages, by three made-up artists of emoji and one of clip art, inside real packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from starters.data.images.iconify import rasterise
from starters.make.train_vocabulary import train
from tests.training.archives import deb, npm

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = {
    "circle": '<circle cx="8" cy="8" r="6" fill="{}"/>',
    "square": '<rect x="3" y="3" width="10" height="10" fill="{}"/>',
    "left triangle": '<path d="M14 2 L14 14 L2 8 Z" fill="{}"/>',
}
NAMES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><metadata><rdf:RDF xmlns:cc="http://web.resource.org/cc/"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work rdf:about="">
<dc:title>{title}</dc:title><dc:subject><rdf:Bag><rdf:li>hash(0x88)</rdf:li><rdf:li>{keyword}</rdf:li></rdf:Bag></dc:subject>
<dc:creator><cc:Agent><dc:title>Ann Artist</dc:title></cc:Agent></dc:creator></cc:Work></rdf:RDF></metadata>{body}</svg>"""


def body(name: str) -> str:
    colour, _, shape = name.partition(" ")
    return SHAPES[shape].format(colour)


def style(folder: Path, name: str, names: list[str]) -> dict[str, Any]:
    icons = {one.replace(" ", "-"): {"body": body(one)} for one in names} | {"flag-nowhere": {"body": body(NAMES[0])}}
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"prefix": name, "width": 16, "height": 16, "icons": icons}))
    return {"name": name, "package": npm(folder, f"named-{name}", {"icons.json": file}), "license": "CC0"}


def emoji_names(folder: Path) -> dict[str, str]:
    """Write texts in English, French and Latin, whose translation is incomplete."""
    texts = {
        "en": [{"label": name, "tags": name.split()} for name in NAMES],
        "fr": [{"label": f"{name[::-1]} é", "tags": []} for name in NAMES],
        "la": [{"label": f"{name}um"} for name in NAMES[:10]],
    }
    files = {}
    for language, entries in texts.items():
        file = folder / f"{language}.json"
        file.write_text(json.dumps([{"hexcode": f"1F{number:03d}", "group": 0} | entry for number, entry in enumerate(entries)]))
        files[f"{language}/data.json"] = file
    return npm(folder, "named-names", files)


def clip_art(folder: Path) -> dict[str, Any]:
    """48 drawings in series of one, as PNG and as SVG."""
    png, svg = folder / "png/usr/share/art/png/things", folder / "svg/usr/share/art/svg/things"
    png.mkdir(parents=True)
    svg.mkdir(parents=True)
    for number in range(48):
        word = "".join(chr(ord("a") + (number * step) % 26) for step in (1, 3, 7, 11, 17))
        place, size = f'x="{number % 7}" y="{number % 5}"', f'width="{4 + number % 3}" height="{3 + number % 8}"'
        picture = f'<rect {place} {size} fill="hsl({number * 7}, 80%, 40%)"/>'
        content = SVG.format(title=f"a {word}", keyword="thing", body=picture)
        (svg / f"{word}_ann_artist_01.svg").write_text(content)
        rasterise(content, 48).save(png / f"{word}_ann_artist_01.png")
    return {
        "clip_art": {
            "package": deb(folder, "named-art-png", folder / "png"),
            "folder": "usr/share/art/png",
            "smallest": 8,
            "alike": 0.0,
            "side": 24,
        },
        "titles": {"package": deb(folder, "named-art-svg", folder / "svg"), "folder": "usr/share/art/svg"},
    }


def data(folder: Path) -> dict[str, Any]:
    """Write the packages to the cache `folder` and return the recipe's `data`."""
    vocabulary = folder / "vocabulary.json"
    vocabulary.write_bytes(train([*NAMES, *(name[::-1] for name in NAMES), "é thing a"] * 3, 60))
    return {
        "kind": "named-drawings",
        "styles": [style(folder, "first", NAMES), style(folder, "second", NAMES[:6])],
        "names": {"package": emoji_names(folder), "languages": ["fr"]},
        **clip_art(folder),
        "words": {"tokenizer": str(vocabulary), "special": False},
    }
