"""The tables that are made from records, published results, and the logs of the converters and benchmarks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from results.claims import claims
from results.engines import side_by_side
from results.frame import CONFIG, columns, headlines, titles, usual
from results.grid import KEYS, MISSING, Entry, Grid
from results.own import data_sets, is_own
from results.record import newest, slug
from results.registry import METRICS, PAPER_TITLES, SUMMARY, TABLES, TASKS, task_title
from results.stats import LEVEL, MIN_PRETRAININGS

RIVALS = ("supcon", "supcon_in", "info_nce")  # other losses: only the ablation and the claims show them
COSTS = ["seconds", "seconds_before_resuming", "images", "peak_gpu_mib", "gpu_memory_bytes", "peak_mib"]
TEST = (
    f"Two rows differ by Welch's t-test over pre-trainings ({100 * LEVEL:g} %, Holm-corrected over all pairs of rows "
    f"of a column), which needs at least {MIN_PRETRAININGS} pre-trainings of both. Bold: higher than every other row "
    "of the column by that test."
)
IMAGES = (
    "[a, b]: single checkpoints, 95 % bootstrap interval of the difference over test images, not over pre-trainings."
)
PARTS = ("forward", "backward")
Column = tuple[str, str, str]  # task, config hash, metric


def all_grids(rows: pd.DataFrame, papers: pd.DataFrame) -> list[Grid]:
    """Return every table; those without rows are left out.

    Args:
        rows: of `frame`.
        papers: of `published`.
    """
    own = data_sets(rows)
    rows, everything = rows[~is_own(rows)], rows
    rival = rows["method"].isin(RIVALS)
    main = rows[~rival]
    of_table = main["task"].map({name: task.table for name, task in TASKS.items()})
    tables = [summary(main), overview(main, papers), claims(rows, papers)]
    tables += [measured(name, title, main[of_table == name], papers) for name, title in TABLES.items()]
    tables.append(side_by_side(main))
    for task in sorted(set(rows["task"]) - set(TASKS)):
        tables.append(measured(f"task-{slug(task)}", task, rows[rows["task"] == task]))
    losses = headlines(rows[(rival | (rows["method"] == "unimoco")) & (rows["label_ratio"] == 1)])
    if losses["backbone_id"].nunique() > 1:
        tables.append(measured("ablation", "Losses, with all labels", losses))
    tables = [*(measured(f"data-{slug(name)}", name, part) for name, part in own.items()), *tables]
    return [*(table for table in tables if table.rows), cost(everything), published_results(papers)]


def summary(rows: pd.DataFrame) -> Grid:
    """Return the small table: the leading metric of four tasks by their usual configs, with n in its caption."""
    rows = headlines(rows)
    rows = rows[rows["task"].isin(SUMMARY)]
    shown = _columns(rows)
    header = ["pre-training", *(SUMMARY[task] for task, _, _ in shown)]
    grid = Grid("summary", "Summary", header, _entries(rows, shown), short=True)
    grid.compare()
    entries = [entry for row in grid.rows for entry in row if isinstance(entry, Entry)]
    if entries:
        fewest, most = min(entry.n for entry in entries), max(entry.n for entry in entries)
        times = f"n = {most}" if fewest == most else f"n = {fewest} to {most}"
        grid.notes = [f"In %: mean ± sample standard deviation over {times} pre-trainings."]
        grid.notes += [TEST] * any(entry.best for entry in entries)
    return grid


def overview(rows: pd.DataFrame, papers: pd.DataFrame) -> Grid:
    """Return the leading metrics of the project's tasks, by the configs measured with the most backbones."""
    rows = usual(rows)
    rows = rows[rows["task"].isin(TASKS) & (rows["headline"] | (rows["metric"] == "segm/AP"))]
    ours = {(TASKS[task].paper or task, metric) for task, _, metric in _columns(rows)}
    results = pd.Series(list(zip(papers["task"], papers["metric"], strict=True)), index=papers.index)
    of_unimoco = results[papers["method"] == "unimoco"]
    return measured("overview", "Overview", rows, papers[results.isin(ours & {*of_unimoco})], brief=True)


