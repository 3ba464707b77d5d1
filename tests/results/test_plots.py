"""Plots: which there are, and that the same numbers give the same bytes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from results import plots
from results.frame import published
from results.pages import ROOT
from results.record import Record

from .conftest import found_in

PAPERS = published(ROOT / "results" / "published.csv")


def draw(study: list[Record], folder: Path) -> dict[str, str]:
    curves = folder / "curves"
    curves.mkdir(exist_ok=True)
    rows = [{"step": 0, "knn": 0.1}, {"step": 1, "loss": 2.0, "chance": 3.0}, {"step": 2, "loss": 1.0, "chance": 3.0}]
    (curves / "run.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: svg for name, (_, svg) in plots.draw(found_in(study), PAPERS, curves).items()}


def test_plots_are_the_same_bytes_each_time(study: list[Record], tmp_path: Path) -> None:
    first = draw(study, tmp_path)
    assert first == draw(study, tmp_path)
    assert set(first) == {"label_ratios", "label_ratio_linear", "curves"}
    text = first["label_ratio_linear"]
    assert "linear: ours" in text
    assert "ImageNet, linear: published" in text


def test_a_config_without_a_curve_is_left_out_of_the_plots(study: list[Record], tmp_path: Path) -> None:
    other = dataclasses.replace(study[0], title="at 224 pixels", config={"size": 224})
    text = draw([*study, other], tmp_path)["label_ratio_linear"]
    assert "224" not in text
    second = [dataclasses.replace(one, title="at 224 pixels", config={"size": 224}) for one in study]
    text = draw([*study, *second], tmp_path)["label_ratio_linear"]
    assert "UniMoCo (at 224 pixels)" in text


def test_a_point_of_one_pretraining_is_told_from_a_mean(study: list[Record], tmp_path: Path) -> None:
    assert "one pre-training" not in draw(study, tmp_path)["label_ratio_linear"]
    one = [record for record in study if record.pretrain_seed == 0]
    assert "one pre-training" in draw(one, tmp_path)["label_ratio_linear"]


def test_one_label_ratio_makes_no_curve(study: list[Record], tmp_path: Path) -> None:
    only = [r for r in study if r.backbone.get("label_ratio", 0.0) == 0]
    assert "label_ratio_linear" not in draw(only, tmp_path)


def test_without_records_there_are_training_curves_alone(tmp_path: Path) -> None:
    assert set(draw([], tmp_path)) == {"curves"}
    assert plots.draw(found_in([]), PAPERS, None) == {}


def test_every_task_with_several_ratios_has_its_panel(study: list[Record]) -> None:
    knn = [dataclasses.replace(r, task="knn", metrics={"knn_top1_k200": 0.5}, headline="knn_top1_k200") for r in study]
    single = dataclasses.replace(study[0], task="fashion-fcn", metrics={"mIoU": 0.1}, headline="mIoU")
    figure = plots.every_task(found_in([*study, *knn, single]))
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["linear", "kNN"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["random initialisation", "UniMoCo"]
    assert plots.every_task(found_in([single])) is plots.every_task(found_in([])) is None
