"""The report: one HTML file with all tables, plots and pictures, which needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from results.grid import Grid

TEMPLATE = Path(__file__).with_name("report.html.j2")
MIME = {".svg": "image/svg+xml", ".jpg": "image/jpeg"}


def page(tables: list[Grid], plots: Mapping[Path, str], pictures: Path | None) -> str:
    """Return the page.

    Args:
        tables: in their order; the last one, published results, closes the page.
        plots: SVG files and their captions.
        pictures: folder of JPEG files, whose names are the captions; None: show none.
    """
    files = dict(plots) | {
        path: path.stem.replace("_", " ") for path in (sorted(pictures.glob("*.jpg")) if pictures else ())
    }
    figures = [(caption, _data_url(path)) for path, caption in files.items()]
    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(TEMPLATE.name).render(tables=tables, figures=figures) + "\n"


def _data_url(path: Path) -> str:
    return f"data:{MIME[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