def measured(
    name: str, title: str, rows: pd.DataFrame, papers: pd.DataFrame | None = None, brief: bool = False
) -> Grid:
    """Return a table of backbones against measurements; a column is a metric of a task and config.

    Args:
        name: of the table's files.
        title: shown above it.
        rows: of `frame`, what it shows.
        papers: of `published`; results of the same method and label ratio are added as columns.
        brief: without notes on configs and commits, for tables with one config per task.
    """
    shown = _columns(rows)
    marks = _marks(column[:2] for column in shown)
    grid = Grid(name, title, ["pre-training"], _entries(rows, shown))
    for task, config, metric in shown:
        mark = "" if brief else f" ({marks[task, config]})"
        grid.header.append(f"{task_title(task)}{mark}: {METRICS.get(metric, metric)}")
    backbones = rows.drop_duplicates("backbone_id")
    legend = "In %: mean ± sample standard deviation over pre-trainings (their number; that of runs, where larger)"
    if len(backbones) > 1:
        baseline = int((backbones["method"] == "unimoco").to_numpy().argmax())  # the first row, if there is none
        grid.compare(baseline)
        legend += f", difference to “{grid.rows[baseline][0]}”: ↑ or ↓ where the two rows differ, else + or −"
    grid.notes = [f"{legend}.", TEST]
    grid.notes += [IMAGES] * any(isinstance(entry, Entry) and entry.images for row in grid.rows for entry in row)
    grid.notes += [f"Backbone: {arch}." for arch in set(backbones["arch"]) if backbones["arch"].nunique() == 1]
    grid.notes += [] if brief else _configs(rows, marks)
    if papers is not None:
        _add_published(grid, backbones, papers, [task for task, _, _ in shown])
    if not brief:
        commits = ", ".join(sorted(set(rows["commit"])))
        grid.notes.append(f"Measured at commit {commits} (+: with changes that were not committed).")
    return grid


def cost(rows: pd.DataFrame) -> Grid:
    """Return what each task costs, by config, architecture and device."""
    runs = rows.drop_duplicates(["backbone_id", "pretraining", *CONFIG, "seed"])
    known = runs.reindex(columns=[f"cost_{name}" for name in COSTS]).set_axis(COSTS, axis=1)
    seconds = known["seconds"] + known["seconds_before_resuming"].fillna(0)
    memory = known["peak_gpu_mib"].fillna(known["gpu_memory_bytes"] / 2**20).fillna(known["peak_mib"])
    runs = runs.assign(seconds=seconds, memory=memory, speed=known["images"] / seconds)
    marks = _marks(columns(rows))
    grid = Grid("cost", "Cost", ["task", "backbone", "device", "runs", "seconds", "memory, MiB", "images/s"], [])
    for key, mark in marks.items():
        of_config = runs[(runs["task"] == key[0]) & (runs["config_hash"] == key[1])]
        for (arch, device), group in of_config.groupby(["arch", "device"]):
            medians = group[["seconds", "memory", "speed"]].median()
            numbers = [MISSING if pd.isna(value) else f"{value:.0f}" for value in medians]
            grid.rows.append([f"{task_title(key[0])} ({mark})", str(arch), str(device), str(len(group)), *numbers])
    grid.notes = [
        "Medians over the runs; times include reading data and evaluating. Memory: of the GPU, else of the process. "
        "kNN and linear classification reuse features that an earlier command stored.",
        *_configs(rows, marks),
    ]
    return grid


def published_results(papers: pd.DataFrame) -> Grid:
    """Return everything in published.csv."""
    table = papers[["task", "method"]].assign(
        labels=[MISSING if ratio < 0 else f"{ratio:.0%}" for ratio in papers["label_ratio"]],
        epochs=[MISSING if epochs < 0 else f"{epochs:g}" for epochs in papers["epochs"]],
        metric=[METRICS.get(metric, metric) for metric in papers["metric"]],
        value=papers["shown"],
        source=papers["source"],
    )
    return Grid("published", "Published results", [*map(str, table)], table.to_numpy().tolist(), align="l")


