"""Tables: means and spreads, markers, and the README that stands in the repository."""

from __future__ import annotations

import pandas as pd
import pytest

from results.tables import fill, main, markdown, mean_std


def test_the_readme_is_what_the_records_say() -> None:
    assert main(["--check"]) == 0


def test_mean_and_sample_standard_deviation() -> None:
    assert mean_std(pd.Series([0.80, 0.82])) == "81.0 ± 1.4 (2)"
    assert mean_std(pd.Series([0.5])) == "50.0 (1)"
    assert mean_std(pd.Series([], dtype=float)) == "–"


def test_a_table_replaces_the_one_between_its_markers() -> None:
    text = "a\n<!-- table:x begin -->\nold \\1\n<!-- table:x end -->\nb"
    once = fill(text, "x", "new \\1")
    assert once == "a\n<!-- table:x begin -->\nnew \\1\n<!-- table:x end -->\nb"
    assert fill(once, "x", "new \\1") == once


def test_missing_markers_are_an_error() -> None:
    with pytest.raises(ValueError, match="table:x begin"):
        fill("nothing here", "x", "table")


def test_markdown_aligns_the_first_column_left() -> None:
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| :-- | --: |\n| 1 | 2 |"
