"""Runs a function in two gloo processes on this machine."""

from __future__ import annotations

import datetime
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

WORLD = 2
ROOT = str(Path(__file__).parents[2])


def run_two(function: Callable[..., Any], *arguments: Any, seconds: float = 120) -> list[Any]:
    """Calls `function(*arguments)` in two processes that share a gloo process group.

    Args:
        function: of a module, so that the processes find it; it returns tensors and builtins.
        arguments: picklable.
        seconds: time limit, the start of the processes included.

    Returns:
        What each process returned, by rank.

    Raises:
        TimeoutError: the limit is over, e.g. because one process waits for the other.
    """
    if ROOT not in sys.path:  # a started process takes this list over, and must find the module of `function`
        sys.path.insert(0, ROOT)
    with tempfile.TemporaryDirectory() as folder:
        deadline = time.monotonic() + seconds
        context = multiprocessing.spawn(_work, (folder, seconds, function, arguments), WORLD, join=False)
        assert context is not None
        while not context.join(timeout=0.2):
            if time.monotonic() > deadline:
                for process in context.processes:
                    process.kill()
                raise TimeoutError(f"{function.__name__} took more than {seconds} s in two processes")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def _work(rank: int, folder: str, seconds: float, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD, timeout=limit)
    try:
        torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()
