"""Record: the result of one measurement, the only contract between `transfer` and `results`.

A record is one JSON file, TASK/BACKBONE/CONFIG-HASH_seedN.json below a folder of records. The path follows from what
was measured, so repeating a measurement replaces its file. `backbone_id` and `config_hash` are the identity; titles are
only shown, never compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from common.files import write_text

LONGEST = 150  # bytes of an identity in a file name, which has 255 at most
_FACTS = ("path", "sha256", "format", "arch")  # of every backbone


@dataclass(frozen=True)
class Record:
    """One measurement of one checkpoint.

    Args:
        backbone_id: identifies the pre-training apart from its seeds; a row of the tables. For checkpoints of this
            project a hash over everything else that decides the weights, for other files `sha256-HASH`, for library
            weights `timm:NAME` or `torchvision:NAME`, for random weights `random:ARCH`.
        backbone: facts to show: path, sha256, format, arch; method, label_ratio, epochs, label_seed ... where known.
        pretrain_seed: seed of the pre-training or of the random weights; None where unknown.
        task: name of the benchmark, e.g. "knn" or "coco-c4-1x".
        config: every resolved option that the metrics depend on. Task and config hash are a column of the tables.
        title: the config in words, to show.
        seed: seed of the benchmark.
        metrics: flat name -> finite value; fractions lie between 0 and 1.
        headline: name of the leading metric, a key of `metrics`.
        cost: seconds, images, memory ...
        environment: versions, device, git commit, whether there were uncommitted changes; `job`, the study job.
        per_image: name of a .npz file beside the record: metric name -> one value per test image, for the bootstrap.

    Raises:
        ValueError: a field is malformed; the message names it.
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
        hints = get_type_hints(Record)
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            if not isinstance(value, dict if get_origin(hint) is dict else hint) or isinstance(value, bool):
                raise ValueError(f"{field.name}={value!r}: must be of type {field.type}")
        for name, value in [*self.metrics.items(), *self.cost.items()]:
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"{name}={value!r}: must be a finite number")
        if self.headline not in self.metrics:
            raise ValueError(f"headline={self.headline!r}: not one of the metrics: {', '.join(self.metrics) or 'none'}")
        facts = {f"backbone: {name}": self.backbone.get(name) for name in _FACTS}
        for name, value in {"backbone_id": self.backbone_id, "task": self.task, **facts}.items():
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name} is missing")

    @property
    def config_hash(self) -> str:
        """Return the hash of the resolved options, 12 hex digits."""
        return hash_config(self.config)

    @property
    def pretraining(self) -> str:
        """Return what distinguishes pre-trainings of one backbone_id: their seeds, or the file if no seed is known."""
        if self.pretrain_seed is None:
            return str(self.backbone["sha256"])
        return f"seed {self.pretrain_seed}, labels {label_seed(self.backbone)}"

    @property
    def path(self) -> Path:
        """Return TASK/BACKBONE/CONFIG-HASH_seedN.json, relative to the folder of records."""
        return path_of(self.backbone_id, self.pretrain_seed, self.backbone, self.task, self.config_hash, self.seed)

    def matches(self, other: Record) -> bool:
        """Return whether both measure the same file in the same way."""
        return self.path == other.path and self.backbone["sha256"] == other.backbone["sha256"]


def path_of(
    backbone_id: str, pretrain_seed: int | None, facts: dict[str, Any], task: str, config_hash: str, seed: int
) -> Path:
    """Return the path of a record, relative to the folder of records, from what identifies it."""
    if pretrain_seed is not None:
        labels = label_seed(facts)
        backbone_id += f"_s{pretrain_seed}" + f"_labels{labels}" * bool(labels)
    return Path(slug(task), slug(backbone_id), f"{config_hash}_seed{seed}.json")


def label_seed(facts: dict[str, Any]) -> int:
    """Return the seed that chose a backbone's labels; 0 where it makes no difference, because none or all were used."""
    return 0 if facts.get("label_ratio") in (0, 1) else int(facts.get("label_seed") or 0)


def hash_config(config: dict[str, Any]) -> str:
    """Return the hash of resolved options, 12 hex digits; the order of the keys does not matter."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def write(folder: Path, record: Record) -> Path:
    """Write a record atomically below `folder`, replacing one of the same measurement; return its path."""
    content = dataclasses.asdict(record) | {"config_hash": record.config_hash}
    write_text(folder / record.path, json.dumps(content, indent=1) + "\n")
    return folder / record.path


def read(path: Path) -> Record:
    """Read one record.

    Raises:
        ValueError: names the file and what is wrong with it.
    """
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}, not a record")
        stored = content.pop("config_hash", None)
        fields = {field.name for field in dataclasses.fields(Record)}
        if content.keys() != fields:
            raise ValueError(f"fields {sorted(content.keys() ^ fields)} are missing or unknown")
        record = Record(**content)
        label_seed(record.backbone)  # a number
        if stored != record.config_hash:
            raise ValueError(f"config_hash is {stored}, its config hashes to {record.config_hash}: edited by hand?")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a record: {error}") from error
    return record


def read_all(folder: Path) -> list[Record]:
    """Read every record below `folder`, in the order of their paths.

    Raises:
        ValueError: a file is broken or not where its content belongs, such as a copy; the message names it.
    """
    records = []
    for path in sorted(folder.glob("*/*/*.json")):
        record = read(path)
        if path != folder / record.path:
            raise ValueError(f"{path}: this is the record {record.path}: move or delete the file")
        records.append(record)
    return records


def newest(path: Path) -> dict[str, Any]:
    """Return the last entry of a JSON-lines file, to which a benchmark adds."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    return content


def slug(text: str) -> str:
    """Return an identity as a file name, with a hash of it where more than colons had to be replaced."""
    text = text.replace(":", "-")
    name = re.sub(r"[^\w.=+-]+|^\.+", "-", text).encode()[:LONGEST].decode(errors="ignore")
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return name if name == text else f"{name}-{digest[:6]}"
