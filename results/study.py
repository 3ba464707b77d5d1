"""Runs a study: every cell of a study file that is not done yet, then what follows them, such as the tables.

    bash results/reproduce.sh                          the desk study
    bash results/reproduce.sh --dry-run                its plan: what is done, what is left, what it costs
    bash results/reproduce.sh --only knn 'desk_r1_*'   a part of it
    bash results/reproduce.sh --trust-records          go on with a study whose first checkpoints are gone
    bash results/reproduce.sh --study paper --path imagenet=/data/imagenet --launcher slurm --slurm partition=gpu

Stop it at will: the same command goes on. Exit status: 0 all done; 1 cells that failed or could not run; 2 a mistake
in the input; 130 or 143 stopped.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from results.cells import Outcome, State, command_environment, measured_before
from results.launchers import Local, Slurm
from results.plan import Cell, Study, load, nearest
from results.progress import Progress, plan_text, summary, weights

STUDIES = Path(__file__).parent / "studies"
FAILED, USER_ERROR = 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Runs a study, or prints its plan; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        study = load(study_file(options.study), dict(options.path))
        cells, state = study.select(options.only), State(options.state / study.name)
        if options.trust_records:
            cells = without_measured(cells)
        if options.dry_run:
            print(plan_text(cells, state.last(), options.jobs or 1))
            return 0
        return run(study, cells, state, options)
    except ValueError as error:
        print(f"study: error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR


class Parser(argparse.ArgumentParser):
    """Says a mistake in one line, with the nearest option that exists."""

    def error(self, message: str) -> NoReturn:
        """Exits with 2."""
        unknown = message.partition("unrecognized arguments: ")[2].split("=")[0].split(" ")[0]
        options = [option for action in self._actions for option in action.option_strings]
        print(f"study: error: {message}{nearest(unknown, options)}", file=sys.stderr)
        sys.exit(USER_ERROR)


def parser() -> Parser:
    """The options."""
    p = Parser(
        prog="results/study.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("--study", default="desk", help="a name in results/studies, or a YAML file (default: desk)")
    p.add_argument("--dry-run", action="store_true", help="print the plan and its cost, run nothing")
    p.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="PATTERN", help="tasks, checkpoints or whole cells"
    )
    p.add_argument(
        "--trust-records", action="store_true",
        help="do not train a checkpoint again that is no longer here and whose measurements are all on record",
    )  # fmt: skip
    p.add_argument(
        "--path", nargs="+", action="extend", default=[], type=_pair, metavar="NAME=FOLDER",
        help="where the data of the study are",
    )  # fmt: skip
    p.add_argument("--launcher", choices=["local", "slurm"], default="local", help="where the cells run")
    p.add_argument("--jobs", type=_positive, help="cells at a time (default: one; in Slurm: all)")
    p.add_argument(
        "--slurm", nargs="+", action="extend", default=[], type=_pair, metavar="KEY=VALUE",
        help="options of sbatch: partition=gpu time=1440 (minutes) account=me cpus_per_task=16 ...",
    )  # fmt: skip
    p.add_argument("--state", type=Path, default=Path("runs/study"), help="folder of states and logs")
    return p


def without_measured(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells whose checkpoints are here or have to be trained; says how many others are on record."""
    measured = measured_before(cells)
    names = sorted({cell.row[0] for cell in cells if cell.name in measured})
    if names:
        print(f"on record, their checkpoints not needed: {len(measured)} cells of {', '.join(names)}")
    return tuple(cell for cell in cells if cell.name not in measured)


def study_file(name: str) -> Path:
    """results/studies/NAME.yaml, or a file."""
    path = Path(name)
    return path if path.suffix in (".yaml", ".yml") else STUDIES / f"{name}.yaml"


def run(study: Study, cells: Sequence[Cell], state: State, options: argparse.Namespace) -> int:
    """Runs the cells, then the commands that follow; returns the exit status."""
    for name, path in study.paths.items():
        if not path.exists():
            raise ValueError(f"paths.{name}: {path}: no such folder; name yours: --path {name}=FOLDER")
    launcher: Local | Slurm
    if options.launcher == "slurm":
        launcher = Slurm(state, options.jobs, {key: _value(text) for key, text in options.slurm})
    elif options.slurm:
        raise ValueError("--slurm: goes with --launcher slurm")
    else:
        launcher = Local(state, options.jobs or 1)
    lock = state.lock()
    if lock is None:
        raise ValueError(f"{study.name}: process {state.holder()} runs this study; wait for it, or stop it")
    with lock:
        state.sign(lock, os.getpid())
        write_start(study, state)
        left = weights(cells, state.last())
        print(f"{study.name}: {len(cells)} cells, {len(cells) - len(left)} done before; logs: {state.folder / 'logs'}")
        progress = Progress(left, options.jobs or (1 if options.launcher == "local" else None))
        outcomes, stopped_by = follow(launcher, cells, progress)
        print(f"\n{summary(cells, outcomes)}")
        if stopped_by:
            print(f"{launcher.parting}; the same command goes on", file=sys.stderr)
            return 128 + stopped_by
        failed = finish(study) or any(outcome.status != "done" for outcome in outcomes.values())
        return FAILED if failed else 0


def follow(launcher: Local | Slurm, cells: Sequence[Cell], progress: Progress) -> tuple[dict[str, Outcome], int]:
    """Follows the cells to their end, or to a signal; returns how they ended, and the signal."""
    outcomes = {}
    with StopRequest(launcher) as stop:
        events = launcher.run(cells)
        try:
            for outcome in events:
                if outcome is not None:
                    outcomes[outcome.cell] = outcome
                    progress.ended(outcome)
                progress.show(launcher.running)
                if stop.signal:
                    break
        finally:
            progress.close()
            events.close()
    return outcomes, stop.signal


class StopRequest:
    """Remembers SIGINT, SIGTERM or SIGHUP; a second one ends at once what is being waited for."""

    def __init__(self, launcher: Local | Slurm) -> None:
        self.signal, self._launcher = 0, launcher

    def __enter__(self) -> StopRequest:
        self._old = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal:
            self._launcher.kill()
        self.signal = self.signal or number


def finish(study: Study) -> bool:
    """Runs the commands that follow the cells; returns whether one failed."""
    failed = False
    for command in study.after:
        print(f"$ {shlex.join(command)}", flush=True)
        try:
            code = subprocess.run(command, env=command_environment(), check=False).returncode
        except FileNotFoundError:
            code = 127
        if code:
            print(f"study: exit status {code}: {shlex.join(command)}", file=sys.stderr)
            failed = True
    return failed


def write_start(study: Study, state: State) -> None:
    """Leaves the study file, and who started it where and with what."""
    state.folder.mkdir(parents=True, exist_ok=True)
    (state.folder / "study.yaml").write_text(study.text)
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "submitit")},
        **_git_state(),
    }
    with open(state.folder / "starts.jsonl", "a") as file:
        file.write(json.dumps(start) + "\n")


def _git_state() -> dict[str, Any]:
    """Commit, and whether there are uncommitted changes; empty where this is no checkout."""

    def git(*words: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return {}
    return {"git_commit": commit, "git_dirty": bool(changes)}


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text}: is not KEY=VALUE")
    return key, value


def _value(text: str) -> int | bool | str:
    """An option of sbatch: a number, true for one that takes no value, or words."""
    return int(text) if text.isdigit() else text == "true" or text


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
