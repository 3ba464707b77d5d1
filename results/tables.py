"""Make tables, plots and a report from records: `python results/tables.py`.

Without options it reads results/records, writes results/tables and fills the tables in README.md and docs/*.md between
these markers:

    <!-- table:NAME begin --> ... <!-- table:NAME end -->

With --records DIR it reads your records and writes only to --out. Each table comes as Markdown, LaTeX
(booktabs) and CSV, and all are in index.html. --check writes nothing and fails where a file differs from the records.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

if not __package__:  # run as a script: find the packages beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.cli import run_cli
from common.files import write_atomically
from results import contents, plots, report
from results.frame import frame, load, published

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
SUFFIXES = (".md", ".tex", ".csv", ".svg", ".html")  # of the files that are made
BLOCK = re.compile(r"<!-- table:(\S+) begin -->.*?<!-- table:\1 end -->", re.DOTALL)


def write(records: Sequence[Path], folder: Path, extras: Path | None = None) -> dict[str, str]:
    """Write tables, plots and report; return the tables as Markdown by name.

    Args:
        records: folders of records.
        folder: to write to; exists.
        extras: folder with the curves and pictures of a study; None: without them.

    Raises:
        ValueError: a record is broken; the message names it.
    """
    found, papers = frame(load(records)), published(RESULTS / "published.csv")
    grids = contents.all_grids(found, papers)
    for grid in grids:
        for suffix, text in (("md", grid.markdown()), ("tex", grid.latex()), ("csv", grid.csv())):
            (folder / f"{grid.name}.{suffix}").write_text(text.rstrip("\n") + "\n")
    drawn = plots.draw(found, papers, extras and extras / "curves", folder)
    shown = [grid for grid in grids if grid.name != "summary"]
    (folder / "index.html").write_text(report.page(shown, drawn, extras and extras / "pictures"))
    return {grid.name: grid.markdown() for grid in grids}


def fill(text: str, tables: Mapping[str, str]) -> str:
    """Return a page with the tables between its markers.

    Raises:
        ValueError: a marker names an unknown table or is not closed.
    """

    def block(match: re.Match[str]) -> str:
        if match[1] not in tables:
            raise ValueError(f"the table {match[1]} does not exist; the tables are {', '.join(sorted(tables))}")
        return f"<!-- table:{match[1]} begin -->\n{tables[match[1]]}\n<!-- table:{match[1]} end -->"

    filled = BLOCK.sub(block, text)
    if filled.count("<!-- table:") != 2 * len(BLOCK.findall(filled)):
        raise ValueError("a <!-- table:NAME begin --> or <!-- table:NAME end --> lacks its other half")
    return filled


def pages(tables: Mapping[str, str]) -> dict[Path, bytes]:
    """Return README.md and docs/*.md as they should be.

    Raises:
        ValueError: a marker is wrong; the message names the page.
    """
    tables = {
        **tables,
        "benchmarks": contents.benchmarks(RESULTS / "benchmarks" / "pretrain.jsonl").markdown(),
        "converters": contents.converters(RESULTS / "converters.jsonl").markdown(),
    }
    filled = {}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        try:
            filled[path] = fill(path.read_text(), tables).encode()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return filled


def made(records: Sequence[Path], out: Path, of_repository: bool) -> dict[Path, bytes | None]:
    """Return the content of every file that should exist; None for one that should not.

    Args:
        records: folders of records.
        out: folder of the tables.
        of_repository: whether to fill the pages too, and to show the study's curves and pictures.
    """
    # Files of tables that no longer exist go, but only from the repository's folder: another may hold anything.
    old = out.glob("*.*") if of_repository else ()
    wanted: dict[Path, bytes | None] = {path: None for path in old if path.suffix in SUFFIXES}
    with tempfile.TemporaryDirectory() as temporary:
        tables = write(records, Path(temporary), RESULTS if of_repository else None)
        wanted.update({out / path.name: path.read_bytes() for path in Path(temporary).iterdir()})
    wanted.update(pages(tables) if of_repository else {})
    return wanted


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = argparse.ArgumentParser(
        prog="results/tables.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--records", type=Path, nargs="+", metavar="DIR", help="folders of your records")
    p.add_argument("--out", type=Path, metavar="DIR", help="where to write; default with --records: runs/tables")
    p.add_argument("--check", action="store_true", help="write nothing; fail where something differs")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 1 where --check finds a difference, 2 for a broken record."""
    return run_cli("tables", lambda: _run(parser().parse_args(arguments)), resumable=False)


def _run(options: argparse.Namespace) -> int:
    of_repository = options.records is None and options.out is None
    out = options.out or (RESULTS / "tables" if of_repository else Path("runs/tables"))
    wanted = made(options.records or [RESULTS / "records"], out, of_repository)
    differing = sorted(
        path for path, content in wanted.items() if content != (path.read_bytes() if path.is_file() else None)
    )
    if options.check:
        if differing:
            names = ", ".join(path.name for path in differing)
            print(f"tables: these differ from the records: {names}; run: python results/tables.py", file=sys.stderr)
        return int(bool(differing))
    for path in differing:
        content = wanted[path]
        if content is None:
            path.unlink()
        else:
            write_atomically(path, partial(Path.write_bytes, data=content))
    print(f"{out}: {len(wanted)} files, {len(differing)} of them new or changed; open {out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