def benchmarks(path: Path) -> Grid:
    """Return the ratios of the newest benchmark of pre-training in a JSON-lines file."""
    record = newest(path)
    precision = "bf16" if record["bf16"] else "fp32"
    cpu = f" ({record['cpu']})" if "cpu" in record else ""
    note = (
        f"One run, medians of {record['rounds']} rounds, {record['threads']} CPU threads{cpu}, {precision}, "
        f"torch {record['versions']['torch']}, commit {str(record['git_commit'])[:8]}."
    )
    rows: list[list[Entry | str]] = [[name, f"{ratio:.2f}"] for name, ratio in record["ratios"].items()]
    return Grid("benchmarks", "Speed", ["ours / reference", "ratio"], rows, [note])


def plans(path: Path) -> Grid:
    """Return what each recipe would take, from the record of tests/benchmarks/bench_plans.py."""
    record = json.loads(path.read_text(encoding="utf-8"))
    header = ["recipe", "GPUs", "images/GPU", "GFLOP/image", "GiB/GPU", "MiB sent", "ms/step", "img/s", "hours"]
    grid = Grid("plans", "Plans", header, [])
    for row in record["rows"]:
        numbers = [MISSING] * 7
        if "refused" not in row:
            values = [row["batch"] / row["gpus"], row["flops"] / 1e9, row["memory"], row["network"] * 1024]
            values += [row["seconds"] * 1e3, row["images_per_second"], row["hours"]]
            numbers = [f"{value:,.{digits}f}" for value, digits in zip(values, (0, 1, 1, 0, 0, 0, 1), strict=True)]
        grid.rows.append([row["recipe"], f"{row['gpus']} x {row['gpu']}", *numbers])
    grid.notes = [
        f"Counted on a fake GPU, eager; seconds and hours are estimated. One core of the machine that planned makes "
        f"{record['views_per_second']:.0f} pairs of views of 224 pixels in a second. Without numbers: does not divide."
    ]
    return grid


def task_plans(path: Path) -> Grid:
    """Return what each task of detection and segmentation takes, from the record of tests/benchmarks/bench_plans.py."""
    header = ["task", "parameters, M", "GFLOP", "at pixels", "iterations", "images each", "data"]
    grid = Grid("tasks", "Tasks", header, [])
    for row in json.loads(path.read_text(encoding="utf-8"))["tasks"]:
        flops, (height, width) = row.get("flops", row.get("backbone_flops")), row["image"]
        numbers = [f"{row['parameters'] / 1e6:.1f}", f"{flops / 1e9:.0f}", f"{height} x {width}"]
        data = row["data"][0].split("/")[0]
        grid.rows.append([row["task"], *numbers, f"{row['iterations']:,}", str(row["batch"]), data])
    grid.notes = [
        "The real model of each task, built without memory. GFLOP: a forward pass on a training image, of detectors "
        "that of the backbone with its pyramid. Iterations are those of 8 GPUs for detection, else of one process."
    ]
    return grid


