"""Show what a study of checkpoints has measured: a table, verdicts, curves and costs, on the screen and as a page.

python -m results.comparison --study runs/compare/birds/compare.yaml --out runs/compare/birds

Rows are the titles of checkpoints; those of one title are pre-trainings that differ in the seed. transfer/compare.sh
writes such a study and ends with this command.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jsonargparse import Namespace
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from scipy.stats import norm
from tabulate import tabulate

from common.cli import CommandParser, printable, run_cli
from common.files import write_text
from results import own, plots
from results.frame import frame
from results.grid import MISSING, spreadsheet_safe
from results.record import Record, read
from results.registry import METRICS, task_title
from results.study_file import Study, load
from results.verdict import Measured, Verdict, judge

NOTES = (
    "In %: the mean; ± is the sample standard deviation over measurements: pre-trainings, or the seeds of one.",
    "Bold: higher than every other by both tests. Intervals: 95 % over test images (Wilson), else the deviation.",
    "A fraction of the labels is one class-balanced choice, the same for all, and part of every larger one.",
    "Seconds: of the measurements, with reading and evaluation. The first job of a checkpoint computes the features.",
)


@dataclass(frozen=True)
class Column:
    """One benchmark at one fraction of the labels.

    Attributes:
        task: its name in records.
        fraction: of the labels.
        metric: that leads, for people.
        config: its settings, in words.
        rows: of `frame`, of its leading metric.
        measured: each checkpoint's measurements, by its title.
        verdicts: of all pairs.
    """

    task: str
    fraction: float
    metric: str
    config: str
    rows: pd.DataFrame
    measured: dict[str, Measured]
    verdicts: list[Verdict]

    @property
    def title(self) -> str:
        """Return its name, and the fraction where not all labels are used."""
        return task_title(self.task) + f", {100 * self.fraction:.3g} % of labels" * (self.fraction < 1)

    @property
    def best(self) -> str:
        """Return the title of the checkpoint that is higher than every other, or ""."""
        top = self.verdicts[0].first.name if self.verdicts else ""
        return top if all(one.differs for one in self.verdicts if one.first.name == top) else ""

    def text(self, title: str) -> str:
        """Return a checkpoint's entry in the table."""
        one = self.measured.get(title)
        if one is None:
            return MISSING
        spread = f" ± {100 * float(np.std(one.sample, ddof=1)):.1f}" if len(one.sample) > 1 else ""
        return f"{100 * float(np.mean(one.sample)):.1f}{spread}"


def interval(one: Measured) -> tuple[float, float] | None:
    """Return the ends of a measurement's interval, fractions: over test images, else a standard deviation each side.

    Over test images it is Wilson's (1927) 95 % interval: with few images a bootstrap's is too narrow, and of length 0
    where all are right. It holds for values from 0 to 1, as the variance of others with this mean is no larger.
    """
    if one.per_image is not None and len(one.per_image) > 1:
        n, mean, z = len(one.per_image), float(np.mean(one.per_image)), float(norm.ppf(0.975))
        centre, arm = mean + z**2 / (2 * n), z * math.sqrt(mean * (1 - mean) / n + (z / (2 * n)) ** 2)
        return max(0.0, (centre - arm) / (1 + z**2 / n)), min(1.0, (centre + arm) / (1 + z**2 / n))
    if len(one.sample) > 1:
        mean, std = float(np.mean(one.sample)), float(np.std(one.sample, ddof=1))
        return mean - std, mean + std
    return None


def rows_of(study: Study) -> pd.DataFrame:
    """Return the rows of `frame` of what a study has measured, with `title` and `fraction` of each job.

    Raises:
        ValueError: a record is broken; the message names it.
    """
    parts = []
    for job in study.jobs:
        if not job.task or not Path(job.receipt).is_file():
            continue
        records = {Path(path): read(Path(path)) for path in json.loads(Path(job.receipt).read_bytes())}
        part = frame(records)
        # By title and file: copies of a checkpoint are two rows, and pre-trainings of one title are one.
        part = part.assign(
            backbone_id=job.title or job.checkpoint, title=job.title or job.checkpoint,
            pretraining=job.checkpoint + " " + part["pretraining"], fraction=_fraction(next(iter(records.values()))),
        )  # fmt: skip
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _fraction(record: Record) -> float:
    labels = record.config.get("labels")
    return float(labels.get("ratio", 1.0)) if isinstance(labels, dict) else 1.0


