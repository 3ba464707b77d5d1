"""A study runs what is not done, survives what fails, and ends in the same records however often it is killed."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from results.record import Record, read_all
from results.record import write as write_record
from results.studies import run_job
from results.study import main, without_recorded
from results.study_file import load
from tests.results import small_study as small

JOBS = 2 + 3 * 2  # two pre-trainings; three checkpoints, two tasks
PICK = ("--jobs", "4")  # quicker than one job at a time


def snakemake_of(process: subprocess.Popen[str]) -> psutil.Process:
    """Snakemake, once the study has started it."""
    found: list[psutil.Process] = []
    small.wait_until(lambda: found.extend(psutil.Process(process.pid).children()) or found)
    return found[0]


def test_every_job_runs_once_and_leaves_a_receipt(tmp_path: Path) -> None:
    small.write(tmp_path, tasks__knn__seeds=[0, 1], after=["touch tables"])
    code, out, err = small.run(tmp_path, *PICK)
    assert code == 0, out + err
    assert f"{JOBS + 3} of {JOBS + 3} steps (100%) done" in err
    assert len(small.records(tmp_path)) == len(set(small.records(tmp_path))) == len(small.measured(tmp_path)) == 9
    assert (tmp_path / "tables").exists()
    receipts = small.receipts(tmp_path)
    assert len(receipts) == JOBS + 3
    paths = [path for receipt in receipts.values() for path in receipt]
    assert sorted(paths) == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("records/*/*/*.json"))
    assert {r.environment["job"] for r in read_all(tmp_path / "records")} == {"small/knn", "small/linear"}
    # Once done, no command is started any more.
    code, out, err = small.run(tmp_path)
    assert (code, small.receipts(tmp_path)) == (0, receipts)
    assert "Nothing to be done" in err
    assert (tmp_path / "runs/r0/starts").read_text().count("started") == 1
    assert f"{JOBS + 3} jobs: {JOBS + 3} done, 0 to do" in small.run(tmp_path, "--dry-run")[1]


def test_a_dry_run_lists_the_jobs_and_their_cost_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small.write(tmp_path, tasks__linear__minutes=None, checkpoints__ours__minutes=60, checkpoints__ours__gpus=8)
    assert main(["--study", "small.yaml", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["to", "do", "8", "GPU-h"]
    assert lines[1].endswith("bash train.sh --runs runs --name r0 --seconds 0.1")
    assert lines[-4:] == [
        f"{JOBS} jobs: 0 done, {JOBS} to do", "estimated: 16 GPU-hours", "estimated: 0.1 hours, 1 at a time",
        "no estimate for 3 jobs",
    ]  # fmt: skip
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "runs" in path.parts]


def test_a_part_of_it_and_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small.write(tmp_path, checkpoints__random__name="random_net")
    assert small.run(tmp_path, "--only", "knn/r1_*")[0] == 0
    assert small.receipts(tmp_path).keys() == {"pretrain/r1", "knn/r1_seed0"}
    study = load(tmp_path / "small.yaml")
    assert [job.name for job in study.select(["linear"])] == [
        "pretrain/r0", "linear/r0_seed0", "pretrain/r1", "linear/r1_seed0", "linear/random_net_seed0",
    ]  # fmt: skip
    assert [job.name for job in study.select(["random*"])] == ["knn/random_net_seed0", "linear/random_net_seed0"]


def test_a_result_that_is_gone_or_outdated_is_made_again(tmp_path: Path) -> None:
    small.write(tmp_path, tasks__linear=None)
    assert small.run(tmp_path, *PICK)[0] == 0
    # A record is deleted; another checkpoint lies under the same name; a task has another command.
    gone = Path(small.receipts(tmp_path)["knn/random_seed0"][0])
    (tmp_path / gone).unlink()
    (tmp_path / "runs/r1/last.pth").write_text("trained again")
    listed = small.run(tmp_path, "--dry-run")[1]
    to_do = {line.split()[4] for line in listed.splitlines() if line.startswith("to do")}
    assert to_do == {"pretrain/r1", "knn/r1_seed0", "knn/random_seed0"}
    assert small.run(tmp_path)[0] == 0
    assert [entry[1] for entry in small.measured(tmp_path)][3:] in (
        ["random:resnet18?seed=0", "runs/r1/last.pth"], ["runs/r1/last.pth", "random:resnet18?seed=0"],
    )  # fmt: skip
    assert (tmp_path / "runs/r1/trained").read_text() == "trained\n"  # its pre-training found that it is done
    small.write(tmp_path, tasks__linear=None, tasks__knn__command="python measure.py --seconds 0 --task k2")
    assert small.run(tmp_path)[0] == 0
    assert len(small.measured(tmp_path)) == 5 + 3


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the small study, and records of r0 for both of its tasks; no checkpoint."""
    monkeypatch.chdir(tmp_path)
    small.write(tmp_path)
    for task in ("knn", "linear"):
        write_record(tmp_path / "records", on_record(task, f"small/{task}"))
    return tmp_path


