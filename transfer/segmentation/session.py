"""What the command does: for each seed a config, a run and a record; then the table."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mmengine.device.utils
import torch
from jsonargparse import Namespace
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules

from common.distributed import rank, start, world_size
from converters import Backbone
from transfer.benchmark import Measurement, Run, measure, read_checkpoint, summary
from transfer.options import device_kind
from transfer.segmentation import PACKAGES, autocast, data, metric, overrides, quiet, run, task_names, tasks
from transfer.segmentation.run import Plan
from transfer.segmentation.trunk import Trunk

LAUNCHERS = ("auto", "none", "pytorch", "slurm")
PORT = "29500"
RENDEZVOUS = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torch reads besides RANK
MOST_ROWS = 30


def resolve(options: Namespace, backbone: Backbone, device: torch.device) -> Plan:
    """Resolve a task. --cfg-options come last and are taken as they are.

    Raises:
        ValueError: no such task, a wrong option, or a model that cannot take the backbone.
    """
    cfg, trunk, processes = tasks.read(options.task), Trunk.of(backbone), world_size()
    with mistakes_in(f"--task {options.task}"):
        trunk.fit(cfg)
        overrides.check(cfg)
        notes = [tasks.rescale(cfg, processes, options.batch, options.accumulate, not options.no_scale)]
    own_statistics = processes > 1 and device.type == "cpu"
    if processes == 1 or own_statistics:
        count = tasks.plain_batch_norm(cfg.model)
        why = "it needs a GPU; each process has statistics of its own" if own_statistics else "one process"
        notes.append(f"SyncBN is BN here ({count} settings): {why}")
    if options.amp:
        tasks.mixed_precision(cfg, device.type == "cuda")
    tasks.limit_workers(cfg)
    before = tasks.figures_depend_on(cfg, tasks.step_batch(cfg, processes))
    overrides.apply(cfg, options.cfg_options)
    with mistakes_in(f"--cfg-options {' '.join(options.cfg_options)}"):
        overrides.check(cfg)
        trunk.check(cfg)
        batch = tasks.step_batch(cfg, processes)
        config = tasks.figures_depend_on(cfg, batch)
        told = tasks.protocol(cfg, batch, own_statistics, overrides.changed(before, config))
    return Plan(cfg, trunk, batch, tuple(notes), config, told)


@contextmanager
def mistakes_in(source: str) -> Iterator[None]:
    """Name what a config comes from where a part of it is missing or of another kind than expected."""
    try:
        yield
    except (AttributeError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{source}: the config does not fit, {type(error).__name__}: {error}") from error


def measure_all(options: Namespace) -> None:
    """Train and evaluate for each seed, and print the table."""
    if not options.task:
        raise ValueError(f"--task is missing: one of {', '.join(task_names())}, or a config file")
    if options.resume and options.force:
        raise ValueError("--resume goes on with a run, --force begins it anew: leave one of them out")
    arch = tasks.read(options.task).get("arch", "resnet50")
    device, root = join(options.launcher, options.device), Path(options.data_root or "data").expanduser()
    register()

    def plan(seed: int) -> Run:
        backbone = read_checkpoint(options.ckpt, seed, arch)
        plan = resolve(options, backbone, device)
        name = options.task.rpartition("/")[2].removesuffix(".py")
        return Run(backbone, name, plan.protocol, seed, plan.config, "mIoU", options.out, PACKAGES)

    def do(one: Run) -> Measurement:
        plan = resolve(options, one.backbone, device)
        data.find(plan.cfg, root)
        images, reported = data.check(plan.cfg)
        if rank() == 0:
            print(f"{one.task} seed {one.seed}: {one.title}\n" + "\n".join(plan.notes))
            print(f"{images} images to train on, {reported} to report on", flush=True)
        return Measurement(*run.measure_one(plan, one, images, options))

    records = measure(map(plan, options.seeds), do, options, device)
    if records and rank() == 0:
        few = len(records[0].metrics) <= MOST_ROWS  # the IoU of ADE20K's 150 classes stays in the record
        print(summary(records, None if few else ("mIoU", "mAcc", "aAcc")))


def register() -> None:
    """Make mmseg's parts known to mmengine; ours are by their import, for configs that do not name them."""
    assert autocast, metric
    with quiet(prints=False):
        register_all_modules()


def join(launcher: str, device: str = "auto") -> torch.device:
    """Join the other processes, if a launcher started any, and return this one's device.

    Raises:
        ValueError: an unknown launcher or device, or a launcher that has not started this process.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f"--launcher {launcher}: must be one of {', '.join(LAUNCHERS)}")
    kind = device_kind(device)
    # srun's tasks that did not know of each other would each train everything, into one folder.
    several = "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    if launcher == "slurm" or (launcher == "auto" and several):
        _slurm()
    if launcher == "pytorch" and "RANK" not in os.environ:
        raise ValueError("--launcher pytorch: torchrun has not started this; torchrun --nproc-per-node N transfer/…")
    if launcher == "none":
        os.environ.pop("RANK", None)
    absent = [name for name in RENDEZVOUS if name not in os.environ]
    if "RANK" in os.environ and absent:
        raise ValueError(f"RANK is set and {', '.join(absent)} not: start it with torchrun, or add --launcher none")
    where = start(kind)
    if where.type == "cpu":
        mmengine.device.utils.DEVICE = "cpu"  # it would take a GPU where it sees one
    return where


def _slurm() -> None:
    """Tell torch what srun tells its tasks."""
    try:
        nodes, rank_, count = (os.environ[f"SLURM_{name}"] for name in ("NODELIST", "PROCID", "NTASKS"))
    except KeyError as error:
        raise ValueError(f"--launcher slurm: srun has not started this, {error.args[0]} is not set") from error
    if "MASTER_ADDR" not in os.environ:
        try:
            found = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ValueError(f"scontrol does not say the first of {nodes} ({error}): set MASTER_ADDR to it") from error
        os.environ["MASTER_ADDR"] = found.stdout.split()[0]
    os.environ.setdefault("MASTER_PORT", PORT)
    # of each node, as 4(x2),3; where it is not told, all may be on this one
    told = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_TASKS_PER_NODE", count))
    tasks_of_nodes = [tasks_of_node for tasks_of_node, times in told for _ in range(int(times or 1))]
    on_this_node = tasks_of_nodes[min(int(os.environ.get("SLURM_NODEID", "0")), len(tasks_of_nodes) - 1)]
    os.environ.update(
        RANK=rank_, WORLD_SIZE=count, LOCAL_RANK=os.environ.get("SLURM_LOCALID", "0"), LOCAL_WORLD_SIZE=on_this_node
    )


def check() -> None:
    """Build the FCN of fashion-fcn, take a training step on noise, and say so."""
    cfg = tasks.read("fashion-fcn")
    tasks.plain_batch_norm(cfg.model)
    register()
    with quiet():
        model = MODELS.build(cfg.model).to(get_device())
        samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 11, (1, 96, 96)))) for _ in range(2)]
        batch = {"inputs": [torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)] * 2, "data_samples": samples}
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        loss = model.train_step(batch, optimizer)["loss"]
    print(f"mmseg: a training step of an FCN on {get_device()} works, loss {loss.item():.2f}")
    compiled = "there" if importlib.util.find_spec("mmcv._ext") else "not compiled; no task of this suite needs them"
    print(f"mmcv.ops: {compiled}")
