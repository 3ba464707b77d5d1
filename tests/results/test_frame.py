"""Records as numbers: what is a row, what is a column, what is one pre-training; published results."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from results.contents import all_grids
from results.frame import by_ratio, columns, load, published, titles, usual
from results.record import Record, write
from results.registry import TASKS

from .conftest import found_in, record, write_all

CSV = Path(__file__).parents[2] / "results" / "published.csv"
PAPERS = published(CSV)


def means(records: list[Record]) -> dict[str, tuple[float, int]]:
    """Return mean and number of pre-trainings of the leading metric by row title."""
    rows = found_in(records)
    rows = rows.assign(title=rows["backbone_id"].map(titles(rows)))[rows["headline"]]
    found = rows.groupby("title", sort=False).agg({"value": "mean", "pretraining": "nunique"})
    return {str(title): (round(value, 6), n) for title, value, n in found.itertuples()}


def library(name: str, value: float) -> Record:
    kind = name.partition(":")[0]
    return record(kind, None, {"top1": value}, backbone_id=name, format=kind, name=name.partition(":")[2])


@pytest.mark.parametrize(
    ("title", "method", "fields"),
    [
        # two models of a library
        ("timm:resnet50.{}", "timm", {"backbone_id": "timm:resnet50.{}", "format": "timm"}),
        # two released files in one layout
        ("{}.pth (moco layout)", None, {"path": "/a/{}.pth", "format": "moco", "backbone_id": "sha256-{}"}),
        # the same settings on two data sets of equal size
        ("UniMoCo, 4 epochs [{}]", "unimoco", {"backbone_id": "unimoco-{}", "epochs": 4.0, "images": 55000}),
    ],
)
def test_two_backbones_are_two_rows_however_alike_they_look(title: str, method: str, fields: dict[str, Any]) -> None:
    def one(name: str, value: float) -> Record:
        facts = {key: fact.format(name) if isinstance(fact, str) else fact for key, fact in fields.items()}
        return record(method, None, {"top1": value}, **facts)

    assert means([one("a1", 0.6), one("a2", 0.8)]) == {title.format("a1"): (60.0, 1), title.format("a2"): (80.0, 1)}


def test_a_file_that_does_not_name_its_method_stands_beside_no_published_result() -> None:
    def published_results(one: Record) -> str:
        (grid,) = (grid for grid in all_grids(found_in([one]), PAPERS) if grid.name == "classification")
        return dict(zip(grid.header, grid.rows[0], strict=True)).get("† ImageNet, linear: top-1", "")

    assert published_results(record(None, None, {"top1": 0.6}, format="torchvision")) == ""
    assert published_results(record("torchvision", None, {"top1": 0.6}, format="torchvision")) == ""
    assert published_results(library("timm:resnet50", 0.6)) == ""
    assert published_results(library("torchvision:resnet50", 0.6)) == "76.5 [1]"
    assert published_results(record("mocov3", None, {"top1": 0.6})) == "68.9 [1]"
    assert published_results(record("unimoco", 0, {"top1": 0.6}, label_ratio=0.1)) == "72.0 [1]"
    assert published_results(record("unimoco", 0, {"top1": 0.6}, label_ratio=0.2)) == ""


def test_the_same_settings_on_two_data_sets_of_equal_size_are_two_rows() -> None:
    facts: dict[str, Any] = {"label_ratio": 1.0, "epochs": 4.0, "images": 55000, "settings": "bf4e4781"}
    birds = record("unimoco", 0, {"top1": 0.6}, backbone_id="unimoco-aaaaaaaaaaaa", **facts)
    cars = record("unimoco", 0, {"top1": 0.8}, backbone_id="unimoco-bbbbbbbbbbbb", **facts)
    assert means([birds, cars]) == {
        "UniMoCo, 100 % of the labels, 4 epochs [aaaaaaaa]": (60.0, 1),
        "UniMoCo, 100 % of the labels, 4 epochs [bbbbbbbb]": (80.0, 1),
    }


def test_two_label_seeds_are_two_pretrainings_of_one_row() -> None:
    records = [
        record("unimoco", 0, {"top1": value}, label_ratio=0.1, label_seed=seed) for seed, value in enumerate((0.6, 0.8))
    ]
    assert records[0].path != records[1].path
    assert means(records) == {"UniMoCo, 10 % of the labels": (70.0, 2)}


def test_two_files_whose_seed_is_unknown_are_not_one_pretraining() -> None:
    files = [record("swav", None, {"top1": 0.5}, backbone_id="sha256-a", sha256=sha256) for sha256 in "ab"]
    assert means([files[0]]) == {"swav": (50.0, 1)}
    assert len({one.pretraining for one in files}) == 2


def test_rewording_a_title_changes_no_column() -> None:
    records = [record("random", seed, {"top1": 0.5}, title=title) for seed, title in ((0, "old words"), (1, "new"))]
    assert len(columns(found_in(records))) == 1
    assert means(records) == {"random initialisation": (50.0, 2)}


def test_other_options_are_another_column_even_under_an_equal_title(study: list[Record]) -> None:
    short = dataclasses.replace(study[0], config={"iterations": 20})
    rows = found_in([*study, short])
    assert columns(rows) == [("linear", study[0].config_hash), ("linear", short.config_hash)]
    assert set(rows["config"]) == {f"linear, some config (config {one.config_hash})" for one in (study[0], short)}
    assert set(usual(rows)["config_hash"]) == {study[0].config_hash}  # measured with more backbones


def test_a_row_says_what_is_known() -> None:
    def title(method: str | None, **facts: object) -> str:
        return str(found_in([record(method, None, {"top1": 0.5}, **facts)])["title"][0])

    assert title("unimoco", label_ratio=0.1, epochs=4.0) == "UniMoCo, 10 % of the labels, 4 epochs"
    assert title("unimoco", label_ratio=0.005, epochs=0.5) == "UniMoCo, 0.5 % of the labels, 0.5 epochs"
    assert title("random") == "random initialisation"
    assert title("info_nce", label_ratio=1.0, epochs=4.0) == "InfoNCE (MoCo v2), 4 epochs"
    assert title("swav") == "swav"
    assert title(None, path="a/b.pth", format="moco") == "b.pth (moco layout)"
    assert title("torchvision", backbone_id="torchvision:resnet50") == "torchvision:resnet50, supervised"


def test_networks_are_named_where_there_are_several() -> None:
    records = [record("unimoco", 0, {"top1": 0.5}, label_ratio=0.0, arch=arch) for arch in ("resnet18", "resnet50")]
    assert list(means(records)) == ["UniMoCo, 0 % of the labels, resnet18", "UniMoCo, 0 % of the labels, resnet50"]


@pytest.mark.parametrize("fact", ["data", "recipe_id", "epochs"])
def test_a_curve_over_label_ratios_never_mixes_recipes(fact: str) -> None:
    def curve(value: float, *ratios: float) -> list[Record]:
        return [record("unimoco", 0, {"top1": 0.5}, label_ratio=ratio, **{fact: value}) for ratio in ratios]

    longest = curve(1, 0.0, 0.1, 1.0)
    rows = found_in([*curve(2, 0.3, 1.0), *longest])
    assert by_ratio(rows) == {one.backbone["label_ratio"]: one.backbone_id for one in longest}


def test_seeds_of_one_pretraining_are_one_group_and_fractions_become_percent(study: list[Record]) -> None:
    assert [value for value, _ in means(study).values()] == [40, 50, 60, 70]
    seeds = [record("random", 0, {"top1": 0.5}, seed=seed) for seed in (0, 1, 2)]
    assert means(seeds) == {"random initialisation": (50.0, 1)}


def test_records_of_several_folders_are_read_and_the_last_one_counts(study: list[Record], tmp_path: Path) -> None:
    write_all(tmp_path / "a", study)
    again = dataclasses.replace(study[0], metrics={"top1": 0.9})
    write(tmp_path / "b", again)
    records = load([tmp_path / "a", tmp_path / "b"])
    assert len(records) == len(study)
    assert records[tmp_path / "b" / again.path] == again


def test_a_percentage_in_place_of_a_fraction_is_refused(tmp_path: Path) -> None:
    write(tmp_path, record("unimoco", 0, {"top1": 81.3}))
    with pytest.raises(ValueError, match=r"_seed0\.json: top1=81\.3: expected a fraction"):
        load([tmp_path])


def test_published_results_have_sources_and_those_of_unimoco_are_complete() -> None:
    ours = PAPERS[PAPERS["method"] == "unimoco"]
    linear = ours[(ours["task"] == "imagenet-linear") & (ours["metric"] == "top1")]
    assert list(linear["value"]) == [71.1, 72.0, 75.1, 76.2, 76.4]  # README of the paper's repository
    detection = ours[(ours["task"] == "coco-c4-1x") & (ours["metric"] == "bbox/AP")]
    assert list(detection["value"]) == [39.0, 39.3, 39.6, 39.8, 39.6]
    assert not PAPERS.duplicated(["task", "method", "label_ratio", "epochs", "metric", "source", "note"]).any()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("linear,m,0,1,top1,71,,,", "needs a source"),
        ("linear,m,0,1,top1,710,s,,", "710"),
        ("linear,m,0;1,1,top1,71,s,,", "0;1"),
    ],
)
def test_a_broken_published_result_is_named(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    path.write_text(CSV.read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"published\.csv:2: .*{reason}"):
        published(path)


def test_small_scale_tasks_name_tasks_that_papers_report() -> None:
    assert {task.paper for task in TASKS.values() if task.paper} <= set(PAPERS["task"])


def test_every_task_that_has_a_config_is_in_the_registry() -> None:
    configs = Path(__file__).parents[2] / "transfer" / "configs"
    files = [*(configs / "detection").glob("*.yaml"), *(configs / "segmentation").glob("*.yaml")]
    tasks = {path.stem for path in files}
    assert len(tasks) > 15
    assert tasks <= set(TASKS)


def test_the_records_of_the_repository_are_where_they_belong() -> None:
    folder = Path(__file__).parents[2] / "results" / "records"
    records = load([folder])
    assert len(records) == len(list(folder.rglob("*.json"))) >= 106
    assert all(json.loads(path.read_text())["config_hash"] in path.name for path in records)
    assert found_in(records.values())["value"].dtype == pd.Series([0.5]).dtype
