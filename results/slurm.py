"""What a study in Slurm needs besides Snakemake's executor plugin."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping

TIME, NOTICE = 24 * 60, 120  # minutes of a job; seconds before their end at which its command is asked to save
# Options of sbatch that the plugin knows as resources of Snakemake; others are passed on as they are.
RESOURCES = {name: name for name in ("cpus_per_task", "cpus_per_gpu", "constraint", "qos", "nodes", "gres")}
RESOURCES |= {"partition": "slurm_partition", "account": "slurm_account", "time": "runtime", "mem": "mem"}
POLL = 5.0  # seconds between two looks at the queue


# Set by Slurm, MPI and torchrun for the process that runs the study. A job would take them for options of its own
# (sbatch, srun), or wait for processes that do not exist (torch.distributed). A profile is of other workflows.
OF_THE_STUDY = re.compile(
    r"(SLURM|SBATCH|SRUN|SALLOC)_(?!CONF$)|(PMI|PMI2|PMIX|OMPI|TORCHELASTIC)_|((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)$"
    r"|(ROLE_NAME|NODE_RANK|MASTER_ADDR|MASTER_PORT|NNODES|RDZV|SNAKEMAKE_PROFILE)$"
)
# Devices and temporary folder of an allocation, which another job does not have.
OF_THE_ALLOCATION = ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "TMPDIR")


def environment(inherited: Mapping[str, str], in_slurm: bool) -> dict[str, str]:
    """Return the environment for the jobs of a study: without what describes the process that runs the study.

    Args:
        inherited: of that process.
        in_slurm: whether the jobs get allocations of their own; jobs on this machine use the devices of this one.
    """
    left_out = OF_THE_ALLOCATION if in_slurm and "SLURM_JOB_ID" in inherited else ()
    return {n: value for n, value in inherited.items() if not OF_THE_STUDY.match(n) and n not in left_out}


def arguments(study: str, jobs: int | None, options: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
    """Return Snakemake's arguments for a study in Slurm.

    Args:
        study: name of the study.
        jobs: jobs in the queue at a time; None: all.
        options: options of sbatch, by name.
        environment: of Slurm's clients.

    Raises:
        ValueError: there is no sbatch here, or it does not accept the options.
    """
    if shutil.which("sbatch") is None:
        raise ValueError("--slurm: there is no sbatch here; run it where jobs are submitted")
    given = {"time": str(TIME)} | {name.replace("-", "_"): value for name, value in options.items()}
    if not given["time"].isdigit():
        raise ValueError(f"--slurm time={given['time']}: must be a whole number of minutes")
    flags = [_flag(name, value) for name, value in given.items()]
    client = functools.partial(subprocess.run, env=environment, capture_output=True, encoding="utf-8", check=False)
    test = client(["sbatch", "--test-only", *flags, "--wrap=true"])
    if test.returncode:
        raise ValueError(f"--slurm: {test.stderr}")
    resources = {"mem": "0"}  # the partition's default; Snakemake's own is 1 GB
    resources |= {RESOURCES[name]: value for name, value in given.items() if name in RESOURCES}
    others = [_flag(name, value) for name, value in given.items() if name not in RESOURCES]
    resources["slurm_extra"] = shlex.join([f"--signal=TERM@{NOTICE}", *others])
    accounting = client(["sacct", "--noheader"]).returncode == 0
    defaults = [f"{name}={value if value.isdigit() else repr(value)}" for name, value in resources.items()]
    return [
        "--executor", "slurm", "--jobs", str(jobs or "unlimited"), "--slurm-requeue",
        "--slurm-jobname-prefix", job_name(study), "--slurm-status-command", "sacct" if accounting else "squeue",
        "--default-resources", *defaults,
    ]  # fmt: skip


def wait_for_jobs(study: str) -> None:
    """Wait until no job of an earlier, killed start runs; cancel those that have not started.

    Raises:
        ValueError: squeue does not answer, so that jobs could be submitted twice.
    """
    said = False
    while jobs := _queue(study):
        waiting = [job for job, state in jobs.items() if state == "PENDING"]
        if waiting:
            subprocess.run(["scancel", *waiting], check=True)
        elif not said:
            print(f"waiting for jobs of an earlier start: {', '.join(jobs)} (scancel lets them save and resume)")
            said = True
        time.sleep(POLL)


def job_name(study: str) -> str:
    """Return what the names of a study's jobs start with."""
    return "study_" + re.sub(r"\W+", "_", study)[:40]


def _queue(study: str) -> dict[str, str]:
    """Return the state of each job of the study in the queue."""
    command = ["squeue", "--me", "--noheader", "--format=%i|%T|%j"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise ValueError("--slurm: squeue does not answer, so jobs could be submitted twice; try later") from error
    jobs = [line.split("|") for line in done.stdout.splitlines()]
    return {job: state for job, state, name in jobs if name.startswith(f"{job_name(study)}_")}


def _flag(name: str, value: str) -> str:
    return f"--{name.replace('_', '-')}" + f"={value}" * (value != "true")
