"""Records and published results as pandas tables.

`frame` has one row per metric of a record. Whatever shows results selects some of its rows; a table has a row per
`backbone_id` and a column per task, `config_hash` and metric.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from common.cli import printable
from results.record import Record, read, read_all
from results.registry import METHODS, PUBLISHED_AS, TASKS, task_order

LONGEST = 400  # characters of a title
CONFIG = ["task", "config_hash"]
RECIPE = ("epochs", "arch", "data", "image_size", "stem")  # facts that one curve over label ratios has in common
TYPES = dict.fromkeys(
    [*CONFIG, "config", "metric", "backbone_id", "method", "published_as", "arch", "title", "recipe", "recipe_id",
     "pretraining", "commit", "device", "per_image", "data", "data_id"], str,
) | {"value": float, "headline": bool, "label_ratio": float, "epochs": float, "seed": int}  # fmt: skip


def load(folders: Iterable[Path]) -> dict[Path, Record]:
    """Read records, folders of them or single files, by file; of one measurement in two places the last one counts.

    Raises:
        ValueError: a folder does not exist, or a record is broken or not in fractions; the message names it.
    """
    found: dict[Path, tuple[Path, Record]] = {}
    for folder in folders:
        if not folder.exists():
            raise ValueError(f"{folder}: the folder of records does not exist")
        if folder.is_dir():
            records = {folder / record.path: record for record in read_all(folder)}
        else:
            records = {folder: read(folder)}
        for path, record in records.items():
            for name in TASKS[record.task].metrics if record.task in TASKS else [record.headline]:
                if not 0 <= record.metrics.get(name, 0) <= 1:
                    raise ValueError(f"{path}: {name}={record.metrics[name]}: expected a fraction between 0 and 1")
            found[record.path] = path, record
    return dict(found.values())


def frame(records: Mapping[Path, Record]) -> pd.DataFrame:
    """Return the metrics of records, by their files, in the order of table rows.

    Returns:
        A row per metric of a record, with the columns TYPES and `cost_NAME` for each cost.
            value: in %. headline: whether the metric leads its record.
            config: title of the config, distinct within a task.
            method, label_ratio, epochs, arch: facts of the backbone; "" or NaN where unknown. title: these in words.
            published_as: its method as published.csv calls it.
            recipe, recipe_id: equal for pre-trainings that differ in labels and seeds alone. `recipe` holds the facts
                RECIPE, which other methods may have too; `recipe_id` is the checkpoint's own hash, where it has one.
            per_image: path of a .npz file, or "".
            data, data_id: name and identity of a user's data set, or "".
    """
    facts: dict[str, dict[str, Any]] = {}
    labels = {one.backbone_id: short(str(label)) for one in records.values() if (label := one.backbone.get("label"))}
    rows = []
    for path, record in records.items():
        environment = record.environment
        try:
            backbone = facts.setdefault(record.backbone_id, _backbone(record))
            per_image = str(path.with_name(record.per_image)) if record.per_image else ""
        except (TypeError, ValueError) as error:  # e.g. a label ratio in words
            raise ValueError(f"{path}: not a record of a backbone: {error}") from error
        about = backbone | {
            "title": labels.get(record.backbone_id, backbone["title"]),
            "task": record.task, "config_hash": record.config_hash, "config": short(record.title),
            "pretraining": record.pretraining, "seed": record.seed, "device": environment.get("device") or "",
            "commit": str(environment.get("git_commit"))[:8] + "+" * bool(environment.get("git_dirty")),
            "per_image": per_image,
            "data": environment.get("data") or "", "data_id": environment.get("data_identity") or "",
            **{f"cost_{name}": value for name, value in record.cost.items()},
        }  # fmt: skip
        rows += [
            about | {"metric": name, "value": 100 * value, "headline": name == record.headline}
            for name, value in record.metrics.items()
        ]
    table = _with_distinct_configs(pd.DataFrame(rows, columns=None if rows else list(TYPES)).astype(TYPES))
    methods = [*METHODS, *sorted(set(table["method"]) - set(METHODS))]
    return table.sort_values(
        ["method", "label_ratio", "epochs", "arch", "backbone_id"], na_position="first",
        key=lambda column: column.map(methods.index) if column.name == "method" else column,
    )  # fmt: skip


def columns(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Return each (task, config_hash) in the order of the registry; configs of a task by number of backbones."""
    backbones = rows.drop_duplicates([*CONFIG, "backbone_id"])
    count = Counter(zip(backbones["task"], backbones["config_hash"], strict=True))
    return sorted(count, key=lambda key: (task_order(key[0]), -count[key], key[1]))


