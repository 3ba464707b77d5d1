"""What every benchmark of a checkpoint shares: options, seeds, run folders, records, and how a mistake is told.

Words used alike by all commands: --ckpt, --seeds, --out, --records, --force; by those that train in a framework also
--task, --data-root, --batch, --no-scale, --resume, --eval-only, --device, --check. A benchmark is a list of `Run`s, one
a seed; `measure` skips those on record, does the others and appends their records.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from tabulate import tabulate

from common.cli import run_cli
from common.distributed import rank, stop
from common.files import write_atomically, write_text
from common.run_folder import PACKAGES, environment
from converters import Backbone, VerificationError, read_backbone
from results.record import Record, hash_config, path_of, read, write

RECORDS = Path("runs/records")  # of a user; results/records is written by the study alone
Metrics = dict[str, float]


def add_options(parser: ArgumentParser) -> None:
    """Add the options that all commands have."""
    parser.add_argument(
        "--ckpt", type=str, help="a checkpoint in any layout that converters reads, random, random:ARCH, "
        "torchvision:NAME or timm:NAME",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="one run each; of random weights the initialisation too"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"), help="where the run folders go")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of records, one JSON file each")
    parser.add_argument("--receipt", type=Path, help="file to write at the end: a JSON list of the record files")
    parser.add_argument("--force", action="store_true", help="measure again what is on record")
    parser.add_argument("--dry-run", action="store_true", help="print as JSON what would be recorded; measure nothing")


class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Leaves the lines of a description as they are."""


def add_training_options(parser: ArgumentParser, data_root: str) -> None:
    """The options of commands that train in a framework; `data_root` says what --data-root is by default."""
    parser.add_argument("--task", type=str, help="what to measure; see below")
    parser.add_argument("--data-root", type=str, help=f"folder of the data sets; default: {data_root}")
    parser.add_argument("--batch", type=int, help="images an iteration over all devices; the schedule follows")
    parser.add_argument("--no-scale", action="store_true", help="keep the published schedule whatever the devices")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was interrupted")
    parser.add_argument("--eval-only", action="store_true", help="evaluate what the run folder holds again")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--check", action="store_true", help="say versions and what works on this machine")


def device_kind(device: str) -> str:
    """What --device asks for: cuda or cpu; auto is cuda where there is a GPU.

    Raises:
        ValueError: another word.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {device}: use auto, cpu or cuda (CUDA_VISIBLE_DEVICES chooses among GPUs)")
    return ("cuda" if torch.cuda.device_count() else "cpu") if device == "auto" else device


def goes_on(folder: Path, begun: bool, check_same: Callable[[], None], options: Namespace, trained: str) -> bool:
    """Whether a run goes on from, or evaluates, what its folder holds; else it begins anew.

    Args:
        folder: of the run.
        begun: whether it holds a checkpoint.
        check_same: raises a ValueError where that was begun with other options.
        options: holds `resume`, `eval_only`, `force` and `records`.
        trained: what a checkpoint holds, e.g. "detector".

    Raises:
        ValueError: there is nothing to evaluate, or no option says what to do with what is there.
    """
    if not begun:
        if options.eval_only:
            raise ValueError(f"--eval-only: {folder} holds no trained {trained}; leave the option out")
        return False
    wanted: bool = options.resume or options.eval_only
    if wanted or not options.force:
        check_same()  # first: a run with other options may well be on record
    if not wanted and not options.force:
        raise ValueError(
            f"{folder} holds a run that is not on record in {options.records}: --resume goes on with it, "
            "--force begins anew"
        )
    return wanted


def read_checkpoint(name: str | None, seed: int, arch: str = "resnet18") -> Backbone:
    """Reads --ckpt; `random` is random:ARCH, and random weights come from `seed` where they name none.

    Raises:
        ValueError: no name, no such file, or no ResNet in it.
    """
    if not name:
        raise ValueError("--ckpt is missing: a checkpoint file, random, torchvision:NAME or timm:NAME")
    if name == "random":
        name = f"random:{arch}"
    if name.startswith("random:") and "seed=" not in name:
        name += f"?seed={seed}"
    return read_backbone(name)


def machine(packages: Sequence[str]) -> str:
    """Versions of the usual distributions and of `packages`, and the devices there are, for --check."""
    rows = [["python", platform.python_version()], ["platform", platform.platform()]]
    for name in (*PACKAGES, *packages):
        try:
            rows.append([name, importlib.metadata.version(name)])
        except importlib.metadata.PackageNotFoundError:
            rows.append([name, "not installed: bash setup.sh"])
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows.append(["CUDA of torch", torch.version.cuda or "none"])
    rows.append(["devices", ", ".join(devices) or f"CPU, {len(os.sched_getaffinity(0))} cores, no GPU"])
    return str(tabulate(rows, disable_numparse=True, tablefmt="plain"))


def require(package: str, install: str = "bash setup.sh") -> None:
    """Raises a ValueError that says which command installs a package that is not there."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{package} is not installed: {install} installs it")


