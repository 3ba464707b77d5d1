"""Curves and pictures of runs are copied under the names that the command gives them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from results.collect import WIDTH, collect, main


def test_a_training_curve_is_copied_once_the_run_has_finished(tmp_path: Path) -> None:
    run, results = tmp_path / "anywhere", tmp_path / "results"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="anywhere: expected a finished pre-training"):
        collect(run, "desk_r1_s0", results=results)
    (run / "summary.json").write_text("{}\n")
    assert collect(run, "desk_r1_s0", results=results) == results / "curves" / "desk_r1_s0.jsonl"
    assert (results / "curves" / "desk_r1_s0.jsonl").read_text() == "{}\n"


def test_the_first_picture_is_copied_at_a_smaller_size(tmp_path: Path) -> None:
    run, results = tmp_path / "anywhere", tmp_path / "results"
    (run / "vis").mkdir(parents=True)
    cv2.imwrite(str(run / "vis" / "001.png"), np.zeros((8, 8, 3), np.uint8))
    wide = np.full((WIDTH // 2, 2 * WIDTH, 3), (10, 120, 240), np.uint8)
    cv2.imwrite(str(run / "vis" / "000.png"), wide)
    arguments = ["--run", str(run), "--name", "desk_r1", "--task", "fashion-fpn", "--results", str(results)]
    assert main(arguments) == 0
    small = cv2.imread(str(results / "pictures" / "desk_r1_fashion-fpn.jpg"))
    assert small is not None
    assert small.shape == (WIDTH // 4, WIDTH, 3)
    assert np.abs(small.astype(int) - (10, 120, 240)).max() < 8


@pytest.mark.parametrize("task", [[], ["--task", "fashion-fpn"]])
def test_an_empty_run_is_a_mistake_in_one_line(
    task: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--run", str(tmp_path), "--name", "x", "--results", str(tmp_path / "results"), *task]) == 2
    assert capsys.readouterr().err.startswith(f"collect: error: {tmp_path}: expected ")
    assert not (tmp_path / "results").exists()


def test_a_picture_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "vis").mkdir()
    (tmp_path / "vis" / "000.png").write_text("no picture")
    with pytest.raises(ValueError, match="expected readable pictures"):
        collect(tmp_path, "x", "fashion-fpn", tmp_path / "results")
