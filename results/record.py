"""Record: one line of results/records/*.jsonl for each (checkpoint, task, protocol, seed).

Lines are appended with one write to a file opened for appending and locked, so that several processes may do so at
once; readers check every line and name a broken one.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS: dict[str, type] = {"str": str, "int": int, "dict": dict}


@dataclass(frozen=True)
class Record:
    """What was measured.

    Args:
        task: what kind of benchmark, e.g. "knn".
        protocol: its settings in words and numbers; equal for figures that may be compared.
        checkpoint: of what: path, sha256, format, and what is known of its training (method, arch, label_ratio ...).
        seed: of the benchmark.
        metrics: flat name -> value; shares lie between 0 and 1.
        cost: wall seconds, images ...
        config: resolved options of the benchmark.
        environment: versions, device, git commit and whether there were uncommitted changes.
    """

    task: str
    protocol: str
    checkpoint: dict[str, Any]
    seed: int
    metrics: dict[str, float]
    cost: dict[str, float]
    config: dict[str, Any]
    environment: dict[str, Any]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), KINDS[str(field.type).partition("[")[0]]
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"{field.name}={value!r}: must be of type {kind.__name__}")
        if not self.metrics:
            raise ValueError("a record without metrics")
        for name, value in [*self.metrics.items(), *self.cost.items()]:
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"{name}={value!r}: must be a finite number")
        for name in ("sha256", "format", "arch"):
            if not isinstance(self.checkpoint.get(name), str):
                raise ValueError(f"checkpoint: {name} is missing")

    @property
    def config_hash(self) -> str:
        """Hash of the resolved options."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What makes two records the same measurement."""
        return self.checkpoint["sha256"], self.task, self.seed, self.config_hash


def append(path: Path, record: Record) -> None:
    """Adds a record as one line; safe with other processes doing the same. Half a line at the end is closed first."""
    append_line(path, dataclasses.asdict(record) | {"config_hash": record.config_hash})


def append_line(path: Path, content: dict[str, Any]) -> None:
    """Adds a line of JSON, in one write under a lock; half a line that a crash has left is closed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        torn = bool(end) and os.pread(file.fileno(), 1, end - 1) != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(content).encode() + b"\n")


def read(path: Path, tasks: Collection[str] | None = None) -> list[Record]:
    """All records of a file, in order; none where there is no file.

    Args:
        path: a *.jsonl file.
        tasks: names that a record's task may have; None: any.

    Raises:
        ValueError: names the file and line that is broken.
    """
    if not path.exists():
        return []
    fields = {field.name for field in dataclasses.fields(Record)}
    records = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"a {type(row).__name__}, no record")
            row.pop("config_hash", None)
            if row.keys() != fields:
                raise ValueError(f"fields {sorted(row.keys() ^ fields)} are missing or unknown")
            record = Record(**row)
            if tasks is not None and record.task not in tasks:
                raise ValueError(f"task {record.task!r} is unknown; results/tasks.py lists the tasks")
            records.append(record)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return records
