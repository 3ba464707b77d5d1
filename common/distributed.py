"""Collectives that are no-ops without a process group: the same code runs on a CPU, one GPU and many."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

START_TIMEOUT = datetime.timedelta(minutes=10)
WAIT_TIMEOUT = datetime.timedelta(days=1)  # of `on_first_rank`, which may read a whole data set

T = TypeVar("T")


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_processes() -> int:
    """Return the number of processes on this machine, as set by torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def start(device: str) -> torch.device:
    """Join torchrun's process group, if there is one, and return the device of this process.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: the device is malformed or not there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError(f"device={device}: must be auto, cpu, cuda or cuda:N")
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if kind.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={device}: torch finds no GPU; use --device cpu or auto")
    if ":" in kind and int(kind.partition(":")[2]) >= torch.cuda.device_count():
        raise ValueError(f"device={device}: this machine has {torch.cuda.device_count()} GPUs, counted from 0")
    if "RANK" not in os.environ:
        return torch.device(kind)
    local = int(os.environ["LOCAL_RANK"])
    target = torch.device("cuda", local) if kind.startswith("cuda") else torch.device("cpu")
    if target.type == "cuda":
        torch.cuda.set_device(target)
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    print(
        f"rank {os.environ['RANK']}/{os.environ['WORLD_SIZE']} on {platform.node()} ({target}) joins {address}; "
        "if this hangs, check that every node can reach it",
        flush=True,
    )
    dist.init_process_group("nccl" if target.type == "cuda" else "gloo", timeout=START_TIMEOUT)
    return target


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on a device. The host does not wait: the copy to a GPU is made from pinned memory."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for every process."""
    if dist.is_initialized():
        dist.barrier()


def all_gather(x: Tensor) -> Tensor:
    """Concatenate (n, ...) of every rank to (world * n, ...), in rank order. No gradient."""
    if world_size() == 1:
        return x
    out = x.new_empty((world_size() * x.shape[0], *x.shape[1:]))
    dist.all_gather_single(out, x.contiguous())
    return out


def all_mean_(tensors: list[Tensor]) -> None:
    """Replace floating-point tensors by their mean over ranks, in one message."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([t.reshape(-1).float() for t in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    for t, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        t.copy_(mean.view_as(t))


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return True on every rank when it is true on one."""
    if world_size() == 1:
        return flag
    t = torch.tensor(int(flag), device=device)
    dist.all_reduce(t, dist.ReduceOp.MAX)
    return bool(t.item())


def gather_objects(value: object) -> list[object]:
    """Return the values of all ranks, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    out: list[object] = [None] * world_size()
    dist.all_gather_object(out, value)
    return out


def on_first_rank(work: Callable[[], T]) -> T:
    """Call `work` on rank 0 while the other ranks wait, and return its result on every rank.

    Raises:
        Exception: what `work` raised, on every rank.
    """
    if world_size() == 1:
        return work()
    group: Any = dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT)
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = work()
        except (ValueError, OSError) as error:
            outcome[1] = error
        except Exception as error:  # noqa: BLE001  it may not be picklable, and the others must not wait for ever
            outcome[1] = RuntimeError(f"rank 0: {type(error).__name__}: {error}")
            outcome[1].__cause__ = error
    sent = [*outcome]
    dist.broadcast_object_list(sent, src=0, group=group)
    result, raised = outcome if rank() == 0 else sent  # of rank 0 the exception itself, with its traceback
    if raised is not None:
        raise raised
    return result
