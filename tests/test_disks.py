"""Full, read-only and failing disks: one line that names the file, status 2, and nothing half-written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from common import files
from tests.mounts import run_small
from tests.pretrain.small_run import options, write_images
from tests.transfer.garments import arguments, write_garments
from transfer import knn

KIND = "disks"
FULL = os.strerror(errno.ENOSPC)


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_garments(tmp_path_factory.mktemp("garments"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.mark.fault(KIND, "pretrain", "run folder full: a checkpoint does not fit")
def test_a_checkpoint_that_does_not_fit(images: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    command = ["-m", "pretrain.train", *options(images, disk, monitor__holdout=0)]
    status, line, left, _ = run_small(command, disk, "8m")
    assert (status, line) == (2, f"pretrain: error: {disk}/r/last.pth: {FULL}")
    assert not [name for name in left if name.endswith((".part", ".pth"))]


@pytest.mark.fault(KIND, "pretrain", "run folder full: a line of metrics or of TensorBoard's events does not fit")
def test_metrics_that_do_not_fit(images: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    longer = {"monitor__holdout": 0, "checkpoint__last_every": 1000, "optim__epochs": 200}
    status, line, _, _ = run_small(["-m", "pretrain.train", *options(images, disk, **longer)], disk, "360k")
    assert status == 2
    assert line in (f"pretrain: error: {disk}/r/{name}: {FULL}" for name in ("metrics.jsonl", "tensorboard"))


@pytest.mark.fault(KIND, "pretrain", "run folder on a read-only file system")
def test_a_run_folder_that_is_read_only(images: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    status, line, left, _ = run_small(["-m", "pretrain.train", *options(images, disk)], disk, "8m", "ro")
    assert (status, line) == (2, f"pretrain: error: {disk}/.r.lock: {os.strerror(errno.EROFS)}")
    assert not left


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(name, marks=pytest.mark.fault(KIND, name, "feature cache on a full disk"))
        for name in ("knn", "linear", "svm")
    ],
)
def test_features_that_do_not_fit_are_told_before_they_are_computed(
    command: str, garments: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    more = {"knn": {"k": "[1]"}, "linear": {}, "svm": {}}[command]
    given = [f"transfer/{command}.py", *arguments(garments, tmp_path, cache=disk, **more)]
    status, line, left, _ = run_small(given, disk, "16k")
    assert status == 2
    assert line.startswith(f"{command}: error: {disk}/")
    assert line.endswith(f".features: {FULL}")
    assert not left


@pytest.mark.fault(KIND, "knn", "records on a read-only file system: told before the measurement")
def test_records_that_cannot_be_written_are_told_before_the_measurement(garments: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    given = ["transfer/knn.py", *arguments(garments, tmp_path, records=disk / "records", k="[1]")]
    status, line, _, done = run_small(given, disk, "1m", "ro")
    assert (status, line) == (2, f"knn: error: {disk}: {os.strerror(errno.EROFS)}")
    assert "features of" not in done.stdout + done.stderr


@pytest.mark.fault(KIND, "knn", "records on a full disk")
def test_a_record_that_does_not_fit(garments: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    status, line, left, _ = run_small(
        ["transfer/knn.py", *arguments(garments, tmp_path, records=disk, k="[1]")], disk, "4k"
    )
    assert status == 2
    assert line.startswith(f"knn: error: {disk}/knn/random-resnet18_s0/")
    assert line.endswith(f".json: {FULL}")
    assert all(name.endswith(".npz") for name in left)  # complete, and without its record it counts for nothing


@pytest.mark.parametrize(
    ("command", "more"),
    [
        pytest.param("finetune", {}, marks=pytest.mark.fault(KIND, "finetune", "run folder full: the state")),
        pytest.param("linear", {"mode": "moco"}, marks=pytest.mark.fault(KIND, "linear", "run folder full: the state")),
    ],
)
def test_a_state_that_does_not_fit(command: str, more: dict[str, Any], garments: Path, tmp_path: Path) -> None:
    disk, size = tmp_path / "disk", {"finetune": "8m", "linear": "4k"}[command]
    quick = {"optim.epochs": 1, "optim.batch": 16, "optim.base_lr": "[0.01]"} | more
    quick |= {"optim.head_factor": "[1]"} if command == "finetune" else {}
    given = [f"--{name}={value}" for name, value in quick.items()]
    status, line, left, _ = run_small(
        [f"transfer/{command}.py", *arguments(garments, tmp_path, out=disk), *given], disk, size
    )
    assert status == 2
    assert line.startswith(f"{command}: error: {disk}/")
    assert line.endswith(f"/state.pth: {FULL}")
    assert not left


@pytest.mark.parametrize(("size", "options", "reason"), [("8k", "", FULL), ("1m", "ro", os.strerror(errno.EROFS))])
@pytest.mark.fault(KIND, "tables", "--out on a full or a read-only file system")
def test_tables_that_do_not_fit(size: str, options: str, reason: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    status, line, left, _ = run_small(["results/tables.py", f"--out={disk}"], disk, size, options)
    assert status == 2
    assert line.startswith(f"tables: error: {disk}")
    assert line.endswith(f": {reason}")
    assert not [name for name in left if name.endswith(".part")]


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ESTALE, errno.EIO])
@pytest.mark.fault(KIND, "knn", "a quota, a stale network handle and an I/O error when a file is flushed")
def test_errors_that_come_when_a_file_is_flushed(
    number: int, garments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fail)
    assert knn.main(arguments(garments, tmp_path, k="[1]")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith(f"knn: error: {tmp_path}/cache/")
    assert line.endswith(f".features: {os.strerror(number)}")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png"]
