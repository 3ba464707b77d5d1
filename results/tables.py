"""Tables and plots from records: `python results/tables.py` writes results/tables and the README's tables.

Each table comes as Markdown, LaTeX (booktabs), CSV and in one HTML page; the README takes those between its markers:

    <!-- table:NAME begin --> ... <!-- table:NAME end -->

With --check nothing is written and a difference is an error: what stands in the repository is what the records say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

if not __package__:  # run as a script: find the packages beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from results import plots, report
from results.claims import claims
from results.frame import Pretraining, frame, headlines, load, published, usual
from results.grid import Cell, Grid, letters
from results.record import Record
from results.tasks import METRICS, PAPER_TITLES, TASKS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
ABLATION = ("unimoco", "supcon", "supcon_in", "info_nce")
MADE = (".md", ".tex", ".csv", ".svg", ".html")  # what lies in results/tables
COSTS = ("seconds", "seconds_before_resuming", "images", "peak_gpu_mib", "gpu_memory_bytes", "peak_mib")
TITLES = {
    "classification": "Linear classification and kNN by label ratio",
    "detection": "Object detection and instance segmentation",
    "segmentation": "Semantic segmentation",
    "semi": "Semi-supervised and low-shot classification",
}


def measured(
    name: str, title: str, rows: pd.DataFrame, baseline: str, papers: pd.DataFrame | None = None, brief: bool = False
) -> Grid:
    """A table of pre-trainings against measurements.

    Args:
        name: of the table's files.
        title: for people.
        rows: those of `frame` that it shows.
        baseline: method whose row the others are compared with, the one with the fewest labels.
        papers: rows of `published`; figures of the same method and label ratio get columns of their own.
        brief: without protocols and commits; each task has only one protocol then.
    """
    pretrainings = sorted(set(rows["pretraining"]))
    columns = _columns(rows)
    letter_of = {key: letters(i) for i, key in enumerate(dict.fromkeys((t, p) for t, p, _ in columns))}
    archs = {p.arch for p in pretrainings}
    grid = Grid(name, title, ["pre-training"])
    marks = {key: "" if brief else f" ({letter})" for key, letter in letter_of.items()}
    grid.header += [f"{TASKS[t].title}{marks[t, p]}: {METRICS.get(m, m)}" for t, p, m in columns]
    cells: dict[Pretraining, list[Cell]] = {p: [] for p in pretrainings}
    for task, protocol, metric in columns:
        chosen = rows[(rows["task"] == task) & (rows["protocol"] == protocol) & (rows["metric"] == metric)]
        for p in pretrainings:
            of_row = chosen[chosen["pretraining"] == p]
            cells[p].append(Cell.of(of_row["value"], of_row["trained"]))
    notes = [] if brief else [f"({letter}) {protocol}." for (_, protocol), letter in letter_of.items()]
    if papers is not None:
        notes += _add_papers(grid, cells, papers, dict.fromkeys(task for task, _, _ in columns))
    titles = _titles(pretrainings)
    grid.rows = [(titles[p], cells[p]) for p in pretrainings]
    first = next((p for p in pretrainings if p.method == baseline), None)
    grid.compare(titles.get(first) if first else None, {i: TASKS[t].least for i, (t, _, _) in enumerate(columns)})
    arch = f" Backbone: {archs.pop()}." if len(archs) == 1 else ""
    legend = (
        "In %: mean ± sample standard deviation (number of pre-trainings; of runs, where they are more), difference to "
    )
    grid.notes = [
        legend + (f"“{titles[first]}”." if first else "no row.") + arch,
        *notes,
        *[_commits(rows)] * (not brief),
    ]
    return grid


def overview(rows: pd.DataFrame, papers: pd.DataFrame) -> Grid:
    """The headline of each task in one table, by the protocol that most pre-trainings were measured with."""
    rows = usual(rows)
    shown = [metric in TASKS[task].headline for task, metric in zip(rows["task"], rows["metric"], strict=True)]
    headlines = {(TASKS[task].paper or task, metric) for task in set(rows["task"]) for metric in TASKS[task].headline}
    unimoco = papers[papers["method"] == "unimoco"]
    headlines &= set(zip(unimoco["task"], unimoco["metric"], strict=True))
    theirs = [pair in headlines for pair in zip(papers["task"], papers["metric"], strict=True)]
    return measured(
        "overview", "Overview", rows[pd.Series(shown, index=rows.index, dtype=bool)], "unimoco", papers[theirs], True
    )


def _titles(pretrainings: Sequence[Pretraining]) -> dict[Pretraining, str]:
    """Rows' titles, with what tells equal ones apart."""
    several = len({p.arch for p in pretrainings}) > 1
    titles = {p: p.title + f", {p.arch}" * several for p in pretrainings}
    count = Counter(titles.values())
    return {p: title + f", settings {p.settings or 'unknown'}" * (count[title] > 1) for p, title in titles.items()}


