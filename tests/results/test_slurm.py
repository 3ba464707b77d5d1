"""The study and the sample job in a real Slurm, which these tests start on this machine's loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from results import launchers
from results.study import main
from tests.results import slurm_cluster
from tests.results import small_study as small

ROOT = Path(__file__).parents[2]
MAKE_IMAGES = """
import cv2, numpy as np, sys
from pathlib import Path
for i in range(256):
    folder = Path(sys.argv[1]) / str(i % 4)
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"{i}.png"), np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8))
"""
pytestmark = [
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing()),
    pytest.mark.filterwarnings("ignore::UserWarning:submitit"),
]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Path]:
    """The cluster's configuration."""
    with slurm_cluster.cluster() as config:
        yield config


@pytest.fixture
def submit(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which jobs can be submitted; what is left of them is cancelled."""
    monkeypatch.setenv("SLURM_CONF", str(slurm))
    monkeypatch.setenv("PATH", slurm_cluster.PATH)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launchers, "SLURM_POLL", 0.3)
    monkeypatch.setattr(launchers, "SLURM_LAG", 3.0)
    yield tmp_path
    client("scancel", "--user=root")
    wait_until(lambda: not client("squeue", "--noheader"))


def client(*command: str) -> str:
    """What one of Slurm's clients says."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout.strip()


def wait_until(condition: object, seconds: float = 60) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.1)


def study(*more: str) -> int:
    return main(["--study", "small.yaml", "--launcher", "slurm", "--slurm", "time=30", "cpus_per_task=1", *more])


def write_one(folder: Path, seconds: int) -> None:
    """One checkpoint, trained for so long, and one measurement of it."""
    small.write(
        folder, checkpoints__ours__pretrain=f"--seconds {seconds}", checkpoints__ours__over={"ratio": [0]},
        checkpoints__random=None, tasks__linear=None, tasks__knn__seeds=[0],
    )  # fmt: skip


def last(folder: Path) -> dict[str, dict[str, str]]:
    return {line["cell"]: line for line in small.state(folder)}


