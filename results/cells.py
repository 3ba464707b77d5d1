"""Running one cell of a study, and remembering how it ended.

A cell is done when the state file says that its command ended well on this very checkpoint, and its result is there:
the Record in its records file, or the finished run. Anything else is run again; the commands skip by themselves what
is on record and go on where they were stopped.

The lock of a cell is inherited by its command. When a study is killed its commands go on to their end, and the next
start waits for them: nothing is measured twice.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from results.plan import Cell
from results.record import Record, append_line, read

Status = Literal["done", "failed", "stopped", "not run", "submitted"]
# Exit statuses of commands that were told to stop: 128 + signal, or killed by it.
STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM}
GRACE = 60.0  # seconds that a command has to save its state


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        cell: its name.
        status: "done", "failed", "stopped" (by a signal; it goes on at the next start), "not run" (what it needs is
            not there) or "submitted" (it is in Slurm's hands).
        command: its words.
        checkpoint: sha256 of the checkpoint file, or its name where it is no file; None: not there.
        reason: why it is not done.
        log: what the command said.
        seconds: wall time.
        job: id in Slurm.
        time: when.
    """

    cell: str
    status: Status
    command: tuple[str, ...] = ()
    checkpoint: str | None = None
    reason: str = ""
    log: str = ""
    seconds: float = 0.0
    job: str = ""
    time: str = ""


