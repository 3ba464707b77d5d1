"""The tables that are made from records, published results, and the logs of the converters and benchmarks."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from results.claims import claims
from results.frame import Measurements
from results.grid import KEYS, MISSING, Entry, Grid, letters
from results.record import slug
from results.registry import METRICS, PAPER_TITLES, TASKS, task_title
from results.stats import LEVEL, MIN_PRETRAININGS

ABLATION = ("unimoco", "supcon", "supcon_in", "info_nce")
COSTS = ("seconds", "seconds_before_resuming", "images", "peak_gpu_mib", "gpu_memory_bytes", "peak_mib")
TITLES = {
    "classification": "Linear classification and kNN by label ratio",
    "detection": "Object detection and instance segmentation",
    "segmentation": "Semantic segmentation",
    "semi": "Semi-supervised and low-shot classification",
}
SUMMARY = {"linear": "linear, top-1", "knn": "kNN, top-1", "fashion-fpn": "detection, AP box",
           "fashion-fcn": "segmentation, mIoU"}  # fmt: skip
TEST = (
    f"Two rows differ by Welch's t-test over pre-trainings ({100 * LEVEL:g} %, Holm-corrected over all pairs of rows "
    f"of a column), which needs at least {MIN_PRETRAININGS} pre-trainings of both. Bold: higher than every other row "
    "of the column by that test."
)
IMAGES = (
    "[a, b]: single checkpoints, 95 % bootstrap interval of the difference over test images, not over pre-trainings."
)
Column = tuple[str, str, str]  # task, config hash, metric


def all_grids(found: Measurements, papers: pd.DataFrame) -> list[Grid]:
    """Return every table; those without rows are left out.

    Args:
        found: of `frame`.
        papers: of `published`.
    """
    facts = found.backbones.values()
    main = found.of_backbones(one for one in facts if one.method == "unimoco" or one.method not in ABLATION)
    of_table = main.rows["task"].map({name: task.table for name, task in TASKS.items()})
    tables = [summary(main), overview(main, papers), claims(found, papers)]
    tables += [measured(name, title, main.where(of_table == name), papers) for name, title in TITLES.items()]
    tables += [
        measured(f"task-{slug(task)}", task, found.of_task(task))
        for task in sorted(set(found.rows["task"]) - set(TASKS))
    ]
    losses = found.of_backbones(one for one in facts if one.method in ABLATION and one.label_ratio == 1).headlines()
    if len(losses.backbones) > 1:
        tables.append(measured("ablation", "Losses, with all labels", losses))
    return [*(table for table in tables if table.rows), cost(found), published_results(papers)]


def summary(found: Measurements) -> Grid:
    """Return the small table: the leading metric of four tasks by their usual configs, with n in its caption."""
    usual = found.headlines()
    usual = usual.where(usual.rows["task"].isin(SUMMARY))
    columns = _columns(usual)
    grid = Grid("summary", "Summary", ["pre-training", *(SUMMARY[task] for task, _, _ in columns)], short=True)
    grid.rows = _rows(usual, columns)
    grid.compare()
    n = sorted({entry.n for _, entries in grid.rows for entry in entries if entry.means})
    if n:
        times = f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"
        best = any(entry.best for _, entries in grid.rows for entry in entries)
        grid.notes = [f"In %: mean ± sample standard deviation over {times} pre-trainings.", *[TEST] * best]
    return grid


def overview(found: Measurements, papers: pd.DataFrame) -> Grid:
    """Return the leading metrics of the project's tasks, by the configs measured with the most backbones."""
    usual = found.usual()
    masks = usual.rows["metric"] == "segm/AP"
    usual = usual.where(usual.rows["task"].isin(TASKS) & (usual.rows["headline"].astype(bool) | masks))
    columns = {(TASKS[task].paper or task, metric) for task, _, metric in _columns(usual)}
    unimoco = papers[papers["method"] == "unimoco"]
    columns &= set(zip(unimoco["task"], unimoco["metric"], strict=True))
    shown = [pair in columns for pair in zip(papers["task"], papers["metric"], strict=True)]
    return measured("overview", "Overview", usual, papers[shown], brief=True)


