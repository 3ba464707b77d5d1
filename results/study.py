"""Run a study: every job of a study file that is not done yet, then what follows them, such as the tables.

    bash results/reproduce.sh                          the desk study
    bash results/reproduce.sh --dry-run                its jobs: which are done, which are left, what they cost
    bash results/reproduce.sh --only knn 'desk_r1_*'   a part of it
    bash results/reproduce.sh --trust-records          resume a study whose first checkpoints no longer exist
    bash results/reproduce.sh --study paper --path imagenet=/data/imagenet --slurm partition=gpu cpus_per_task=16
    bash results/reproduce.sh --jobs 2 -- --retries 1  what follows -- goes to snakemake

Stop it at any time: the same command resumes. Exit status: 0 all done; 1 jobs failed; 2 a mistake in the input; 130 or
143 stopped by a signal.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import functools
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

if not __package__:  # run as a script: find the packages beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common  # noqa: F401  says what is to be done where the environment is not active

import psutil
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from tabulate import tabulate

from common.cli import CommandParser, find_config, run_cli
from common.surroundings import DEVICES
from results import record, slurm
from results.study_file import PRETRAIN, Job, Study, is_scheme, load

STUDIES = Path(__file__).parent / "studies"
FAILED = 1
POLL = 0.1  # seconds between two looks at Snakemake


def main(arguments: list[str] | None = None) -> int:
    """Run a study, or list its jobs; return the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    split = words.index("--") if "--" in words else len(words)

    def work() -> int:
        options = parser().parse(words[:split])
        study = load(find_config("--study", options.study, STUDIES), _pairs("--path", options.path))
        jobs = study.select(options.only)
        if options.trust_records:
            jobs = without_recorded(study, jobs)
        if options.dry_run:
            print(list_jobs(study, jobs, options.jobs or 1))
            return 0
        return run(study, jobs, options, words[split + 1 :])

    return run_cli("study", work, resumable=False)


def parser() -> CommandParser:
    """Return the parser of the options."""
    p = CommandParser("results/reproduce.sh", __doc__, variables=("UNIMOCO_ENV", *DEVICES))
    many: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    p.add_argument("--study", default="desk", help="a name in results/studies, or a YAML file (default: desk)")
    p.add_argument("--dry-run", action="store_true", help="list the jobs and their cost, run nothing")
    p.add_argument("--only", **many, metavar="PATTERN", help="tasks, checkpoints or names of jobs")
    p.add_argument(
        "--trust-records", action="store_true",
        help="leave out checkpoints that do not exist here and whose measurements are all on record",
    )  # fmt: skip
    p.add_argument("--path", **many, metavar="NAME=FOLDER", help="where the data of the study are")
    p.add_argument("--jobs", type=PositiveInt, default=None, help="jobs at a time (default: one; in Slurm: all)")
    p.add_argument(
        "--slurm", **many, metavar="KEY=VALUE",
        help="run in Slurm; options of sbatch: partition=gpu time=1440 (minutes) account=me cpus_per_task=16 ...",
    )  # fmt: skip
    p.add_argument("--launcher", choices=["local", "slurm"], help="deprecated: --slurm alone runs the study in Slurm")
    return p


