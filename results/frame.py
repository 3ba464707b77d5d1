"""Records as one table of numbers, with a row per metric, and the facts of the backbones that were measured."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from results.record import Record, read_all
from results.registry import TASKS, task_order

METHODS = {
    "random": "random initialisation", "unimoco": "UniMoCo", "info_nce": "InfoNCE (MoCo v2)", "supcon": "SupCon",
    "supcon_in": "SupCon, mean inside the logarithm", "cross_entropy": "cross-entropy",
}  # fmt: skip
PUBLISHED_AS = {"mocov3": "moco_v3", "barlowtwins": "barlow_twins"}  # method in checkpoints -> in published.csv
RECIPE = ("epochs", "arch", "data", "image_size", "stem", "recipe_id")  # facts that one curve over label ratios shares
COLUMNS = (
    "task", "config_hash", "backbone_id", "pretraining", "seed", "metric", "value", "headline", "commit", "device",
    "per_image",
)  # fmt: skip


@dataclass(frozen=True)
class BackboneFacts:
    """What is known of a backbone_id; its row shows it.

    Attributes:
        backbone_id: the identity of the row.
        method: "unimoco", "random" ...; empty where unknown.
        label_ratio: fraction of the labels used; None where unknown.
        epochs: of pre-training; None where unknown.
        arch: "resnet18" ...
        recipe: the facts RECIPE; equal for pre-trainings that differ in labels and seeds alone.
        file: name and layout of the file.
    """

    backbone_id: str
    method: str
    label_ratio: float | None
    epochs: float | None
    arch: str
    recipe: tuple[Any, ...]
    file: str

    @staticmethod
    def of(record: Record) -> BackboneFacts:
        """Return the facts of a record's backbone."""
        facts = record.backbone
        ratio, epochs = facts.get("label_ratio"), facts.get("epochs")
        return BackboneFacts(
            record.backbone_id, str(facts.get("method") or ""), None if ratio is None else round(float(ratio), 4),
            None if epochs is None else float(epochs), facts["arch"],
            tuple(facts.get(name) for name in RECIPE),
            f"{Path(facts['path']).name} ({facts['format']} layout)",
        )  # fmt: skip

    @property
    def order(self) -> tuple[Any, ...]:
        """Return the sort key of rows."""
        known = list(METHODS).index(self.method) if self.method in METHODS else len(METHODS)
        numbers = (-1 if value is None else value for value in (self.label_ratio, self.epochs))
        return known, self.method, *numbers, self.arch, self.backbone_id

    @property
    def title(self) -> str:
        """Return the facts in words; those of two backbones may be equal."""
        if self.backbone_id.startswith(("timm:", "torchvision:")):
            return self.backbone_id + ", supervised" * self.backbone_id.startswith("torchvision:")
        parts = [METHODS.get(self.method, self.method) or self.file]
        if self.label_ratio is not None and self.method != "info_nce":  # which does not use labels
            parts.append(f"{100 * self.label_ratio:.3g} % of the labels")
        if self.epochs is not None:
            parts.append(f"{self.epochs:g} epochs")
        return ", ".join(parts)

    def is_published_in(self, papers: pd.DataFrame) -> pd.Series[bool]:
        """Return which rows of `published` are of the same method, with as many labels where that is known.

        The method is known from the checkpoint alone; of files without one only torchvision's own weights are known
        to be supervised.
        """
        library = self.backbone_id.startswith("torchvision:")
        method = "cross_entropy" if library else PUBLISHED_AS.get(self.method, self.method)
        same = (papers["method"] == method) & (method != "")
        return same if self.label_ratio is None else same & (papers["label_ratio"] == self.label_ratio)