def _columns(rows: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(task, protocol, metric) in the order of tasks.py."""
    have = set(zip(rows["task"], rows["protocol"], rows["metric"], strict=True))
    return [
        (name, protocol, metric)
        for name, task in TASKS.items()
        for protocol in sorted({p for t, p, _ in have if t == name})
        for metric in task.metrics
        if (name, protocol, metric) in have
    ]


def _add_papers(
    grid: Grid, cells: dict[Pretraining, list[Cell]], papers: pd.DataFrame, tasks: dict[str, None]
) -> list[str]:
    """Adds a column for each figure that papers give for one of these rows; returns the numbered sources."""
    sources: dict[str, int] = {}
    for paper in dict.fromkeys(TASKS[task].paper or task for task in tasks):
        of_task = papers[papers["task"] == paper]
        for metric in dict.fromkeys(of_task["metric"]):
            of_metric = of_task[of_task["metric"] == metric]
            # Of several figures for one row that of the source that has UniMoCo's: one hand, one protocol.
            home = set(of_metric.loc[of_metric["method"] == "unimoco", "source"])
            of_metric = of_metric.assign(away=~of_metric["source"].isin(home)).sort_values("away", kind="stable")
            found = {p: same.iloc[0] for p in cells if len(same := of_metric[p.is_of(of_metric)])}
            if not found:
                continue
            grid.header.append(f"† {PAPER_TITLES.get(paper, paper)}: {METRICS.get(metric, metric)}")
            for p, row in cells.items():
                text = ""
                if p in found:
                    told = "; ".join(filter(None, (str(found[p][name]) for name in ("source", "mark", "note"))))
                    text = f"{_figure(found[p]['value'])} [{sources.setdefault(told, len(sources) + 1)}]"
                row.append(Cell(text=text))
    if not sources:
        return []
    told = "; ".join(f"[{number}] {source}" for source, number in sources.items())
    return [f"† Published figures (ResNet-50, ImageNet), not ours and not comparable with the others: {told}."]


def _figure(value: float) -> str:
    """As published, with one decimal at least."""
    return f"{value:.1f}" if round(value, 1) == value else f"{value:g}"


def _commits(rows: pd.DataFrame) -> str:
    commits = sorted(set(rows["commit"]))
    return f"Measured at commit {', '.join(commits)} (+: with changes that were not committed)." if commits else ""


def cost(rows: pd.DataFrame) -> Grid:
    """What each task costs, by backbone and device."""
    grid = Grid("cost", "Cost", ["task", "backbone", "device", "runs", "seconds", "memory, MiB", "images/s"])
    runs = rows.drop_duplicates(["sha256", "task", "protocol", "seed"])
    runs = runs.assign(arch=[p.arch for p in runs["pretraining"]])
    known = {name: runs.get(f"cost_{name}", pd.Series(float("nan"), index=runs.index)) for name in COSTS}
    seconds = known["seconds"] + known["seconds_before_resuming"].fillna(0)
    memory = known["peak_gpu_mib"].fillna(known["gpu_memory_bytes"] / 2**20).fillna(known["peak_mib"])
    runs = runs.assign(seconds=seconds, memory=memory, speed=known["images"] / seconds)
    letter_of: dict[str, str] = {}
    for (task, protocol, arch, device), group in runs.groupby(["task", "protocol", "arch", "device"], sort=False):
        letter = letter_of.setdefault(str(protocol), letters(len(letter_of)))
        figures = ("" if pd.isna(v) else f"{v:.0f}" for v in group[["seconds", "memory", "speed"]].median())
        texts = [arch, device, str(len(group)), *figures]
        grid.rows.append((f"{TASKS[str(task)].title} ({letter})", [Cell(text=str(text)) for text in texts]))
    grid.notes = [
        "Medians over the runs; whole command, reading and evaluating included. Memory: of the GPU, else of the "
        "process. kNN and linear take up features that an earlier command has kept, where there are any.",
        *(f"({letter}) {protocol}." for protocol, letter in letter_of.items()),
    ]
    return grid


def paper_figures(papers: pd.DataFrame) -> Grid:
    """Everything in published.csv."""
    grid = Grid("published", "Published figures", ["task", "method", "labels", "epochs", "metric", "value", "source"])
    for row in papers.to_dict("records"):
        labels = "" if row["label_ratio"] < 0 else f"{row['label_ratio']:.0%}"
        epochs = "" if row["epochs"] < 0 else f"{row['epochs']:g}"
        source = "; ".join(filter(None, [row["source"], row["mark"], row["note"]]))
        texts = [
            row["method"],
            labels,
            epochs,
            METRICS.get(row["metric"], row["metric"]),
            _figure(row["value"]),
            source,
        ]
        grid.rows.append((row["task"], [Cell(text=text) for text in texts]))
    return grid


def grids(records: list[Record], papers: pd.DataFrame) -> list[Grid]:
    """All tables."""
    rows = frame(records)
    method = rows["pretraining"].map(lambda p: p.method)
    main = rows[~method.isin([m for m in ABLATION if m != "unimoco"])]
    tables = [overview(main, papers), claims(rows, papers)]
    tables += [measured(name, title, main[main["table"] == name], "unimoco", papers) for name, title in TITLES.items()]
    every = rows["pretraining"].map(lambda p: p.label_ratio) == 1
    most = headlines(rows[method.isin(ABLATION) & every])
    ablation = measured("ablation", "Losses, all labels", most, "unimoco")
    return [
        *(table for table in tables if table.rows),
        *[ablation] * (len(ablation.rows) > 1),
        cost(rows),
        paper_figures(papers),
    ]


def benchmarks() -> str:
    """Ratios of the newest benchmark record of pre-training."""
    record = json.loads((RESULTS / "benchmarks" / "pretrain.jsonl").read_text().splitlines()[-1])
    rows = [(name, [Cell(text=f"{ratio:.2f}")]) for name, ratio in record["ratios"].items()]
    precision = "bf16" if record["bf16"] else "fp32"
    note = (
        f"One run, medians of {record['rounds']} rounds, {record['threads']} CPU threads, {precision}, "
        f"torch {record['versions']['torch']}, commit {str(record['git_commit'])[:8]}."
    )
    return Grid("benchmarks", "Speed", ["ours / reference", "ratio"], rows, [note]).markdown()


def fill(text: str, name: str, table: str) -> str:
    """Puts a table between its markers.

    Raises:
        ValueError: the markers are missing.
    """
    begin, end = f"<!-- table:{name} begin -->", f"<!-- table:{name} end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no markers {begin} ... {end}")
    return pattern.sub(lambda _: f"{begin}\n{table}\n{end}", text)


def write(folder: Path) -> dict[str, str]:
    """Writes every file of results/tables into `folder`; returns the README's tables by name."""
    records, papers = load(RESULTS / "records"), published(RESULTS / "published.csv")
    tables = grids(records, papers)
    for grid in tables:
        for suffix, text in (("md", grid.markdown()), ("tex", grid.latex()), ("csv", grid.csv())):
            (folder / f"{grid.name}.{suffix}").write_text(text.rstrip("\n") + "\n")
    pictures = plots.draw(frame(records), papers, RESULTS / "curves", folder)
    (folder / "index.html").write_text(report.page(tables, pictures, RESULTS / "pictures"))
    return {grid.name: grid.markdown() for grid in tables if f"<!-- table:{grid.name} " in _readme()}


def _readme() -> str:
    return (ROOT / "README.md").read_text()


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks tables and README; returns 1 where --check finds a difference, 2 for a broken record."""
    parser = argparse.ArgumentParser(prog="results/tables.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where something differs")
    options = parser.parse_args(arguments)
    kept = RESULTS / "tables"
    with tempfile.TemporaryDirectory() as temporary:
        made, readme = Path(temporary), _readme()
        try:
            texts: dict[str, Callable[[], str] | str] = {**write(made), "benchmarks": benchmarks}
            for name, text in texts.items():
                readme = fill(readme, name, text if isinstance(text, str) else text())
        except ValueError as error:
            print(f"tables: error: {error}", file=sys.stderr)
            return 2
        new = {path.name: path.read_bytes() for path in made.iterdir()}
    old = {path.name: path.read_bytes() for path in kept.glob("*.*") if path.suffix in MADE} if kept.is_dir() else {}
    differing = sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))
    differing += ["README.md"] if readme != _readme() else []
    if options.check:
        if differing:
            told = ", ".join(differing)
            print(f"tables: these differ from the records: {told}; run: python results/tables.py", file=sys.stderr)
        return int(bool(differing))
    kept.mkdir(exist_ok=True)
    for name in old.keys() - new.keys():
        (kept / name).unlink()
    for name, content in new.items():
        (kept / name).write_bytes(content)
    (ROOT / "README.md").write_text(readme)
    print(f"{len(new)} files in {kept.relative_to(ROOT)}, {len(differing)} of them new or changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
