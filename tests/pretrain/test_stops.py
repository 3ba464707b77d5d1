"""Signals and loader processes: the state is saved, whoever gets the signal; what a dead loader says; no orphans."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.benchmarks import kills
from tests.mounts import small
from tests.pretrain.small_run import (
    ROOT,
    STEPS,
    assert_same_run,
    finish,
    options,
    start,
    wait_for_step,
    write_images,
)

KIND = "workers and signals"
SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
# From the third batch on, `then` happens where batches are made.
LATER = """
import os, signal, time
from common.loaders import TwoViews
make, made = TwoViews.__getitems__, []
def getitems(self, keys):
    made.extend(keys[15:16])  # batches are of 16 images; the sheet of views is not
    if len(made) >= 3:
        {then}
    return make(self, keys)
TwoViews.__getitems__ = getitems
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with 24 images of each of three classes."""
    return write_images(tmp_path_factory.mktemp("garments"))


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run that nobody disturbed."""
    runs = tmp_path_factory.mktemp("reference")
    finish(start(options(folder, runs)))
    return runs / "r"


def line_of(output: str) -> str:
    """The one line of an error."""
    (line,) = [line for line in output.splitlines() if line.startswith("pretrain: ")]
    assert "Traceback" not in output, output
    return line


@pytest.mark.slow
@pytest.mark.fault(KIND, "pretrain", "SIGTERM or SIGINT to the process group, with 1 and 2 loader processes")
@pytest.mark.parametrize(("number", "status", "workers"), [(*SIGNALS[0], 2), (*SIGNALS[1], 1)])
def test_a_signal_to_the_process_group_saves_the_state(
    number: signal.Signals, status: int, workers: int, folder: Path, reference: Path, tmp_path: Path
) -> None:
    arguments = options(folder, tmp_path, checkpoint__last_every=1000, data__workers=workers)
    process = start(arguments)
    wait_for_step(process, tmp_path / "r", 3)
    os.killpg(process.pid, number)
    assert "stopped at step" in finish(process, status)
    assert 3 <= torch.load(tmp_path / "r" / "last.pth", weights_only=True)["step"] < STEPS
    finish(start(arguments))
    assert_same_run(reference, tmp_path / "r")


@pytest.mark.fault(KIND, "pretrain", "the first Ctrl-C or SIGTERM while a batch is waited for that never comes")
@pytest.mark.parametrize(("number", "status", "workers"), [(*SIGNALS[0], 0), (*SIGNALS[1], 1)])
def test_a_signal_ends_the_wait_for_a_batch_and_saves_the_state(
    number: signal.Signals, status: int, workers: int, folder: Path, tmp_path: Path
) -> None:
    arguments = options(folder, tmp_path, checkpoint__last_every=1000, data__workers=workers)
    impatient = "import common.cli\ncommon.cli.PATIENCE = 0.2\n"
    process = start(arguments, impatient + LATER.format(then="time.sleep(600)"))
    wait_for_step(process, tmp_path / "r", 2)
    time.sleep(0.7)
    process.send_signal(number)
    began, output = time.monotonic(), finish(process, status)
    assert "stopped at step 2 of 12" in output
    assert "still waiting for images after 0.2 s: a slow disk or network, or a loader process" in output
    assert time.monotonic() - began < 20
    assert torch.load(tmp_path / "r" / "last.pth", weights_only=True)["step"] == 2


@pytest.mark.fault(KIND, "pretrain", "a loader process killed as by the kernel out of memory, or by a bus error")
@pytest.mark.parametrize(
    ("then", "said"),
    [
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "a loader process was killed (SIGKILL), as the system does",
        ),
        ("os.kill(os.getpid(), signal.SIGBUS)", "a loader process died of a bus error, as a full /dev/shm causes"),
        ("os._exit(3)", "a loader process died (exit code 3)"),
    ],
)
def test_a_dead_loader_process_is_one_line_with_the_cause_and_the_way_out(
    then: str, said: str, folder: Path, tmp_path: Path
) -> None:
    line = line_of(finish(start(options(folder, tmp_path, data__workers=1), LATER.format(then=then)), 2))
    assert line.startswith(f"pretrain: error: {said}")
    assert "use fewer --data.workers" in line


