"""The devices that a detector is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jsonargparse import Namespace

from common.distributed import limit_threads
from transfer.devices import device_kind


@dataclass(frozen=True)
class Devices:
    """GPUs or the CPU, of one machine or several.

    Attributes:
        kind: "cuda" or "cpu".
        gpus: processes on this machine; 0 on the CPU.
        machines: number of machines that work together.
    """

    kind: str
    gpus: int
    machines: int = 1

    @property
    def world(self) -> int:
        """Number of processes in all; a CPU counts as one."""
        return max(1, self.gpus) * self.machines


def choose_devices(options: Namespace) -> Devices:
    """Return the devices that the options ask for; with --dry-run they need not exist.

    Args:
        options: holds `device`, `num_gpus` (None: all), `num_machines`, `machine_rank`, `dist_url` and `dry_run`.

    Raises:
        ValueError: an unknown device, fewer than asked for, or machines without a meeting point.
    """
    limit_threads()
    available, gpus, machines = torch.cuda.device_count(), options.num_gpus, options.num_machines
    kind = "cuda" if options.dry_run and options.device == "auto" and gpus else device_kind(options.device)
    count = (available if kind == "cuda" else 0) if gpus is None else gpus
    most = count if options.dry_run else available
    if (kind == "cuda" and not 1 <= count <= most) or (kind == "cpu" and count):
        raise ValueError(f"--device {kind} --num-gpus {count}: this torch sees {available} GPUs")
    if not 0 <= options.machine_rank < machines:
        raise ValueError(f"--machine-rank {options.machine_rank}: must be below --num-machines {machines}")
    if machines > 1 and (kind == "cpu" or (options.dist_url == "auto" and not options.dry_run)):
        raise ValueError("--num-machines: several machines need GPUs and --dist-url tcp://HOST:PORT of the first")
    return Devices(kind, count, machines)
