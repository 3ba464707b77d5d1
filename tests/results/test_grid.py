"""Grids: what is printed, what is bold, differences to the baseline row; LaTeX that compiles."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from results.contents import letters
from results.grid import MISSING, Entry, Grid, escaped
from results.stats import compare


def entry(mean: float, std: float = 0.5, n: int = 3) -> Entry:
    """Return an entry whose pre-trainings have this mean and sample standard deviation."""
    values = np.linspace(-1, 1, n) if n > 1 else np.zeros(1)
    return Entry([[value] for value in mean + values * (std / np.std(values, ddof=1) if n > 1 else 0)])


def measured(values: list[float], pretrainings: str = "a", name: str = "", per_image: str = "") -> Entry:
    """Return the entry of rows of a frame."""
    rows = pd.DataFrame({"value": values, "pretraining": list(pretrainings), "per_image": per_image})
    return Entry.of(rows.assign(backbone_id=name, task="knn", config_hash="abc", metric="top1"))


def grid(*columns: Sequence[Entry | str]) -> Grid:
    rows = [[f"row {i}", *entries] for i, entries in enumerate(zip(*columns, strict=True))]
    return Grid("g", "A grid", ["what", *(f"m{i}" for i in range(len(columns)))], rows)


def bold(*columns: Sequence[Entry | str]) -> list[bool]:
    table = grid(*columns)
    table.compare()
    return [text.startswith("**") for _, *texts in table.texts("**{}**") for text in texts]


@pytest.mark.parametrize(
    ("values", "pretrainings", "text"),
    [
        ([80.0, 82.0], "ab", "81.0 ± 1.4 (2)"),
        ([50.0], "a", "50.0 (1)"),
        # The spread over benchmark seeds of one checkpoint is never printed as one over pre-trainings.
        ([80.0, 82.0], "aa", "81.0 (1; ± 1.4 over 2 benchmark seeds)"),
        ([80.0, 82.0, 70.0, 72.0], "aabb", "76.0 ± 7.1 (2; 4 runs)"),
    ],
)
def test_mean_and_spread(values: list[float], pretrainings: str, text: str) -> None:
    assert str(measured(values, pretrainings)) == text


def test_benchmark_seeds_are_no_pretrainings() -> None:
    seeds = measured([80.0, 80.1, 79.9], "aaa")
    assert (seeds.n, seeds.runs, seeds.std) == (1, 3, None)
    assert bold([seeds, entry(90)]) == [False, False]


@pytest.mark.parametrize(
    ("entries", "best"),
    [
        ([entry(80), entry(85)], 1),
        ([entry(80), entry(80.6)], None),  # higher by more than the standard deviation, and yet tied
        ([entry(80, n=2), entry(90)], None),  # two pre-trainings are too few for the test
        ([entry(80), entry(90, n=2)], None),
        ([entry(80), entry(85), entry(85.2)], None),  # higher than one row, tied with the other
        ([entry(80), entry(85), entry(70, n=1)], None),  # not known to be higher than the third
        ([entry(80), entry(90), MISSING, "99"], 1),  # a published result is not compared
        ([entry(80), MISSING], None),  # there is no other row
    ],
)
def test_bold_is_higher_than_every_other_row_by_the_test(entries: list[Entry | str], best: int | None) -> None:
    assert bold(entries) == [index == best for index in range(len(entries))]


def test_the_pairs_of_a_column_are_corrected_together() -> None:
    first, second = entry(80), entry(81.5)
    p = compare(second.means, first.means).p
    assert p is not None
    assert 0.05 / 3 < p < 0.05  # different as a single pair, but not as the smallest of three
    assert bold([first, second]) == [False, True]
    assert bold([first, entry(80.01), second]) == [False] * 3


def test_of_seven_equal_rows_one_is_bold_in_few_tables() -> None:
    rng = np.random.default_rng(0)
    tables = [[Entry(row) for row in rng.normal(80, 0.5, (7, 5, 1)).tolist()] for _ in range(200)]
    assert sum(any(bold(entries)) for entries in tables) <= 0.06 * 200


def test_columns_do_not_influence_each_other() -> None:
    assert bold([entry(80), entry(85)], [entry(85), entry(80)]) == [False, True, True, False]


def test_differences_are_to_the_baseline_row_with_arrows_where_the_test_finds_them() -> None:
    table = grid([entry(80, 0.5), entry(81.25, n=1), entry(70, 0.5), entry(80.01, 0.5), MISSING, entry(79.0, n=1)])
    table.compare(0)
    assert [str(one) for _, one in table.rows] == [
        "80.0 ± 0.5 (3)", "81.2 (1) +1.2", "70.0 ± 0.5 (3) ↓10.0", "80.0 ± 0.5 (3) +0.0", "–", "79.0 (1) −1.0",
    ]  # fmt: skip


def test_single_checkpoints_have_an_interval_over_test_images_which_decides_nothing(tmp_path: Path) -> None:
    rng, entries = np.random.default_rng(0), []
    for name, accuracy in (("a", 0.5), ("b", 0.8)):
        hits = rng.random(1000) < accuracy
        np.savez(tmp_path / f"{name}.npz", top1=hits)
        entries.append(measured([100 * hits.mean()], name=name, per_image=str(tmp_path / f"{name}.npz")))
    table = grid([*entries, entry(60)])
    table.compare(0)
    (_, first), (_, second), (_, third) = table.rows
    assert "[" not in f"{first} {third}"
    match = re.fullmatch(r"\S+ \(1\) \+(\S+) \[(\S+), (\S+)\]", str(second))
    assert match is not None
    change, low, high = map(float, match.groups())
    assert 24 < low < change < high < 40
    assert not any(bold(entries))
    np.savez(tmp_path / "b.npz", top1=np.ones(999))
    with pytest.raises(ValueError, match=r"b\.npz, .*a\.npz: .*same two or more test images"):
        table.compare(0)


def test_csv_has_numbers_and_keys() -> None:
    table = grid([measured([80.12, 80.127], "ab", "unimoco-1"), MISSING, "71.1"])
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert [row["row"] for row in rows] == ["row 0", "row 2"]
    assert (rows[0]["mean"], rows[0]["std"], rows[0]["n"]) == ("80.1235", "0.0049", "2")
    assert (rows[0]["backbone_id"], rows[0]["task"], rows[0]["config_hash"]) == ("unimoco-1", "knn", "abc")
    assert (rows[1]["text"], rows[1]["backbone_id"]) == ("71.1", "")


def test_markdown_has_one_line_per_row() -> None:
    table = grid([entry(80), entry(90)])
    table.compare(0)
    table.notes = ["a note"]
    assert table.markdown() == (
        "| what | m0 |\n| :-- | --: |\n| row 0 | 80.0 ± 0.5 (3) |\n| row 1 | **90.0 ± 0.5 (3) ↑10.0** |\n\na note"
    )
    table.short = True
    assert "| row 1 | **90.0 ± 0.5** |" in table.markdown()


def test_a_bar_in_a_title_adds_no_column() -> None:
    table = Grid("g", "A grid", ["what", "a|b"], [["c|d", "1"]])
    assert {line.count("|") for line in table.markdown().splitlines()} == {3}


def test_latex_escapes_what_latex_reads() -> None:
    assert escaped("50 % of a_b & {c} −1") == r"50 \% of a\_b \& \{c\} $-$1"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed (texlive-latex-base)")
def test_latex_compiles(tmp_path: Path) -> None:
    hard = grid([entry(80), entry(90), r"† ~ ^ \ # $ _ { } % & ≥ × “a”", MISSING])
    hard.compare(0)
    hard.notes = ["100 % of a_b & “c”"]
    tables = sorted((Path(__file__).parents[2] / "results" / "tables").glob("*.tex"))
    assert tables
    body = "\n\n".join([hard.latex(), *(path.read_text() for path in tables)])
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


def test_footnote_letters_continue_after_z() -> None:
    assert [letters(index) for index in (0, 1, 25, 26, 27, 51, 52, 702)] == [
        "a", "b", "z", "aa", "ab", "az", "ba", "aaa",
    ]  # fmt: skip
