"""Records as one table of numbers, grouped by pre-training."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from results.record import Record, read
from results.tasks import TASKS

METHODS = {
    "random": "random initialisation", "unimoco": "UniMoCo", "info_nce": "InfoNCE (MoCo v2)", "supcon": "SupCon",
    "supcon_in": "SupCon, mean inside the logarithm", "cross_entropy": "cross-entropy",
    "torchvision": "torchvision's weights",
}  # fmt: skip

# What published.csv calls methods that checkpoints name otherwise. torchvision's weights are a supervised network's.
PAPERS_NAMES = {"mocov3": "moco_v3", "barlowtwins": "barlow_twins", "torchvision": "cross_entropy"}


@dataclass(frozen=True, order=True)
class Pretraining:
    """What checkpoints of one row have in common.

    Attributes:
        place: where the row stands.
        method: "unimoco", "random" ...
        label_ratio: share of labels kept, -1 where that is not known.
        epochs: of pre-training, -1 where that is not known.
        arch: "resnet18" ...
        settings: hash of its views, model, optimiser and number of images, empty where that is not known.
    """

    place: int
    method: str
    label_ratio: float
    epochs: float
    arch: str
    settings: str = ""

    @staticmethod
    def of(checkpoint: dict[str, Any]) -> Pretraining:
        """The row that a record's checkpoint belongs to."""
        method = str(checkpoint.get("method") or checkpoint["format"])
        place = list(METHODS).index(method) if method in METHODS else len(METHODS)
        ratio, epochs = checkpoint.get("label_ratio"), checkpoint.get("epochs")
        return Pretraining(
            place, method, -1.0 if ratio is None else round(float(ratio), 4),
            -1.0 if epochs is None else float(epochs), str(checkpoint["arch"]),
            str(checkpoint.get("settings") or ""),
        )  # fmt: skip

    def is_of(self, papers: pd.DataFrame) -> pd.Series[bool]:
        """Which rows of `published` are of this method, with as many labels where that is known."""
        same = papers["method"] == PAPERS_NAMES.get(self.method, self.method)
        return same & ((papers["label_ratio"] == self.label_ratio) | (self.label_ratio < 0))

    @property
    def title(self) -> str:
        """For people."""
        parts = [METHODS.get(self.method, self.method)]
        if self.label_ratio >= 0 and self.method != "info_nce":  # which does not use them
            parts.append(f"{100 * self.label_ratio:.3g} % of the labels")
        if self.epochs >= 0:
            parts.append(f"{self.epochs:g} epochs")
        return ", ".join(parts)


def load(folder: Path) -> list[Record]:
    """Every record of a folder's *.jsonl, the newest of those that measure the same.

    A checkpoint that was trained again in its old place replaces the one before: only the newest file's records count.

    Raises:
        ValueError: names the file and line of a broken record or an unknown task.
    """
    kept: list[Record] = []
    for path in sorted(folder.glob("*.jsonl")):
        newest: dict[tuple[Any, ...], Record] = {}
        files: dict[tuple[Any, ...], str] = {}
        for record in read(path, TASKS):
            _check_shares(path, record)
            ckpt = record.checkpoint
            place = ckpt.get("path", ckpt["sha256"]), replace(Pretraining.of(ckpt), settings=""), ckpt.get("seed")
            files[place] = ckpt["sha256"]
            newest[place, *record.key] = record
        kept += [record for (place, sha256, *_), record in newest.items() if files[place] == sha256]
    return kept


def _settings(records: Collection[Record]) -> dict[Pretraining, Pretraining]:
    """Rows of the records; one of an older checkpoint, whose settings are unknown, joins the only known ones."""
    rows = {Pretraining.of(record.checkpoint) for record in records}
    known: dict[Pretraining, set[str]] = defaultdict(set)
    for row in rows:
        known[replace(row, settings="")] |= {row.settings} - {""}
    only = {row: next(iter(found)) for row, found in known.items() if len(found) == 1}
    return {row: row if row.settings else replace(row, settings=only.get(row, "")) for row in rows}