def on_record(task: str, job: str | None, sha256: str = "0" * 64, ckpt: str = "runs/r0/last.pth") -> Record:
    backbone = {"path": ckpt, "sha256": sha256, "format": "small", "arch": "none"}
    environment = {} if job is None else {"job": job}
    return Record(ckpt, backbone, 0, task, {}, "small", 0, {"top1": 0.5}, "top1", {}, environment)


def left(folder: Path) -> set[str]:
    study = load(folder / "small.yaml")
    return {job.name for job in without_recorded(study, study.jobs)}


def test_records_stand_in_for_checkpoints_that_are_gone(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_r0 = {"pretrain/r0", "knn/r0_seed0", "linear/r0_seed0"}
    everything = {job.name for job in load(recorded / "small.yaml").jobs}
    assert left(recorded) == everything - of_r0
    assert capsys.readouterr().out == "on record, left out: 3 jobs of r0\n"
    write_record(recorded / "records", on_record("knn", None, ckpt="random:resnet18?seed=0"))
    assert left(recorded) == everything - of_r0  # linear of the random network is missing
    write_record(recorded / "records", on_record("linear", None, ckpt="random:resnet18?seed=0"))
    assert "random" not in str(left(recorded))
    # A checkpoint that exists is left to its commands, which compare its sha256.
    (recorded / "runs/r0").mkdir(parents=True)
    (recorded / "runs/r0/last.pth").write_text("r0")
    assert of_r0 <= left(recorded)
    # The dry run says so, too, and a real one with nothing left to do ends well.
    shutil.rmtree(recorded / "runs")
    assert main(["--study", "small.yaml", "--trust-records", "--only", "r0", "random", "--dry-run"]) == 0
    assert main(["--study", "small.yaml", "--trust-records", "--only", "r0", "random"]) == 0
    assert not (recorded / "runs/r0").exists()


def test_records_of_two_files_of_one_name_do_not_stand_in_for_it(recorded: Path) -> None:
    write_record(recorded / "records", on_record("linear", "small/linear", sha256="1" * 64))
    assert "pretrain/r0" in left(recorded)


def test_records_of_another_job_do_not_stand_in(recorded: Path) -> None:
    """Two jobs of one task differ in what their records call them; a record without a job may be of either."""
    small.write(recorded, tasks__again={"task": "knn", "command": "python measure.py --again"})
    assert {"knn/r0_seed0", "again/r0_seed0"} <= left(recorded)
    write_record(recorded / "records", on_record("knn", None))
    assert {"knn/r0_seed0", "again/r0_seed0"} <= left(recorded)


def test_a_broken_record_is_named(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recorded / "records/knn/r0").mkdir()
    (recorded / "records/knn/r0/x.json").write_text("{}")
    assert main(["--study", "small.yaml", "--trust-records"]) == 2
    assert "records/knn/r0/x.json" in capsys.readouterr().err


def test_what_fails_names_its_log_and_stops_nothing_else(tmp_path: Path) -> None:
    small.write(
        tmp_path,
        checkpoints__broken={"name": "broken", "pretrain": "--wrong 1"},
        tasks__linear__command="python measure.py --seconds 0.1 --task linear --silent",
        tasks__linear__only=["random"],
        after=["false", "no-such-command", "touch tables"],
    )
    code, out, err = small.run(tmp_path, *PICK, "--", "--latency-wait", "1")
    assert code == 1, out + err
    log = "runs/study/small/pretrain/broken.log"
    assert f"failed: pretrain/broken: exit status 2; log: {log}: unknown option --wrong\n" in err
    silent = "runs/study/small/linear/random_seed0.log"
    assert (
        f"failed: linear/random_seed0: exit status 0; log: {silent}: $ python measure.py" in err
    )  # it left no receipt
    assert "not run: 1 jobs\n" in err
    assert small.receipts(tmp_path).keys() == {
        "pretrain/r0", "pretrain/r1", "knn/r0_seed0", "knn/r1_seed0", "knn/random_seed0",
    }  # fmt: skip
    # What follows runs all the same: what is there goes into the tables.
    assert "exit status 1: false\n" in err
    assert "exit status 127: no-such-command\n" in err
    assert (tmp_path / "tables").exists()
    # Failed jobs are tried again: in vain, and once the mistake is corrected.
    assert f"failed: pretrain/broken: exit status 2; log: {log}: unknown" in small.run(tmp_path, "--only", "broken")[2]
    small.write(tmp_path)
    assert small.run(tmp_path, *PICK)[0] == 0
    assert len(small.measured(tmp_path)) == 6


@pytest.mark.fault("workers and signals", "study", "SIGINT, SIGTERM, SIGHUP with running commands")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_commands_save_their_state(tmp_path: Path, number: signal.Signals) -> None:
    small.write(tmp_path, checkpoints__ours__pretrain="--seconds 60", tasks__knn=None, tasks__linear__only=["r0"])
    old = (
        signal.signal(signal.SIGINT, signal.SIG_IGN) if number == signal.SIGTERM else None
    )  # as a script's "... &" does
    process = small.start(tmp_path, "--jobs", "2")
    signal.signal(signal.SIGINT, old or signal.default_int_handler)
    try:
        small.wait_until(lambda: all((tmp_path / f"runs/r{i}/starts").exists() for i in (0, 1)))
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 128 + number, out + err
    assert err.endswith("stopped; the same command resumes\n")
    assert "Traceback" not in err
    assert [(tmp_path / f"runs/r{i}/saved").read_text() for i in (0, 1)] == ["saved\n"] * 2  # asked once
    if number == signal.SIGINT:
        small.write(tmp_path, tasks__knn=None)
        assert small.run(tmp_path, *PICK)[0] == 0
        assert len(small.records(tmp_path)) == 3


@pytest.mark.fault("workers and signals", "study", "a second signal for a command that does not listen")
def test_a_second_signal_ends_a_command_that_does_not_listen(tmp_path: Path) -> None:
    small.write(tmp_path, checkpoints__ours__pretrain="--seconds 60")
    deaf = small.TRAIN.replace("trap 'echo saved >>\"$runs/$name/saved\"; exit 143' TERM", "trap '' TERM INT")
    (tmp_path / "train.sh").write_text(deaf.replace('sleep "$seconds" & wait $!', 'exec sleep "$seconds"'))
    process = small.start(tmp_path, "--only", "r0")
    try:
        small.wait_until((tmp_path / "runs/r0/starts").exists)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.7)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