def columns(rows: pd.DataFrame) -> list[Column]:
    """Return the benchmarks, of each the largest fraction first."""
    found = []
    leading = rows[rows["headline"]]
    for task in leading["task"].unique():
        for fraction in sorted(leading.loc[leading["task"] == task, "fraction"].unique(), reverse=True):
            part = leading[(leading["task"] == task) & (leading["fraction"] == fraction)]
            metric = part["metric"].iloc[0]
            measured = own.measured(part.assign(arch=""))  # names as given, without the network
            found.append(
                Column(
                    task, float(fraction), _words(metric), part["config"].iloc[0], part,
                    dict(zip(part["title"].unique(), measured, strict=True)), judge(measured),
                )
            )  # fmt: skip
    return found


def _words(metric: str) -> str:
    """Return the title of a metric; kNN has one for any k."""
    return METRICS.get(metric) or re.sub(r"^knn_top(\d)_k(\d+)$", r"top-\1, k = \2", metric)


def table(found: Sequence[Column], names: Sequence[str]) -> pd.DataFrame:
    """Return the numbers: a line per checkpoint, benchmark and fraction."""
    lines = []
    for column in found:
        for name in names:
            if (one := column.measured.get(name)) is None:
                continue
            low, high = interval(one) or (np.nan, np.nan)
            part = column.rows[column.rows["title"] == name]
            lines.append({
                "checkpoint": name, "task": column.task, "fraction": column.fraction, "metric": column.metric,
                "mean": 100 * float(np.mean(one.sample)),
                "std": 100 * float(np.std(one.sample, ddof=1)) if len(one.sample) > 1 else np.nan,
                "low": 100 * low, "high": 100 * high, "measurements": len(one.sample), "pretrainings": len(one.values),
                "test_images": 0 if one.per_image is None else len(one.per_image),
                "seconds": _sum(part, "seconds"), "images": _sum(part, "images"),
            })  # fmt: skip
    return pd.DataFrame(lines)


def _sum(rows: pd.DataFrame, name: str) -> float:
    """Return the sum of a cost over the runs."""
    return float(rows[f"cost_{name}"].sum()) if f"cost_{name}" in rows else 0.0