@pytest.mark.fault(KIND, "pretrain", "/dev/shm of 1 MiB, as in a container, and batches that do not fit")
def test_a_dev_shm_that_cannot_hold_the_batches_is_told_before_the_start(folder: Path, tmp_path: Path) -> None:
    arguments = options(folder, tmp_path, data__workers=2, views__size=128)
    line = line_of(finish(start(arguments, within=small("/dev/shm", "1m")), 2))
    assert line == (
        "pretrain: error: 1 of 1 MiB of /dev/shm free, and 2 loader processes need 8 MiB for 5 batches of 1.5 MiB: "
        "enlarge it (docker run --shm-size=8g, mount -o remount,size=8g /dev/shm), or use fewer --data.workers "
        "(benchmarks: --workers); 0 needs none"
    )
    assert not (tmp_path / "r").exists()


@pytest.mark.fault(KIND, "pretrain", "/dev/shm full while the run is under way: a batch that cannot be sent")
def test_a_batch_that_does_not_fit_into_dev_shm_ends_the_run(folder: Path, tmp_path: Path) -> None:
    """Others may fill it later, so the check before the start is not enough."""
    patch = "import common.loaders\ncommon.loaders.require_shared_memory = lambda *_: None"
    arguments = options(folder, tmp_path, data__workers=1, views__size=128, monitor__holdout=0)
    line = line_of(finish(start(arguments, patch, small("/dev/shm", "1m")), 2))
    assert line.startswith("pretrain: error: a loader process found ")
    assert "of 1 MiB of /dev/shm free: enlarge it (docker run --shm-size" in line


@pytest.mark.fault(KIND, "pretrain", "SIGKILL to the run alone: its loader processes")
def test_no_loader_process_outlives_a_killed_run(folder: Path, tmp_path: Path) -> None:
    process = start(options(folder, tmp_path, data__workers=2), LATER.format(then="time.sleep(600)"))
    wait_for_step(process, tmp_path / "r", 2)
    loaders = psutil.Process(process.pid).children()
    assert len(loaders) == 2
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(loaders, timeout=3)
    assert not alive


@pytest.mark.fault(KIND, "pretrain", "the terminal is closed, with loader processes")
def test_a_closed_terminal_saves_the_state(folder: Path, tmp_path: Path) -> None:
    given = options(folder, tmp_path, checkpoint__last_every=1000, data__workers=1, optim__epochs=500)
    terminal, its_side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pretrain.train", *given], cwd=ROOT, stdin=its_side, stdout=its_side, stderr=its_side,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(its_side)
    metrics, deadline = tmp_path / "r" / "metrics.jsonl", time.monotonic() + 90
    while not (metrics.exists() and '"step": 3,' in metrics.read_text()) and time.monotonic() < deadline:
        os.read(terminal, 4096)
    os.close(terminal)
    assert process.wait(60) == 128 + signal.SIGHUP
    assert torch.load(tmp_path / "r" / "last.pth", weights_only=True)["step"] >= 3


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.fault(KIND, "pretrain", "SIGTERM to the group of torchrun, 2 ranks with loader processes")
def test_ranks_agree_on_a_stop_within_ten_steps(folder: Path, tmp_path: Path) -> None:
    arguments = options(
        folder, tmp_path, data__workers=1, monitor__log_every=1000, checkpoint__last_every=1, optim__epochs=500,
        monitor__knn_every=0,
    )  # fmt: skip
    process = start(arguments, ranks=2)
    last, deadline = tmp_path / "r" / "last.pth", time.monotonic() + 120
    while process.poll() is None and not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    before = torch.load(last, weights_only=True)["step"]
    os.killpg(process.pid, signal.SIGTERM)
    output = finish(process, 143)
    assert "stopped at step" in output
    assert "Traceback" not in output
    step = torch.load(last, weights_only=True)["step"]
    assert step % 10 == 0
    assert step <= before + 20  # those until the signal came, and at most ten


@pytest.mark.slow
@pytest.mark.fault(KIND, "pretrain", "SIGKILL, SIGTERM and SIGINT at random moments, to one process and to the group")
def test_a_cut_of_the_hundred_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """tests/benchmarks/kills.py; its record is results/benchmarks/kills.jsonl."""
    assert kills.main(["--count=2", "--seed=5", f"--out={tmp_path / 'kills.jsonl'}"]) == 0
    assert "2 of 2 kills ended in bit-identical weights" in capsys.readouterr().out