def without_recorded(study: Study, jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Return the jobs but those of checkpoints that do not exist here and are measured by every one of their tasks.

    All measurements of a checkpoint have to be of one and the same file. A record that names no job counts where it
    can be of one job of the study only.
    """
    files: dict[tuple[Any, ...], set[str]] = defaultdict(set)  # sha256 of the checkpoints that are on record
    for r in record.read_all(study.records):
        files[r.backbone["path"], r.task, r.seed, r.environment.get("job")].add(r.backbone["sha256"])
    times = Counter((job.ckpt, job.task, seed) for job in study.jobs for seed in job.seeds)
    by_checkpoint: dict[str, list[set[str]]] = defaultdict(list)
    for job in jobs:
        if job.key != PRETRAIN and (is_scheme(job.ckpt) or not Path(job.ckpt).exists()):
            for key in ((job.ckpt, job.task, seed) for seed in job.seeds):
                labels = [f"{study.name}/{job.key}"] + [None] * (times[key] == 1)
                by_checkpoint[job.checkpoint].append(set().union(*(files[*key, label] for label in labels)))
    recorded = {checkpoint for checkpoint, sets in by_checkpoint.items() if set.intersection(*sets)}
    kept = tuple(job for job in jobs if job.checkpoint not in recorded)
    if recorded:
        print(f"on record, left out: {len(jobs) - len(kept)} jobs of {', '.join(sorted(recorded))}")
    return kept


def is_stale(job: Job) -> bool:
    """Return whether a receipt's evidence is gone: its records, or the finished run (or that run is a newer one)."""
    receipt = Path(job.receipt)
    if not receipt.exists():
        return False
    if job.key == PRETRAIN:
        run = (Path(job.ckpt), Path(job.ckpt).with_name("summary.json"))
        return any(not file.exists() or file.stat().st_mtime_ns > receipt.stat().st_mtime_ns for file in run)
    try:
        return not all(Path(path).exists() for path in json.loads(receipt.read_bytes()))
    except (ValueError, TypeError):  # half a receipt, of a full disk
        return True


def snakemake(study: Study, jobs: Sequence[Job], slots: int, config: Path, *arguments: str) -> list[str]:
    """Write the workflow's config; return the command line of Snakemake."""
    entries = {
        job.name: {
            "command": shlex.join(job.command), "label": f"{study.name}/{job.key}",
            "needs": job.needs, "gpus": job.gpus,
        }
        for job in study.jobs
    }  # fmt: skip
    config.write_text(json.dumps({"jobs": entries, "folder": str(study.folder), "slots": slots}), encoding="utf-8")
    return [
        sys.executable, "-m", "snakemake", "--snakefile", str(STUDIES / "Snakefile"), "--configfile", str(config),
        "--workflow-profile", "none", "--rerun-triggers", "mtime", "params", "input", "--rerun-incomplete", "--nolock",
        "--quiet", "host", "reason", *arguments, "--", *(job.receipt for job in jobs),
    ]  # fmt: skip


def list_jobs(study: Study, jobs: Sequence[Job], at_a_time: int) -> str:
    """Return a line for each job, and what is left in all."""
    with tempfile.TemporaryDirectory() as folder:
        command = snakemake(study, jobs, at_a_time, Path(folder, "config.json"), "--summary")
        own = slurm.environment(os.environ, in_slurm=False)
        call = functools.partial(subprocess.run, env=own, capture_output=True, encoding="utf-8", check=False)
        done = call(command) if jobs else None
    if done and done.returncode:
        raise ValueError(f"snakemake: {done.stderr.strip().splitlines()[-1]}")
    summary = csv.DictReader(done.stdout.splitlines() if done else [], delimiter="\t")
    plan = {row["output_file"]: row["plan"] for row in summary}
    stale = {job.receipt for job in jobs if is_stale(job)}
    left = [j for j in jobs if plan[j.receipt] != "no update" or {j.receipt, *j.needs} & stale]
    rows = [["to do" if job in left else "done", _cost(job), job.name, shlex.join(job.command)] for job in jobs]
    table = tabulate(rows, headers=["", "estimate", "job", "command"], tablefmt="plain", disable_numparse=True)
    lines = [str(table), "", f"{len(jobs)} jobs: {len(jobs) - len(left)} done, {len(left)} to do"]
    hours = sum((job.minutes or 0) * job.gpus / 60 for job in left)
    minutes = sum(job.minutes or 0 for job in left if not job.gpus) / at_a_time
    lines += [f"estimated: {hours:,.0f} GPU-hours"] * bool(hours)
    lines += [f"estimated: {minutes / 60:.1f} hours, {at_a_time} at a time"] * bool(minutes)
    unknown = sum(job.minutes is None for job in left)
    lines += [f"no estimate for {unknown} jobs"] * bool(unknown)
    return "\n".join(lines)


def _cost(job: Job) -> str:
    if job.minutes is None:
        return "–"
    return f"{job.minutes * job.gpus / 60:,.0f} GPU-h" if job.gpus else f"{job.minutes:g} min"


def run(study: Study, jobs: Sequence[Job], options: Namespace, extra: Sequence[str]) -> int:
    """Run the jobs, then the commands that follow; return the exit status."""
    for name, path in study.paths.items():
        if not path.exists():
            raise ValueError(f"paths.{name}: {path}: no such folder; name yours: --path {name}=FOLDER")
    if "DRY_RUN" in os.environ:  # pretrain/run.sh would print its command, and the job count as done
        raise ValueError("DRY_RUN is set: unset it, or add --dry-run")
    in_slurm, slots = options.launcher == "slurm" or bool(options.slurm), options.jobs or 1
    environment = slurm.environment(os.environ, in_slurm)
    where = ["--cores", str(slots)]
    if options.launcher == "local" and options.slurm:
        raise ValueError("--launcher local: --slurm runs the study in Slurm; leave one of them out")
    if options.launcher:
        print("--launcher is deprecated: --slurm alone runs the study in Slurm", file=sys.stderr)
    if in_slurm:
        slots = 0
        where = slurm.arguments(study.name, options.jobs, _pairs("--slurm", options.slurm), environment)
    study.folder.mkdir(parents=True, exist_ok=True)
    with lock(study) as held:
        if in_slurm:
            slurm.wait_for_jobs(study.name)
        for job in filter(is_stale, jobs):
            Path(job.receipt).unlink()
        logs = {job: _size(job.log) for job in jobs}
        command = snakemake(study, jobs, slots, study.folder / "config.json", "--keep-going", *where, *extra)
        status, signal_number = follow(command, environment, held, in_slurm) if jobs else (0, 0)
        if signal_number:
            print("stopped; the same command resumes", file=sys.stderr)
            return 128 + signal_number
        for line in failures(jobs, logs):
            print(line, file=sys.stderr)
        codes = [status, *(run_after(command, environment) for command in study.after)]
    return FAILED if any(codes) else 0


def lock(study: Study) -> IO[str]:
    """Return the study's locked file, which Snakemake inherits.

    Raises:
        ValueError: another process runs the study.
    """
    file = open(study.folder / "lock", "a+", encoding="utf-8")  # noqa: SIM115 it is open as long as the study runs
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read()
        file.close()
        raise ValueError(f"{study.name}: process {holder} runs this study; wait for it, or stop it") from None
    file.truncate(0)
    return file


def follow(command: Sequence[str], environment: dict[str, str], lock: IO[str], in_slurm: bool) -> tuple[int, int]:
    """Run Snakemake to its end; return its exit status and the signal that stopped it, 0 without.

    A signal makes Snakemake start no further job and wait for those that run, which get SIGTERM: from here, or from
    Slurm, where Snakemake cancels them. A second signal kills them.
    """
    received: list[int] = []
    stopping = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
        stopping.remove(signal.SIGHUP)
    handlers = {number: signal.signal(number, lambda number, _: received.append(number)) for number in stopping}
    process = subprocess.Popen(command, env=environment, start_new_session=True, pass_fds=(lock.fileno(),))
    print(f"{process.pid} on {platform.node()}", end="", file=lock, flush=True)
    asked: set[int] = set()
    while process.poll() is None:
        if received and not asked:
            process.send_signal(signal.SIGINT)
            asked.add(process.pid)
        if received and not in_slurm:
            terminate_children(process.pid, asked)
        if len(received) > 1:
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(POLL)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return process.returncode, received[0] if received else 0


def terminate_children(parent: int, asked: set[int]) -> None:
    """Send SIGTERM to the children of a process and what they have started, unless they are in `asked`; add them."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(parent).children():
            for process in [child, *child.children(recursive=True)] if child.pid not in asked else []:
                with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                    process.terminate()
            asked.add(child.pid)


def failures(jobs: Sequence[Job], before: dict[Job, int]) -> list[str]:
    """Return a line for each job that failed in this start, and one for those that did not run.

    Args:
        jobs: of the study.
        before: size of each one's log before the start.
    """
    left = [job for job in jobs if not Path(job.receipt).exists()]
    failed = [job for job in left if _size(job.log) != before[job]]
    lines = []
    for job in failed:
        *text, status = filter(str.strip, job.log.read_text(encoding="utf-8", errors="replace").splitlines())
        if not status.startswith("exit status"):
            text, status = [*text, status], "ended without an exit status"
        lines.append(f"failed: {job.name}: {status}; log: {job.log}: {text[-1].strip()[:300]}")
    if len(left) > len(failed):
        lines.append(f"not run: {len(left) - len(failed)} jobs")
    return lines


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def run_after(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command that follows the jobs; return its exit status."""
    print(f"$ {shlex.join(command)}", flush=True)
    code = subprocess.call(["env", *command], env=environment)  # 127 where there is no such command
    if code:
        print(f"study: exit status {code}: {shlex.join(command)}", file=sys.stderr)
    return code


def _pairs(option: str, words: Sequence[str]) -> dict[str, str]:
    """Split words KEY=VALUE."""
    for word in words:
        if not all(word.partition("=")):
            raise ValueError(f"{option} {word}: must be KEY=VALUE")
    return dict(word.split("=", 1) for word in words)


if __name__ == "__main__":
    sys.exit(main())