def usual(rows: pd.DataFrame) -> pd.DataFrame:
    """Return, of each task, the config that was measured with the most backbones."""
    chosen = dict(reversed(columns(rows)))
    return rows[rows["config_hash"] == rows["task"].map(chosen)]


def headlines(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the leading metric of each task, by its usual config."""
    rows = usual(rows)
    return rows[rows["headline"]]


def by_ratio(rows: pd.DataFrame) -> dict[float, str]:
    """Return UniMoCo's backbone_id for each label ratio, of the one recipe that has the most ratios.

    Of two backbones with equal facts the one with more pre-trainings counts.
    """
    ours = rows[(rows["method"] == "unimoco") & rows["label_ratio"].notna()]
    count = ours.groupby("backbone_id")["pretraining"].nunique()
    ours = ours.sort_values("backbone_id", key=lambda ids: ids.map(count), kind="stable")
    recipes = [
        dict(zip(recipe["label_ratio"], recipe["backbone_id"], strict=True))
        for _, recipe in ours.groupby(["recipe", "recipe_id"], sort=False)
    ]
    return dict(sorted(max(recipes, key=len, default={}).items()))


def titles(rows: pd.DataFrame) -> dict[str, str]:
    """Return the title of each backbone_id, with the network where there are several, and part of the id if equal."""
    backbones = rows.drop_duplicates("backbone_id").set_index("backbone_id")
    words = backbones["title"]
    if backbones["arch"].nunique() > 1:
        words = words + ", " + backbones["arch"]
    count = Counter(words)
    return {
        str(key): f"{title} [{str(key).rpartition('-')[2][:8]}]" if count[title] > 1 else title
        for key, title in words.items()
    }


def published(path: Path) -> pd.DataFrame:
    """Read results of papers, with the columns of the file and `shown`, the value with one decimal at least.

    The value is in %. Label ratio and epochs are -1 where a paper does not give them. `source` includes the remarks.

    Raises:
        ValueError: a result lacks a source or is not a number; the message names the line.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    texts = table[["label_ratio", "epochs"]].replace("", "-1").assign(value=table["value"])
    numbers = texts.apply(pd.to_numeric, errors="coerce").astype(float)
    broken = numbers.isna().any(axis=1) | ~numbers["value"].between(0, 100) | (table["source"] == "")
    for line, row in enumerate(table.to_numpy(), 2):
        if broken[line - 2]:
            raise ValueError(
                f"{path}:{line}: {','.join(row)}: needs a source, a value from 0 to 100 %, and numbers or nothing as "
                "label ratio and epochs"
            )
    source = table[["source", "mark", "note"]].apply(lambda parts: "; ".join(filter(None, parts)), axis=1)
    shown = [f"{value:.1f}" if round(value, 1) == value else f"{value:g}" for value in numbers["value"]]
    return table.assign(source=source, shown=shown, **{name: numbers[name] for name in numbers})


def short(title: str) -> str:
    """Return a title on one line, with an end."""
    title = printable(title)
    return title if len(title) <= LONGEST else f"{title[:LONGEST]}…"


def _backbone(record: Record) -> dict[str, Any]:
    """Return the facts of a record's backbone."""
    facts, key = record.backbone, record.backbone_id
    method, ratio, epochs = str(facts.get("method") or ""), facts.get("label_ratio"), facts.get("epochs")
    title = short(METHODS.get(method, method) or f"{Path(facts['path']).name} ({facts['format']} layout)")
    if ratio is not None and method != "info_nce":  # which does not use labels
        title += f", {100 * ratio:.3g} % of the labels"
    if epochs is not None:
        title += f", {epochs:g} epochs"
    published_as = PUBLISHED_AS.get(method, method)
    if key.startswith("timm:"):
        title = key
    elif key.startswith("torchvision:"):  # of files without a method only these are known to be supervised
        title, published_as = f"{key}, supervised", "cross_entropy"
    return {
        "backbone_id": key, "method": method, "published_as": published_as, "title": title, "arch": facts["arch"],
        "label_ratio": None if ratio is None else round(float(ratio), 4), "epochs": epochs,
        "recipe": json.dumps([facts.get(name) for name in RECIPE]), "recipe_id": facts.get("recipe_id") or "",
    }  # fmt: skip


def _with_distinct_configs(rows: pd.DataFrame) -> pd.DataFrame:
    """Give each config its most frequent title, with the hash appended to equal titles of a task."""
    configs = rows.groupby(CONFIG)["config"].agg(lambda given: given.mode()[0]).reset_index()
    equal = configs.duplicated(["task", "config"], keep=False)
    configs.loc[equal, "config"] += " (config " + configs["config_hash"] + ")"
    return rows.drop(columns="config").merge(configs, on=CONFIG, how="left")
