"""What surrounds a study: the variables of the process that runs it, and the user's folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from results import slurm
from results.studies.run_job import share
from tests.results import small_study as small

# What Slurm, MPI, torchrun and a user set around a study, and what its jobs need of it.
OF_THE_STUDY = {
    "SLURM_JOB_ID": "1", "SLURM_CPU_BIND": "mask_cpu:0x1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1",
    "SLURM_MEM_PER_NODE": "1", "SBATCH_PARTITION": "p", "SRUN_CPUS_PER_TASK": "1", "SALLOC_PARTITION": "p",
    "PMI_RANK": "1", "PMIX_RANK": "1", "OMPI_COMM_WORLD_RANK": "1", "RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "1",
    "ROLE_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1",
    "TORCHELASTIC_RUN_ID": "1", "NNODES": "2", "RDZV": "nowhere:1", "SNAKEMAKE_PROFILE": "nowhere",
}  # fmt: skip
KEPT = {"SLURM_CONF": "/etc/slurm.conf", "CUDA_VISIBLE_DEVICES": "1", "TMPDIR": "/tmp", "OMP_NUM_THREADS": "2"}
SURROUNDINGS = pytest.mark.fault("surroundings", "study", "started inside an allocation and a process group")


@SURROUNDINGS
def test_jobs_on_this_machine_do_not_inherit_the_place_of_the_study(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text('env -0 >environment\nexec python measure.py --seconds 0 --task knn "$@"\n')
    small.write(tmp_path, tasks__knn__command="bash job.sh", tasks__linear=None, after=["sh -c 'env -0 >after'"])
    code, out, err = small.run(tmp_path, "--only", "random", **OF_THE_STUDY, **KEPT)
    assert code == 0, out + err
    for file in ("environment", "after"):
        found = dict(entry.split("=", 1) for entry in (tmp_path / file).read_text().split("\0") if entry)
        assert not OF_THE_STUDY.keys() & found.keys()
        assert found.items() >= KEPT.items()


@SURROUNDINGS
def test_jobs_of_another_allocation_do_not_inherit_the_devices_of_this_one() -> None:
    inherited = OF_THE_STUDY | KEPT | {"GPU_DEVICE_ORDINAL": "1", "HOME": "/home/me"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "OMP_NUM_THREADS": "2", "HOME": "/home/me"}
    assert slurm.environment(inherited, in_slurm=True) == kept
    outside = {"CUDA_VISIBLE_DEVICES": "1", "TMPDIR": "/scratch/me"}  # of the user
    assert slurm.environment(outside, in_slurm=True) == outside


@pytest.mark.fault("surroundings", "study", "DRY_RUN of pretrain/run.sh is set: no job would do anything")
def test_a_dry_run_by_variable_is_refused(tmp_path: Path) -> None:
    small.write(tmp_path)
    code, _, err = small.run(tmp_path, DRY_RUN="1")
    assert (code, err) == (2, "study: error: DRY_RUN is set: unset it, or add --dry-run\n")
    assert not (tmp_path / "runs").exists()


def test_parts_of_a_split_gpu_are_shared_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nvidia-smi -L` lists a GPU under MIG once, and below it its parts, which CUDA knows by UUID alone."""
    listed = "GPU 0: a card (UUID: GPU-a)\n" + "".join(
        f"  MIG 1g.10gb     Device  {i}: (UUID: MIG-{i}b-4c)\n" for i in range(3)
    )
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<END\n{listed}END\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [share(i, 2)["CUDA_VISIBLE_DEVICES"] for i in (0, 1)] == ["MIG-0b-4c,MIG-2b-4c", "MIG-1b-4c"]


def test_shares_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert share(0, 1) == {}
    assert [share(i, 2) for i in (0, 1)] == [
        {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": devices} for devices in ("0,2", "1,3")
    ]
    assert [share(i, 6)["CUDA_VISIBLE_DEVICES"] for i in range(6)] == ["0", "1", "2", "3", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the user wants none
    assert share(15, 16) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert share(0, 2) == {"OMP_NUM_THREADS": "3"}
