"""The content of every generated file: tables, plots, the report, and the pages that show tables."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from results import contents, engines, installs, own, plots
from results.frame import frame, load, published
from results.grid import Grid

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
BLOCK = re.compile(r"<!-- table:(\S+) begin -->.*?<!-- table:\1 end -->", re.DOTALL)


def made(folders: Sequence[Path], extras: Path | None = None) -> dict[str, str]:
    """Return the content of every table and plot, and of the report, by file name.

    Args:
        folders: of records.
        extras: folder with the curves and pictures of a study; None: without them.

    Raises:
        ValueError: a record is broken; the message names it.
    """
    rows, papers = frame(load(folders)), published(RESULTS / "published.csv")
    said = own.verdicts(rows)
    files = {"verdicts.md": own.markdown(said)} if said else {}
    grids = contents.all_grids(rows, papers)
    for grid in grids:
        for suffix, text in (("md", f"{grid.markdown()}\n"), ("tex", grid.latex()), ("csv", grid.csv())):
            files[f"{grid.name}.{suffix}"] = text
    drawn = plots.draw(rows[~own.is_own(rows)], papers, extras and extras / "curves")
    files |= {f"{name}.svg": svg for name, (_, svg) in drawn.items()}
    shown = [grid for grid in grids if grid.name != "summary"]
    return files | {"index.html": report(shown, dict(drawn.values()), extras and extras / "pictures", said)}


def report(
    grids: Sequence[Grid], drawn: Mapping[str, str], pictures: Path | None,
    verdicts: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
) -> str:  # fmt: skip
    """Return one HTML page with all tables, plots and pictures, which needs no other file and no network.

    Args:
        grids: in their order; the last one, published results, closes the page.
        drawn: SVG by caption.
        pictures: folder of JPEG files, whose names are the captions; None: show none.
        verdicts: of `own.verdicts`, which come first.
    """

    def url(kind: str, content: bytes) -> str:
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

    figures = {caption: url("svg+xml", svg.encode()) for caption, svg in drawn.items()}
    for path in sorted(pictures.glob("*.jpg")) if pictures else ():
        figures[path.stem.replace("_", " ")] = url("jpeg", path.read_bytes())
    loader = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("report.html.j2")
    return template.render(tables=grids, figures=figures, verdicts=verdicts or {}) + "\n"


def filled(page: Path, tables: Mapping[str, str]) -> str:
    """Return the text of a page with the tables, by name, between its markers.

    Raises:
        ValueError: a marker names an unknown table or is not closed; the message names the page.
    """

    def block(match: re.Match[str]) -> str:
        name = match[1]
        if name not in tables:
            raise ValueError(f"{page}: the table {name} does not exist; the tables are {', '.join(sorted(tables))}")
        return f"<!-- table:{name} begin -->\n{tables[name].strip()}\n<!-- table:{name} end -->"

    text = BLOCK.sub(block, page.read_text(encoding="utf-8"))
    if text.count("<!-- table:") != 2 * len(BLOCK.findall(text)):
        raise ValueError(f"{page}: a <!-- table:NAME begin --> or <!-- table:NAME end --> lacks its other half")
    return text


def of_repository() -> dict[Path, str | None]:
    """Return the content of every file in results/tables, README.md and docs; None for a file that should not exist."""
    files = made([RESULTS / "records"], RESULTS)
    tables = {Path(name).stem: text for name, text in files.items() if name.endswith(".md")}
    tables["benchmarks"] = contents.benchmarks(RESULTS / "benchmarks" / "pretrain.jsonl").markdown()
    tables["plans"] = contents.plans(RESULTS / "benchmarks" / "plans.json").markdown()
    tables["tasks"] = contents.task_plans(RESULTS / "benchmarks" / "plans.json").markdown()
    tables["gpu"] = contents.gpu_steps(RESULTS / "benchmarks" / "gpu.jsonl").markdown()
    tables["install"] = installs.installs(RESULTS / "benchmarks" / "install.jsonl").markdown()
    tables["readme"] = installs.readme_runs(RESULTS / "benchmarks" / "readme.jsonl").markdown()
    tables["help"] = contents.help_times(RESULTS / "benchmarks" / "help.jsonl").markdown()
    tables["quick"] = contents.quick_times(RESULTS / "benchmarks" / "quick.jsonl").markdown()
    tables["converters"] = contents.converters(RESULTS / "converters.jsonl").markdown()
    tables["mmcv"] = contents.mmcv_operations(RESULTS / "mmcv_operations.jsonl").markdown()
    tables["mmdet_tasks"] = engines.mmdet_tasks(RESULTS / "benchmarks" / "mmdet_tasks.jsonl").markdown()
    tables["mmdet_speed"] = engines.speed(RESULTS / "benchmarks" / "mmdet.jsonl").markdown()
    tables["engine_settings"] = engines.settings(RESULTS / "benchmarks" / "engines.json").markdown()
    wanted: dict[Path, str | None] = dict.fromkeys((RESULTS / "tables").glob("*.*"))
    wanted |= {RESULTS / "tables" / name: text for name, text in files.items()}
    return wanted | {page: filled(page, tables) for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
