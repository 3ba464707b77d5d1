"""What the report shows of run folders is copied under names of their own."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from results import collect as collect_module
from results.collect import WIDTH, collect, main


def test_courses_are_copied(tmp_path: Path) -> None:
    run, results = tmp_path / "runs" / "desk", tmp_path / "results"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="neither a finished"):
        collect(run, results)
    (run / "summary.json").write_text("{}\n")
    assert collect(run, results) == results / "curves" / "desk.jsonl"
    assert (results / "curves" / "desk.jsonl").read_text() == "{}\n"


def test_the_first_picture_is_kept_small(tmp_path: Path) -> None:
    run, results = tmp_path / "runs" / "transfer" / "desk_r1-1234abcd" / "fashion-fpn" / "seed0", tmp_path / "results"
    (run / "vis").mkdir(parents=True)
    cv2.imwrite(str(run / "vis" / "001.png"), np.zeros((8, 8, 3), np.uint8))
    wide = np.full((WIDTH // 2, 2 * WIDTH, 3), (10, 120, 240), np.uint8)
    cv2.imwrite(str(run / "vis" / "000.png"), wide)
    copy = collect(run, results)
    assert copy == results / "pictures" / "desk_r1_fashion-fpn.jpg"
    small = cv2.imread(str(copy))
    assert small is not None
    assert small.shape == (WIDTH // 4, WIDTH, 3)
    assert np.abs(small.astype(int) - (10, 120, 240)).max() < 8


def test_an_empty_folder_is_a_mistake_and_a_pattern_may_match_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "neither" in capsys.readouterr().err
    assert main([str(tmp_path / "no_*")]) == 0
    assert "matches no folder" in capsys.readouterr().out


def test_a_run_without_anything_does_not_cost_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("run_a", "run_b", "run_c"):
        (tmp_path / name).mkdir()
    for name in ("metrics.jsonl", "summary.json"):
        (tmp_path / "run_c" / name).write_text("{}\n")
    monkeypatch.setattr(collect_module.collect, "__defaults__", (tmp_path / "results",))
    assert main([str(tmp_path / "run_*")]) == 0
    assert capsys.readouterr().err.count("passed over") == 2
    assert (tmp_path / "results" / "curves" / "run_c.jsonl").is_file()