def measured(
    name: str, title: str, found: Measurements, papers: pd.DataFrame | None = None, brief: bool = False
) -> Grid:
    """Return a table of backbones against measurements; a column is a metric of a task and config.

    Args:
        name: of the table's files.
        title: shown above it.
        found: what it shows.
        papers: rows of `published`; results of the same method and label ratio are added as columns.
        brief: without notes on configs and commits, for tables with one config per task.
    """
    columns = _columns(found)
    marks = {key: letters(index) for index, key in enumerate(dict.fromkeys(column[:2] for column in columns))}
    grid = Grid(name, title, ["pre-training"])
    for task, config, metric in columns:
        mark = "" if brief else f" ({marks[task, config]})"
        grid.header.append(f"{task_title(task)}{mark}: {METRICS.get(metric, metric)}")
    grid.rows = _rows(found, columns)
    unimoco = [index for index, one in enumerate(found.backbones.values()) if one.method == "unimoco"]
    baseline = unimoco[0] if unimoco else 0 if len(grid.rows) > 1 else None
    grid.compare(baseline)
    grid.notes = _legend(grid, baseline, {one.arch for one in found.backbones.values()})
    if not brief:
        grid.notes += [f"({mark}) {found.configs[key]}." for key, mark in marks.items()]
    if papers is not None:
        grid.notes += _add_published(grid, found, papers, dict.fromkeys(task for task, _, _ in columns))
    commits = ", ".join(sorted(set(found.rows["commit"])))
    if not brief:
        grid.notes.append(f"Measured at commit {commits} (+: with changes that were not committed).")
    return grid


def cost(found: Measurements) -> Grid:
    """Return what each task costs, by config, architecture and device."""
    grid = Grid("cost", "Cost", ["task", "backbone", "device", "runs", "seconds", "memory, MiB", "images/s"])
    runs = found.rows.drop_duplicates(["backbone_id", "pretraining", "task", "config_hash", "seed"])
    known = {name: runs.get(f"cost_{name}", pd.Series(float("nan"), index=runs.index)) for name in COSTS}
    seconds = known["seconds"] + known["seconds_before_resuming"].fillna(0)
    memory = known["peak_gpu_mib"].fillna(known["gpu_memory_bytes"] / 2**20).fillna(known["peak_mib"])
    arch = runs["backbone_id"].map({key: one.arch for key, one in found.backbones.items()})
    runs = runs.assign(seconds=seconds, memory=memory, speed=known["images"] / seconds, arch=arch)
    marks: dict[tuple[str, str], str] = {}
    for key in found.columns():
        of_config = runs[(runs["task"] == key[0]) & (runs["config_hash"] == key[1])]
        for names, group in of_config.groupby(["arch", "device"]):
            mark = marks.setdefault(key, letters(len(marks)))
            medians = group[["seconds", "memory", "speed"]].median()
            numbers = ("" if pd.isna(value) else f"{value:.0f}" for value in medians)
            texts = (*map(str, names), str(len(group)), *numbers)
            grid.rows.append((f"{task_title(key[0])} ({mark})", [Entry(text=text) for text in texts]))
    grid.notes = [
        "Medians over the runs; times include reading data and evaluating. Memory: of the GPU, else of the process. "
        "kNN and linear classification reuse features that an earlier command stored.",
        *(f"({mark}) {found.configs[key]}." for key, mark in marks.items()),
    ]
    return grid


def published_results(papers: pd.DataFrame) -> Grid:
    """Return everything in published.csv."""
    grid = Grid("published", "Published results", ["task", "method", "labels", "epochs", "metric", "value", "source"])
    for row in papers.to_dict("records"):
        labels = "" if row["label_ratio"] < 0 else f"{row['label_ratio']:.0%}"
        epochs = "" if row["epochs"] < 0 else f"{row['epochs']:g}"
        texts = [row["method"], labels, epochs, METRICS.get(row["metric"], row["metric"]), _value(row["value"])]
        grid.rows.append((row["task"], [Entry(text=text) for text in (*texts, _source(row))]))
    return grid


def benchmarks(path: Path) -> Grid:
    """Return the ratios of the newest benchmark of pre-training in a JSON-lines file."""
    record = json.loads(path.read_text().splitlines()[-1])
    rows = [(name, [Entry(text=f"{ratio:.2f}")]) for name, ratio in record["ratios"].items()]
    precision = "bf16" if record["bf16"] else "fp32"
    note = (
        f"One run, medians of {record['rounds']} rounds, {record['threads']} CPU threads, {precision}, "
        f"torch {record['versions']['torch']}, commit {str(record['git_commit'])[:8]}."
    )
    return Grid("benchmarks", "Speed", ["ours / reference", "ratio"], rows, [note])


