"""Collectives that are no-ops without a process group: the same code runs on a CPU, one GPU and many."""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from common.surroundings import cores

START_TIMEOUT = datetime.timedelta(minutes=10)
AGREE_EVERY = 10  # steps after which ranks agree whether to stop; on a GPU it waits for the device
WAIT_TIMEOUT = datetime.timedelta(days=1)  # of `on_first_rank`, which may read a whole data set

# Before torch 2.13 it has another name.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

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


def ranks_on_cores() -> int:
    """Return how many ranks share the cores of this one: torchrun's all do, and srun binds each to cores of its own."""
    bound = "TORCHELASTIC_RUN_ID" not in os.environ and cores() <= int(os.environ.get("SLURM_CPUS_PER_TASK", "0"))
    return 1 if bound else local_processes()


def has_gpu() -> bool:
    """Return whether torch can use a GPU.

    Raises:
        ValueError: there is one and torch cannot use it, mostly because the driver is too old for this torch.
    """
    if torch.cuda.is_available():
        return True
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if torch.version.cuda and not hidden and Path("/dev/nvidiactl").exists():
        raise ValueError(
            f"torch {torch.__version__} for CUDA {torch.version.cuda} cannot use the NVIDIA GPU of this machine: "
            "update the driver, install a torch for an older CUDA, or ask for the CPU with --device cpu"
        )
    return False


def start(device: str) -> torch.device:
    """Join torchrun's process group, if there is one, and return the device of this process, the current one of torch.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: the device is malformed or not there, or this process has no GPU of its own.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError(f"device={device}: must be auto, cpu, cuda or cuda:N")
    kind, _, index = (("cuda" if has_gpu() else "cpu") if device == "auto" else device).partition(":")
    if kind == "cuda" and not has_gpu():
        raise ValueError(f"device={device}: torch finds no GPU; use --device cpu or auto")
    if index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"device={device}: this machine has {torch.cuda.device_count()} GPUs, counted from 0")
    limit_threads()
    if "RANK" in os.environ:
        _check_rendezvous()
        index = os.environ["LOCAL_RANK"]
        if kind == "cuda" and int(index) >= torch.cuda.device_count():
            raise ValueError(
                f"process {index} of this machine has no GPU: torch sees {torch.cuda.device_count()}; start as many "
                "processes (NPROC), or use --device cpu"
            )
    target = torch.device(kind, int(index or 0)) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(target)
    if "RANK" in os.environ:
        _join(target)
    return target


def limit_threads() -> None:
    """Compute with no more threads than there are cores for this process; torch does not see a container's limit."""
    if cores() < torch.get_num_threads() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cores())


def _check_rendezvous() -> None:
    """Raise a ValueError where RANK is set and what torch reads besides it is not, or is no number."""
    numbers = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
    broken = [name for name in (*numbers, "MASTER_ADDR") if name not in os.environ]
    if broken:
        raise ValueError(f"RANK is set and {', '.join(broken)} not: start it with torchrun, or unset RANK")
    broken = [f"{name}={os.environ[name]}" for name in numbers if not os.environ[name].isdigit()]
    if broken:
        raise ValueError(f"{', '.join(broken)}: not a number: start it with torchrun, or unset RANK")


def _join(device: torch.device) -> None:
    """Join torchrun's process group."""
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    print(
        f"rank {os.environ['RANK']}/{os.environ['WORLD_SIZE']} on {platform.node()} ({device}) joins {address}; "
        "if this hangs, check that every node can reach it",
        flush=True,
    )
    backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    dist.init_process_group(backend, timeout=START_TIMEOUT, device_id=device_id)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on a device. The host does not wait: the copy to a GPU is made from pinned memory."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def stop() -> None:
    """Leave the process group, if there is one.

    While an exception is raised, NCCL's pending operations are aborted first: other ranks may never take part in them,
    and to destroy the group is to wait for them.
    """
    if not dist.is_initialized():
        return
    if sys.exc_info()[0] and dist.get_backend() == "nccl" and (group := dist.group.WORLD):
        group.abort()
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
    _gather(out, x.contiguous())
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


def stop_agreed(asked: bool, step: int, device: torch.device) -> bool:
    """Return whether to stop after a step: signals reach ranks at different steps, so they agree after every tenth."""
    if world_size() == 1:
        return asked
    return step % AGREE_EVERY == 0 and any_rank(asked, device)


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
