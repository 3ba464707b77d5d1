"""The report: one HTML file that holds tables, plots and pictures, and needs nothing else."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from results.grid import Grid
from results.tasks import TASKS

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 100rem; padding: 0 1rem; color: #222 }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem } nav a { margin-right: 1rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th { cursor: pointer; text-align: right; vertical-align: bottom; border-bottom: 2px solid #444; padding: .3rem .7rem }
th::after { content: " ↕"; color: #aaa } th[aria-sort=ascending]::after { content: " ↑"; color: #222 }
th[aria-sort=descending]::after { content: " ↓"; color: #222 }
td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid #ddd; white-space: nowrap }
td:first-child, th:first-child { text-align: left }
#published td, #published th { white-space: normal; text-align: left }
.note { color: #555; font-size: .85em; margin: .3rem 0 } figure { margin: 1rem 0 } figure img { max-width: 100% }
"""
# Cells with a number sort by it; the others stay below, whichever way. A third click brings the first order back.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const first = [...table.tBodies[0].rows];
  table.tHead.rows[0].querySelectorAll("th").forEach((head, place) => head.addEventListener("click", () => {
    const was = head.getAttribute("aria-sort"), down = was === null;
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    if (was === "ascending") return table.tBodies[0].append(...first);
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => {
      const cell = row.cells[place], value = cell.dataset.value ?? cell.textContent;
      return value !== "" && !isNaN(value) ? Number(value) : value === "–" ? null : value;
    };
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }));
}
"""


def page(tables: list[Grid], plots: list[Path], pictures: Path) -> str:
    """The whole page.

    Args:
        tables: in their order.
        plots: SVG files.
        pictures: folder of JPEG files, shown where it exists; a file name is its caption.
    """
    links = "".join(f'<a href="#{table.name}">{html.escape(table.title)}</a>' for table in tables)
    figures = "".join(_figure(path) for path in [*plots, *sorted(pictures.glob("*.jpg"))])
    shown = f"<section id=figures><h2>Plots and pictures</h2>{figures}</section>"
    *ours, last = (_section(table) for table in tables)  # the papers' figures close the page
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>UniMoCo: results</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>How good is this backbone, really?</h1>"
        f"<p>Made from results/records and results/published.csv by <code>python results/tables.py</code>. "
        f"A click on a header sorts.</p><nav>{links}<a href=#figures>Plots and pictures</a></nav>\n{''.join(ours)}"
        f"{shown}{last}\n<script>{SCRIPT}</script></body></html>\n"
    )


def _section(table: Grid) -> str:
    return table.html().replace("<table", "<div class=scroll><table").replace("</table>", "</table></div>")


def _figure(path: Path) -> str:
    kind = {".svg": "image/svg+xml", ".jpg": "image/jpeg"}[path.suffix]
    data = base64.b64encode(path.read_bytes()).decode()
    caption = html.escape(_caption(path.stem))
    image = f'<img alt="{caption}" src="data:{kind};base64,{data}">'
    return f"<figure>{image}<figcaption class=note>{caption}</figcaption></figure>"


def _caption(name: str) -> str:
    """What a plot or picture shows, from its file name."""
    ratio = name.removeprefix("label_ratio_")
    if ratio in TASKS:
        return f"{TASKS[ratio].title}, by the share of labels"
    if name == "label_ratios":
        return "Every task, by the share of labels"
    if name == "curves":
        return "Pre-trainings: loss, and kNN on held-out images"
    checkpoint, _, task = name.rpartition("_")
    return f"{TASKS[task].title}: {checkpoint}" if task in TASKS else name.replace("_", " ")
