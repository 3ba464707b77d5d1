"""A study runs what is not done, survives what fails, and ends in the same records however often it is killed."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from results.cells import Outcome
from results.progress import PRIOR_MINUTES, Progress
from results.study import main
from tests.results import small_study as small

ROOT = Path(__file__).parents[2]
CELLS = 2 + 3 * 2 * 2  # two trainings; three checkpoints, two tasks, two seeds


def wait_until(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def test_every_cell_runs_once(tmp_path: Path) -> None:
    small.write(tmp_path)
    code, out, err = small.run(tmp_path)
    assert code == 0, out + err
    assert len(small.records(tmp_path)) == len(set(small.records(tmp_path))) == 12
    assert Counter(line["status"] for line in small.state(tmp_path)) == {"done": CELLS}
    assert f"[{CELLS}/{CELLS}]" in out
    row = next(line for line in out.splitlines() if line.startswith("r0 "))
    assert row.split() == ["r0", "done", "2", "done", "2", "done"]
    # Once done, no command is started any more.
    before, records = small.starts(tmp_path), small.records(tmp_path)
    code, out, _ = small.run(tmp_path)
    assert code == 0
    assert f"{CELLS} cells, {CELLS} done before" in out
    assert (small.starts(tmp_path), small.records(tmp_path)) == (before, records)
    assert (tmp_path / "runs/r0/starts").read_text() == "started\n"


def test_a_plan_is_only_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small.write(tmp_path, tasks__linear__minutes=None)
    assert main(["--study", "small.yaml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"{CELLS} cells: {CELLS} to do" in out
    assert "no estimate for 6 cells" in out
    assert "bash train.sh --runs runs --name r0 --seconds 0.1" in out
    assert {path.name for path in tmp_path.iterdir()} == {"small.yaml", "train.sh", "measure.py"}


def test_gpu_hours_are_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small.write(
        tmp_path, checkpoints__ours__minutes=None, checkpoints__ours__gpu_hours=424, checkpoints__ours__gpus=8,
    )  # fmt: skip
    assert main(["--study", "small.yaml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "left, estimated: 848 GPU-hours in 2 cells" in out
    assert "left, estimated: 1 min in 12 cells, 1 at a time" in out


def test_a_part_of_it_and_what_it_needs(tmp_path: Path) -> None:
    small.write(tmp_path)
    assert small.run(tmp_path, "--only", "knn/r1/*")[0] == 0
    assert [record[:3] for record in small.records(tmp_path)] == [("knn", "runs/r1/last.pth", s) for s in (0, 1)]
    assert not (tmp_path / "runs/r0").exists()
    assert small.run(tmp_path, "--only", "linear", "random")[0] == 0  # a task and a checkpoint
    assert len(small.records(tmp_path)) == 2 + 6 + 2


def test_what_was_there_before_counts_once_its_command_has_seen_it(tmp_path: Path) -> None:
    small.write(tmp_path)
    assert small.run(tmp_path)[0] == 0
    records, checkpoint = small.records(tmp_path), (tmp_path / "runs/r0/last.pth").stat().st_mtime_ns
    (tmp_path / "runs/study/small/state.jsonl").unlink()  # as if all had been made by hand
    _, out, _ = small.run(tmp_path, "--dry-run")
    assert f"{CELLS} to check" in out
    assert small.run(tmp_path)[0] == 0
    assert small.records(tmp_path) == records
    assert (tmp_path / "runs/r0/last.pth").stat().st_mtime_ns == checkpoint


def test_records_stand_in_for_checkpoints_that_are_gone_when_told_so(tmp_path: Path) -> None:
    small.write(tmp_path)
    assert small.run(tmp_path)[0] == 0
    shutil.rmtree(tmp_path / "runs")  # another machine: the records came along, the checkpoints did not
    lines = (tmp_path / "knn.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "knn.jsonl").write_text(
        "".join(line for line in lines if "runs/r1/" not in line or '"seed": 1' in line)
    )
    assert f"{CELLS} cells: {CELLS - 4} to do, 4 to check" in small.run(tmp_path, "--dry-run")[1]
    code, out, err = small.run(tmp_path, "--trust-records")
    assert code == 0, out + err
    assert "on record, their checkpoints not needed: 5 cells of r0\n" in out
    assert not (tmp_path / "runs/r0").exists()
    assert (tmp_path / "runs/r1/last.pth").is_file()  # one of its measurements was missing
    assert len(small.records(tmp_path)) == 12
    code, out, _ = small.run(tmp_path, "--trust-records", "--only", "r0")
    assert code == 0
    assert "0 cells, 0 done before" in out


def test_records_of_two_files_of_one_name_do_not_stand_in_for_it(tmp_path: Path) -> None:
    small.write(tmp_path)
    assert small.run(tmp_path, "--only", "knn/r0/*")[0] == 0
    (tmp_path / "runs/r0/last.pth").write_text("trained anew")
    assert small.run(tmp_path, "--only", "linear/r0/*")[0] == 0
    shutil.rmtree(tmp_path / "runs")
    assert f"{CELLS} cells: {CELLS} to do" in small.run(tmp_path, "--dry-run", "--trust-records")[1]


def test_a_result_that_is_gone_or_outdated_is_made_again(tmp_path: Path) -> None:
    small.write(tmp_path)
    assert small.run(tmp_path)[0] == 0
    lines = (tmp_path / "knn.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "knn.jsonl").write_text("".join(lines[1:]))
    assert len(small.records(tmp_path)) == 11
    assert small.run(tmp_path)[0] == 0
    assert len(small.records(tmp_path)) == 12
    # Another checkpoint under the same name: its measurements no longer speak of it.
    (tmp_path / "runs/r1/last.pth").write_text("trained anew")
    began = len(small.starts(tmp_path))
    assert small.run(tmp_path)[0] == 0
    assert {(task, ckpt) for task, ckpt, *_ in small.starts(tmp_path)[began:]} == {
        (task, "runs/r1/last.pth") for task in ("knn", "linear")
    }
    assert len(small.records(tmp_path)) == 16
    assert (tmp_path / "runs/r1/starts").read_text() == "started\n" * 2  # its training has had a look, too
    # Another command for a task.
    began = len(small.starts(tmp_path))
    small.write(tmp_path, tasks__knn__command="python measure.py {ckpt} {seed} {records} 0 knn")
    assert small.run(tmp_path)[0] == 0
    assert {task for task, *_ in small.starts(tmp_path)[began:]} == {"knn"}


def test_measurements_of_one_task_are_told_apart_by_their_config(tmp_path: Path) -> None:
    small.write(tmp_path, tasks__linear=None, tasks__knn__where={"options.k": 20})
    code, out, _ = small.run(tmp_path, "--only", "knn/random/*")
    assert code == 1
    assert "left no record of knn, seed 0 in knn.jsonl" in out
    text = (tmp_path / "measure.py").read_text()
    (tmp_path / "measure.py").write_text(text.replace('{"seconds": seconds}, {}', '{}, {"options": {"k": 20}}'))
    (tmp_path / "knn.jsonl").unlink()
    assert small.run(tmp_path, "--only", "knn/random/*")[0] == 0


def test_what_fails_stops_nothing_else(tmp_path: Path) -> None:
    small.write(
        tmp_path,
        checkpoints__broken={"name": "broken", "pretrain": "--wrong 1"},
        tasks__knn__command="python measure.py {ckpt} {seed} {records} 0.1 another",  # its records say "another"
        after=["touch tables"],
    )
    code, out, err = small.run(tmp_path)
    assert code == 1, out + err
    last = {line["cell"]: line for line in small.state(tmp_path)}
    assert last["pretrain/broken"]["status"] == "failed"
    assert last["pretrain/broken"]["reason"] == "exit status 2: no --wrong"
    assert "no --wrong" in (tmp_path / last["pretrain/broken"]["log"]).read_text()
    assert f"log: {last['pretrain/broken']['log']}" in out
    assert last["linear/broken/seed0"]["status"] == "not run"
    assert last["linear/r0/seed0"]["status"] == "done"
    assert last["knn/r0/seed0"]["reason"] == "ended well, but left no record of knn, seed 0 in knn.jsonl"
    assert (tmp_path / "tables").exists()  # what is there goes into the tables
    # Failed cells are tried again, once the mistake is out of the way.
    small.write(tmp_path)
    assert small.run(tmp_path)[0] == 0


def test_a_command_that_follows_and_fails_is_told(tmp_path: Path) -> None:
    small.write(tmp_path, after=["false", "no-such-command", "touch tables"])
    code, _, err = small.run(tmp_path, "--only", "random")
    assert code == 1
    assert "exit status 1: false" in err
    assert "exit status 127: no-such-command" in err
    assert (tmp_path / "tables").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_command_save_its_state(tmp_path: Path, number: signal.Signals) -> None:
    small.write(tmp_path, checkpoints__ours__pretrain="--seconds 60")
    process = small.start(tmp_path)
    try:
        wait_until((tmp_path / "runs/r0/starts").exists)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "stopped; what ran has saved its state; the same command goes on" in err
    assert (tmp_path / "runs/r0/saved").exists()
    assert small.state(tmp_path)[-1]["status"] == "stopped"
    assert "Traceback" not in out + err
    small.write(tmp_path)
    assert small.run(tmp_path)[0] == 0
    assert len(small.records(tmp_path)) == 12


def test_a_second_signal_ends_a_command_that_does_not_listen(tmp_path: Path) -> None:
    small.write(tmp_path, checkpoints__ours__pretrain="--seconds 60")
    deaf = small.TRAIN.replace("trap 'echo saved >>\"$runs/$name/saved\"; exit 143' TERM", "trap '' TERM")
    (tmp_path / "train.sh").write_text(deaf.replace('sleep "$seconds" & wait $!', 'exec sleep "$seconds"'))
    process = small.start(tmp_path)
    try:
        wait_until((tmp_path / "runs/r0/starts").exists)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


def test_a_command_that_somebody_else_stops_goes_on_next_time(tmp_path: Path) -> None:
    small.write(tmp_path, checkpoints__ours__pretrain="--seconds 60", tasks__linear=None)
    process = small.start(tmp_path, "--only", "r0")
    try:
        lock = tmp_path / "runs/study/small/locks/pretrain.r0"
        wait_until((tmp_path / "runs/r0/starts").exists)
        os.kill(int(lock.read_text().split()[0]), signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1
    assert "stopped: pretrain/r0: exit status 143" in out
    assert "not run: knn/r0/seed0: pretrain/r0 is not done" in out


def test_one_study_at_a_time(tmp_path: Path) -> None:
    small.write(tmp_path)
    process = small.start(tmp_path)
    try:
        wait_until((tmp_path / "runs/study/small/state.jsonl").exists)
        code, _, err = small.run(tmp_path)
        assert code == 2
        assert f"process {process.pid} on" in err
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("crash", [False, True], ids=["the study", "the study and its command"])
def test_killed_at_random_moments_it_ends_in_the_same_records(tmp_path: Path, crash: bool) -> None:
    """SIGKILL of the study leaves its command alone; a crash of the machine takes both."""
    seed = random.randrange(10**6)
    print("seed", seed)
    moments = random.Random(seed)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        small.write(folder)
    assert small.run(whole)[0] == 0
    kills = 0
    while kills < 8:
        process = small.start(killed)
        try:
            process.wait(moments.uniform(0.3, 1.5))
        except subprocess.TimeoutExpired:
            kills += 1
            children = [
                int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            ]
            process.kill()
            for pid in children if crash else []:
                with contextlib.suppress(ProcessLookupError):  # it has ended, or leads no group
                    os.killpg(pid, signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            break
    assert kills, "never killed"
    code, out, err = small.run(killed)
    assert code == 0, out + err
    assert small.records(killed) == small.records(whole)
    assert small.run(killed)[1].startswith(f"small: {CELLS} cells, {CELLS} done before")


def test_a_start_waits_for_the_command_of_a_killed_one(tmp_path: Path) -> None:
    small.write(tmp_path, checkpoints__ours__pretrain="--seconds 2")
    process = small.start(tmp_path)
    wait_until((tmp_path / "runs/r0/starts").exists)
    process.kill()
    process.communicate()
    assert small.run(tmp_path, "--only", "pretrain/r0")[0] == 0
    # It has been started anew, and was told that it is done: but only after the first had ended.
    log = (tmp_path / "runs/study/small/logs/pretrain.r0.log").read_text()
    assert log.count("$ bash train.sh") == 2
    assert (tmp_path / "runs/r0/last.pth").stat().st_mtime < (tmp_path / "runs/r0/summary.json").stat().st_mtime - 1


def test_a_torn_line_of_the_state_is_survived(tmp_path: Path) -> None:
    small.write(tmp_path)
    assert small.run(tmp_path)[0] == 0
    file = tmp_path / "runs/study/small/state.jsonl"
    file.write_text(file.read_text()[:-40])  # the last cell's line
    code, out, _ = small.run(tmp_path)
    assert code == 0
    assert f"{CELLS} cells, {CELLS - 1} done before" in out
    assert len(small.records(tmp_path)) == 12
    assert f"{CELLS} cells, {CELLS} done before" in small.run(tmp_path, "--jobs", "2")[1]  # the new line is whole
    file.write_text(file.read_text() + '{"cell": "knn/r0/seed0"}\n')
    code, _, err = small.run(tmp_path)
    assert code == 2
    assert "no outcome of a cell" in err


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    small.write(tmp_path)
    assert small.run(tmp_path, "--only", "random")[0] == 0
    with open(tmp_path / "knn.jsonl", "a") as file:
        file.write('{"task": "knn"}\n')
    code, _, err = small.run(tmp_path)
    assert code == 2
    assert "knn.jsonl:3" in err
    assert len(err.splitlines()) == 1


def test_the_time_left_follows_the_pace() -> None:
    progress = Progress({"a": 30.0, "b": 30.0, "c": 60.0}, jobs=2)
    assert progress.eta == "about 1 h 00 min left"
    progress.ended(Outcome("a", "done", seconds=60 * (2 * (30 + PRIOR_MINUTES) - PRIOR_MINUTES)))  # half as fast
    assert progress.eta == "about 1 h 30 min left"  # 90 minutes, at half the pace, two at a time
    progress.ended(Outcome("b", "failed", seconds=1.0))  # tells nothing about the pace
    assert progress.eta == "about 1 h 00 min left"
    progress.close()


REAL = """
runs: FOLDER/runs
paths: {data: FOLDER/images}
checkpoints:
  tiny:
    name: tiny
    pretrain: >-
      --recipe my_folder --data.train {data} --data.workers 0 --device cpu --model.arch resnet18 --model.queue_size 64
      --model.bn_groups 2 --views.size 16 --optim.batch 16 --optim.epochs 0.5 --optim.warmup 0 --monitor.knn_every 0
