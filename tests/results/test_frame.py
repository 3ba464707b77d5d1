"""Records as numbers: groups, the newest of equal measurements, unknown tasks, and the papers' figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from results.frame import Pretraining, frame, load, published
from results.record import Record, append
from results.tasks import TASKS

from .conftest import record

CSV = Path(__file__).parents[2] / "results" / "published.csv"


def test_of_equal_measurements_the_newest_counts(study: list[Record], tmp_path: Path) -> None:
    for one in [*study, dataclasses.replace(study[0], metrics={"top1": 0.9})]:
        append(tmp_path / "linear.jsonl", one)
    records = load(tmp_path)
    assert len(records) == len(study)
    assert [r.metrics for r in records if r.key == study[0].key] == [{"top1": 0.9}]


def test_a_training_that_was_done_again_is_no_further_run(tmp_path: Path) -> None:
    first = record("unimoco", 0, {"top1": 0.5}, label_ratio=1.0)
    again = dataclasses.replace(first, checkpoint=first.checkpoint | {"sha256": "new"}, metrics={"top1": 0.6})
    other = dataclasses.replace(first, checkpoint=first.checkpoint | {"sha256": "other", "label_ratio": 0.1})
    for one in (first, again, other):
        append(tmp_path / "linear.jsonl", one)
    assert load(tmp_path) == [again, other]


def test_a_percentage_in_place_of_a_share_is_refused(tmp_path: Path) -> None:
    append(tmp_path / "linear.jsonl", record("unimoco", 0, {"top1": 81.3}))
    with pytest.raises(ValueError, match=r"linear\.jsonl: linear, top1=81\.3: a share"):
        load(tmp_path)


def test_other_options_are_another_protocol_whatever_its_words(study: list[Record]) -> None:
    short = dataclasses.replace(study[0], config={"iterations": 20}, metrics={"top1": 0.1})
    rows = frame([*study, short])
    assert rows.groupby("protocol")["sha256"].nunique().to_dict() == {
        study[0].protocol: 8, f"{study[0].protocol} (other options: {short.config_hash})": 1,
    }  # fmt: skip


def test_two_files_of_one_seed_are_one_pretraining_and_other_settings_another_row() -> None:
    first = record("unimoco", 0, {"top1": 0.5}, label_ratio=1.0)
    ckpt = first.checkpoint | {"seed": 0, "settings": "aaaa"}
    named = [dataclasses.replace(first, checkpoint=ckpt | {"path": p, "sha256": p}) for p in ("a", "b")]
    other = dataclasses.replace(first, checkpoint=ckpt | {"sha256": "c", "settings": "bbbb"})
    old = dataclasses.replace(first, checkpoint=first.checkpoint | {"seed": 1, "sha256": "d"})
    assert frame([*named, old])["pretraining"].nunique() == 1  # unknown settings join the only known ones
    assert frame([*named, other, old])["pretraining"].nunique() == 3
    rows = frame([*named, other])
    assert rows.groupby("pretraining")["trained"].unique().map(list).tolist() == [["seed 0"], ["seed 0"]]
    assert rows.groupby("pretraining").size().tolist() == [2, 1]


def test_an_unknown_task_is_named_with_its_line(study: list[Record], tmp_path: Path) -> None:
    append(tmp_path / "a.jsonl", study[0])
    append(tmp_path / "a.jsonl", dataclasses.replace(study[0], task="liner"))
    with pytest.raises(ValueError, match=r"a\.jsonl:2: task 'liner' is unknown"):
        load(tmp_path)


def test_seeds_of_one_pretraining_are_one_group_and_shares_become_percent(study: list[Record]) -> None:
    rows = frame(study)
    assert rows["pretraining"].nunique() == 4
    top1 = rows[rows["metric"] == "top1"].groupby("pretraining")["value"].mean().sort_index()
    assert list(top1.round(6)) == [40, 50, 60, 70]


def test_a_row_says_what_is_known() -> None:
    def titles(**checkpoint: object) -> str:
        return Pretraining.of({"arch": "resnet50", "format": "torchvision", **checkpoint}).title

    assert titles(method="unimoco", label_ratio=0.1, epochs=4.0) == "UniMoCo, 10 % of the labels, 4 epochs"
    assert titles(method="unimoco", label_ratio=0.005, epochs=0.5) == "UniMoCo, 0.5 % of the labels, 0.5 epochs"
    assert titles(method="random") == "random initialisation"
    assert titles() == "torchvision's weights"
    assert titles(method="info_nce", label_ratio=1.0, epochs=4.0) == "InfoNCE (MoCo v2), 4 epochs"


def test_published_figures_have_sources_and_the_papers_own_are_complete() -> None:
    papers = published(CSV)
    ours = papers[papers["method"] == "unimoco"]
    linear = ours[(ours["task"] == "imagenet-linear") & (ours["metric"] == "top1")]
    assert list(linear["value"]) == [71.1, 72.0, 75.1, 76.2, 76.4]  # README of the paper's repository
    detection = ours[(ours["task"] == "coco-c4-1x") & (ours["metric"] == "bbox/AP")]
    assert list(detection["value"]) == [39.0, 39.3, 39.6, 39.8, 39.6]
    assert not papers.duplicated(["task", "method", "label_ratio", "epochs", "metric", "source", "note"]).any()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("linear,m,0,1,top1,71,,,", "no source"),
        ("linear,m,0,1,top1,710,s,,", "710"),
        ("linear,m,0;1,1,top1,71,s,,", "0;1"),
    ],
)
def test_a_broken_figure_is_named(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    path.write_text(CSV.read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"published\.csv:2: .*{reason}"):
        published(path)


def test_stand_ins_name_tasks_that_papers_report() -> None:
    known = set(published(CSV)["task"])
    assert {task.paper for task in TASKS.values() if task.paper} <= known


def test_a_record_without_epochs_still_has_a_row() -> None:
    assert Pretraining.of(record("swav", 0, {"top1": 0.5}).checkpoint).title == "swav"


def test_every_task_that_has_a_configuration_is_known() -> None:
    configs = Path(__file__).parents[2] / "transfer" / "configs"
    files = [*(configs / "detection").glob("*.yaml"), *(configs / "segmentation").glob("*.py")]
    tasks = {path.stem for path in files if not path.stem.startswith("base")}
    assert len(tasks) > 15
    assert tasks <= set(TASKS)