class State:
    """The folder of a study: state.jsonl, logs, locks. Several processes may use it at once.

    Args:
        folder: e.g. runs/study/desk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "state.jsonl"

    def log(self, cell: Cell) -> Path:
        """The file for what the command says."""
        return self.folder / "logs" / f"{cell.name.replace('/', '.')}.log"

    def lock(self, cell: Cell | None = None) -> IO[str] | None:
        """The open, locked lock file of a cell, or of the whole study; None when another process holds it."""
        path = self._lock_file(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 it stays open as long as the cell runs
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    @staticmethod
    def sign(lock: IO[str], pid: int) -> None:
        """Writes into a lock file who holds it."""
        lock.truncate(0)
        print(f"{pid} on {platform.node()}", end="", file=lock, flush=True)

    def holder(self, cell: Cell | None = None) -> str:
        """Who has a lock, or had it last: "PID on HOST"."""
        path = self._lock_file(cell)
        return path.read_text() if path.exists() else ""

    def _lock_file(self, cell: Cell | None) -> Path:
        return self.folder / "locks" / (cell.name.replace("/", ".") if cell else "study")

    def append(self, outcome: Outcome) -> None:
        """Adds a line; several processes may do so at once."""
        append_line(self.file, dataclasses.asdict(outcome) | {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})

    def last(self) -> dict[str, Outcome]:
        """The newest line of each cell. A line torn by a crash tells nothing, so its cell is run again.

        Raises:
            ValueError: names a line that is whole and no outcome.
        """
        if not self.file.exists():
            return {}
        outcomes = {}
        for number, line in enumerate(self.file.read_text().splitlines(), 1):
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                continue
            try:
                outcomes[values["cell"]] = Outcome(**{**values, "command": tuple(values["command"])})
            except (KeyError, TypeError) as error:
                raise ValueError(f"{self.file}:{number}: no outcome of a cell: {error}") from error
        return outcomes


def identity(cell: Cell) -> str | None:
    """What tells a cell's checkpoint from others: sha256 of the file, else its name; None where there is no file."""
    path = Path(cell.ckpt)
    if not cell.is_file:
        return cell.ckpt
    if not path.is_file():
        return None
    stat = path.stat()
    return _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _sha256(path: Path, *_stat: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_result(cell: Cell) -> bool:
    """Whether the Record is in the records file, or the run has finished.

    Raises:
        ValueError: a broken line in the records file.
    """
    who = identity(cell)
    if who is None:
        return False
    if cell.records is None:
        return Path(cell.ckpt).with_name("summary.json").is_file()
    return any(who in (record.checkpoint["sha256"], record.checkpoint.get("path")) for record in records_of(cell))


def records_of(cell: Cell) -> list[Record]:
    """Records of a cell's task, seed and options, whatever checkpoint they are of.

    Raises:
        ValueError: a broken line in the records file.
    """
    if cell.records is None or not cell.records.is_file():
        return []
    stat = cell.records.stat()
    return [
        record
        for record in _read(cell.records, stat.st_size, stat.st_mtime_ns)
        if (record.task, record.seed) == (cell.task, cell.seed)
        and all(json.dumps(_entry(record.config, name)) == value for name, value in cell.where)
    ]


def measured_before(cells: Sequence[Cell]) -> set[str]:
    """Names of the cells of checkpoints that are no longer here and that need not be: each of their measurements is
    on record, all of one and the same file."""
    checkpoints: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.is_file and identity(cell) is None:
            checkpoints[cell.ckpt].append(cell)
    found: set[str] = set()
    for path, same in checkpoints.items():
        files = [
            {r.checkpoint["sha256"] for r in records_of(cell) if r.checkpoint.get("path") == path}
            for cell in same
            if cell.records is not None
        ]
        if files and set.intersection(*files):
            found |= {cell.name for cell in same}
    return found


@functools.lru_cache(maxsize=64)
def _read(path: Path, *_stat: int) -> list[Record]:
    return read(path)


def _entry(config: Mapping[str, Any], name: str) -> Any:
    """The entry under a dotted name; None where there is none."""
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def is_done(cell: Cell, last: Mapping[str, Outcome]) -> bool:
    """Whether there is nothing left to do for a cell."""
    line = last.get(cell.name)
    return (
        line is not None
        and line.status == "done"
        and line.command == cell.command
        and line.checkpoint == identity(cell)
        and has_result(cell)
    )


class Execution:
    """One cell under way; `poll` until there is an outcome, which is in the state file by then.

    Args:
        cell: what to run.
        state: where it is remembered.
        environment: variables for the command, besides those there are.
        job: id in Slurm.
    """

    def __init__(self, cell: Cell, state: State, environment: Mapping[str, str] | None = None, job: str = "") -> None:
        self.cell, self.state, self.job = cell, state, job
        self._environment = command_environment() | dict(environment or {})
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._began = time.time()
        self._asked_to_stop = False

    def poll(self) -> Outcome | None:
        """Starts the command as soon as its lock is free; its outcome once it has ended."""
        if self._process is None:
            self._lock = None if self._asked_to_stop else self.state.lock(self.cell)
            if self._lock is None:
                return None
            last = self.state.last()
            if is_done(self.cell, last):
                return self._end(last[self.cell.name], remember=False)
            needed = last.get(self.cell.needs) if self.cell.needs else None
            if self.cell.needs and (needed is None or needed.status != "done"):
                return self._end(self._outcome("not run", f"{self.cell.needs} is not done"))
            if not self._start():
                return self._end(self._outcome("failed", f"{self.cell.command[0]}: no such command"))
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return None
        return self._end(self._judge(code))

    @property
    def waits_for(self) -> str:
        """The process of an earlier start that still runs this cell's command; empty once it is ours."""
        return "" if self._lock else self.state.holder(self.cell)

    def terminate(self, grace: float = GRACE) -> None:
        """Asks the command to save its state and end; kills it after `grace` seconds. Safe in a signal handler."""
        deadline = time.monotonic() + grace
        self.signal(signal.SIGTERM)
        # Not Popen.poll: the handler may have interrupted one, which holds its lock.
        while self._process and not _has_ended(self._process.pid):
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
            time.sleep(0.05)

    def signal(self, number: int) -> None:
        """Sends a signal to the command and its children, if it runs."""
        self._asked_to_stop = True
        if self._process and not _has_ended(self._process.pid):
            os.killpg(self._process.pid, number)

    def _start(self) -> bool:
        assert self._lock is not None
        log = self.state.log(self.cell)
        log.parent.mkdir(parents=True, exist_ok=True)
        self._began = time.time()
        with open(log, "a") as file:
            file.write(f"$ {shlex.join(self.cell.command)}    # {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            file.flush()
            # Slurm signals every process of a job before its time is up; the command waits for our SIGTERM.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
            try:
                self._process = subprocess.Popen(
                    self.cell.command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                    env=self._environment, start_new_session=True, pass_fds=(self._lock.fileno(),),
                )  # fmt: skip
            except FileNotFoundError:
                return False
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        self.state.sign(self._lock, self._process.pid)
        return True

    def _judge(self, code: int) -> Outcome:
        if code in STOPPED or (code and self._asked_to_stop):
            return self._outcome("stopped", f"exit status {code}")
        if code:
            return self._outcome("failed", f"exit status {code}: {_last_line(self.state.log(self.cell))}")
        try:
            there = has_result(self.cell)
        except ValueError as error:
            return self._outcome("failed", str(error))
        if not there:
            wanted = f"record of {self.cell.task}, seed {self.cell.seed} in {self.cell.records}"
            return self._outcome("failed", f"ended well, but left no {wanted if self.cell.task else 'finished run'}")
        return self._outcome("done")

    def _outcome(self, status: Status, reason: str = "") -> Outcome:
        return Outcome(
            self.cell.name, status, self.cell.command, identity(self.cell), reason,
            str(self.state.log(self.cell)) if self._process else "", round(time.time() - self._began, 1), self.job,
        )  # fmt: skip

    def _end(self, outcome: Outcome, remember: bool = True) -> Outcome:
        if remember or self.job:
            self.state.append(dataclasses.replace(outcome, job=self.job))
        assert self._lock is not None
        self._lock.close()
        return outcome


def command_environment() -> dict[str, str]:
    """Commands find this Python, and pretrain/run.sh this environment."""
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    if (Path(sys.prefix) / ".unimoco-stamp").exists():
        environment.setdefault("UNIMOCO_ENV", sys.prefix)
    return environment


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # waited for already
        return True


def _last_line(log: Path) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
