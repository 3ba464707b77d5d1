"""Records of a small invented study."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from results.frame import frame
from results.record import Record, write


def record(
    method: str | None, pretrain_seed: int | None, metrics: dict[str, float], task: str = "linear", **more: Any
) -> Record:
    """Return a record.

    Args:
        method: of the pre-training; None: the file does not say.
        pretrain_seed: of the pre-training; None: unknown.
        metrics: the first one leads.
        task: name of the benchmark.
        **more: fields of the record; anything else is a fact of the backbone, e.g. label_ratio.
    """
    fields = {name: more.pop(name) for name in Record.__dataclass_fields__.keys() & more.keys()}
    decides = {name: value for name, value in more.items() if name != "label_seed"}
    digest = hashlib.sha256(repr((method, sorted(decides.items()))).encode()).hexdigest()
    identity = "random:resnet18" if method == "random" else f"{method}-{digest[:12]}"
    facts = {"path": "last.pth", "sha256": f"{digest}{pretrain_seed}", "format": "unimoco-suite", "arch": "resnet18"}
    facts |= more
    values: dict[str, Any] = {
        "backbone_id": identity, "backbone": facts | ({"method": method} if method else {}),
        "pretrain_seed": pretrain_seed, "task": task, "config": {}, "title": f"{task}, some config", "seed": 0,
        "metrics": metrics, "headline": next(iter(metrics)), "cost": {"seconds": 60.0, "images": 600.0},
        "environment": {"git_commit": "0" * 40, "device": "cpu"},
    }  # fmt: skip
    return Record(**values | fields)


def found_in(records: Iterable[Record]) -> pd.DataFrame:
    """Return the rows of records that were never written."""
    return frame({record.path: record for record in records})


def write_all(folder: Path, records: Iterable[Record]) -> None:
    """Write records below a folder."""
    for one in records:
        write(folder, one)


@pytest.fixture
def study() -> list[Record]:
    """Two seeds of random weights and of three label ratios; linear top-1 is 40, 50, 60 and 70 %, each ± 0.01."""
    records = []
    for seed, off in ((0, -0.0001), (1, 0.0001)):
        records.append(record("random", seed, {"top1": 0.4 + off}))
        records += [
            record("unimoco", seed, {"top1": 0.5 + 0.1 * i + off, "top5": 0.9}, label_ratio=ratio, epochs=4.0)
            for i, ratio in enumerate((0.0, 0.1, 1.0))
        ]
    return records
