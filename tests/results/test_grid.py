"""Cells and grids: what is printed, what is bold, what a row differs by; LaTeX that compiles."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.grid import Cell, Grid, escaped, letters


def grid(*columns: list[Cell]) -> Grid:
    rows = [(f"row {i}", list(cells)) for i, cells in enumerate(zip(*columns, strict=True))]
    return Grid("g", "A grid", ["what", *(f"m{i}" for i in range(len(columns)))], rows)


def test_mean_and_sample_standard_deviation() -> None:
    def cell(values: list[float], trained: str) -> str:
        return str(Cell.of(pd.Series(values, dtype=float), pd.Series(list(trained), dtype=str)))

    assert cell([80.0, 82.0], "ab") == "81.0 ± 1.4 (2)"
    assert cell([50.0], "a") == "50.0 (1)"
    assert cell([], "") == "–"
    # Runs of one pre-training are no further pre-trainings: their spread is told apart, or averaged away.
    assert cell([80.0, 82.0], "aa") == "81.0 ± 1.4 (1; 2 runs)"
    assert cell([80.0, 82.0, 70.0, 72.0], "aabb") == "76.0 ± 7.1 (2; 4 runs)"


@pytest.mark.parametrize(
    ("cells", "leader"),
    [
        ([Cell(80, 0.5, 2), Cell(81, 0.5, 2)], 1),
        ([Cell(80, 0.5, 2), Cell(80.4, 0.5, 2)], None),  # by less than its spread
        ([Cell(80, 0.5, 2), Cell(90, None, 1)], None),  # one run has no spread
        ([Cell(80, 0.5, 2), Cell()], None),  # nobody to lead
    ],
)
def test_the_best_is_bold_only_where_it_leads_by_more_than_its_spread(cells: list[Cell], leader: int | None) -> None:
    table = grid(cells)
    table.compare(None)
    assert [c.bold for _, (c,) in table.rows] == [i == leader for i in range(len(cells))]


def test_where_three_runs_are_asked_for_two_do_not_make_a_leader() -> None:
    column = [Cell(80, 0.5, 2), Cell(90, 0.5, 2)]
    table = grid(column, column)
    table.compare(None, least={0: 3})
    assert [c.bold for c in table.rows[1][1]] == [False, True]


def test_differences_are_to_the_baseline_row() -> None:
    table = grid([Cell(80, 0.5, 2), Cell(81.25, None, 1), Cell(78.0, None, 1), Cell()])
    table.compare("row 0")
    assert [str(c) for _, (c,) in table.rows] == ["80.0 ± 0.5 (2)", "81.2 (1) ↑1.2", "78.0 (1) ↓2.0", "–"]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5), st.integers(2, 5)), min_size=2, max_size=6))
def test_a_leader_is_never_reached_by_another(values: list[tuple[float, float, int]]) -> None:
    table = grid([Cell(*value) for value in values])
    table.compare(None)
    bold = [c for _, (c,) in table.rows if c.bold]
    assert len(bold) <= 1
    for best in bold:
        others = [c for _, (c,) in table.rows if not c.bold]
        assert all(best.mean - c.mean > best.std for c in others)


def test_csv_has_the_numbers_and_not_the_text() -> None:
    rows = list(csv.DictReader(io.StringIO(grid([Cell(80.123456, 0.5, 2), Cell(), Cell(text="71.1")]).csv())))
    assert [row["row"] for row in rows] == ["row 0", "row 2"]
    assert (rows[0]["mean"], rows[0]["std"], rows[0]["n"]) == ("80.1235", "0.5000", "2")
    assert rows[1]["text"] == "71.1"


def test_markdown_has_one_line_a_row() -> None:
    table = grid([Cell(80, 0.5, 2), Cell(90, 0.5, 2)])
    table.compare("row 0")
    table.notes = ["a note"]
    assert table.markdown() == (
        "| what | m0 |\n| :-- | --: |\n| row 0 | 80.0 ± 0.5 (2) |\n| row 1 | **90.0 ± 0.5 (2) ↑10.0** |\n\na note"
    )


def test_latex_escapes_what_latex_reads() -> None:
    assert escaped("50 % of a_b & {c} ± 1 –") == r"50 \% of a\_b \& \{c\} $\pm$ 1 --"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed (texlive-latex-base)")
def test_latex_compiles(tmp_path: Path) -> None:
    hard = grid([Cell(80, 0.5, 2), Cell(90, 0.5, 2), Cell(text=r"† ~ ^ \ # $ _ { } % & ≥ × “a”"), Cell()])
    hard.compare("row 0")
    hard.notes = ["100 % of a_b & “c”"]
    kept = sorted((Path(__file__).parents[2] / "results" / "tables").glob("*.tex"))
    assert kept
    body = "\n\n".join([hard.latex(), *(path.read_text() for path in kept)])
    packages = "\\usepackage{booktabs,graphicx,longtable}"
    document = f"\\documentclass{{article}}{packages}\\begin{{document}}\n{body}\\end{{document}}\n"
    (tmp_path / "all.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "undefined" not in done.stdout
    too_wide = [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", done.stdout)]
    assert max(too_wide, default=0) < 20, "a table is wider than the page"
    assert "Overfull \\vbox" not in done.stdout


def test_footnotes_go_on_after_z() -> None:
    assert [letters(number) for number in (0, 1, 25, 26, 27, 51, 52, 702)] == [
        "a", "b", "z", "aa", "ab", "az", "ba", "aaa",
    ]  # fmt: skip
