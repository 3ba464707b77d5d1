"""The curves of the README are drawn from the records that stand in the repository."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from results.figures import ROOT, curves

mpl.use("Agg")


def test_the_curves_are_those_of_the_records(tmp_path: Path) -> None:
    curves(tmp_path / "curves.png")
    drawn, kept = (plt.imread(path) for path in (tmp_path / "curves.png", ROOT / "docs" / "curves.png"))
    assert drawn.shape == kept.shape
    assert abs(drawn - kept).mean() < 0.01  # fonts may differ by a hair between machines
