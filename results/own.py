"""Tables and verdicts of users' data sets: one table per data set, whatever was measured on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from results.frame import columns, titles
from results.grid import markdown_escaped, per_image
from results.registry import METRICS, task_title
from results.verdict import Measured, judge

UNDRAWN = ("knn",)  # benchmarks into which nothing random enters


def is_own(rows: pd.DataFrame) -> pd.Series:
    """Return which rows of `frame` are of a user's data set."""
    return rows["data_id"] != ""


def data_sets(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of each user's data set by its name; of equal names each with part of its identity."""
    own = rows[is_own(rows)]
    names = {str(key): str(part["data"].iloc[0]) for key, part in own.groupby("data_id")}
    alike = Counter(names.values())
    shown = {key: f"{name} [{key[:8]}]" if alike[name] > 1 else name for key, name in names.items()}
    return {shown[key]: own[own["data_id"] == key] for key in sorted(shown, key=lambda key: shown[key])}


def verdicts(rows: pd.DataFrame) -> dict[str, dict[str, list[str]]]:
    """Return what can be said about all pairs of backbones, by data set and by task, metric and config.

    Args:
        rows: of `frame`.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name, part in data_sets(rows).items():
        found[name] = {}
        for task, config in columns(part):
            leading = part[(part["task"] == task) & (part["config_hash"] == config) & part["headline"]]
            metric = METRICS.get(leading["metric"].iloc[0], leading["metric"].iloc[0])
            head = f"{task_title(task)}, {metric} ({leading['config'].iloc[0]})"
            found[name][head] = list(map(str, judge(measured(leading)))) or ["One backbone: nothing to compare."]
    return found


def markdown(found: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """Return verdicts as Markdown."""
    lines = []
    for name, tasks in found.items():
        lines += [f"## {markdown_escaped(name)}", ""]
        for head, said in tasks.items():
            lines += [f"{markdown_escaped(head)}:", "", *(f"- {markdown_escaped(one)}" for one in said), ""]
    return "\n".join(lines)


def measured(rows: pd.DataFrame) -> list[Measured]:
    """Return the measurements of each backbone in rows of one task, config and metric."""
    names = titles(rows)
    found = []
    for key, part in rows.groupby("backbone_id", sort=False):
        values = [list(seeds / 100) for _, seeds in part.groupby("pretraining")["value"]]
        task, metric = part["task"].iloc[0], part["metric"].iloc[0]
        found.append(Measured(names[str(key)], values, _per_image(part["per_image"], metric), task not in UNDRAWN))
    return found


def _per_image(files: pd.Series, metric: str) -> np.ndarray | None:
    """Return the metric of each test image, the mean over all runs, (N,); None where a run has no such values."""
    arrays = []
    for file in files:
        values = per_image(file, metric) if Path(file).is_file() else None
        if values is None:
            return None
        arrays.append(values.astype(float))
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"{files.iloc[0]}: the runs of one config have values of different test images")
    return np.asarray(np.mean(arrays, 0))