def gpu_steps(path: Path) -> Grid:
    """Return speed, launches and memory of a step on a GPU, from the newest records of tests/benchmarks/bench_gpu.py.

    Records of a stand-in for the GPU, whose kernels do nothing, have no speed and are left out.
    """
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    rows = {row["name"]: row for row in lines if not row["null_gpu"]}
    grid = Grid("gpu", "Steps on a GPU", ["ResNet-50, 224 px, bf16", "ms", "host, ms", "launches", "GiB"], [])
    for name, row in rows.items():
        graphs = row["ran_as"] == "CUDA graphs"  # their memory is a pool of its own
        memory = row["reserved_gib"] if graphs else row["allocated_gib"]
        numbers = [f"{row['step_ms']:.1f}", f"{row['host_ms']:.1f}", f"{row['launches']:,}", f"{memory:.1f}"]
        grid.rows.append([name, *numbers])

    def speed(name: str, reference: str) -> float:
        return float(rows[reference]["step_ms"] / rows[name]["step_ms"])

    machines = sorted(
        {f"{r['environment']['device']}, torch {r['environment']['versions']['torch']}" for r in rows.values()}
    )
    bare = [
        f"{speed(f'{way}{groups}', f'bare encoder, {way}'):.0%}"
        for groups in (", 1 batch-norm group", "")
        for way in ("CUDA graphs", "eager")
    ]
    grid.notes = [
        f"{'; '.join(machines)}. Median of 5 rounds. 256 images and 8 batch-norm groups where nothing else is said. "
        "GiB: the peak of the allocator; with CUDA graphs what it reserves. The losses: forward and backward, 256 "
        "queries, a queue of 65,536.",
        f"Of the speed of the bare encoder, which has no split batch norm, the step has {bare[0]} with CUDA graphs and "
        f"{bare[1]} eager with one batch-norm group, {bare[2]} and {bare[3]} with eight. With CUDA graphs it is "
        f"{speed('CUDA graphs', 'plain step, fp32'):.1f} times as fast as the plain step.",
    ]
    return grid


def help_times(path: Path) -> Grid:
    """Return the CPU seconds of each command's --help, from the first and the newest record of bench_help.py."""
    before = json.loads(path.read_text(encoding="utf-8").splitlines()[0])["seconds"]
    now = newest(path)
    rows: list[list[Entry | str]] = [
        [f"{name}.py", f"{before[name]:.1f}" if name in before else MISSING, f"{seconds:.2f}"]
        for name, seconds in now["seconds"].items()
    ]
    grid = Grid("help", "Start of the commands", ["--help of", "before, s", "now, s"], rows)
    grid.notes = [f"CPU seconds, {now['cpu']}. Before: torch was loaded first; those figures were entered by hand."]
    return grid