def _check_shares(path: Path, record: Record) -> None:
    for name in TASKS[record.task].metrics:
        if not 0 <= record.metrics.get(name, 0.0) <= 1:
            raise ValueError(f"{path}: {record.task}, {name}={record.metrics[name]}: a share lies between 0 and 1")


def frame(records: Collection[Record]) -> pd.DataFrame:
    """One row a metric: table, task, protocol, pretraining, seed, metric, value (in %), seconds, commit ...

    `trained` tells pre-trainings of one row apart: by their seed where it is known, else by their file. Records of one
    protocol whose options differ all the same, in what its words leave out, are of different protocols: the hash of
    the rarer options stands behind the words.
    """
    options = Counter((record.task, record.protocol, record.config_hash) for record in records)
    usual: dict[tuple[str, str], str] = {}
    for task, protocol, config_hash in sorted(options, key=lambda key: (-options[key], key)):
        usual.setdefault((task, protocol), config_hash)
    settings = _settings(records)
    rows = []
    for record in records:
        ckpt, environment = record.checkpoint, record.environment
        differs = record.config_hash != usual[record.task, record.protocol]
        about = {
            "task": record.task, "table": TASKS[record.task].table, "seed": record.seed,
            "protocol": record.protocol + f" (other options: {record.config_hash})" * differs,
            "pretraining": settings[Pretraining.of(ckpt)], "sha256": ckpt["sha256"],
            "trained": ckpt["sha256"] if ckpt.get("seed") is None else f"seed {ckpt['seed']}",
            "commit": str(environment.get("git_commit"))[:8] + "+" * bool(environment.get("git_dirty")),
            "device": environment.get("device"), **{f"cost_{k}": v for k, v in record.cost.items()},
        }  # fmt: skip
        rows += [about | {"metric": name, "value": 100 * value} for name, value in record.metrics.items()]
    columns = ["task", "table", "protocol", "seed", "pretraining", "sha256", "trained", "commit", "device"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=[*columns, "metric", "value"])


def usual(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each task only the protocol that most pre-trainings were measured with."""
    known = rows.groupby(["task", "protocol"])["pretraining"].nunique()
    most = {task: known[task].idxmax() for task in known.index.get_level_values("task").unique()}
    return rows[rows["protocol"] == rows["task"].map(most)]


def headlines(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each task only the first metric, by the usual protocol."""
    rows = usual(rows)
    return rows[rows["metric"] == rows["task"].map({name: task.metrics[0] for name, task in TASKS.items()})]


def by_ratio(rows: pd.DataFrame) -> dict[float, Pretraining]:
    """UniMoCo's pre-training for each share of labels: the recipe with the most shares, its most frequent settings."""
    unimoco = sorted({p for p in rows["pretraining"] if p.method == "unimoco"})
    recipes = Counter((p.epochs, p.arch) for p in unimoco).most_common(1)
    settings = Counter(p.settings for p in unimoco if p.settings)
    return {
        p.label_ratio: p
        for p in sorted(unimoco, key=lambda p: settings[p.settings])
        if (p.epochs, p.arch) == recipes[0][0]
    }


def published(path: Path) -> pd.DataFrame:
    """Figures of the papers: task, method, label_ratio, epochs, metric, value (in %), source, mark, note.

    Raises:
        ValueError: a figure without a source, or no number.
    """
    table = pd.read_csv(path, keep_default_na=False)
    for line, row in enumerate(table.to_dict("records"), 2):
        try:
            if not row["source"]:
                raise ValueError("no source")
            if not 0 <= float(row["value"]) <= 100:
                raise ValueError(f"value {row['value']} is not in %")
            for name in ("label_ratio", "epochs"):
                float(row[name] or -1)
        except ValueError as error:
            raise ValueError(f"{path}:{line}: {error}") from error
    return table.assign(
        **{name: pd.to_numeric(table[name].replace("", "-1")).astype(float) for name in ("label_ratio", "epochs")}
    )