@dataclass(frozen=True)
class Measurements:
    """What the records say.

    Attributes:
        rows: one row per metric of a record, with the columns COLUMNS and a `cost_NAME` for each cost; values in %.
        backbones: backbone_id -> facts, in the order of table rows.
        configs: (task, config_hash) -> title, distinct within a task.
    """

    rows: pd.DataFrame
    backbones: dict[str, BackboneFacts]
    configs: dict[tuple[str, str], str]

    def where(self, mask: pd.Series[bool]) -> Measurements:
        """Return the measurements of some rows and the backbones that are left."""
        rows = self.rows[mask]
        left = set(rows["backbone_id"])
        return replace(self, rows=rows, backbones={key: one for key, one in self.backbones.items() if key in left})

    def of_backbones(self, chosen: Iterable[BackboneFacts]) -> Measurements:
        """Return the measurements of some backbones."""
        return self.where(self.rows["backbone_id"].isin([one.backbone_id for one in chosen]))

    def of_task(self, task: str) -> Measurements:
        """Return the measurements of one task."""
        return self.where(self.rows["task"] == task)

    def columns(self) -> list[tuple[str, str]]:
        """Return each (task, config_hash) in the order of the registry; configs of a task by number of backbones."""
        count = Counter(
            (str(task), str(config))
            for task, config, _ in set(zip(*(self.rows[name] for name in COLUMNS[:3]), strict=True))
        )
        return sorted(count, key=lambda key: (task_order(key[0]), -count[key], key[1]))

    def usual(self) -> Measurements:
        """Return, of each task, the config that was measured with the most backbones."""
        chosen = dict(reversed(self.columns()))
        return self.where(self.rows["config_hash"] == self.rows["task"].map(chosen))

    def headlines(self) -> Measurements:
        """Return the leading metric of each task, by its usual config."""
        usual = self.usual()
        return usual.where(usual.rows["headline"].astype(bool))

    def by_ratio(self) -> dict[float, str]:
        """Return UniMoCo's backbone_id for each label ratio, of the one recipe that has the most ratios.

        Of two backbones with equal facts the one with more pre-trainings counts.
        """
        recipes: dict[tuple[Any, ...], dict[float, str]] = defaultdict(dict)
        count = self.rows.groupby("backbone_id")["pretraining"].nunique().to_dict()
        for one in sorted(self.backbones.values(), key=lambda one: count[one.backbone_id]):
            if one.method == "unimoco" and one.label_ratio is not None:
                recipes[one.recipe][one.label_ratio] = one.backbone_id
        return dict(sorted(max(recipes.values(), key=len, default={}).items()))

    def titles(self) -> dict[str, str]:
        """Return the titles of the rows by backbone_id, with a short hash appended to equal ones."""
        several = len({one.arch for one in self.backbones.values()}) > 1
        titles = {key: one.title + f", {one.arch}" * several for key, one in self.backbones.items()}
        count = Counter(titles.values())
        return {key: title + f" [{_short(key)}]" * (count[title] > 1) for key, title in titles.items()}


def load(folders: Iterable[Path]) -> dict[Path, Record]:
    """Read the records of several folders by their files; of one measurement in two folders the last one counts.

    Raises:
        ValueError: a folder does not exist or a record is broken; the message names it.
    """
    found: dict[Path, tuple[Path, Record]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: the folder of records does not exist")
        for record in read_all(folder):
            _check_fractions(folder / record.path, record)
            found[record.path] = (folder / record.path, record)
    return dict(found.values())


def frame(records: Mapping[Path, Record]) -> Measurements:
    """Turn records into measurements.

    Args:
        records: by their files.
    """
    rows = []
    for path, record in records.items():
        environment = record.environment
        about = {
            "task": record.task, "config_hash": record.config_hash, "backbone_id": record.backbone_id,
            "pretraining": record.pretraining, "seed": record.seed, "device": environment.get("device"),
            "commit": str(environment.get("git_commit"))[:8] + "+" * bool(environment.get("git_dirty")),
            "per_image": record.per_image and str(path.with_name(record.per_image)),
            **{f"cost_{name}": value for name, value in record.cost.items()},
        }  # fmt: skip
        rows += [
            about | {"metric": name, "value": 100 * value, "headline": name == record.headline}
            for name, value in record.metrics.items()
        ]
    facts = {record.backbone_id: BackboneFacts.of(record) for record in [*records.values()][::-1]}
    backbones = {one.backbone_id: one for one in sorted(facts.values(), key=lambda one: one.order)}
    return Measurements(pd.DataFrame(rows, columns=None if rows else COLUMNS), backbones, _configs(records.values()))


def published(path: Path) -> pd.DataFrame:
    """Read results of papers: task, method, label_ratio, epochs, metric, value (in %), source, mark, note.

    Label ratio and epochs are -1 where a paper does not give them.

    Raises:
        ValueError: a result lacks a source or is not a number; the message names the line.
    """
    table = pd.read_csv(path, keep_default_na=False)
    for line, row in enumerate(table.to_dict("records"), 2):
        try:
            if not row["source"]:
                raise ValueError("the source is missing")
            if not 0 <= float(row["value"]) <= 100:
                raise ValueError(f"value {row['value']} is not in %")
            for name in ("label_ratio", "epochs"):
                float(row[name] or -1)
        except ValueError as error:
            raise ValueError(f"{path}:{line}: {error}") from error
    return table.assign(
        **{name: pd.to_numeric(table[name].replace("", "-1")).astype(float) for name in ("label_ratio", "epochs")}
    )


def _configs(records: Iterable[Record]) -> dict[tuple[str, str], str]:
    """Return the most frequent title of each config, with the hash appended to equal titles of a task."""
    given: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for record in records:
        given[record.task, record.config_hash][record.title] += 1
    titles = {key: min(found, key=lambda title: (-found[title], title)) for key, found in given.items()}
    count = Counter((task, title) for (task, _), title in titles.items())
    return {key: title + f" (config {key[1]})" * (count[key[0], title] > 1) for key, title in titles.items()}


def _check_fractions(path: Path, record: Record) -> None:
    shown = TASKS[record.task].metrics if record.task in TASKS else (record.headline,)
    for name in shown:
        if not 0 <= record.metrics.get(name, 0.0) <= 1:
            raise ValueError(f"{path}: {name}={record.metrics[name]}: expected a fraction between 0 and 1")


def _short(backbone_id: str) -> str:
    """Return the end of an identity, which distinguishes it from others with the same title."""
    return backbone_id.rpartition("-")[2][:8]
