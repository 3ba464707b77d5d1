"""From a checkpoint to its records, for every benchmark.

A command plans one `Run` per seed; `measure` skips those on record, measures the others and writes their records.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from jsonargparse import Namespace
from tabulate import tabulate

from common.cli import printable
from common.distributed import on_first_rank, rank
from common.files import require_writable, write_atomically, write_text
from common.run_folder import environment
from converters import Backbone, ReadOptions, sources
from results.record import Record, hash_config, path_of, read, write
from transfer.options import require_checkpoint

Metrics = dict[str, float]


def read_checkpoint(
    name: str | None, seed: int, arch: str = "resnet18", options: ReadOptions = sources.DEFAULT
) -> Backbone:
    """Read --ckpt and print the reader's notes on stderr.

    Args:
        name: --ckpt; `random` means random:ARCH, and random weights that name no seed are drawn with `seed`.
        seed: of the benchmark.
        arch: what `random` means.
        options: how to read a file.

    Raises:
        ValueError: no name, no such file, or it holds no ResNet.
    """
    name = require_checkpoint(name)
    if name == "random":
        name = f"random:{arch}"
    if name.startswith("random:") and "seed=" not in name:
        name += f"?seed={seed}"
    reading = sources.read(name, options)
    for note in reading.notes if rank() == 0 else ():
        _note(f"{name}: {note}")
    return reading.backbone


def read_backbone(options: Namespace, seed: int, arch: str = "resnet18") -> Backbone:
    """Read --ckpt as --weights and --arch say; `read_checkpoint` explains the other arguments."""
    backbone = read_checkpoint(options.ckpt, seed, arch, ReadOptions(options.weights, options.arch))
    return replace(backbone, meta=backbone.meta | {"label": options.label}) if options.label else backbone


@cache
def _note(line: str) -> None:
    """Print a line on stderr, once: every seed reads the checkpoint."""
    print(f"note: {printable(line)}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Run:
    """One (checkpoint, task, config, seed) before it is measured.

    Attributes:
        backbone: what is measured.
        task: e.g. "fashion-fpn".
        title: the config in words, for people.
        seed: of the benchmark.
        config: every resolved option that the metrics depend on, and none that they do not.
        headline: name of the main metric.
        out: folder of the run folders.
        packages: whose versions are recorded besides the usual ones.
    """

    backbone: Backbone
    task: str
    title: str
    seed: int
    config: dict[str, Any]
    headline: str
    out: Path
    packages: Sequence[str] = ()

    @property
    def config_hash(self) -> str:
        """Hash of the config; identifies a table's column."""
        return hash_config(self.config)

    @property
    def record_path(self) -> Path:
        """Path of its record, relative to the folder of records."""
        b = self.backbone
        return path_of(b.backbone_id, b.seed, b.meta, self.task, self.config_hash, self.seed)

    @property
    def folder(self) -> Path:
        """Its run folder: OUT/CHECKPOINT-HASH/TASK/seedN."""
        source = self.backbone.source
        path = Path(source.path)
        name = path.parent.name if path.suffix else source.path  # runs/NAME/last.pth, or random:ARCH
        name = re.sub(r"[^\w.=-]+", "-", name or path.stem)
        checkpoint = f"{name}-{source.sha256[:8]}" + f"-{source.variant}" * bool(source.variant)
        return self.out / checkpoint / self.task / f"seed{self.seed}"

    def takes(self) -> dict[str, Any]:
        """Return what the run takes, for --dry-run: parameters, operations, iterations ... of what is trained."""
        return {}

    def record(
        self, measured: Measurement, device: torch.device, per_image: str | None = None, data_check: str | None = None
    ) -> Record:
        """Return the record of its measurement.

        Args:
            measured: its metrics and cost.
            device: where it was computed.
            per_image: name of the file of metrics per image.
            data_check: "passed" or "skipped".
        """
        b, source = self.backbone, self.backbone.source
        facts = b.meta | {"path": source.path, "sha256": source.sha256, "format": source.format, "arch": b.arch}
        facts |= {"weights": source.weights} if source.weights else {}
        more = {"job": os.environ.get("UNIMOCO_JOB"), "data_check": data_check, **measured.data}
        return Record(
            backbone_id=b.backbone_id, backbone=facts, pretrain_seed=b.seed, task=self.task, config=self.config,
            title=self.title, seed=self.seed, metrics=measured.metrics, headline=self.headline, cost=measured.cost,
            environment=environment(device, self.packages) | {name: value for name, value in more.items() if value},
            per_image=per_image,
        )  # fmt: skip


R = TypeVar("R", bound=Run)


@dataclass(frozen=True)
class Measurement:
    """The result of one run.

    Attributes:
        metrics: flat name -> value; fractions between 0 and 1.
        cost: images, seconds before resuming ...; `measure` adds seconds and memory.
        per_image: metric name -> (N,), one value per test image, for a bootstrap; may be empty.
        draw: draws pictures and returns their paths; called after the record is written, so a failure loses nothing.
        data: of a user's data set: its name (`data`), `data_identity`, and the overlaps that were accepted.
    """

    metrics: Metrics
    cost: dict[str, float]
    per_image: Mapping[str, np.ndarray] = field(default_factory=dict)
    draw: Callable[[], Sequence[Path]] | None = None
    data: Mapping[str, str] = field(default_factory=dict)

    def about(self, **data: str) -> Measurement:
        """Return this measurement with more facts about the data; empty ones are left out."""
        return replace(self, data={**self.data, **{name: fact for name, fact in data.items() if fact}})


