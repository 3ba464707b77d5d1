"""What the report shows of run folders is copied under names of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from results.collect import collect, main


def test_courses_and_pictures_are_copied(tmp_path: Path) -> None:
    run, transfer = tmp_path / "runs" / "desk", tmp_path / "runs" / "transfer" / "desk-1234" / "fashion-fpn" / "seed0"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("{}\n")
    (transfer / "vis").mkdir(parents=True)
    (transfer / "vis" / "sample.png").write_bytes(b"png")
    results = tmp_path / "results"
    assert collect(run, results) == [results / "curves" / "desk.jsonl"]
    assert collect(transfer, results) == [results / "pictures" / "desk-1234_fashion-fpn_sample.png"]
    assert (results / "curves" / "desk.jsonl").read_text() == "{}\n"


def test_an_empty_folder_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "neither" in capsys.readouterr().err