@dataclass(frozen=True)
class Run:
    """One (checkpoint, task, config, seed) before it is measured.

    Attributes:
        backbone: what is measured.
        task: e.g. "fashion-fpn".
        title: the config in words, for people.
        seed: of the benchmark.
        config: every resolved option that the metrics depend on, and none that they do not.
        headline: name of the metric that leads.
        out: folder of run folders.
        packages: distributions whose versions go into the record, besides the usual ones.
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
        """Hash of the config, as its record has it."""
        return hash_config(self.config)

    @property
    def record_path(self) -> Path:
        """Path of its record, relative to the folder of records."""
        b = self.backbone
        return path_of(b.backbone_id, b.seed, b.meta, self.task, self.config_hash, self.seed)

    @property
    def folder(self) -> Path:
        """Its run folder, the same each time: OUT/CHECKPOINT-HASH/TASK/seedN."""
        source = self.backbone.source
        path = Path(source.path)
        name = path.parent.name if path.suffix else source.path  # runs/NAME/last.pth, or random:ARCH
        name = re.sub(r"[^\w.=-]+", "-", name or path.stem)
        return self.out / f"{name}-{source.sha256[:8]}" / self.task / f"seed{self.seed}"

    def record(self, measured: Measurement, device: torch.device, per_image: str | None = None) -> Record:
        """Return its record, once measured."""
        b, source = self.backbone, self.backbone.source
        facts = {"path": source.path, "sha256": source.sha256, "format": source.format, "arch": b.arch, **b.meta}
        job = os.environ.get("UNIMOCO_JOB")
        return Record(
            backbone_id=b.backbone_id, backbone=facts, pretrain_seed=b.seed, task=self.task, config=self.config,
            title=self.title, seed=self.seed, metrics=measured.metrics, headline=self.headline, cost=measured.cost,
            environment=environment(device, self.packages) | ({"job": job} if job else {}), per_image=per_image,
        )  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """What a benchmark gives.

    Attributes:
        metrics: flat name -> value; fractions between 0 and 1.
        cost: images, seconds of earlier starts ...; `measure` adds seconds and memory.
        per_image: metric name -> (N,) one value a test image, for a bootstrap; may be empty.
        draw: draws its pictures; called once the record is written, so that it cannot cost it.
    """

    metrics: Metrics
    cost: dict[str, float]
    per_image: Mapping[str, np.ndarray] = field(default_factory=dict)
    draw: Callable[[], None] | None = None


def on_record(run: Run, folder: Path) -> Record | None:
    """Return the record of the same (checkpoint, task, config, seed) below a folder of records, if there is one."""
    path = folder / run.record_path
    if not path.is_file():
        return None
    record = read(path)
    return record if record.backbone["sha256"] == run.backbone.source.sha256 else None


def measure(
    runs: Iterable[Run], work: Callable[[Run], Measurement], options: Namespace, device: torch.device
) -> list[Record]:
    """Measure run after run; write each record as soon as it is there, and the receipt at the end.

    Args:
        runs: one a seed.
        work: measures one.
        options: holds `records`, `receipt`, `force` and `dry_run`.
        device: where it computes, for the record.

    Returns:
        One record a run, from the file where it was on record; none with --dry-run, which prints the plan as JSON.
    """
    records = []
    for run in runs:
        if options.dry_run:
            if rank() == 0:
                print(json.dumps(_planned(run)), flush=True)
            continue
        record = None if options.force else on_record(run, options.records)
        if record is None:
            record = _measure_one(run, work, options.records, device)
        elif rank() == 0:
            where = f"on record in {options.records}; --force measures it again"
            print(f"{run.task} seed {run.seed}: {where}", flush=True)
        records.append(record)
    if options.receipt is not None and not options.dry_run and rank() == 0:
        write_text(options.receipt, json.dumps([str(options.records / r.path) for r in records]) + "\n")
    return records


def _planned(run: Run) -> dict[str, Any]:
    return {
        "backbone_id": run.backbone.backbone_id, "task": run.task, "config_hash": run.config_hash, "seed": run.seed,
        "title": run.title, "path": str(run.record_path), "config": run.config,
    }  # fmt: skip


def _measure_one(run: Run, work: Callable[[Run], Measurement], folder: Path, device: torch.device) -> Record:
    began = time.time()
    measured = work(run)
    cost = {"seconds": time.time() - began, **peak_memory(device), **measured.cost}
    per_image = (folder / run.record_path).with_suffix(".npz") if measured.per_image else None
    record = run.record(replace(measured, cost=cost), device, per_image.name if per_image else None)
    if rank() == 0:
        if per_image is not None:
            write_atomically(per_image, partial(_save_arrays, measured.per_image))
        write(folder, record)
        if measured.draw is not None:
            draw(run, measured.draw)
    return record


def _save_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    with open(path, "wb") as file:  # a name without .npz would get it from numpy
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def draw(run: Run, pictures: Callable[[], None]) -> None:
    """Draw pictures; print one line if that fails."""
    try:
        pictures()
    except Exception as error:  # noqa: BLE001  the record is written, and other seeds wait
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"{run.task} seed {run.seed}: no pictures ({reason})", file=sys.stderr, flush=True)


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process has taken so far, MiB: of the GPU where it has one."""
    if device.type == "cuda":
        return {"peak_gpu_mib": torch.cuda.max_memory_allocated(device) / 2**20}
    return {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def summary(records: Sequence[Record], metrics: Sequence[str] | None = None) -> str:
    """A table for the screen: each metric in %, mean and sample standard deviation over the records."""
    table = pd.DataFrame([record.metrics for record in records])
    names = [name for name in (metrics or table.columns) if name in table]
    rows = [[n, 100 * table[n].mean(), 100 * table[n].std() if len(table) > 1 else None] for n in names]
    spread = f"std (n = {len(table)})"
    return str(tabulate(rows, headers=["metric", "%", spread], floatfmt=".2f", missingval="–"))


def run_benchmark(program: str, work: Callable[[], None], resumable: bool = True) -> int:
    """Run a benchmark's command; user errors and a model that is not the checkpoint are one line. Return the status."""
    try:
        return run_cli(program, work, resumable, also=(VerificationError,))
    finally:
        stop()
