"""A pre-training of a few seconds, as a process: images, options, signals, comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import pytest
import torch

from common.images import load_images

ROOT = Path(__file__).parents[2]
STEPS = 12


def write_images(path: Path) -> Path:
    """Write class folders with 24 Fashion-MNIST images of each of three classes, as PNG; return the folder."""
    images = load_images(["fashion:test"], root=str(ROOT / "data"))
    for label in (0, 1, 2):
        target = path / f"class{label}"
        target.mkdir(parents=True)
        for i in (images.labels == label).nonzero()[0][:24]:
            cv2.imwrite(str(target / f"{i:05d}.png"), images.read(int(i)))
    return path


def options(folder: Path, runs: Path, **changes: object) -> list[str]:
    """A run of 12 steps: 64 training images, batches of 16, three epochs; a metrics line a step."""
    values = {
        "name": "r", "runs": runs, "device": "cpu", "data.train": folder, "data.workers": 0, "views.size": 32,
        "model.arch": "resnet18", "model.queue_size": 40, "model.ema_momentum": 0.9, "model.bn_groups": 2,
        "optim.batch": 16, "optim.epochs": 3, "optim.base_lr": 0.5, "optim.lr_update": "step", "monitor.log_every": 1,
        "monitor.holdout": 8, "monitor.k": 5, "checkpoint.last_every": 2,
    }  # fmt: skip
    for name, value in changes.items():
        values[name.replace("__", ".")] = value
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def start(arguments: list[str], patch: str = "", within: Sequence[str] = (), ranks: int = 1) -> subprocess.Popen[str]:
    """Start pre-training in a process group of its own.

    Args:
        arguments: of the command.
        patch: Python that runs first, in the same process.
        within: a command that runs the command which follows it, as `tests.mounts.small` returns it.
        ranks: processes under torchrun, as pretrain/run.sh starts them.
    """
    program = ["-m", "pretrain.train"]
    if patch:
        program = ["-c", f"{patch}\nimport sys\nfrom pretrain.train import main\nsys.exit(main(sys.argv[1:]))"]
    if ranks > 1:
        program = ["-m", "pretrain.launch", "--standalone", "--nproc-per-node", str(ranks), *program]
    return subprocess.Popen(
        [*within, sys.executable, *program, *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == status, output
    return output


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Returns once the run has written the metrics of a step."""
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            return
        time.sleep(0.005)
    process.kill()
    pytest.fail(f"step {step} never came: {process.communicate()[0]}")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "last.pth", weights_only=True)["state_dict"]


def losses(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def assert_same_run(a: Path, b: Path) -> None:
    """Bit-identical weights, statistics and queues, and the same loss at every step."""
    one, two = weights(a), weights(b)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert losses(a) == losses(b)