def test_a_study(submit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes: dict[str, Any] = {"checkpoints__ours__pretrain": "--seconds 1", "tasks__linear": None}
    changes["checkpoints__ours__over"] = {"ratio": [0]}
    small.write(
        submit, checkpoints__broken={"name": "broken", "pretrain": "--wrong 1"}, after=["touch tables"], **changes
    )
    assert study() == 1
    out, _ = capsys.readouterr()
    end = last(submit)
    assert {cell: line["status"] for cell, line in end.items()} == {
        "pretrain/r0": "done", "pretrain/broken": "failed",
        **{f"knn/{name}/seed{seed}": "done" for name in ("r0", "random") for seed in (0, 1)},
        **{f"knn/broken/seed{seed}": "not run" for seed in (0, 1)},
    }  # fmt: skip
    assert len(small.records(submit)) == 4
    assert (submit / "tables").exists()
    assert f"log: {end['pretrain/broken']['log']}" in out
    # Arrays: what waits for nothing in one, the measurements of each checkpoint that is trained in one more.
    arrays = {cell: line["job"].split("_")[0] for cell, line in end.items()}
    assert arrays["pretrain/r0"] == arrays["pretrain/broken"] == arrays["knn/random/seed0"]
    assert all(arrays[f"knn/{name}/seed0"] == arrays[f"knn/{name}/seed1"] for name in ("r0", "random", "broken"))
    assert len(set(arrays.values())) == 3
    files = [path.read_text() for path in (submit / "runs/study/small/slurm").glob("*submission*.sh")]
    depend = {line.partition("afterany:")[2] for text in files for line in text.splitlines() if "--dependency" in line}
    assert depend == {end[cell]["job"] for cell in ("pretrain/r0", "pretrain/broken")}
    # No measurement has begun before its checkpoint was there.
    written = (submit / "runs/r0/last.pth").stat().st_mtime
    assert all(float(when) > written for _, ckpt, *_, when in small.starts(submit) if ckpt.startswith("runs/"))
    # The second time only what failed goes to Slurm, and what depends on it.
    small.write(submit, checkpoints__broken={"name": "broken", "pretrain": "--seconds 0"}, **changes)
    assert study() == 0
    assert "[1/3] done in 0.0 min: pretrain/broken" in capsys.readouterr().out
    assert all(last(submit)[cell]["job"] == line["job"] for cell, line in end.items() if line["status"] == "done")
    assert len(small.records(submit)) == 6


def test_a_job_that_must_go_saves_and_goes_on(submit: Path) -> None:
    """USR2 is what Slurm sends before a job's time is up; submitit requeues it."""
    write_one(submit, 3)
    process = small.start(submit, "--launcher", "slurm", "--slurm", "time=30", "cpus_per_task=1")
    try:
        wait_until((submit / "runs/r0/starts").exists)
        job = last(submit)["pretrain/r0"]["job"]
        client("scancel", "--signal=USR2", job)
        wait_until((submit / "runs/r0/saved").exists)  # the command was told by TERM: USR2 would have killed it
        assert not (submit / "runs/r0/last.pth").exists()
        wait_until((submit / "runs/r0/last.pth").exists)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, out + err
    assert (submit / "runs/r0/starts").read_text() == "started\nstarted\n"
    assert last(submit)["pretrain/r0"]["job"] == job  # the very job
    assert len(small.records(submit)) == 1


def test_a_preempted_job_goes_on(submit: Path) -> None:
    """`scontrol requeue` does what preemption does: the job is ended and put back."""
    write_one(submit, 3)
    process = small.start(submit, "--launcher", "slurm", "--slurm", "time=30", "cpus_per_task=1")
    try:
        wait_until((submit / "runs/r0/starts").exists)
        job = last(submit)["pretrain/r0"]["job"]
        client("scontrol", "requeue", job)
        out, err = process.communicate(timeout=90)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, out + err
    assert last(submit)["pretrain/r0"]["job"] == job
    assert len(small.records(submit)) == 1


def test_a_killed_study_finds_its_jobs_again(submit: Path) -> None:
    write_one(submit, 6)
    process = small.start(submit, "--launcher", "slurm", "--slurm", "time=30", "cpus_per_task=1")
    wait_until((submit / "runs/r0/starts").exists)
    process.kill()
    process.communicate()
    jobs = {line["job"] for line in small.state(submit)}
    assert study() == 0
    assert {line["job"] for line in small.state(submit)} == jobs  # nothing was submitted twice
    assert (submit / "runs/r0/starts").read_text() == "started\n"
    assert len(small.records(submit)) == 1


def test_a_stopped_study_leaves_its_jobs_alone(submit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_one(submit, 3)
    process = small.start(submit, "--launcher", "slurm", "--slurm", "time=30", "cpus_per_task=1")
    wait_until((submit / "runs/r0/starts").exists)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped watching; the jobs go on (scancel --name study-small ends them)" in err
    # Another command for a cell that is in the queue: not both.
    write_one(submit, 4)
    assert study() == 2
    assert "runs another command; scancel" in capsys.readouterr().err
    wait_until(lambda: not client("squeue", "--noheader"))
    assert len(small.records(submit)) == 1


def test_a_job_that_vanishes_has_failed(submit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_one(submit, 60)
    lock = submit / "runs/study/small/locks/pretrain.r0"
    # As when a node dies: the job's process and its command are gone, without a word.
    kill = (
        "until grep -q on $0 2>/dev/null; do sleep 0.1; done; set -- $(cat $0); "
        "kill -9 $(ps -o ppid= -p $1); kill -9 -$1"
    )
    with subprocess.Popen(["bash", "-c", kill, str(lock)]):
        assert study() == 1
    assert "left Slurm's queue without a word" in capsys.readouterr().out
    assert {cell: line["status"] for cell, line in last(submit).items()} == {
        "pretrain/r0": "failed", "knn/r0/seed0": "not run",
    }  # fmt: skip


def test_options_that_sbatch_does_not_know(submit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.write(submit)
    assert study("--slurm", "partitoin=gpu") == 2
    err = capsys.readouterr().err
    assert "partitoin" in err
    assert len(err.splitlines()) == 1
    assert study("--slurm", "time=1-00:00:00") == 2
    assert "time=1-00:00:00: must be a whole number of minutes" in capsys.readouterr().err
    assert study("--slurm", "partition=none") == 2
    assert "invalid partition" in capsys.readouterr().err
    assert not (submit / "runs/study/small/state.jsonl").exists()


def test_a_silent_controller_is_not_an_empty_queue(
    submit: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write(submit)
    monkeypatch.setattr(launchers.Slurm, "_queue", staticmethod(lambda: None))
    assert study() == 2
    assert "squeue does not answer" in capsys.readouterr().err


@pytest.mark.ddp
@pytest.mark.slow
def test_pretraining_over_two_agents(submit: Path) -> None:
    """The sample job: two torchrun agents meet, train as two ranks, save before time is up, and go on."""
    subprocess.run([sys.executable, "-c", MAKE_IMAGES, "images"], check=True)
    words = (
        f"--recipe my_folder --data.train {submit / 'images'} --runs {submit / 'runs'} --name two --device cpu "
        "--data.workers 0 --model.arch resnet18 --model.queue_size 64 --model.bn_groups 2 --views.size 16 "
        "--optim.batch 16 --optim.epochs 4 --optim.precision fp32 --monitor.log_every 1 --monitor.knn_every 0"
    )
    options = ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1"]
    done = subprocess.run(
        ["sbatch", "--parsable", *options, "pretrain/slurm.sh", *words.split()], cwd=ROOT, capture_output=True,
        text=True, check=True, env=os.environ | {"NPROC": "1", "OMP_NUM_THREADS": "1", "UNIMOCO_ENV": sys.prefix},
    )  # fmt: skip
    job, run = done.stdout.strip(), submit / "runs/two"
    log = ROOT / f"slurm-pretrain-{job}.log"
    wait_until(lambda: (run / "metrics.jsonl").exists() and '"step": 3,' in (run / "metrics.jsonl").read_text(), 120)
    client("scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: not client("squeue", "--noheader", f"--jobs={job}"), 240)
    text = log.read_text()  # where the sample job puts it
    log.unlink()
    assert (run / "summary.json").exists(), text
    assert "cpu x 2" in text
    starts = [line.split()[2] for line in (run / "command.txt").read_text().splitlines()]
    assert len(starts) == 2, text
    assert starts[0] == "0:"
    assert int(starts[1].rstrip(":")) >= 3
    steps = [line.split(",")[0] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [f'{{"step": {i}' for i in range(1, 65)]