def on_record(run: Run, folder: Path) -> Record | None:
    """Return the record of the same (checkpoint, task, config, seed) below a folder of records, if there is one."""
    path = folder / run.record_path
    if not path.is_file():
        return None
    record, source = read(path), run.backbone.source
    # Records that name no weights are older than the reading of moving averages.
    weights = record.backbone.get("weights", "" if source.weights == "ema" else source.weights)
    return record if (record.backbone["sha256"], weights) == (source.sha256, source.weights) else None


def measure(
    runs: Iterable[R],
    work: Callable[[R], Measurement],
    options: Namespace,
    device: torch.device,
    check: Callable[[R], str],
) -> list[Record]:
    """Measure run after run; write each record at once, and the receipt at the end.

    Args:
        runs: one per seed, of the same data.
        work: measures one run.
        options: holds `records`, `receipt`, `force`, `dry_run`, `check_data` and `skip_check`.
        device: where it computes; goes into the record.
        check: reads and scores all that a run will read, and raises a ValueError for what is wrong; returns what it
            has checked, in words. It writes nothing but its cache. It is called once, on rank 0, before the first run
            that is not on record.

    Returns:
        One record per run, read from its file where it was on record. With --dry-run none: the plan is printed as JSON.
        With --check-data none: the data are checked.

    Raises:
        ValueError: the data are wrong, or options contradict each other.
    """
    if options.check_data + options.skip_check + options.dry_run > 1:
        raise ValueError("--check-data, --skip-check and --dry-run: give one of them")
    records, data_check = [], None
    for run in runs:
        if options.check_data:
            _check_data(run, check, skip=False)
            break
        if options.dry_run:
            if rank() == 0:
                print(json.dumps(_planned(run)), flush=True)
            continue
        record = None if options.force else on_record(run, options.records)
        if record is None:
            data_check = data_check or _check_data(run, check, options.skip_check)
            record = _measure_one(run, work, options.records, device, data_check)
        elif rank() == 0:
            where = f"on record in {options.records}; --force measures it again"
            print(f"{run.task} seed {run.seed}: {where}", flush=True)
        records.append(record)
    if options.receipt is not None and records and rank() == 0:
        write_text(options.receipt, json.dumps([str(options.records / r.path) for r in records]) + "\n")
    return records


def _check_data(run: R, check: Callable[[R], str], skip: bool) -> str:
    """Check the data of a run on rank 0, and print one line; return "passed" or "skipped"."""
    if skip:
        return "skipped"
    began = time.time()
    checked = on_first_rank(partial(check, run))
    if rank() == 0:
        print(f"{run.task}: data check passed in {time.time() - began:.1f} s: {checked}", flush=True)
    return "passed"


def _planned(run: Run) -> dict[str, Any]:
    return {
        "backbone_id": run.backbone.backbone_id, "task": run.task, "config_hash": run.config_hash, "seed": run.seed,
        "title": run.title, "path": str(run.record_path), "config": run.config, "takes": run.takes(),
    }  # fmt: skip


def _measure_one(
    run: R, work: Callable[[R], Measurement], folder: Path, device: torch.device, data_check: str | None
) -> Record:
    path, began = folder / run.record_path, time.time()
    on_first_rank(partial(require_writable, path.parent))
    measured = work(run)
    cost = {"seconds": time.time() - began, **peak_memory(device), **measured.cost}
    per_image = path.with_suffix(".npz") if measured.per_image else None
    record = run.record(replace(measured, cost=cost), device, per_image.name if per_image else None, data_check)
    if rank() == 0:
        if per_image is not None:
            write_atomically(per_image, partial(_save_arrays, measured.per_image))
        write(folder, record)
        if measured.draw is not None:
            _draw(run, measured.draw)
    return record


def _save_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    with open(path, "wb") as file:  # a name without .npz would get it from numpy
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _draw(run: Run, draw: Callable[[], Sequence[Path]]) -> None:
    """Draw pictures and print where they are; print one line on stderr if that fails."""
    try:
        print("pictures:", ", ".join(map(str, draw())) or "none")
    except Exception as error:  # noqa: BLE001  the record is written, and other seeds wait
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"{run.task} seed {run.seed}: no pictures ({reason})", file=sys.stderr, flush=True)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return this process's peak memory so far in MiB: of the GPU where it computes on one."""
    if device.type == "cuda":
        return {"peak_gpu_mib": torch.cuda.max_memory_allocated(device) / 2**20}
    return {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def summary(records: Sequence[Record], metrics: Sequence[str] | None = None) -> str:
    """Return a table for the screen: each metric in %, mean and sample standard deviation over the records."""
    table = pd.DataFrame([record.metrics for record in records])
    names = [name for name in (metrics or table.columns) if name in table]
    rows = [[n, 100 * table[n].mean(), 100 * table[n].std() if len(table) > 1 else None] for n in names]
    spread = f"std (n = {len(table)})"
    return str(tabulate(rows, headers=["metric", "%", spread], floatfmt=".2f", missingval="–"))
