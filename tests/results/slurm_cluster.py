"""A real Slurm cluster of one node on this machine's loopback, in a temporary folder, for tests."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
CONFIG = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# Credentials are short-lived, because a requeued job waits until that of its first start has expired.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MailProg=/bin/true
ReturnToService=2
KillWait=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=8000 Gres=gpu:4
DefMemPerCPU=100
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""

GRES = "AutoDetect=off\n" + "".join(f"Name=gpu File=/dev/{name}\n" for name in ("null", "zero", "full", "random"))
# Snakemake's Slurm plugin starts srun without SLURM_CONF; usual clusters have their configuration in /etc/slurm.
SRUN = """#!/bin/sh
export SLURM_CONF={config}
exec {srun} "$@"
"""


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)}): apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "starting Slurm's daemons needs root"


def environment(config: Path) -> dict[str, str]:
    """Return the variables with which clients find the cluster."""
    return {"SLURM_CONF": str(config), "PATH": f"{config.parent / 'bin'}:{PATH}"}


@contextlib.contextmanager
def cluster() -> Iterator[Path]:
    """Start the daemons; yield the configuration, which clients find in SLURM_CONF. Everything is ended after."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    config, daemons = folder / "slurm.conf", list[subprocess.Popen[bytes]]()
    environment = os.environ | {"SLURM_CONF": str(config), "PATH": PATH}
    try:
        folder.chmod(0o755)
        (folder / "munge").mkdir()
        (folder / "munge" / "key").write_bytes(os.urandom(1024))
        (folder / "munge" / "key").chmod(0o400)
        for path in (folder / "munge", folder / "munge" / "key"):
            shutil.chown(path, "munge", "munge")
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "bin").mkdir()
        (folder / "bin" / "srun").write_text(SRUN.format(config=config, srun=shutil.which("srun", path=PATH)))
        (folder / "bin" / "srun").chmod(0o755)
        config.write_text(CONFIG.format(host=socket.gethostname().split(".")[0], folder=folder, ports=free_ports(2)))
        (folder / "gres.conf").write_text(GRES)
        files = [f"--{what}-file={folder}/munge/{what}" for what in ("key", "pid", "log", "seed")]
        daemons.append(
            daemon(folder, environment, ["munged", "--foreground", f"--socket={folder}/munge/socket", *files])
        )
        wait_for(lambda: (folder / "munge" / "socket").exists(), 10, folder)
        daemons.append(daemon(folder, environment, ["slurmctld", "-D", "-f", str(config)]))
        daemons.append(daemon(folder, environment, ["slurmd", "-D", "-f", str(config)]))
        wait_for(lambda: "idle" in said(environment, "sinfo", "--noheader", "--format=%t"), 40, folder)
        yield config
    finally:
        if len(daemons) == 3:
            said(environment, "scancel", "--user=root")
            with contextlib.suppress(TimeoutError):
                wait_for(lambda: not said(environment, "squeue", "--noheader"), 15, folder)
        for process in reversed(daemons):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in left_over(config):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def daemon(folder: Path, environment: dict[str, str], command: list[str]) -> subprocess.Popen[bytes]:
    """Starts a daemon in the foreground; it ends with us, however we end."""
    libc, user = ctypes.CDLL(None), "munge" if command[0] == "munged" else None
    pr_set_pdeathsig = 1
    with open(folder / f"{command[0]}.out", "wb") as log:
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, user=user, group=user,
            extra_groups=[] if user else None, preexec_fn=lambda: libc.prctl(pr_set_pdeathsig, signal.SIGTERM),
        )  # fmt: skip


def said(environment: dict[str, str], *command: str) -> str:
    """What a client says; empty where it fails."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30).stdout


def wait_for(condition: object, seconds: float, folder: Path) -> None:
    """Waits until condition() is true.

    Raises:
        TimeoutError: with the daemons' last words.
    """
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            words = [f"{path.name}: {path.read_text(errors='replace')[-500:]}" for path in folder.glob("*.out")]
            raise TimeoutError("\n".join(words))
        time.sleep(0.1)


def free_ports(number: int) -> list[int]:
    """Ports of the loopback that nobody uses."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def left_over(config: Path) -> list[int]:
    """Processes that still belong to the cluster: steps and what they started carry its SLURM_CONF."""
    mark, pids = f"SLURM_CONF={config}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes() and int(path.parent.name) != os.getpid():
                pids.append(int(path.parent.name))
    return pids
