"""Make tables, plots and a report from records: `python results/tables.py`.

Without options it reads results/records, writes results/tables and fills the tables in README.md and docs/*.md between
these markers:

    <!-- table:NAME begin --> ... <!-- table:NAME end -->

With --records PATH ... it reads your records and writes only to --out: a table per data set of yours, and verdicts.md,
which says in words which checkpoints differ. Each table comes as Markdown, LaTeX (booktabs) and CSV, and all are in
index.html. --check writes nothing and fails where a file differs from the records.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: find the packages beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common  # noqa: F401  says what is to be done where the environment is not active

from jsonargparse import Namespace

from common.cli import CommandParser, run_cli
from common.files import write_text


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
    from results import pages  # here: pandas and matplotlib take a second, and --help does without

    if options.records is None and options.out is None:
        wanted, report_file = pages.of_repository(), pages.RESULTS / "tables" / "index.html"
    else:
        out = options.out or Path("runs/tables")
        wanted = {out / name: text for name, text in pages.made(options.records or [pages.RESULTS / "records"]).items()}
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