def draw(found: Sequence[Column], names: Sequence[str]) -> dict[str, str]:
    """Return an SVG per benchmark, by title: its metric by fraction of the labels, or by checkpoint, with intervals."""
    figures = {}
    style = plots.STYLE | {"axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        for task in dict.fromkeys(column.task for column in found):
            of_task = [column for column in found if column.task == task]
            curve = len(of_task) > 1
            height = 3.2 if curve else 0.9 + 0.35 * len(names)
            figure, axes = plt.subplots(figsize=(4.6, height), layout="constrained")
            (_curves if curve else _points)(axes, of_task, names)
            figure.patch.set_alpha(0)
            axes.patch.set_alpha(0)
            figures[f"{task_title(task)}, {of_task[0].metric}"] = plots.svg(figure)
    return figures


def _curves(axes: Axes, of_task: Sequence[Column], names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        points = [(column.fraction, column.measured[name]) for column in of_task if name in column.measured]
        if points:
            # Side by side: intervals of one fraction would cover each other.
            x = [100 * fraction * 1.03 ** (index - (len(names) - 1) / 2) for fraction, _ in points]
            _errorbar(axes, x, [one for _, one in points], f"C{index}", label=name, line="-")
    ticks = sorted({100 * column.fraction for column in of_task})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="labels used, %", ylabel=f"{of_task[0].metric}, %")
    axes.legend(fontsize=8, frameon=False)


def _points(axes: Axes, of_task: Sequence[Column], names: Sequence[str]) -> None:
    (column,) = of_task
    for index, name in enumerate(names):
        if name in column.measured:
            _errorbar(axes, [len(names) - index], [column.measured[name]], f"C{index}", upright=False)
    axes.set_yticks(range(len(names), 0, -1), [name if len(name) < 25 else f"…{name[-23:]}" for name in names])
    axes.set(xlabel=f"{column.metric}, %", ylim=(0.5, len(names) + 0.5))


def _errorbar(
    axes: Axes, at: Sequence[float], measured: Sequence[Measured], color: str, label: str = "", line: str = "",
    upright: bool = True,
) -> None:  # fmt: skip
    values = [100 * float(np.mean(one.sample)) for one in measured]
    ends = [interval(one) or (np.mean(one.sample), np.mean(one.sample)) for one in measured]
    arms = np.abs(100 * np.array(ends, dtype=float).T - values)
    if upright:
        axes.errorbar(at, values, yerr=arms, fmt=f"o{line}", color=color, capsize=3, label=label)
    else:
        axes.errorbar(values, at, xerr=arms, fmt="o", color=color, capsize=3)


def costs(numbers: pd.DataFrame, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of what was spent: seconds and images by checkpoint and benchmark."""
    tasks = list(numbers["task"].unique())
    seconds = numbers.pivot_table("seconds", "checkpoint", "task", aggfunc="sum")
    images = numbers.groupby("checkpoint")["images"].sum()
    rows = [
        [name, *(f"{seconds.loc[name].get(task, 0):,.0f}" for task in tasks), f"{images[name]:,.0f}"]
        for name in names if name in seconds.index
    ]  # fmt: skip
    total = ["all", *(f"{seconds[task].sum():,.0f}" for task in tasks), f"{images.sum():,.0f}"]
    return ["seconds", *map(task_title, tasks), "images read"], [*rows, total]


def page(title: str, found: Sequence[Column], names: Sequence[str], numbers: pd.DataFrame, left: int) -> str:
    """Return one HTML page, which needs no other file and no network."""
    loader = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("comparison.html.j2")
    header, spent = costs(numbers, names)
    return template.render(
        title=title, columns=found, names=names, figures=draw(found, names), header=header, costs=spent, notes=NOTES,
        left=left,
    ) + "\n"  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0, or 2 where nothing is measured."""
    return run_cli("comparison", lambda: _run(parser().parse(arguments)), resumable=False)


def parser() -> CommandParser:
    """Return the parser of the command line."""
    p = CommandParser("results/comparison.py", __doc__)
    p.add_argument("--study", type=Path, required=True, help="study file")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="where index.html and compare.csv go")
    p.add_argument("--title", default="Comparison", help="of the page")
    return p


def _run(options: Namespace) -> None:
    study = load(options.study)
    rows = rows_of(study)
    if rows.empty:
        raise ValueError(f"{options.study}: none of its {len(study.jobs)} jobs is done; its logs are in {study.folder}")
    names = list(dict.fromkeys(job.title or job.checkpoint for job in study.jobs))
    found = columns(rows)
    numbers = table(found, names)
    left = sum(not Path(job.receipt).is_file() for job in study.jobs)
    write_text(
        options.out / "compare.csv", spreadsheet_safe(numbers, ["checkpoint"]).to_csv(index=False, float_format="%.4f")
    )
    write_text(options.out / "index.html", page(options.title, found, names, numbers, left))
    print(said(options.title, found, names, numbers))
    print(
        f"{options.out / 'index.html'} and compare.csv" + f"; {left} of {len(study.jobs)} jobs are missing" * bool(left)
    )


def said(title: str, found: Sequence[Column], names: Sequence[str], numbers: pd.DataFrame) -> str:
    """Return tables and verdicts for the screen; the verdicts of smaller fractions are on the page."""
    body = [[name, *(column.text(name) for column in found)] for name in names]
    lines = [printable(title), "", tabulate(body, ["%", *(column.title for column in found)], disable_numparse=True)]
    largest = max(column.fraction for column in found)
    for column in found:
        if column.fraction == largest:
            lines += ["", f"{column.title}, {column.metric}:", *(f"  {one}" for one in column.verdicts)]
    header, spent = costs(numbers, names)
    return "\n".join([*lines, "", tabulate(spent, header, disable_numparse=True)])


if __name__ == "__main__":
    sys.exit(main())
