"""Record: the result of one measurement, and the whole contract between `transfer` and `results`.

A record is one JSON file, TASK/BACKBONE/CONFIG-HASH_seedN.json below a folder of records. The path follows from what
was measured, so measuring again replaces the file. Identity is by `backbone_id` and `config_hash`; titles are for
people and join nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "int | None": (int, type(None)), "str | None": (str, type(None)),
    "dict[str, Any]": (dict,), "dict[str, float]": (dict,),
}  # fmt: skip
_FACTS = ("path", "sha256", "format", "arch")  # that every backbone has


@dataclass(frozen=True)
class Record:
    """One measurement of one checkpoint.

    Args:
        backbone_id: identifies the pre-training but for its seed: a table's row. Of this project's checkpoints a hash
            of all that decides the weights, of a foreign file its sha256, of a library's weights their name.
        backbone: facts for people: path, sha256, format, arch; method, label_ratio, epochs, label_seed ... where known.
        pretrain_seed: seed of the pre-training or of the random weights; None where unknown.
        task: the benchmark, e.g. "knn", "coco-c4-1x".
        config: every resolved option that the metrics depend on. Its hash is a table's column.
        title: the config in words, for people.
        seed: of the benchmark.
        metrics: flat name -> value, finite; fractions lie between 0 and 1.
        headline: name of the metric that leads, a key of `metrics`.
        cost: seconds, images, memory ...
        environment: versions, device, git commit, and whether there were uncommitted changes.
        per_image: name of a .npz file beside the record with one value a test image, for a bootstrap; None without.

    Raises:
        ValueError: names the field that is malformed.
    """

    backbone_id: str
    backbone: dict[str, Any]
    pretrain_seed: int | None
    task: str
    config: dict[str, Any]
    title: str
    seed: int
    metrics: dict[str, float]
    headline: str
    cost: dict[str, float]
    environment: dict[str, Any]
    per_image: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, types = getattr(self, field.name), _TYPES[str(field.type)]
            if not isinstance(value, types) or isinstance(value, bool):
                raise ValueError(f"{field.name}={value!r}: must be of type {field.type}")
        if not self.metrics:
            raise ValueError("a record without metrics")
        for name, value in [*self.metrics.items(), *self.cost.items()]:
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"{name}={value!r}: must be a finite number")
        if self.headline not in self.metrics:
            raise ValueError(f"headline={self.headline!r}: none of the metrics {', '.join(self.metrics)}")
        for name in _FACTS:
            if not isinstance(self.backbone.get(name), str):
                raise ValueError(f"backbone: {name} is missing")
        for name in ("backbone_id", "task"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty")

    @property
    def config_hash(self) -> str:
        """Hash of the resolved options, 12 hex digits."""
        return hash_config(self.config)

    @property
    def pretraining(self) -> str:
        """What tells the pre-trainings of one backbone_id apart: their seeds, or the file where no seed is known."""
        if self.pretrain_seed is None:
            return str(self.backbone["sha256"])
        return f"seed {self.pretrain_seed}, labels {self.backbone.get('label_seed') or 0}"

    @property
    def path(self) -> Path:
        """TASK/BACKBONE/CONFIG-HASH_seedN.json, relative to the folder of records."""
        label_seed = self.backbone.get("label_seed")
        backbone = self.backbone_id
        if self.pretrain_seed is not None:
            backbone += f"_s{self.pretrain_seed}" + f"_labels{label_seed}" * bool(label_seed)
        return Path(_slug(self.task), _slug(backbone), f"{self.config_hash}_seed{self.seed}.json")

    def matches(self, other: Record) -> bool:
        """Return whether both measure the same file in the same way."""
        return self.path == other.path and self.backbone["sha256"] == other.backbone["sha256"]


def hash_config(config: dict[str, Any]) -> str:
    """Return the hash of resolved options, 12 hex digits; the order of the keys plays no role."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def write(folder: Path, record: Record) -> Path:
    """Write a record atomically below `folder`, over one of the same measurement; return its path."""
    path = folder / record.path
    path.parent.mkdir(parents=True, exist_ok=True)
    content = dataclasses.asdict(record) | {"config_hash": record.config_hash}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)
    return path


def read(path: Path) -> Record:
    """Read one record.

    Raises:
        ValueError: names the file and what is wrong with it.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}, not a record")
        stored = content.pop("config_hash", None)
        fields = {field.name for field in dataclasses.fields(Record)}
        if content.keys() != fields:
            raise ValueError(f"fields {sorted(content.keys() ^ fields)} are missing or unknown")
        record = Record(**content)
        if stored != record.config_hash:
            raise ValueError(f"config_hash is {stored}, its config hashes to {record.config_hash}: edited by hand?")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return record


def read_all(folder: Path) -> list[Record]:
    """Read every record below `folder`, in the order of their paths.

    Raises:
        ValueError: names the file that is broken.
    """
    return [read(path) for path in sorted(folder.glob("*/*/*.json"))]


def _slug(text: str) -> str:
    """Turn an identity into a file name; a hash of it follows where more than colons had to be replaced."""
    text = text.replace(":", "-")
    slug = re.sub(r"[^\w.=+-]+", "-", text)
    return slug if slug == text else f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