def quick_times(path: Path) -> Grid:
    """Return what compare.sh --quick took, from the newest record of each network of bench_quick.py."""
    rows = {row["arch"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    cells: list[list[Entry | str]] = [
        [arch, f"{row['seconds']:.0f}", f"{row['cpu_seconds']:.0f}", f"{row['load']:.1f}"] for arch, row in rows.items()
    ]
    grid = Grid("quick", "compare.sh --quick", ["network", "seconds", "CPU seconds", "load"], cells)
    last = [*rows.values()][-1]
    grid.notes = [
        f"{last['checkpoints']} checkpoints, {last['images']:,} images of 224 px, {last['cores']} cores of "
        f"{last['cpu']}, which other work shared. Load: processes that wanted a core at the "
        "end, those of the comparison included."
    ]
    return grid


def converters(path: Path) -> Grid:
    """Return the round trips of a JSON-lines file: max |Δ| of the features by layout read and framework written."""
    table = pd.read_json(path, lines=True).sort_values("arch", kind="stable")
    deltas = table["max_abs_delta"]
    table["text"] = [MISSING if pd.isna(delta) else f"{delta:.0e}" if delta else "0" for delta in deltas]
    by_layout = table.pivot_table("text", ["read", "made_with"], "written", aggfunc=" / ".join, sort=False)
    table = by_layout.reset_index().rename(columns={"made_with": "made with"})
    return Grid("converters", "Converters", [*map(str, table)], table.to_numpy().tolist())


def mmcv_operations(path: Path) -> Grid:
    """Return the differences of the stand-in for mmcv's operations, of a JSON-lines file of bench_mmcv_ops.py."""
    table = pd.read_json(path, lines=True)
    deltas = ([MISSING if pd.isna(part) else f"{part:.0e}" if part else "0" for part in table[name]] for name in PARTS)
    table["text"] = [" / ".join(pair) for pair in zip(*deltas, strict=True)]
    pairs = table[table["against"].notna()]
    names = zip(pairs["operation"], pairs["against"], pairs["dtype"], strict=True)
    compared = dict(zip(names, pairs["text"], strict=True))
    times = table[table["against"].isna()].set_index("operation")["milliseconds"].to_dict()
    sides = [(against, dtype) for against in ("loops", "compiled mmcv") for dtype in ("float32", "float64")]
    rows: list[list[Entry | str]] = [
        [
            name, *(compared.get((name, *side), MISSING) for side in sides),
            " / ".join(f"{time:.3g}" for time in times.get(name, ())) or MISSING,
        ]
        for name in table["operation"].unique()
    ]  # fmt: skip
    head = [f"{against}, {dtype}" for against, dtype in sides]
    return Grid("mmcv", "mmcv's operations", ["operation", *head, "ms, compiled / here"], rows)


def _columns(rows: pd.DataFrame) -> list[Column]:
    """Return the columns: the leading metric and those of the registry; of an unknown task all that have a title."""
    found: list[Column] = []
    for task, config in columns(rows):
        of_config = rows[(rows["task"] == task) & (rows["config_hash"] == config)]
        leading = of_config.loc[of_config["headline"], "metric"]
        wanted = dict.fromkeys([*leading, *(TASKS[task].metrics if task in TASKS else METRICS)])
        found += [(task, config, metric) for metric in wanted if metric in set(of_config["metric"])]
    return found


def _entries(rows: pd.DataFrame, shown: list[Column]) -> list[list[Entry | str]]:
    """Return the title of each backbone and its entries."""
    found = {key: Entry.of(group) for key, group in rows.groupby(KEYS)}
    return [
        [title, *(found.get((backbone_id, *column), MISSING) for column in shown)]
        for backbone_id, title in titles(rows).items()
    ]


def _marks(configs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the footnote letter of each (task, config_hash)."""
    return {key: letters(index) for index, key in enumerate(dict.fromkeys(configs))}


def letters(index: int) -> str:
    """Return the mark of a footnote: 0 is "a", 25 "z", 26 "aa"."""
    more, last = divmod(index, 26)
    return (letters(more - 1) if more else "") + chr(ord("a") + last)


def _configs(rows: pd.DataFrame, marks: dict[tuple[str, str], str]) -> list[str]:
    """Return the footnotes that say what the configs are."""
    words = rows.drop_duplicates(CONFIG).set_index(CONFIG)["config"]
    return [f"({mark}) {words[key]}." for key, mark in marks.items()]


def _add_published(grid: Grid, backbones: pd.DataFrame, papers: pd.DataFrame, tasks: list[str]) -> None:
    """Add a column for each published result of one of these backbones, and a note with the numbered sources.

    Where several sources report a method, the first line of published.csv counts.
    """
    sources: dict[str, int] = {}
    for paper in dict.fromkeys(TASKS[task].paper or task for task in tasks):
        of_task = papers[papers["task"] == paper]
        for metric in of_task["metric"].unique():
            of_metric = of_task[of_task["metric"] == metric]
            texts = []
            for _, backbone in backbones.iterrows():
                ratio = backbone["label_ratio"]
                fits = (of_metric["label_ratio"] == ratio) | pd.isna(ratio)
                same = of_metric[fits & (of_metric["method"] == backbone["published_as"])]
                if same.empty:
                    texts.append(MISSING)
                else:
                    mark = sources.setdefault(same["source"].iloc[0], len(sources) + 1)
                    texts.append(f"{same['shown'].iloc[0]} [{mark}]")
            if set(texts) != {MISSING}:
                grid.header.append(f"† {PAPER_TITLES.get(paper, paper)}: {METRICS.get(metric, metric)}")
                for row, text in zip(grid.rows, texts, strict=True):
                    row.append(text)
    if sources:
        listed = "; ".join(f"[{index}] {source}" for source, index in sources.items())
        grid.notes.append(
            f"† Published results (ResNet-50, ImageNet), not ours and not comparable with the others: {listed}."
        )
