"""Signals to the benchmarks, and two at once: one line, the documented status, no half-written file, resumable."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounts import small
from tests.transfer.garments import ROOT, arguments, recorded, write_garments
from transfer import finetune

KIND = "workers and signals"
# Reading an image takes for ever; the mark is made first.
ENDLESS = """
import sys, time
from pathlib import Path
import common.loaders
def wait(*_):
    Path({mark!r}).touch()
    time.sleep(600)
common.loaders.EvaluationViews.__getitem__ = common.loaders.TwoViews.__getitems__ = wait
"""
QUICK = {"optim.epochs": 1, "optim.batch": 16, "optim.base_lr": "[0.01]", "optim.head_factor": "[1]"}  # of finetune


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_garments(tmp_path_factory.mktemp("garments"))


def start(command: str, given: list[str], patch: str = "") -> subprocess.Popen[str]:
    """Start a command in a process group of its own."""
    code = f"{patch}\nimport sys\nfrom transfer.{command} import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *given], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_until(there: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if there():
            return
        time.sleep(0.02)
    process.kill()
    pytest.fail(process.communicate()[1])


@pytest.mark.parametrize(
    ("command", "number", "more"),
    [
        pytest.param(name, number, more, marks=pytest.mark.fault(KIND, name, "a signal to the process group"))
        for name, number, more in (
            ("knn", signal.SIGTERM, {"k": "[1]"}), ("linear", signal.SIGINT, {}), ("svm", signal.SIGTERM, {}),
            ("finetune", signal.SIGTERM, QUICK), ("linear", signal.SIGTERM, {"mode": "moco", "optim.batch": 16}),
        )
    ],
)  # fmt: skip
def test_a_signal_is_one_line_and_leaves_nothing_half_written(
    command: str, number: int, more: dict[str, object], garments: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    process = start(command, arguments(garments, tmp_path, workers=1, **more), ENDLESS.format(mark=str(mark)))
    wait_until(mark.exists, process)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    said = [line.rpartition("\r")[2] for line in err.splitlines() if f"{command}: " in line]
    resume = "" if command in ("knn", "svm") else "; the same command with --resume continues it"
    assert said == [f"{command}: {'interrupted' if number == signal.SIGINT else 'terminated'}{resume}"]
    assert [
        path for path in tmp_path.rglob("*") if path.is_file() and path != mark and path.parent.name != "checks"
    ] == []


@pytest.mark.fault("a newcomer's mistakes", "finetune", "two runs in one folder at once")
def test_a_second_run_in_a_folder_is_told_who_is_there(
    garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "mark"
    given = arguments(garments, tmp_path, **QUICK)
    process = start("finetune", given, ENDLESS.format(mark=str(mark)))
    wait_until(mark.exists, process)
    try:
        assert finetune.main(given) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        since = r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d; wait for it, or give another --out"
        holder = f" is in use by process {process.pid} on {re.escape(platform.node())} "
        assert re.search(holder + since, error), error
    finally:
        process.kill()  # the system releases the lock
        process.communicate()
    assert finetune.main(given) == 0
    assert len(recorded(tmp_path)) == 1
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.fault(KIND, "knn", "/dev/shm of 1 MiB, as in a container, and batches that do not fit")
def test_a_dev_shm_that_cannot_hold_the_batches(garments: Path, tmp_path: Path) -> None:
    given = arguments(garments, tmp_path, k="[1]", workers=2, size=224)
    done = subprocess.run(
        [*small("/dev/shm", "1m"), sys.executable, "transfer/knn.py", *given], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert "of 1 MiB of /dev/shm free, and 2 loader processes need 29 MiB for 5 batches of 5.7 MiB" in line
    assert "docker run --shm-size" in line


DETECTION = [
    "TASK.SCENES", "[16,2,48,0]", "SOLVER.MAX_ITER", "4000", "SOLVER.STEPS", "(3000,)", "SOLVER.WARMUP_ITERS", "2",
    "SOLVER.CHECKPOINT_PERIOD", "4000", "TEST.PRECISE_BN.NUM_ITER", "2", "INPUT.MIN_SIZE_TRAIN", "(48,)",
    "INPUT.MIN_SIZE_TEST", "48", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "DATALOADER.NUM_WORKERS", "1",
]  # fmt: skip
SEGMENTATION = [
    "--cfg-options", "scenes.train=16", "scenes.val=4", "scenes.size=48", "train_cfg.max_iters=4000",
    "train_cfg.val_interval=4000", "default_hooks.checkpoint.interval=4000", "default_hooks.logger.interval=5",
    "train_dataloader.num_workers=1",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "task", "settings", "checkpoint"),
    [
        pytest.param(*row, marks=pytest.mark.fault(KIND, row[0], "SIGTERM to the process group, with a loader process"))
        for row in (
            ("detect", "fashion-fpn", ["--batch=4", *DETECTION], "model_stopped.pth"),
            ("segment", "fashion-fcn", SEGMENTATION, "iter_*.pth"),
        )
    ],
)
def test_a_stopped_training_saves_its_state_and_resumes_from_it(
    command: str, task: str, settings: list[str], checkpoint: str, tmp_path: Path
) -> None:
    (tmp_path / "FashionMNIST").symlink_to(ROOT / "data" / "FashionMNIST")
    folder, begun = tmp_path / "out", []
    given = [
        "--ckpt=random", f"--task={task}", f"--data-root={tmp_path}", f"--out={folder}", "--device=cpu",
        f"--records={tmp_path / 'records'}",
    ]  # fmt: skip

    def step() -> int:
        rows = [line for path in folder.rglob("metrics.jsonl") for line in path.read_text().splitlines()]
        return max((json.loads(row)["step"] for row in rows), default=0)

    for again in ([], ["--resume"]):
        done = step()
        process = start(command, [*given, *again, *settings])
        wait_until(lambda done=done: step() > done, process)
        os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 143, err
        assert "Traceback" not in err
        assert err.splitlines()[-1] == f"{command}: terminated; the same command with --resume continues it"
        (path,) = folder.rglob("command.txt")
        assert list(path.parent.glob(checkpoint))
        assert not list(folder.rglob("*.part"))
        begun.append(int(re.findall(r" step (\d+):", path.read_text())[-1]))
    assert begun[0] == 0 < begun[1]
