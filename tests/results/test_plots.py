"""Plots: which there are, and that the same numbers give the same bytes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from results import plots
from results.frame import frame, published
from results.record import Record
from results.tables import ROOT

PAPERS = published(ROOT / "results" / "published.csv")


def draw(study: list[Record], folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    curves = folder.parent / "curves"
    curves.mkdir(exist_ok=True)
    rows = [{"step": 0, "knn": 0.1}, {"step": 1, "loss": 2.0, "chance": 3.0}, {"step": 2, "loss": 1.0, "chance": 3.0}]
    (curves / "run.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {path.name: path.read_bytes() for path in plots.draw(frame(study), PAPERS, curves, folder)}


def test_plots_are_the_same_bytes_each_time(study: list[Record], tmp_path: Path) -> None:
    first = draw(study, tmp_path / "a")
    assert first == draw(study, tmp_path / "b")
    assert set(first) == {"label_ratios.svg", "label_ratio_linear.svg", "curves.svg"}
    text = first["label_ratio_linear.svg"].decode()
    assert "measured here" in text
    assert "ImageNet, linear: as published" in text


def test_a_protocol_without_unimoco_is_left_out_of_the_plots(study: list[Record], tmp_path: Path) -> None:
    other = dataclasses.replace(study[0], protocol="at 224 pixels", config={"size": 224})
    text = draw([*study, other], tmp_path / "a")["label_ratio_linear.svg"].decode()
    assert "at 224 pixels" not in text


def test_a_point_of_one_run_is_told_from_a_mean(study: list[Record], tmp_path: Path) -> None:
    assert "one run" not in draw(study, tmp_path / "a")["label_ratio_linear.svg"].decode()
    one = [record for record in study if record.seed == 0]
    assert "one run" in draw(one, tmp_path / "b")["label_ratio_linear.svg"].decode()


def test_one_label_ratio_makes_no_curve(study: list[Record], tmp_path: Path) -> None:
    only = [r for r in study if r.checkpoint.get("label_ratio", 0.0) == 0]
    assert "label_ratio_linear.svg" not in draw(only, tmp_path / "a")


def test_without_records_there_are_the_courses_alone(tmp_path: Path) -> None:
    assert set(draw([], tmp_path / "a")) == {"curves.svg"}


def test_every_task_of_several_ratios_has_its_panel(study: list[Record]) -> None:
    knn = [dataclasses.replace(r, task="knn", metrics={"knn_top1_k200": 0.5}) for r in study]
    single = dataclasses.replace(study[0], task="fashion-fcn", metrics={"mIoU": 0.1})
    figure = plots.every_task(frame([*study, *knn, single]))
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["linear", "kNN"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["random initialisation", "UniMoCo"]
    assert plots.every_task(frame([single])) is plots.every_task(frame([])) is None
