"""What goes wrong in the first hour: another folder, the environment not active."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pretrain import train
from tests.pretrain.small_run import options, write_images
from transfer import detect, knn, segment

ROOT = Path(__file__).parents[1]
KIND = "a newcomer's mistakes"
ENTRIES = {
    "pretrain": "pretrain/train.py", "convert": "converters/convert.py", "study": "results/study.py",
    "tables": "results/tables.py",
    **{name: f"transfer/{name}.py" for name in ("knn", "linear", "finetune", "svm", "detect", "segment")},
}  # fmt: skip


def without_packages(*command: str) -> subprocess.CompletedProcess[str]:
    """Run the Python that the environment was made from, which has no packages."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-S", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("entry", "file"),
    [
        pytest.param(name, file, marks=pytest.mark.fault(KIND, name, "the environment is not active"))
        for name, file in ENTRIES.items()
    ],
)
def test_a_forgotten_environment_is_one_line_with_the_remedy(entry: str, file: str) -> None:
    done = without_packages(file, "--help")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {sys.executable} has no torch")
    assert "source .venv/bin/activate" in line
    assert "bash setup.sh" in line


def test_a_module_says_the_same() -> None:
    done = without_packages("-m", "transfer.knn", "--help")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment that setup.sh leaves alone, with this Python in it."""
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    refuse = 'case "$*" in *"-m pip"* | *install*) echo "would install" >&2; exit 9;; esac'
    python.write_text(f'#!/bin/sh\n{refuse}\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    detectron2 = "transfer/detection/requirements-detectron2.txt"
    files = (ROOT / name for name in ("pyproject.toml", "constraints.txt", detectron2, "setup.sh"))
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files) + b"all cpu\n").hexdigest()
    (tmp_path / "environment" / ".unimoco-stamp").write_text(f"{ROOT} {wanted}\n")
    return tmp_path / "environment"


def run_sh(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    given = os.environ | {"NPROC": "1", "OMP_NUM_THREADS": "1", "TORCH": "cpu", "UNIMOCO_EXTRAS": "all"} | variables
    given.pop("PYTHONPATH", None)
    command = ["bash", str(ROOT / "pretrain" / "run.sh"), *arguments]
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.fault(KIND, "pretrain", "started in another folder, with relative paths")
def test_relative_paths_are_those_of_the_callers_folder(environment: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "pictures")
    (tmp_path / "common").mkdir()  # a folder of the user's, which must not be imported
    (tmp_path / "common" / "__init__.py").write_text("raise SystemExit('imported')")
    given = options(Path("pictures"), Path("out"), optim__epochs=1)
    done = run_sh("--recipe", "my_folder", *given, "--optim.warmup=0", folder=tmp_path, UNIMOCO_ENV=str(environment))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "r" / "last.pth").exists()
    assert f"{os.path.relpath(ROOT, tmp_path)}/transfer/knn.py --ckpt out/r/last.pth" in done.stdout


def test_default_folders_are_the_projects(environment: Path, tmp_path: Path) -> None:
    for folder, extra in ((ROOT, ""), (tmp_path, f"--runs {ROOT}/runs --data.root {ROOT}/data ")):
        done = run_sh("--recipe", "fashion", folder=folder, DRY_RUN="1", UNIMOCO_ENV=str(environment))
        assert done.stdout.strip() == f"{environment}/bin/python -m pretrain.train {extra}--recipe fashion"


def test_torchrun_waits_for_the_state_as_long_as_slurm_gives_notice() -> None:
    """The names are torch's and Slurm's; both are seconds."""
    from torch.distributed.launcher.api import LaunchConfig

    exported = [line for line in (ROOT / "pretrain/run.sh").read_text().splitlines() if "SHUTDOWN_TIMEOUT" in line]
    script = f"{exported[-1]}\necho $TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
    seconds = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert "--signal=B:USR1@180" in (ROOT / "pretrain" / "slurm.sh").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", seconds)
        config = LaunchConfig(1, 1, 1, run_id="0", rdzv_backend="c10d", rdzv_endpoint="localhost:0")
    assert 120 <= config.shutdown_timeout < 180


@pytest.mark.fault(KIND, "pretrain", "a seed or a name that is none")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("--seed=-1", "seed=-1: must lie between 0 and 2**32 - 1"),
        ("--seed=99999999999999999999", "seed=99999999999999999999: must lie between"),
        ("--name=../x", "name=../x: must name a folder below --runs"),
        ("--name=/tmp/x", "name=/tmp/x: must name a folder below --runs"),
    ],
)
def test_a_wrong_seed_or_name_is_one_line_before_anything_is_written(
    wrong: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*options(write_images(tmp_path / "images"), tmp_path / "runs"), wrong]) == 2
    assert capsys.readouterr().err.startswith(f"pretrain: error: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.fault(KIND, "knn", "a negative seed")
@pytest.mark.fault(KIND, "detect", "a negative seed")
@pytest.mark.fault(KIND, "segment", "a negative seed")
@pytest.mark.parametrize("command", [knn, detect, segment], ids=["knn", "detect", "segment"])
def test_a_negative_seed_is_one_line(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--ckpt=random", "--seeds", "0", "-1"]) == 2
    assert "-1: a seed must lie between 0 and 2**32 - 1" in capsys.readouterr().err
