"""Make tables, plots and a report from records: `python results/tables.py`.

Without options it reads results/records, writes results/tables and fills the tables in README.md and docs/*.md between
these markers:

    <!-- table:NAME begin --> ... <!-- table:NAME end -->

With --records PATH ... it reads your records and writes only to --out: a table per data set of yours, and verdicts.md,
which says in words which checkpoints differ. Each table comes as Markdown, LaTeX (booktabs) and CSV, and all are in
index.html. --check writes nothing and fails where a file differs from the records.
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if not __package__:  # run as a script: find the packages beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common  # noqa: F401  says what is to be done where the environment is not active

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jsonargparse import Namespace

from common.cli import CommandParser, run_cli
from common.files import write_text
from results import contents, engines, own, plots
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
    tables["install"] = contents.installs(RESULTS / "benchmarks" / "install.jsonl").markdown()
    tables["converters"] = contents.converters(RESULTS / "converters.jsonl").markdown()
    tables["mmcv"] = contents.mmcv_operations(RESULTS / "mmcv_operations.jsonl").markdown()
    tables["mmdet_tasks"] = engines.mmdet_tasks(RESULTS / "benchmarks" / "mmdet_tasks.jsonl").markdown()
    tables["mmdet_speed"] = engines.speed(RESULTS / "benchmarks" / "mmdet.jsonl").markdown()
    tables["engine_settings"] = engines.settings(RESULTS / "benchmarks" / "engines.json").markdown()
    wanted: dict[Path, str | None] = dict.fromkeys((RESULTS / "tables").glob("*.*"))
    wanted |= {RESULTS / "tables" / name: text for name, text in files.items()}
    return wanted | {page: filled(page, tables) for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}


def parser() -> CommandParser:
    """Return the parser of the command line."""
    p = CommandParser("results/tables.py", __doc__)
    p.add_argument("--records", type=Path, nargs="+", metavar="PATH", help="your records: folders or files")
    p.add_argument("--out", type=Path, metavar="DIR", help="where to write; default with --records: runs/tables")
    p.add_argument("--check", action="store_true", help="write nothing; fail where something differs")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 1 where --check finds a difference, 2 for a broken record."""
    return run_cli("tables", lambda: _run(parser().parse(arguments)), resumable=False)


def _run(options: Namespace) -> int:
    if options.records is None and options.out is None:
        wanted, report_file = of_repository(), RESULTS / "tables" / "index.html"
    else:
        out = options.out or Path("runs/tables")
        wanted = {out / name: text for name, text in made(options.records or [RESULTS / "records"]).items()}
        report_file = out / "index.html"
    found = {path: path.read_text(encoding="utf-8") if path.is_file() else None for path in wanted}
    differing = {path: text for path, text in wanted.items() if text != found[path]}
    if options.check and differing:
        names = ", ".join(sorted(path.name for path in differing))
        print(f"tables: these differ from the records: {names}; run: python results/tables.py", file=sys.stderr)
        return 1
    for path, text in differing.items():
        if text is None:
            path.unlink()
        else:
            write_text(path, text)
    if words := wanted.get(report_file.with_name("verdicts.md")):
        print(words)
    print(f"{report_file.parent}: {len(wanted)} files, {len(differing)} of them new or changed; open {report_file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
