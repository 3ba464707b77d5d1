"""Tables: those that stand in the repository are what the records say, and regenerate to the same bytes."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from results import tables
from results.frame import frame, published
from results.record import Record
from results.tables import ROOT, fill, grids, main

from .conftest import record

PAPERS = published(ROOT / "results" / "published.csv")


def test_the_repository_is_what_the_records_say() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "results" / "tables.py"), "--check"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_deleted_tables_come_back_with_the_same_bytes(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "results", tmp_path / "results", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "results" / "tables").iterdir()}
    shutil.rmtree(tmp_path / "results" / "tables")
    subprocess.run([sys.executable, str(tmp_path / "results" / "tables.py")], timeout=120, check=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "results" / "tables").iterdir()} == kept
    assert (tmp_path / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()


def test_a_difference_is_found_and_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write = tables.write

    def other(folder: Path) -> dict[str, str]:
        made = write(folder)
        (folder / "cost.md").write_text("another")
        return made

    monkeypatch.setattr(tables, "write", other)
    assert main(["--check"]) == 1
    assert "cost.md" in capsys.readouterr().err


def test_rows_columns_and_the_papers_figures(study: list[Record]) -> None:
    table = next(grid for grid in grids(study, PAPERS) if grid.name == "classification")
    assert [title for title, _ in table.rows] == [
        "random initialisation",
        "UniMoCo, 0 % of the labels, 4 epochs",
        "UniMoCo, 10 % of the labels, 4 epochs",
        "UniMoCo, 100 % of the labels, 4 epochs",
    ]
    texts = {title: dict(zip(table.header[1:], map(str, cells), strict=True)) for title, cells in table.rows}
    all_labels = texts["UniMoCo, 100 % of the labels, 4 epochs"]
    assert all_labels["linear (a): top-1"] == "70.0 ± 0.0 (2) ↑20.0"
    assert all_labels["† ImageNet, linear: top-1"] == "76.4 [2]"
    # A column stays where only a baseline has a figure, and every figure names its source.
    assert texts["random initialisation"]["† ImageNet, linear: top-1"] == "4.35 [1]"
    assert texts["random initialisation"]["linear (a): top-5"] == "–"
    assert any("UniMoCo README" in note and "not ours" in note for note in table.notes)
    assert "some protocol" in " ".join(table.notes)
    assert "00000000" in " ".join(table.notes)


def test_losses_are_compared_where_all_labels_are_kept(study: list[Record]) -> None:
    rival = record("supcon", 0, {"top1": 0.65}, label_ratio=1.0, epochs=4.0)
    made = {grid.name: grid for grid in grids([*study, rival], PAPERS)}
    assert [title.split(",")[0] for title, _ in made["ablation"].rows] == ["UniMoCo", "SupCon"]
    assert str(made["ablation"].rows[1][1][0]) == "65.0 (1) ↓5.0"
    assert not any("SupCon" in title for title, _ in made["classification"].rows)


def test_the_overview_has_the_headlines_of_the_usual_protocol(study: list[Record]) -> None:
    more = [
        dataclasses.replace(study[0], protocol="rare", config={"e": 100}, metrics={"top1": 0.9}),
        record("random", 0, {"bbox/AP": 0.2, "bbox/AP50": 0.3, "segm/AP": 0.1}, task="fashion-fpn"),
        record("supcon", 0, {"top1": 0.65}, label_ratio=1.0, epochs=4.0),
    ]
    table = grids([*study, *more], PAPERS)[0]
    assert table.name == "overview"
    assert table.header[1:] == [
        "linear: top-1", "Fashion Scenes, FPN: AP box", "Fashion Scenes, FPN: AP mask",
        "† ImageNet, linear: top-1", "† COCO, C4 1x: AP box",
    ]  # fmt: skip
    texts = {title: [str(cell) for cell in cells] for title, cells in table.rows}
    assert texts["random initialisation"][:3] == ["40.0 ± 0.0 (2) ↓10.0", "20.0 (1)", "10.0 (1)"]
    assert texts["UniMoCo, 0 % of the labels, 4 epochs"][1:] == ["–", "–", "71.1 [2]", "39.0 [2]"]
    assert len(texts) == 4


def test_protocols_are_never_mixed(study: list[Record]) -> None:
    longer = [dataclasses.replace(r, protocol="longer", config={"e": 100}) for r in study if r.seed == 0]
    table = next(grid for grid in grids([*study, *longer], PAPERS) if grid.name == "classification")
    assert [name for name in table.header if "top-1" in name and "†" not in name] == [
        "linear (a): top-1", "linear (b): top-1",
    ]  # fmt: skip
    assert [cell.n for cell in table.rows[0][1][:4]] == [2, 0, 1, 0]


def test_cost_is_per_task_and_device(study: list[Record]) -> None:
    (cost,) = [grid for grid in grids(study, PAPERS) if grid.name == "cost"]
    assert [str(cell) for cell in cost.rows[0][1]] == ["resnet18", "cpu", "8", "60", "–", "10"]


def test_a_broken_record_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "knn.jsonl").write_text("{}\n")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert main(["--check"]) == 2
    error = capsys.readouterr().err
    assert "knn.jsonl:1" in error
    assert len(error.strip().splitlines()) == 1


def test_a_table_replaces_the_one_between_its_markers() -> None:
    text = "a\n<!-- table:x begin -->\nold \\1\n<!-- table:x end -->\nb"
    once = fill(text, "x", "new \\1")
    assert once == "a\n<!-- table:x begin -->\nnew \\1\n<!-- table:x end -->\nb"
    assert fill(once, "x", "new \\1") == once
    with pytest.raises(ValueError, match="no markers"):
        fill(text, "y", "t")


def test_an_empty_study_makes_no_table_but_the_papers() -> None:
    assert not len(frame([]))
    assert [grid.name for grid in grids([], PAPERS)] == ["cost", "published"]
