"""The table of both engines: paired differences and intervals, cells without a figure, settings that differ."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from results.engines import mmdet_tasks, settings, side_by_side
from results.frame import frame
from results.record import Record
from results.registry import TASKS
from results.stats import paired_interval
from transfer.tasks import MMDET

ROOT = Path(__file__).parents[2]


def record(task: str, seed: int, boxes: float, method: str = "unimoco") -> tuple[Path, Record]:
    facts = {"path": "a/last.pth", "sha256": "0" * 64, "format": "x", "arch": "resnet18", "method": method}
    made = Record(
        backbone_id=f"{method}-a", backbone=facts,
        pretrain_seed=seed, task=task, config={"engine": task}, title=task, seed=0,
        metrics={"bbox/AP": boxes, "segm/AP": boxes / 2}, headline="bbox/AP", cost={}, environment={},
    )  # fmt: skip
    return Path(made.path), made


def test_differences_are_paired_by_pre_training() -> None:
    values = {"fashion-fpn": (0.30, 0.32, 0.34), "fashion-fpn-mmdet": (0.31, 0.335, 0.35)}
    records = dict(record(task, seed, value) for task, given in values.items() for seed, value in enumerate(given))
    records |= dict([record("fashion-fpn", 3, 0.9), record("fashion-fpn", 0, 0.2, "random")])
    grid = side_by_side(frame(records))
    assert grid.header[1:5] == ["AP box, detectron2", "mmdet", "mmdet − detectron2", "95 % interval"]
    rows = {str(row[0]): list(map(str, row[1:])) for row in grid.rows}
    low, high = stats.ttest_rel(values["fashion-fpn-mmdet"], values["fashion-fpn"]).confidence_interval(0.95)
    interval = f"[{100 * low:.1f}, {100 * high:.1f}]".replace("-", "−")
    assert rows["UniMoCo"][1:4] == ["33.2 ± 2.0 (3)", "+1.2", interval]
    assert rows["random initialisation"][:4] == ["20.0 (1)", "–", "–", "–"], "mmdet has not measured it"


def test_fewer_than_three_pre_trainings_have_no_interval() -> None:
    first, second = np.array([0.3, 0.4, 0.5]), np.array([0.2, 0.35, 0.4])
    assert paired_interval(first[:2], second[:2]) is None
    found = paired_interval(first, second)
    assert found is not None
    assert found.difference == pytest.approx((0.1 + 0.05 + 0.1) / 3)
    assert found.low < found.difference < found.high
    records = dict(record(task, seed, 0.3) for task in ("fashion-fpn", "fashion-fpn-mmdet") for seed in (0, 1))
    assert side_by_side(frame(records)).rows[0][3:5] == ["+0.0", "n = 2"]


def test_every_task_of_mmdet_has_a_title_and_a_row_of_what_works() -> None:
    assert {f"{task}-mmdet" for task in MMDET.names()} <= TASKS.keys()
    rows = mmdet_tasks(ROOT / "results" / "benchmarks" / "mmdet_tasks.jsonl").rows
    assert {row[0] for row in rows} == {*MMDET.names()}
    for _, builds, tensors, *works in rows:
        assert {builds, *works} == {"yes"}
        assert len({*str(tensors).split(" of ")}) == 1


def test_only_settings_that_differ_are_listed(tmp_path: Path) -> None:
    rows = [
        {"setting": "a", "detectron2": 1, "mmdet": 1, "note": ""},
        {"setting": "b", "detectron2": [True, None], "mmdet": False, "note": "why"},
    ]
    (tmp_path / "file.json").write_text(json.dumps(rows))
    assert settings(tmp_path / "file.json").rows == [["b", "yes, none", "no", "why"]]
