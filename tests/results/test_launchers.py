"""One machine: cells in their order, several at a time, each with its share; one cell: its lock and its end."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from results.cells import Execution, Outcome, State
from results.launchers import Local, shares
from results.plan import Cell, load
from tests.results import small_study as small


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_all(launcher: Local, cells: list[Cell]) -> dict[str, Outcome]:
    return {outcome.cell: outcome for outcome in launcher.run(cells) if outcome}


def end(execution: Execution, seconds: float = 20) -> Outcome:
    deadline = time.monotonic() + seconds
    while (outcome := execution.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return outcome


def test_several_at_a_time_after_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    study = load(small.write(tmp_path, checkpoints__ours__pretrain="--seconds 0.5"))
    launcher = Local(State(tmp_path / "state"), jobs=2)
    most, ends = 0, []
    for outcome in launcher.run(list(study.cells)):
        most = max(most, len(launcher.running))
        ends += [outcome.cell] if outcome else []
    assert most == 2
    assert sorted(ends) == sorted(cell.name for cell in study.cells)
    assert all(ends.index(cell.needs) < ends.index(cell.name) for cell in study.cells if cell.needs)
    assert {devices for *_, devices, _ in small.starts(tmp_path)} == {"4,6", "5"}
    assert len(small.records(tmp_path)) == 12


def test_shares_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert shares(1) == [{}]
    assert shares(2) == [{"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": d} for d in ("0,2", "1,3")]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares(6)] == ["0", "1", "2", "3", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the user wants none
    assert shares(16) == [{"OMP_NUM_THREADS": "1"}] * 16
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert shares(2) == [{"OMP_NUM_THREADS": "3"}] * 2


def test_closing_stops_what_runs(tmp_path: Path) -> None:
    study = load(small.write(tmp_path, checkpoints__ours__pretrain="--seconds 60"))
    state = State(tmp_path / "state")
    events = Local(state, jobs=2).run([cell for cell in study.cells if cell.task is None])
    while not all((tmp_path / f"runs/r{i}/starts").exists() for i in (0, 1)):
        next(events)
    began = time.monotonic()
    events.close()
    assert time.monotonic() - began < 5
    assert {cell: outcome.status for cell, outcome in state.last().items()} == {
        "pretrain/r0": "stopped", "pretrain/r1": "stopped",
    }  # fmt: skip
    assert all((tmp_path / f"runs/r{i}/saved").exists() for i in (0, 1))


def test_a_cell_waits_for_its_lock_and_is_not_run_twice(tmp_path: Path) -> None:
    (cell,) = (c for c in load(small.write(tmp_path)).cells if c.name == "knn/random/seed0")
    state = State(tmp_path / "state")
    first, second = Execution(cell, state), Execution(cell, state)
    assert first.poll() is None
    assert second.poll() is None
    assert second.waits_for.split()[0] in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert (first.waits_for, end(first).status) == ("", "done")
    assert end(second).status == "done"
    assert len(small.starts(tmp_path)) == 1


def test_what_waits_for_a_lock_does_not_start_when_stopped(tmp_path: Path) -> None:
    (cell,) = (c for c in load(small.write(tmp_path)).cells if c.name == "knn/random/seed0")
    state = State(tmp_path / "state")
    lock = state.lock(cell)
    assert lock
    events = Local(state).run([cell])
    assert next(events) is None
    lock.close()
    events.close()
    assert not small.starts(tmp_path)
    assert not state.last()


def test_a_command_inherits_the_lock(tmp_path: Path) -> None:
    """So an orphan keeps it, however its study ended."""
    (cell,) = (c for c in load(small.write(tmp_path)).cells if c.name == "knn/random/seed0")
    cell = dataclasses.replace(cell, command=("bash", "-c", "sleep 1"))
    code = (
        "import pickle, sys; from results.cells import *\n"
        "execution = Execution(*pickle.loads(bytes.fromhex(sys.argv[1]))); execution.poll()"
    )
    state = State(tmp_path / "state")
    subprocess.run([sys.executable, "-c", code, pickle.dumps((cell, state)).hex()], check=True)
    began = time.monotonic()
    assert state.lock(cell) is None
    while (lock := state.lock(cell)) is None:
        assert time.monotonic() - began < 10
        time.sleep(0.05)
    lock.close()


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    (cell,) = (c for c in load(small.write(tmp_path)).cells if c.name == "knn/random/seed0")
    outcome = end(Execution(dataclasses.replace(cell, command=("no-such-command",)), State(tmp_path / "state")))
    assert (outcome.status, outcome.reason) == ("failed", "no-such-command: no such command")


def test_lines_of_many_processes_stay_whole(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from results.cells import *\n"
        "for i in range(200): State(Path('s')).append(Outcome(f'{sys.argv[1]}/{i}', 'done', reason='x' * 500))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(i)]) for i in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert len(State(Path("s")).last()) == 800


def test_a_deaf_command_is_killed_after_a_while(tmp_path: Path) -> None:
    (cell,) = (c for c in load(small.write(tmp_path)).cells if c.name == "knn/random/seed0")
    deaf = dataclasses.replace(cell, command=("bash", "-c", "trap '' TERM; touch up; while :; do sleep 0.1; done"))
    execution = Execution(deaf, State(tmp_path / "state"))
    execution.poll()
    while not Path("up").exists():
        time.sleep(0.02)
    began = time.monotonic()
    execution.terminate(grace=0.5)
    assert 0.4 < time.monotonic() - began < 5
    assert end(execution).status == "stopped"
