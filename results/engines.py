"""The two engines of detection side by side: the same tasks and checkpoints with detectron2 and with mmdet."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from results.frame import titles, usual
from results.grid import MISSING, Entry, Grid
from results.record import newest
from results.registry import METRICS, TASKS, task_title
from results.stats import MIN_PRETRAININGS, paired_interval

SUFFIX = "-mmdet"  # of a task that mmdet trains; without it the same task of detectron2
SHOWN = ("bbox/AP", "segm/AP")


def side_by_side(rows: pd.DataFrame) -> Grid:
    """Return both engines' metrics of each backbone by their usual configs, with difference and interval.

    The difference is over the pre-trainings that both engines have measured; without any, cells stay empty.

    Args:
        rows: of `frame`.
    """
    rows = usual(rows[rows["metric"].isin(SHOWN)]) if len(rows) else rows
    measured = set(rows["task"])
    tasks = [name for name in TASKS if f"{name}{SUFFIX}" in TASKS and measured & {name, f"{name}{SUFFIX}"}]
    grid = Grid("engines", "detectron2 and mmdet side by side", ["pre-training"], [])
    rows = rows[rows["task"].isin([*tasks, *(f"{task}{SUFFIX}" for task in tasks)])]
    columns = [(task, metric) for task in tasks for metric in SHOWN if metric in TASKS[task].metrics]
    for task, metric in columns:
        name = METRICS[metric] if len(tasks) == 1 else f"{task_title(task)}: {METRICS[metric]}"
        grid.header += [f"{name}, detectron2", "mmdet", "mmdet − detectron2", "95 % interval"]
    for backbone, title in titles(rows).items():
        of_backbone = rows[rows["backbone_id"] == backbone]
        grid.rows.append([title, *(cell for column in columns for cell in _cells(of_backbone, *column))])
    grid.notes = [
        "In %: mean ± sample standard deviation over pre-trainings (their number). Difference and interval (paired t) "
        f"are over the pre-trainings that both engines have measured; an interval needs {MIN_PRETRAININGS} of them."
    ]
    return grid


def _cells(rows: pd.DataFrame, task: str, metric: str) -> list[Entry | str]:
    """Return detectron2's and mmdet's entry of a backbone, their difference and its interval."""
    rows = rows[rows["metric"] == metric]
    engines = [rows[rows["task"] == name] for name in (task, f"{task}{SUFFIX}")]
    entries: list[Entry | str] = [Entry.of(of_one) if len(of_one) else MISSING for of_one in engines]
    means = [of_one.groupby("pretraining")["value"].mean() / 100 for of_one in engines]
    both = pd.concat(means, axis=1, join="inner", keys=["detectron2", "mmdet"])
    if both.empty:
        return [*entries, MISSING, MISSING]
    difference = 100 * (both["mmdet"] - both["detectron2"]).mean()
    interval = paired_interval(both["mmdet"].to_numpy(), both["detectron2"].to_numpy())
    return [*entries, f"{difference:+.1f}".replace("-", "−"), str(interval) if interval else f"n = {len(both)}"]


def settings(path: Path) -> Grid:
    """Return the resolved settings in which the engines differ, from the record of tests/benchmarks/bench_mmdet.py."""
    rows: list[list[Entry | str]] = [
        [row["setting"], *(_text(row[engine]) for engine in ("detectron2", "mmdet")), row["note"]]
        for row in json.loads(path.read_text(encoding="utf-8"))
        if row["detectron2"] != row["mmdet"]
    ]
    return Grid("engine_settings", "Settings that differ", ["setting", "detectron2", "mmdet", ""], rows, align="l")


def _text(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


def mmdet_tasks(path: Path) -> Grid:
    """Return what works of each task of mmdet, of a JSON-lines file of tests/benchmarks/bench_mmdet.py."""
    table = pd.read_json(path, lines=True).drop(columns="versions").drop_duplicates("task", keep="last")
    return Grid("mmdet_tasks", "Tasks of mmdet", [*map(str, table)], table.to_numpy().tolist(), align="l")


def speed(path: Path) -> Grid:
    """Return the ratios of the newest measurement in a JSON-lines file of tests/benchmarks/bench_mmdet.py."""
    record = newest(path)
    rows: list[list[Entry | str]] = [[name, f"{ratio:.2f}"] for name, ratio in record["ratios"].items()]
    note = f"One run, medians of {record['rounds']} rounds, processor time on one thread, float32, fashion-fpn."
    return Grid("mmdet_speed", "Speed of mmdet", ["", "ratio"], rows, [note])
