"""Loader processes that leave a stop to the run, end with it, and lose no batch without a word."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import sys
import traceback
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.queues import Queue
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from common.distributed import local_processes
from common.faults import ENLARGE, SHARED, describe_shared

PREFETCH = 2  # batches that each loader process prepares ahead: DataLoader's default
STOPS = (signal.SIGTERM, signal.SIGINT)
LEAVE = signal.SIGURG  # ignored by a process that has not begun to run
PATIENCE = 1  # seconds
PR_SET_PDEATHSIG = 1  # of prctl(2)

Loader = TypeVar("Loader", bound=DataLoader[Any])


class _Process(ForkProcess):
    """A process that does not see the signals that stop a run, which go to all processes of its group or job."""

    def start(self) -> None:
        """Start with the signals blocked; they stay blocked in the new process."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            super().start()
            self._popen.terminate = self._terminate  # type: ignore[attr-defined]  # Python's sends a blocked signal
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _terminate(self) -> None:
        """Ask the process to leave with status 0, for torch reports one that was killed; kill it where it is stuck."""
        popen = self._popen  # type: ignore[attr-defined]
        if popen.poll() is None:
            os.kill(popen.pid, LEAVE)
            if popen.wait(PATIENCE) is None:
                popen.kill()

    def run(self) -> None:
        """Load batches until the run ends, however it ends."""
        signal.signal(LEAVE, lambda *_: os._exit(0))
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]
        super().run()


def _end(error: Exception, _batch: object) -> None:
    """End this process: a batch cannot be sent, for which the run would wait for ever."""
    if "shared memory" in str(error):
        os._exit(errno.ENOSPC)
    traceback.print_exception(error)
    os._exit(1)


class _Context(ForkContext):
    Process = _Process


def protect(loader: Loader) -> Loader:
    """Let the processes of a loader outlive signals that stop a run, and end with it; return the loader."""
    if loader.num_workers:
        loader.multiprocessing_context = _Context()
    return loader


def require_shared_memory(workers: int, batch_bytes: int) -> None:
    """Check that /dev/shm holds what the loaders of this machine prefetch; containers often get 64 MiB.

    Args:
        workers: loader processes of a rank.
        batch_bytes: of one rank's batch.

    Raises:
        ValueError: it does not.
    """
    if not workers or not SHARED.is_dir():
        return
    batches = (workers * PREFETCH + 1) * local_processes()  # one is in use
    need, free = batches * batch_bytes, shutil.disk_usage(SHARED).free
    if need > free:
        raise ValueError(
            f"{describe_shared()}, and {workers} loader processes need {need / 2**20:.0f} MiB for {batches} batches of "
            f"{batch_bytes / 2**20:.1f} MiB: {ENLARGE}"
        )
