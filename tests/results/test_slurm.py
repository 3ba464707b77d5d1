"""The study and the sample job in a real Slurm, which these tests start on this machine's loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from results import slurm
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
# What an allocation leaves in the environment; sbatch and srun would take it for options, and fail.
ALLOCATION = {
    "SLURM_JOB_ID": "4711", "SLURM_CPU_BIND": "mask_cpu:0x4711", "SLURM_MEM_PER_NODE": "4711000",
    "SLURM_CPUS_PER_TASK": "4711", "SBATCH_PARTITION": "p4711", "SRUN_CPUS_PER_TASK": "4711",
    "RANK": "4711", "MASTER_ADDR": "host4711",
}  # fmt: skip
SLURM = ("--slurm", "time=30", "cpus_per_task=1", "--", "--slurm-init-seconds-before-status-checks", "5")
pytestmark = pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """The cluster's configuration."""
    with slurm_cluster.cluster() as config:
        yield config


@pytest.fixture
def folder(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which jobs can be submitted; what is left of them is cancelled."""
    for name, value in slurm_cluster.environment(cluster).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "POLL", 0.3)
    yield tmp_path
    client("scancel", "--user=root")
    small.wait_until(lambda: not client("squeue", "--noheader"), 60)


def client(*command: str) -> str:
    """What one of Slurm's clients prints."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout.strip()


def job_of(checkpoint: str) -> str:
    """Id of the Slurm job that trains a checkpoint; empty without one."""
    lines = client("squeue", "--noheader", "--format=%i %k").splitlines()
    return next((line.split()[0] for line in lines if line.strip().endswith(f"pretrain_{checkpoint}")), "")


@pytest.mark.fault("surroundings", "study", "started inside an allocation and a process group, with --slurm")
def test_a_study(folder: Path) -> None:
    """From inside an allocation. One job fails, one is near the end of its time, one is preempted; all others run."""
    small.write(
        folder, checkpoints__ours__pretrain="--seconds 5", checkpoints__ours__gpus=2, tasks__linear=None,
        after=["touch tables"], checkpoints__broken={"name": "broken", "pretrain": "--wrong 1"},
    )  # fmt: skip
    process = small.start(folder, *SLURM, **ALLOCATION)
    try:
        small.wait_until(lambda: all((folder / f"runs/r{i}/starts").exists() for i in (0, 1)), 60)
        assert "gres:gpu:2" in client("scontrol", "show", "job", job_of("r0"))
        # What Slurm sends before a job's time is up, and what preemption does.
        client("scancel", "--signal=TERM", job_of("r0"))
        client("scontrol", "requeue", job_of("r1"))
        out, err = process.communicate(timeout=200)
    finally:
        process.terminate()
    assert process.returncode == 1, out + err
    assert "failed: pretrain/broken: exit status 2; log: runs/study/small/pretrain/broken.log: unknown option" in err
    assert "not run: 1 jobs\n" in err
    assert small.receipts(folder).keys() == {
        "pretrain/r0", "pretrain/r1", "knn/r0_seed0", "knn/r1_seed0", "knn/random_seed0",
    }  # fmt: skip
    assert (folder / "tables").exists()
    for i in (0, 1):
        assert (folder / f"runs/r{i}/trained").read_text() == "trained\n"
        assert (folder / f"runs/r{i}/starts").read_text() == "started \nstarted \n"  # resumed, and free of ALLOCATION
        assert (folder / f"runs/r{i}/saved").read_text() == "saved\n"
        log = (folder / f"runs/study/small/pretrain/r{i}.log").read_text()
        assert log.count("$ bash train.sh") == 2
        assert log.endswith("exit status 0\n")
    assert len(small.measured(folder)) == len(small.records(folder)) == 3


@pytest.mark.fault("workers and signals", "study", "a stop with jobs of Slurm")
def test_a_stopped_study_cancels_its_jobs_which_save(folder: Path) -> None:
    small.write(folder, checkpoints__ours__pretrain="--seconds 60")
    process = small.start(folder, "--only", "r0", *SLURM)
    try:
        small.wait_until((folder / "runs/r0/starts").exists, 60)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, out + err
    assert err.endswith("stopped; the same command resumes\n")
    small.wait_until(lambda: not client("squeue", "--noheader"), 60)  # it is not put back into the queue either
    assert (folder / "runs/r0/saved").read_text() == "saved\n"


def test_a_start_waits_for_the_jobs_of_a_killed_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that run go on to their end; those that have not begun are cancelled, and so are submitted once."""

    def submit(name: str, *options: str) -> str:
        command = ("sbatch", "--parsable", f"--job-name={name}", "--output=/dev/null", *options)
        return client(*command, "--wrap=sleep 2; touch ended")

    running, other = submit("study_small_abc"), submit("study_smaller_abc", "--hold")
    small.wait_until(lambda: client("squeue", "--noheader", "--format=%T", f"--jobs={running}") == "RUNNING")
    pending = submit("study_small_abc", "--hold")
    slurm.wait_for_jobs("small")
    assert (folder / "ended").exists()
    assert capsys.readouterr().out.startswith(f"waiting for jobs of an earlier start: {running} (scancel lets them")
    assert client("squeue", "--noheader", "--format=%i") == other
    assert "CANCELLED" in client("scontrol", "show", "job", pending)


def test_mistakes_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.write(folder)
    for option, message in (
        ("partitoin=gpu", "unrecognized option '--partitoin=gpu'"),
        ("time=1-00:00:00", "time=1-00:00:00: must be a whole number of minutes"),
        ("partition=none", "invalid partition"),
    ):
        assert main(["--study", "small.yaml", "--slurm", option]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert len(err.splitlines()) == 1
    assert not list(folder.glob("runs/study/small/*/*"))


def test_a_silent_controller_is_not_an_empty_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squeue").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ValueError, match="squeue does not answer"):
        slurm.wait_for_jobs("small")


@pytest.mark.ddp
@pytest.mark.slow
def test_pretraining_over_two_agents(folder: Path) -> None:
    """The sample job: two torchrun agents meet, train as two ranks, save before time is up, and go on."""
    subprocess.run([sys.executable, "-c", MAKE_IMAGES, "images"], check=True)
    words = (
        f"--recipe my_folder --data.train {folder / 'images'} --runs {folder / 'runs'} --name two --device cpu "
        "--data.workers 0 --model.arch resnet18 --model.queue_size 64 --model.bn_groups 2 --views.size 16 "
        "--optim.batch 16 --optim.epochs 4 --optim.precision fp32 --monitor.log_every 1 --monitor.knn_every 0"
    )
    options = ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1"]
    done = subprocess.run(
        ["sbatch", "--parsable", *options, "pretrain/slurm.sh", *words.split()], cwd=ROOT, capture_output=True,
        text=True, check=True, env=os.environ | {"NPROC": "1", "OMP_NUM_THREADS": "1", "UNIMOCO_ENV": sys.prefix},
    )  # fmt: skip
    job, run = done.stdout.strip(), folder / "runs/two"
    log = ROOT / f"slurm-pretrain-{job}.log"
    small.wait_until(
        lambda: (run / "metrics.jsonl").exists() and '"step": 3,' in (run / "metrics.jsonl").read_text(), 120
    )
    client("scancel", "--batch", "--signal=USR1", job)
    small.wait_until(lambda: not client("squeue", "--noheader", f"--jobs={job}"), 240)
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
