"""Tables: the repository's follow from its records byte for byte; rows, columns and pages are those expected."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from results import pages
from results.contents import all_grids, benchmarks, converters, mmcv_operations
from results.frame import frame, published
from results.grid import Grid
from results.pages import ROOT, filled
from results.record import Record, write
from results.tables import main

from .conftest import found_in, record, write_all

PAPERS = published(ROOT / "results" / "published.csv")


def grids(records: list[Record]) -> dict[str, Grid]:
    return {grid.name: grid for grid in all_grids(found_in(records), PAPERS)}


def texts(grid: Grid) -> dict[str, dict[str, str]]:
    return {str(title): dict(zip(grid.header[1:], map(str, row), strict=True)) for title, *row in grid.rows}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_repository_is_what_the_records_say() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "results" / "tables.py"), "--check"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_deleted_tables_come_back_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "results", tmp_path / "results", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    before = files(tmp_path)
    shutil.rmtree(tmp_path / "results" / "tables")
    page = tmp_path / "docs" / "results.md"
    page.write_text(filled(page, {"overview": "stale", "claims": "stale"}))
    (tmp_path / "results" / "tables").mkdir()
    (tmp_path / "results" / "tables" / "no_longer_made.csv").write_text("")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "results")
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert files(tmp_path) == before


def test_a_difference_is_found_and_named(
    tmp_path: Path, study: list[Record], capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(tmp_path / "records", study)
    options = ["--records", str(tmp_path / "records"), "--out", str(tmp_path / "tables")]
    assert main(options) == 0
    assert main([*options, "--check"]) == 0
    (tmp_path / "tables" / "cost.md").write_text("edited")
    assert main([*options, "--check"]) == 1
    assert "these differ from the records: cost.md" in capsys.readouterr().err
    assert (tmp_path / "tables" / "cost.md").read_text() == "edited"


def test_records_of_ones_own_leave_the_repository_as_it_is(
    tmp_path: Path, study: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_all(tmp_path / "a", study[:4])
    write_all(tmp_path / "b", study[4:])
    before = files(ROOT / "results" / "tables") | files(ROOT / "docs")
    assert main(["--records", "a", "b"]) == 0
    assert "60.0 ± 0.0 (2)" in (tmp_path / "runs" / "tables" / "classification.md").read_text()
    assert (tmp_path / "runs" / "tables" / "index.html").is_file()
    assert files(ROOT / "results" / "tables") | files(ROOT / "docs") == before


def test_rows_columns_and_published_results(study: list[Record]) -> None:
    table = grids(study)["classification"]
    found = texts(table)
    assert list(found) == [
        "random initialisation",
        "UniMoCo, 0 % of the labels, 4 epochs",
        "UniMoCo, 10 % of the labels, 4 epochs",
        "UniMoCo, 100 % of the labels, 4 epochs",
    ]
    all_labels = found["UniMoCo, 100 % of the labels, 4 epochs"]
    assert all_labels["linear (a): top-1"] == "70.0 ± 0.0 (2) +20.0"
    assert all_labels["† ImageNet, linear: top-1"] == "76.4 [2]"
    # A column is shown even if only a baseline has a published result, and every result names its source.
    assert found["random initialisation"]["† ImageNet, linear: top-1"] == "4.35 [1]"
    assert found["random initialisation"]["linear (a): top-5"] == "–"
    assert any("UniMoCo README" in note and "not ours" in note for note in table.notes)
    assert "(a) linear, some config." in table.notes
    assert "00000000" in " ".join(table.notes)


def test_losses_are_compared_where_all_labels_are_used(study: list[Record]) -> None:
    rival = record("supcon", 0, {"top1": 0.65}, label_ratio=1.0, epochs=4.0)
    made = grids([*study, rival])
    assert [title.split(",")[0] for title in texts(made["ablation"])] == ["UniMoCo", "SupCon"]
    assert str(made["ablation"].rows[1][1]) == "65.0 (1) −5.0"
    assert not any("SupCon" in title for title in texts(made["classification"]))


def test_the_overview_has_the_leading_metrics_of_the_usual_config(study: list[Record]) -> None:
    more = [
        dataclasses.replace(study[0], title="rare", config={"e": 100}, metrics={"top1": 0.9}),
        record("random", 0, {"bbox/AP": 0.2, "bbox/AP50": 0.3, "segm/AP": 0.1}, task="fashion-fpn"),
        record("supcon", 0, {"top1": 0.65}, label_ratio=1.0, epochs=4.0),
        record("random", 0, {"top1": 0.65}, task="my_task"),
    ]
    table = grids([*study, *more])["overview"]
    assert table.header[1:] == [
        "linear: top-1", "Fashion Scenes, FPN: AP box", "Fashion Scenes, FPN: AP mask",
        "† ImageNet, linear: top-1", "† COCO, C4 1x: AP box",
    ]  # fmt: skip
    found = {title: list(row.values()) for title, row in texts(table).items()}
    assert found["random initialisation"][:3] == ["40.0 ± 0.0 (2) −10.0", "20.0 (1)", "10.0 (1)"]
    assert found["UniMoCo, 0 % of the labels, 4 epochs"][1:] == ["–", "–", "71.1 [2]", "39.0 [2]"]
    assert len(found) == 4


def test_the_summary_says_n_once(study: list[Record]) -> None:
    boxes = record("random", 0, {"bbox/AP": 0.2, "segm/AP": 0.1}, task="fashion-fpn")
    masks = record("random", 0, {"mIoU": 0.1, "mAcc": 0.2}, task="fashion-fcn")
    text = grids([*study, boxes, masks])["summary"].markdown()
    assert text.startswith("| pre-training | linear, top-1 | detection, AP box | segmentation, mIoU |\n")
    assert "| random initialisation | 40.0 ± 0.0 | 20.0 | 10.0 |" in text
    assert text.endswith("In %: mean ± sample standard deviation over n = 1 to 2 pre-trainings.")
    assert "over n = 2 pre-trainings." in grids(study)["summary"].markdown()


def test_configs_are_never_mixed(study: list[Record]) -> None:
    longer = [dataclasses.replace(r, title="longer", config={"e": 100}) for r in study if r.pretrain_seed == 0]
    table = grids([*study, *longer[:2]])["classification"]
    assert [name for name in table.header if "top-1" in name and "†" not in name] == [
        "linear (a): top-1", "linear (b): top-1",
    ]  # fmt: skip
    assert list(texts(table)["random initialisation"].values())[:4] == [
        "40.0 ± 0.0 (2) −10.0",
        "–",
        "40.0 (1) −10.0",
        "–",
    ]
    assert "(a) linear, some config." in table.notes  # measured with more backbones
    assert "(b) longer." in table.notes


def test_a_task_of_ones_own_has_a_table_of_its_own(tmp_path: Path, study: list[Record]) -> None:
    name = "my task/a"
    mine = [record("random", 0, {"dice": 0.25, "mIoU": 0.5, "IoU/cat": 0.1}, task=name, title="my.py, 20 iterations")]
    write_all(tmp_path / "records", [*study, *mine])
    assert main(["--records", str(tmp_path / "records"), "--out", str(tmp_path / "tables")]) == 0
    table = grids([*study, *mine])
    (own,) = (grid for grid in table.values() if grid.title == name)
    assert texts(own) == {"random initialisation": {f"{name} (a): dice": "25.0 (1)", f"{name} (a): mIoU": "50.0 (1)"}}
    assert "(a) my.py, 20 iterations." in own.notes
    assert (tmp_path / "tables" / f"{own.name}.csv").is_file()
    assert not any(name in column for grid in table.values() if grid is not own for column in grid.header)
    assert f"{name} (b)" in texts(table["cost"])


def test_a_study_of_own_tasks_alone_makes_tables(tmp_path: Path) -> None:
    write_all(tmp_path / "records", [record("swav", None, {"dice": 0.25}, task="mine", backbone_id="sha256-1")])
    assert main(["--records", str(tmp_path / "records"), "--out", str(tmp_path / "tables")]) == 0
    assert "| swav | 25.0 (1) |" in (tmp_path / "tables" / "task-mine.md").read_text()


def test_a_leading_metric_that_the_registry_lacks_is_shown() -> None:
    records = [
        record(None, None, {"knn_top1_k5": value}, task="knn", backbone_id=f"timm:{name}")
        for name, value in (("a", 0.5), ("b", 0.6))
    ]
    table = grids(records)["classification"]
    assert texts(table) == {  # without UniMoCo the first row is the baseline
        "timm:a": {"kNN (a): knn_top1_k5": "50.0 (1)"},
        "timm:b": {"kNN (a): knn_top1_k5": "60.0 (1) +10.0"},
    }


def test_cost_is_per_task_and_device(study: list[Record]) -> None:
    assert grids(study)["cost"].rows[0][1:] == ["resnet18", "cpu", "8", "60", "–", "10"]


def test_a_broken_record_is_one_line_and_status_2(
    tmp_path: Path, study: list[Record], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "records", study[0])
    path.write_text('{"task":')
    assert main(["--records", str(tmp_path / "records"), "--out", str(tmp_path / "tables")]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "tables").exists()


def test_a_folder_of_records_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--records", "runs/no_such_folder"]) == 2
    assert "runs/no_such_folder: the folder of records does not exist" in capsys.readouterr().err


def test_tables_replace_those_between_their_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = "a\n<!-- table:x begin -->\nold \\1\n<!-- table:x end -->\nb <!-- table:y begin -->\n<!-- table:y end -->"
    page.write_text(text)
    once = filled(page, {"x": "new \\1", "y": "other", "z": "unused"})
    assert once.startswith("a\n<!-- table:x begin -->\nnew \\1\n<!-- table:x end -->\nb")
    assert once.endswith("begin -->\nother\n<!-- table:y end -->")
    with pytest.raises(ValueError, match=r"page\.md: the table y does not exist; the tables are x"):
        filled(page, {"x": "t"})
    page.write_text(once)
    assert filled(page, {"x": "new \\1", "y": "other"}) == once
    page.write_text("<!-- table:x begin -->\nnever closed")
    with pytest.raises(ValueError, match=r"page\.md: .* lacks its other half"):
        filled(page, {"x": "t"})


def test_every_marker_of_the_pages_is_filled() -> None:
    names = {name for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
             for name in pages.BLOCK.findall(path.read_text())}  # fmt: skip
    assert {"summary", "overview", "claims", "benchmarks", "converters", "mmcv", "plans", "gpu"} <= names


def test_benchmarks_and_converters_come_from_their_logs() -> None:
    speed = texts(benchmarks(ROOT / "results" / "benchmarks" / "pretrain.jsonl"))
    assert float(speed["training step / plain step: speed"]["ratio"]) > 0
    table = converters(ROOT / "results" / "converters.jsonl")
    assert texts(table)["mmseg V1c"] == {
        "made with": "mmseg", "detectron2": "– / –", "openmmlab": "0 / 0", "mmdet": "0 / 0", "torchvision": "– / –",
        "timm": "– / 0",
    }  # fmt: skip
    operations = texts(mmcv_operations(ROOT / "results" / "mmcv_operations.jsonl"))
    assert operations["roi_align"]["compiled mmcv, float32"] == "0 / 0"
    assert operations["ms_deform_attn"]["compiled mmcv, float32"] == "–"


def test_without_records_there_are_only_published_results() -> None:
    assert [grid.name for grid in all_grids(frame({}), PAPERS)] == ["cost", "published"]


def test_a_folder_of_ones_own_keeps_its_other_files(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    assert main(["--records", str(ROOT / "results" / "records"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "README.md").read_text() == "mine"
    assert (tmp_path / "overview.md").is_file()
