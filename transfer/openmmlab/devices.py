"""The processes and devices that an OpenMMLab model is trained on: torchrun's, srun's, or this process alone."""

from __future__ import annotations

import os
import re
import subprocess

import mmengine.device.utils
import torch
from jsonargparse import Namespace

from common.distributed import start, world_size
from transfer.devices import device_kind

LAUNCHERS = ("auto", "none", "pytorch", "slurm")
PORT = "29500"


def choose_devices(options: Namespace) -> tuple[torch.device, int]:
    """Return this process's device and the number of processes, after joining them.

    With --dry-run nothing is joined and no GPU is needed: the number is torchrun's WORLD_SIZE, by default 1.
    """
    if options.dry_run:
        return torch.device(device_kind(options.device)), int(os.environ.get("WORLD_SIZE", "1"))
    return join(options.launcher, options.device), world_size()


def join(launcher: str, device: str = "auto") -> torch.device:
    """Join the other processes, if a launcher started any, and return this process's device.

    Raises:
        ValueError: an unknown launcher or device, or a launcher that has not started this process.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f"--launcher {launcher}: must be one of {', '.join(LAUNCHERS)}")
    kind = device_kind(device)
    # Without this, each of srun's tasks would train the whole model, all in one folder.
    several = "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    if launcher == "slurm" or (launcher == "auto" and several):
        _set_rendezvous_from_slurm()
    if launcher == "pytorch" and "RANK" not in os.environ:
        raise ValueError("--launcher pytorch: torchrun has not started this; torchrun --nproc-per-node N transfer/...")
    if launcher == "none":
        os.environ.pop("RANK", None)
    chosen = start(kind)
    if chosen.type == "cpu":
        mmengine.device.utils.DEVICE = "cpu"  # else mmengine takes a GPU where it sees one
    return chosen


def _set_rendezvous_from_slurm() -> None:
    """Set torch's environment variables from srun's."""
    try:
        nodes, rank, count = (os.environ[f"SLURM_{name}"] for name in ("NODELIST", "PROCID", "NTASKS"))
    except KeyError as error:
        raise ValueError(f"--launcher slurm: srun has not started this, {error.args[0]} is not set") from error
    if "MASTER_ADDR" not in os.environ:
        try:
            command = ["scontrol", "show", "hostnames", nodes]
            found = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ValueError(f"scontrol cannot name the first of {nodes} ({error}): set MASTER_ADDR to it") from error
        os.environ["MASTER_ADDR"] = found.stdout.split()[0]
    os.environ.setdefault("MASTER_PORT", PORT)
    # Tasks of each node, as 4(x2),3; without the variable all may be on this node.
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_TASKS_PER_NODE", count))
    tasks_of_nodes = [tasks for tasks, times in groups for _ in range(int(times or 1))]
    on_this_node = tasks_of_nodes[min(int(os.environ.get("SLURM_NODEID", "0")), len(tasks_of_nodes) - 1)]
    os.environ.update(
        RANK=rank, WORLD_SIZE=count, LOCAL_RANK=os.environ.get("SLURM_LOCALID", "0"), LOCAL_WORLD_SIZE=on_this_node
    )