tasks:
  knn:
    task: knn
    command: >-
      python transfer/knn.py --ckpt {ckpt} --seeds {seed} --records {records} --data {data} --test {data} --size 16
      --k '[5]' --cache null --pictures false --out FOLDER/transfer --device cpu
    records: FOLDER/knn.jsonl
"""


@pytest.mark.slow
def test_with_the_real_commands(tmp_path: Path) -> None:
    """Pre-training through its front door, and kNN; without the state they find out that there is nothing to do."""
    noise = np.random.default_rng(0)
    for i in range(128):
        folder = tmp_path / "images" / str(i % 4)
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{i}.png"), noise.integers(0, 255, (32, 32, 3), dtype=np.uint8))
    (tmp_path / "real.yaml").write_text(REAL.replace("FOLDER", str(tmp_path)))
    command = [sys.executable, "-m", "results.study", "--study", str(tmp_path / "real.yaml"), "--state", str(tmp_path)]
    for moment in ("first", "again", "without its state"):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len((tmp_path / "knn.jsonl").read_text().splitlines()) == 1, moment
        if moment == "again":
            assert "2 cells, 2 done before" in done.stdout
            (tmp_path / "real/state.jsonl").unlink()
    assert "on record" in (tmp_path / "real/logs/knn.tiny.seed0.log").read_text()
    assert len((tmp_path / "runs/tiny/command.txt").read_text().splitlines()) == 1  # trained once
