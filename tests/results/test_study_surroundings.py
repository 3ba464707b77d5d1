"""What surrounds a study: the variables of the process that runs it, and the user's folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from results import slurm
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
