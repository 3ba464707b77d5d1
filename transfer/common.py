"""What every benchmark of a checkpoint shares: options, seeds, run folders, records, and how a mistake is told.

Words used alike by all commands: --ckpt, --seeds, --out, --records, --force; by those that train in a framework also
--task, --data-root, --batch, --no-scale, --resume, --eval-only, --device, --check. A benchmark is a list of `Run`s, one
a seed; `measure` skips those on record, does the others and appends their records.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from tabulate import tabulate

from converters import Backbone, VerificationError, read_backbone
from pretrain.distributed import rank
from pretrain.images import CorruptImageError
from pretrain.run_folder import PACKAGES, environment
from results.record import Record, append, read

USER_ERROR, INTERRUPTED = 2, 130
RECORDS = Path("results/records")
Metrics = dict[str, float]


def add_options(parser: ArgumentParser, records: str) -> None:
    """The options that all commands have; `records` names the file in results/records."""
    parser.add_argument(
        "--ckpt", type=str, help="a checkpoint in any layout that converters reads, random, random:ARCH, "
        "torchvision:NAME or timm:NAME",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="one run each; of random weights the initialisation too"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"), help="where the run folders go")
    parser.add_argument("--records", type=Path, default=RECORDS / records, help="file to append to")
    parser.add_argument("--force", action="store_true", help="measure again what is on record")


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
    """One (checkpoint, task, seed) before it is measured.

    Attributes:
        backbone: what is measured.
        task: e.g. "fashion-fpn".
        protocol: its settings in words and numbers; equal for figures that may be compared.
        seed: of the benchmark.
        config: every resolved option that the figures depend on, and none that they do not.
        out: folder of run folders.
        packages: distributions whose versions go into the record, besides the usual ones.
    """

    backbone: Backbone
    task: str
    protocol: str
    seed: int
    config: dict[str, Any]
    out: Path
    packages: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        """Its run folder, the same each time: OUT/CHECKPOINT-HASH/TASK/seedN."""
        source = self.backbone.source
        path = Path(source.path)
        name = path.parent.name if path.suffix else source.path  # runs/NAME/last.pth, or random:ARCH
        name = re.sub(r"[^\w.=-]+", "-", name or path.stem)
        return self.out / f"{name}-{source.sha256[:8]}" / self.task / f"seed{self.seed}"

    def record(self, metrics: Metrics, cost: dict[str, float], device: torch.device) -> Record:
        """Its record, once measured."""
        source = self.backbone.source
        checkpoint = {
            "path": source.path, "sha256": source.sha256, "format": source.format, "arch": self.backbone.arch,
            **self.backbone.meta,
        }  # fmt: skip
        return Record(
            task=self.task, protocol=self.protocol, checkpoint=checkpoint, seed=self.seed, metrics=metrics, cost=cost,
            config=self.config, environment=environment(device, self.packages),
        )  # fmt: skip


def on_record(run: Run, path: Path) -> Record | None:
    """The newest record of the same (checkpoint, task, seed, config), if there is one."""
    key = run.record({"none": 0.0}, {}, torch.device("cpu")).key
    same = [record for record in read(path) if record.key == key]
    return same[-1] if same else None


def measure(
    runs: Iterable[Run],
    do: Callable[[Run], tuple[Metrics, dict[str, float]]],
    options: Namespace,
    device: torch.device,
    after: Callable[[Run], None] | None = None,
) -> list[Record]:
    """Measures run after run, appending each record as soon as it is there.

    Args:
        runs: one a seed.
        do: measures one; returns metrics (shares between 0 and 1) and cost besides the seconds.
        options: holds `records` and `force`.
        device: where it computes, for the record.
        after: called once a record is written, where it was: draws pictures, which may fail without harm to it.

    Returns:
        One record a run, from the file where it was on record.
    """
    records = []
    for run in runs:
        known = None if options.force else on_record(run, options.records)
        if known is not None:
            if rank() == 0:
                where = f"on record in {options.records}; --force measures it again"
                print(f"{run.task} seed {run.seed}: {where}", flush=True)
            records.append(known)
            continue
        began = time.time()
        metrics, cost = do(run)
        record = run.record(metrics, {"seconds": time.time() - began, **peak_memory(device), **cost}, device)
        if rank() == 0:
            append(options.records, record)
            if after is not None:
                draw(run, after)
        records.append(record)
    return records


def draw(run: Run, after: Callable[[Run], None]) -> None:
    """Calls `after`; says in one line what went wrong there."""
    try:
        after(run)
    except Exception as error:  # noqa: BLE001  the figures are on record, and other seeds wait
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


def told(program: str, work: Callable[[], None], resumable: bool = True) -> int:
    """Runs `work`; a mistake in the input is one line on stderr.

    Args:
        program: its name.
        work: what to run.
        resumable: whether the command has a --resume that goes on where it was interrupted.

    Returns:
        0; 2 for a mistake in the input, an unreadable image, a file that cannot be read or written, a model that is
        not the checkpoint; 130 when interrupted.
    """
    try:
        work()
    except (ValueError, VerificationError, CorruptImageError) as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        print(f"{program}: error: {' '.join(reason.split())}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        how = "; the same command with --resume goes on" * resumable
        print(f"{program}: interrupted{how}", file=sys.stderr)
        return INTERRUPTED
    return 0
