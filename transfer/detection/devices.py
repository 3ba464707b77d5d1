"""What a run computes on, without detectron2."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from transfer.options import device_kind


@dataclass(frozen=True)
class Devices:
    """GPUs or the CPU, of one machine or several.

    Attributes:
        kind: "cuda" or "cpu".
        gpus: processes on this machine; 0 on the CPU.
        machines: machines that work together.
    """

    kind: str
    gpus: int
    machines: int = 1

    @property
    def world(self) -> int:
        """Processes in all; a CPU counts as one."""
        return max(1, self.gpus) * self.machines


def choose(device: str, gpus: int | None, machines: int = 1, machine: int = 0, url: str = "auto") -> Devices:
    """The devices that the options ask for.

    Args:
        device: auto, cpu or cuda.
        gpus: on this machine; None = all.
        machines: that work together.
        machine: number of this one.
        url: where several machines meet.

    Raises:
        ValueError: an unknown device, fewer than asked for, or machines that cannot meet.
    """
    there = torch.cuda.device_count()
    kind = device_kind(device)
    count = (there if kind == "cuda" else 0) if gpus is None else gpus
    if (kind == "cuda" and not 1 <= count <= there) or (kind == "cpu" and count):
        raise ValueError(f"--device {kind} --num-gpus {count}: this torch sees {there} GPUs here")
    if not 0 <= machine < machines:
        raise ValueError(f"--machine-rank {machine}: must lie below --num-machines {machines}")
    if machines > 1 and (kind == "cpu" or url == "auto"):
        raise ValueError("--num-machines: several machines need GPUs and --dist-url tcp://HOST:PORT of the first")
    return Devices(kind, count, machines)