def test_one_study_at_a_time(tmp_path: Path) -> None:
    """Also when only the front was killed: Snakemake still runs the study then."""
    small.write(tmp_path, checkpoints__ours__pretrain="--seconds 60")
    process = small.start(tmp_path)
    small.wait_until(lambda: list(tmp_path.glob("runs/*/starts")))
    snakemake = snakemake_of(process)
    try:
        for _ in range(2):
            code, _, err = small.run(tmp_path)
            assert code == 2
            assert f"small: process {snakemake.pid} on" in err
            assert len(err.splitlines()) == 1
            process.kill()
            process.wait()
    finally:
        os.killpg(snakemake.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.fault("workers and signals", "study", "SIGKILL at random moments")
def test_killed_at_random_moments_it_ends_in_the_same_records(tmp_path: Path) -> None:
    """SIGKILL of front and Snakemake leaves the commands alone; a crash of the machine ends all. In turn."""
    seed = random.randrange(10**6)
    print("seed", seed)
    moments = random.Random(seed)
    small.write(
        tmp_path, checkpoints__ours__pretrain="--seconds 0.7", tasks__knn__seeds=[0, 1],
        tasks__knn__command="python measure.py --seconds 0.4 --task knn",
    )  # fmt: skip
    kills, started = 0, list[subprocess.Popen[str]]()
    while kills < 6:
        process = small.start(tmp_path, "--jobs", "2")
        snakemake = snakemake_of(process)
        try:
            process.wait(moments.uniform(0.7, 2.2))
        except subprocess.TimeoutExpired:
            kills += 1
            process.kill()
            if kills % 2:
                snakemake.kill()
            else:
                os.killpg(snakemake.pid, signal.SIGKILL)
        process.wait()  # not for commands that are left: they hold its pipes
        started.append(process)
        if process.returncode == 0:
            break
    assert kills, "never killed"
    code, out, err = small.run(tmp_path, "--jobs", "2")
    assert code == 0, out + err
    found = {tuple(entry[:3]) for entry in small.measured(tmp_path)}
    assert len(small.records(tmp_path)) == len(found) == len(small.measured(tmp_path)) == 9  # each once
    assert [(tmp_path / f"runs/r{i}/trained").read_text() for i in (0, 1)] == ["trained\n"] * 2
    receipts = small.receipts(tmp_path)
    assert len(receipts) == 11
    assert all((tmp_path / path).exists() for receipt in receipts.values() for path in receipt)


@pytest.mark.fault("workers and signals", "study", "a start while a killed study's command still runs")
def test_a_start_waits_for_the_command_of_a_killed_one(tmp_path: Path) -> None:
    small.write(tmp_path, checkpoints__ours__pretrain="--seconds 5")
    process = small.start(tmp_path, "--only", "pretrain/r0")
    small.wait_until((tmp_path / "runs/r0/starts").exists)
    snakemake_of(process).kill()
    process.kill()
    process.wait()
    assert small.run(tmp_path, "--only", "pretrain/r0")[0] == 0
    process.communicate()
    # The second command began when the first had ended, and found that there was nothing left to do.
    first, second = re.findall(r"# (.*)", (tmp_path / "runs/study/small/pretrain/r0.log").read_text())
    assert (datetime.fromisoformat(second) - datetime.fromisoformat(first)).seconds >= 4
    assert (tmp_path / "runs/r0/starts").read_text().count("started") == 2
    assert (tmp_path / "runs/r0/trained").read_text() == "trained\n"


def test_jobs_that_run_together_have_gpus_of_their_own(tmp_path: Path) -> None:
    small.write(tmp_path, tasks__knn__command="python measure.py --seconds 0.6 --task knn", tasks__linear=None)
    smi = tmp_path / "bin/nvidia-smi"
    smi.parent.mkdir()
    smi.write_text('#!/bin/sh\nfor i in 0 1 2; do echo "GPU $i: a card (UUID: GPU-$i)"; done\n')
    smi.chmod(0o755)
    environment = {"PATH": f"{smi.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "3"}
    assert small.run(tmp_path, "--jobs", "2", **environment)[0] == 0
    runs = [(devices, float(begin), float(end)) for *_, devices, _, begin, end in small.measured(tmp_path)]
    assert {devices for devices, *_ in runs} == {"0,2", "1"}
    together = [(a, b) for a in runs for b in runs if a < b and a[1] < b[2] and b[1] < a[2]]
    assert together
    assert all(a[0] != b[0] for a, b in together)
    assert {entry[4] for entry in small.measured(tmp_path)} == {"3"}


REAL = """
runs: FOLDER/runs
records: FOLDER/records
pretrain: python -m pretrain.train
paths: {data: FOLDER/images}
checkpoints:
  tiny:
    name: tiny
    pretrain: >-
      --recipe my_folder --data.train {data} --data.workers 0 --device cpu --model.arch resnet18 --model.queue_size 64
      --model.bn_groups 2 --views.size 16 --optim.batch 16 --optim.epochs 0.5 --optim.warmup 0 --monitor.knn_every 0
tasks:
  knn:
    command: >-
      python ROOT/transfer/knn.py --data {data} --test {data} --size 16 --k '[5]' --cache null --pictures false
      --out FOLDER/transfer --device cpu --allow-overlap
"""


@pytest.mark.slow
def test_with_the_real_commands(tmp_path: Path) -> None:
    """Pre-training and kNN; without their receipts they find out that there is nothing to do."""
    noise = np.random.default_rng(0)
    for i in range(128):
        file = tmp_path / "images" / str(i % 4) / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), noise.integers(0, 255, (32, 32, 3), dtype=np.uint8))
    (tmp_path / "small.yaml").write_text(REAL.replace("FOLDER", str(tmp_path)).replace("ROOT", str(small.ROOT)))
    for moment in ("first", "without receipts"):
        code, out, err = small.run(tmp_path)
        assert code == 0, out + err
        (record,) = read_all(tmp_path / "records")
        assert record.environment["job"] == "small/knn"
        (path,) = small.receipts(tmp_path)["knn/tiny_seed0"]
        assert Path(path) == tmp_path / "records" / record.path, moment
        shutil.rmtree(tmp_path / ".snakemake")
        for receipt in small.receipts(tmp_path):
            for file in (tmp_path / "runs/study/small").glob(f"{receipt}.[dj]*"):  # .done or .json
                file.unlink()
    assert "on record" in (tmp_path / "runs/study/small/knn/tiny_seed0.log").read_text()
    assert len((tmp_path / "runs/tiny/command.txt").read_text().splitlines()) == 1  # trained once


def test_names_with_dots_have_locks_and_logs_of_their_own(tmp_path: Path) -> None:
    stems = [tmp_path / "study/pretrain" / name for name in ("r0.1_s0", "r0.3_s0")]
    for stem in stems:
        command = [sys.executable, run_job.__file__, "0", str(stem), "echo", stem.name]
        subprocess.run(command, check=True, timeout=60)
        assert Path(f"{stem}.log").read_text().endswith(f"\n{stem.name}\n")
        assert Path(f"{stem}.lock").exists()
