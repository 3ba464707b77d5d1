"""Where the cells of a study run: on this machine, or in Slurm.

A launcher is given cells in an order in which each comes after what it needs, and yields events as it goes: an outcome
when a cell has ended, None now and then, so that its caller can show the time and stop.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from results.cells import Execution, Outcome, State, is_done
from results.plan import Cell

POLL = 0.1  # seconds between two looks at a process
SLURM_POLL = 5.0  # ... and at the queue
SLURM_LAG = 60.0  # seconds for which a job that has left the queue may owe us its line on a slow shared file system
SLURM_TIME = 24 * 60  # minutes of a job where none is given; a cell that needs more goes on in the next
SLURM_NOTICE = 120  # seconds before its end at which a job is told

Events = Generator[Outcome | None, None, None]


class Local:
    """Processes of this machine. With several at a time, each has its share of devices and cores.

    Args:
        state: of the study.
        jobs: cells at a time.
    """

    parting = "stopped; what ran has saved its state"

    def __init__(self, state: State, jobs: int = 1) -> None:
        self.state, self.jobs = state, jobs
        self._active: dict[int, Execution] = {}  # by slot

    def run(self, cells: Sequence[Cell]) -> Events:
        """Starts cells in their order, each when what it needs has ended. Closing stops what runs."""
        waiting, environments = list(cells), shares(self.jobs)
        try:
            while waiting or self._active:
                self._start(waiting, environments)
                ended = [(slot, execution.poll()) for slot, execution in self._active.items()]
                for slot, outcome in ended:
                    if outcome is not None:
                        del self._active[slot]
                        yield outcome
                yield None
                if not any(outcome for _, outcome in ended):
                    time.sleep(POLL)
        finally:
            for execution in self._active.values():
                execution.signal(signal.SIGTERM)
            for execution in self._active.values():
                execution.terminate()
                execution.poll()

    def _start(self, waiting: list[Cell], environments: Sequence[Mapping[str, str]]) -> None:
        for slot in set(range(self.jobs)) - self._active.keys():
            open_cells = {cell.name for cell in waiting} | {e.cell.name for e in self._active.values()}
            ready = next((cell for cell in waiting if cell.needs not in open_cells), None)
            if ready is not None:
                waiting.remove(ready)
                self._active[slot] = Execution(ready, self.state, environments[slot])

    @property
    def running(self) -> dict[str, str]:
        """Cells that run, and what is to be said of each."""
        others = {execution.cell.name: execution.waits_for for execution in self._active.values()}
        return {
            cell: f"{cell} (process {other}, of an earlier start)" if other else cell for cell, other in others.items()
        }

    def kill(self) -> None:
        """Ends what runs at once."""
        for execution in self._active.values():
            execution.signal(signal.SIGKILL)


def shares(jobs: int) -> list[dict[str, str]]:
    """Environment variables that give each of `jobs` commands its share of this machine; none where it has it alone."""
    if jobs == 1:
        return [{}]
    devices = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    if not devices and "CUDA_VISIBLE_DEVICES" not in os.environ and shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
        devices = [str(index) for index in range(len(listed.splitlines()))]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // jobs))
    environments = [{"OMP_NUM_THREADS": threads} for _ in range(jobs)]
    for slot, environment in enumerate(environments):
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[slot::jobs] or [devices[slot % len(devices)]])
    return environments


class Slurm:
    """Slurm jobs through submitit: an array for all cells that ask for the same and wait for the same job.

    A cell whose checkpoint is being trained depends on that job. A job that is preempted, or near the end of its time,
    lets its command save its state and is requeued. The jobs write their outcomes themselves, so the study may be
    stopped meanwhile; its next start goes on watching.

    Args:
        state: of the study, on a file system that the nodes share.
        jobs: jobs of an array at a time.
        options: for sbatch, named as in submitit: partition, time (minutes), account, qos, mem, cpus_per_task ...
    """

    parting = "stopped watching; the jobs go on (scancel --name {name} ends them)"

    def __init__(self, state: State, jobs: int | None = None, options: Mapping[str, Any] | None = None) -> None:
        if shutil.which("sbatch") is None:
            raise ValueError("--launcher slurm: there is no sbatch here; run it where jobs are submitted")
        self.state, self.jobs, self.options = state, jobs, dict(options or {})
        self.name = f"study-{state.folder.name}"
        self.parting = self.parting.format(name=self.name)
        self.running: dict[str, str] = {}
        if type(self.options.get("time", SLURM_TIME)) is not int:
            raise ValueError(f"--slurm time={self.options['time']}: must be a whole number of minutes")
        self._executor(0, None)  # says which option is unknown before anything is submitted

    def run(self, cells: Sequence[Cell]) -> Events:
        """Submits what is not done and not in the queue already, and watches it. Closing leaves the jobs alone."""
        last, queue = self.state.last(), self._queue()
        if queue is None:
            raise ValueError("--launcher slurm: squeue does not answer, so jobs could be submitted twice; try later")
        jobs: dict[str, str] = {}
        submit: list[Cell] = []
        for cell in cells:
            line = last.get(cell.name)
            if line and line.job in queue:
                if line.command != cell.command:
                    raise ValueError(f"{cell.name}: job {line.job} runs another command; scancel {line.job} first")
                jobs[cell.name] = line.job
            elif is_done(cell, last) and cell.needs not in jobs and cell.needs not in {c.name for c in submit}:
                yield last[cell.name]
            else:
                submit.append(cell)
        self._submit(submit, jobs)
        yield from self._watch(jobs)

    def kill(self) -> None:
        """Nothing to end: the jobs go on."""

    def _submit(self, cells: Sequence[Cell], jobs: dict[str, str]) -> None:
        """Adds the ids of new jobs to `jobs`: first cells that wait for nothing new, then those that depend on them."""
        import submitit

        new = {cell.name for cell in cells}
        for dependent in (False, True):
            groups: dict[tuple[str | None, int], list[Cell]] = defaultdict(list)
            for cell in cells:
                if (cell.needs in new) == dependent:
                    job = jobs.get(cell.needs) if cell.needs else None
                    groups[job, cell.gpus].append(cell)
            for (job, gpus), group in groups.items():
                executor = self._executor(gpus, job)
                try:
                    with executor.batch():
                        submitted = [executor.submit(SlurmCell(cell, self.state.folder)) for cell in group]
                except submitit.core.utils.FailedJobError as error:
                    raise ValueError(f"sbatch refuses {len(group)} cells: {error}") from error
                for cell, one in zip(group, submitted, strict=True):
                    jobs[cell.name] = one.job_id
                    self.state.append(Outcome(cell.name, "submitted", cell.command, job=one.job_id))

    def _executor(self, gpus: int, after: str | None) -> Any:
        import submitit

        options = {
            "job_name": self.name, "time": SLURM_TIME, "signal_delay_s": SLURM_NOTICE, "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True},
        }  # fmt: skip
        options |= {"gpus_per_node": gpus} if gpus else {}
        # Whatever becomes of the job: the cell itself sees whether its checkpoint is there.
        options |= {"dependency": f"afterany:{after}"} if after else {}
        options |= {"array_parallelism": self.jobs} if self.jobs else {}
        executor = submitit.SlurmExecutor(self.state.folder / "slurm", max_num_timeout=1_000_000)
        try:
            executor.update_parameters(**options | self.options)
        except ValueError as error:
            raise ValueError(f"--slurm: {error}") from error
        return executor

    def _watch(self, jobs: dict[str, str]) -> Events:
        missing: dict[str, float] = {}  # job -> when it was first not in the queue
        looked = -SLURM_POLL
        while jobs:
            yield None
            if time.monotonic() - looked < SLURM_POLL:
                time.sleep(POLL)
                continue
            looked = time.monotonic()
            queue = self._queue()
            if queue is None:  # the controller is busy
                continue
            last = self.state.last()
            self.running = {cell: f"{cell} (job {job})" for cell, job in jobs.items() if queue.get(job) == "RUNNING"}
            for cell, job in list(jobs.items()):
                if job in queue:
                    missing.pop(job, None)
                    continue
                outcome = last[cell]
                if outcome.job != job or outcome.status == "submitted":
                    if looked - missing.setdefault(job, looked) < SLURM_LAG:
                        continue
                    outcome = self._lost(cell, job)
                del jobs[cell]
                yield outcome

    def _lost(self, cell: str, job: str) -> Outcome:
        log = next(iter(sorted((self.state.folder / "slurm").glob(f"{job}_*log.out"))), "")
        reason = f"job {job} left Slurm's queue without a word: cancelled, or killed by the node?"
        outcome = Outcome(cell, "failed", reason=reason, log=str(log), job=job)
        self.state.append(outcome)
        return outcome

    @staticmethod
    def _queue() -> dict[str, str] | None:
        """Job id -> state of this user's jobs; None when Slurm does not answer."""
        command = ["squeue", "--me", "--noheader", "--array", "--format=%i|%T"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return None
        return dict(line.split("|") for line in answer.splitlines())


class SlurmCell:
    """What a job runs: one cell. submitit calls `checkpoint` when the job is to be requeued.

    Args:
        cell: which.
        folder: of the study's state.
    """

    def __init__(self, cell: Cell, folder: Path) -> None:
        self.cell, self.folder = cell, folder
        self._execution: Execution | None = None

    def __call__(self) -> str:
        """Runs the cell to its end; returns its status."""
        import submitit

        self._execution = Execution(self.cell, State(self.folder), job=submitit.JobEnvironment().job_id)
        while (outcome := self._execution.poll()) is None:
            time.sleep(POLL)
        return outcome.status

    def checkpoint(self) -> Any:
        """Lets the command save its state; returns what the requeued job runs."""
        import submitit

        if self._execution is not None:
            self._execution.terminate(SLURM_NOTICE / 2)
        return submitit.helpers.DelayedSubmission(SlurmCell(self.cell, self.folder))
