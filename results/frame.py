"""Records as one table of numbers, grouped by pre-training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from results.record import Record, read
from results.tasks import TASKS

METHODS = {
    "random": "random initialisation", "unimoco": "UniMoCo", "info_nce": "InfoNCE (MoCo v2)", "supcon": "SupCon",
    "supcon_in": "SupCon, mean inside the logarithm", "cross_entropy": "cross-entropy",
}  # fmt: skip


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

    A training that is done again with its old path and seed is no further run: its newest measurement counts.

    Raises:
        ValueError: names the file and line of a broken record or an unknown task.
    """
    newest: dict[tuple[Any, ...], Record] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for record in read(path, TASKS):
            ckpt = record.checkpoint
            who = ckpt.get("path", ckpt["sha256"]), Pretraining.of(ckpt), ckpt.get("seed")
            newest[who, *record.key[1:]] = record
    return list(newest.values())


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row a metric: table, task, protocol, pretraining, seed, metric, value (in %), seconds, commit ..."""
    rows = []
    for record in records:
        about = {
            "task": record.task, "table": TASKS[record.task].table, "protocol": record.protocol, "seed": record.seed,
            "pretraining": Pretraining.of(record.checkpoint), "sha256": record.checkpoint["sha256"],
            "commit": str(record.environment.get("git_commit"))[:8] + "+" * bool(record.environment.get("git_dirty")),
            "device": record.environment.get("device"), **{f"cost_{k}": v for k, v in record.cost.items()},
        }  # fmt: skip
        rows += [about | {"metric": name, "value": 100 * value} for name, value in record.metrics.items()]
    columns = ["task", "table", "protocol", "seed", "pretraining", "sha256", "commit", "device", "metric", "value"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)


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
        except ValueError as error:
            raise ValueError(f"{path}:{line}: {error}") from error
    return table.assign(
        label_ratio=pd.to_numeric(table["label_ratio"], errors="coerce").fillna(-1.0),
        epochs=pd.to_numeric(table["epochs"], errors="coerce").fillna(-1.0),
    )