def converters(path: Path) -> Grid:
    """Return the round trips of a JSON-lines file: max |Δ| of the features by layout read and framework written."""
    results = pd.read_json(path, lines=True)
    archs = sorted(set(results["arch"]))
    targets = list(dict.fromkeys(results["written"]))
    deltas = results.set_index(["read", "written", "arch"])["max_abs_delta"].to_dict()

    def text(layout: str, target: str) -> str:
        found = [deltas[layout, target, arch] for arch in archs]
        return " / ".join(MISSING if pd.isna(delta) else f"{delta:.0e}" if delta else "0" for delta in found)

    rows = [
        (layout, [Entry(text=made_with), *(Entry(text=text(layout, target)) for target in targets)])
        for layout, made_with in results.drop_duplicates("read")[["read", "made_with"]].itertuples(index=False)
    ]
    return Grid("converters", "Converters", ["read", "made with", *targets], rows)


def _rows(found: Measurements, columns: list[Column]) -> list[tuple[str, list[Entry]]]:
    """Return the title of each backbone and its entries."""
    groups = dict(iter(found.rows.groupby(list(KEYS))))
    nothing = found.rows[:0]
    return [
        (title, [Entry.of(groups.get((backbone_id, *column), nothing), (backbone_id, *column)) for column in columns])
        for backbone_id, title in found.titles().items()
    ]


def _columns(found: Measurements) -> list[Column]:
    """Return the columns: the leading metric and those of the registry; of an unknown task all that have a title."""
    columns = []
    for task, config in found.columns():
        rows = found.rows[(found.rows["task"] == task) & (found.rows["config_hash"] == config)]
        leading = rows.loc[rows["headline"].astype(bool), "metric"]
        shown = (*leading, *(TASKS[task].metrics if task in TASKS else METRICS))
        columns += [(task, config, metric) for metric in dict.fromkeys(shown) if metric in set(rows["metric"])]
    return columns


def _legend(grid: Grid, baseline: int | None, archs: set[str]) -> list[str]:
    """Return what the numbers and marks of a table mean, as far as there are any."""
    legend = "In %: mean ± sample standard deviation over pre-trainings (their number; that of runs, where larger)"
    if baseline is not None:
        legend += f", difference to “{grid.rows[baseline][0]}”: ↑ or ↓ where the two rows differ, else + or −"
    images = [IMAGES] * any(entry.images for _, entries in grid.rows for entry in entries)
    return [f"{legend}.", TEST, *images, *(f"Backbone: {arch}." for arch in archs if len(archs) == 1)]


def _add_published(grid: Grid, found: Measurements, papers: pd.DataFrame, tasks: dict[str, None]) -> list[str]:
    """Add a column for each published result of one of these rows; return the numbered sources."""
    sources: dict[str, int] = {}
    for paper in dict.fromkeys(TASKS[task].paper or task for task in tasks):
        of_task = papers[papers["task"] == paper]
        for metric in dict.fromkeys(of_task["metric"]):
            of_metric = of_task[of_task["metric"] == metric]
            # Prefer the source that also reports UniMoCo.
            preferred = set(of_metric.loc[of_metric["method"] == "unimoco", "source"])
            of_metric = of_metric.assign(other=~of_metric["source"].isin(preferred)).sort_values("other", kind="stable")
            facts = found.backbones.values()
            rows = [of_metric[one.is_published_in(of_metric)].head(1).to_dict("records") for one in facts]
            if not any(rows):
                continue
            grid.header.append(f"† {PAPER_TITLES.get(paper, paper)}: {METRICS.get(metric, metric)}")
            for (_, entries), row in zip(grid.rows, rows, strict=True):
                marks = [sources.setdefault(_source(one), len(sources) + 1) for one in row]
                entries.append(Entry(text=f"{_value(row[0]['value'])} [{marks[0]}]" if row else ""))
    if not sources:
        return []
    listed = "; ".join(f"[{index}] {source}" for source, index in sources.items())
    return [f"† Published results (ResNet-50, ImageNet), not ours and not comparable with the others: {listed}."]


def _source(row: Mapping[Hashable, Any]) -> str:
    return "; ".join(filter(None, (str(row[name]) for name in ("source", "mark", "note"))))


def _value(value: float) -> str:
    """Return a result as published, with one decimal at least."""
    return f"{value:.1f}" if round(value, 1) == value else f"{value:g}"
