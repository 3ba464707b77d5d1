"""Wait until a job may run on this machine, then become its command.

    python results/studies/run_job.py JOBS STEM COMMAND ...

The lock STEM.lock, and one of JOBS slots that this machine's GPUs and cores are divided into, are inherited by the
command. When Snakemake is killed its commands run on to their end; the next start waits here for them, so that nothing
is measured twice and no GPU is used twice. With JOBS = 0 (Slurm assigns the devices) there are no slots.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

POLL = 0.2  # seconds between two attempts to lock


def main(jobs: int, stem: Path, command: list[str]) -> None:
    """Lock, redirect the output to STEM.log, and execute the command in place of this process."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    lock_one_of([Path(f"{stem}.lock")])  # no with_suffix: names such as r0.1_s2 hold dots
    if jobs:
        slots = stem.parents[2] / "slots"  # shared by all studies
        slots.mkdir(exist_ok=True)
        os.environ.update(share(lock_one_of([slots / str(slot) for slot in range(jobs)]), jobs))
    log = os.open(f"{stem}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(log, f"$ {shlex.join(command)}    # {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
    for stream in (1, 2):
        os.dup2(log, stream)
    os.execvp(command[0], command)


def lock_one_of(files: list[Path]) -> int:
    """Wait until one of the files can be locked; return its index. The lock lives as long as the command."""
    for index in itertools.cycle(range(len(files))):
        lock = os.open(files[index], os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            time.sleep(POLL / len(files))
            continue
        os.set_inheritable(lock, True)
        return index
    raise AssertionError("cycle does not end")


def share(slot: int, jobs: int) -> dict[str, str]:
    """Return the environment variables that give the job in one of `jobs` slots its GPUs and cores."""
    if jobs == 1:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None and shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, encoding="utf-8", check=False).stdout
        parts = re.findall(r"^\s+MIG .*UUID: (MIG-[\w/-]+)", listed, re.M)  # of GPUs that are split
        visible = ",".join(parts or map(str, range(len(re.findall(r"^GPU \d+:", listed, re.M)))))
    devices = [device for device in (visible or "").split(",") if device]
    from joblib import cpu_count  # of the affinity and of the control group

    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cpu_count() // jobs))
    own = devices[slot::jobs] or devices[slot % max(len(devices), 1) :][:1]
    return {"OMP_NUM_THREADS": threads} | ({"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {})


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
