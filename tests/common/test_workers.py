"""Loader processes: how they end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import workers

ROOT = Path(__file__).parents[2]
LEFT_OPEN = """
import builtins
from torch.utils.data import DataLoader
from common.workers import protect
batches = iter(protect(DataLoader(range(64), batch_size=2, num_workers=6, persistent_workers=True)))
next(batches)
builtins.batches = batches  # so that it lives until the last moment
"""


@pytest.mark.fault("workers and signals", "detect", "loader processes that are still waiting when the command ends")
@pytest.mark.fault("workers and signals", "segment", "loader processes that are still waiting when the command ends")
def test_processes_that_wait_at_the_end_of_a_command_leave_without_a_word() -> None:
    run = [sys.executable, "-W", "ignore", "-c", LEFT_OPEN]  # torch warns of more processes than cores
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def stuck() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [workers.LEAVE])
    time.sleep(600)


def test_a_process_that_is_stuck_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 0.1)
    for work, status in ((stuck, -signal.SIGKILL), (lambda: time.sleep(600), 0)):
        process = workers._Process(target=work)
        process.start()
        time.sleep(0.5)
        process.terminate()
        process.join(60)
        assert process.exitcode == status
