"""The report: one HTML file with all tables, plots and pictures, which needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from results.grid import Grid


def page(tables: list[Grid], plots: Mapping[str, str], pictures: Path | None) -> str:
    """Return the page.

    Args:
        tables: in their order; the last one, published results, closes the page.
        plots: SVG by caption.
        pictures: folder of JPEG files, whose names are the captions; None: show none.
    """
    figures = {caption: _data_url("svg+xml", svg.encode()) for caption, svg in plots.items()}
    for path in sorted(pictures.glob("*.jpg")) if pictures else ():
        figures[path.stem.replace("_", " ")] = _data_url("jpeg", path.read_bytes())
    loader = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("report.html.j2")
    return template.render(tables=tables, figures=figures) + "\n"


def _data_url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
