"""A study file expands to its jobs; a mistake in it is one line that names the key and the nearest name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from results.study import main
from results.study_file import Job, load
from tests.results import small_study as small


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_jobs_are_every_combination(tmp_path: Path) -> None:
    file = small.write(
        tmp_path,
        checkpoints__ours={
            "name": "r{ratio}_s{seed}", "over": {"ratio": [0, 0.1], "seed": [0, 1]}, "minutes": 12,
            "pretrain": "--seconds {ratio} --words '[a b]'",
        },
        tasks__knn__seeds=[0, 1],
        tasks__linear__only=["r0.1_*"],
    )  # fmt: skip
    jobs = {job.name: job for job in load(file).jobs}
    names = [f"r{ratio}_s{seed}" for ratio in ("0", "0.1") for seed in (0, 1)]
    assert [n for n in jobs if n.startswith("pretrain/")] == [f"pretrain/{n}" for n in names]
    assert [n for n in jobs if n.startswith("knn/")] == [f"knn/{n}_seed{s}" for n in [*names, "random"] for s in (0, 1)]
    assert [n for n in jobs if n.startswith("linear/")] == [f"linear/r0.1_s{i}_seed0" for i in (0, 1)]
    ckpt, done = "runs/r0.1_s1/last.pth", "runs/study/small/pretrain/r0.1_s1.done"
    assert jobs["pretrain/r0.1_s1"] == Job(
        "pretrain/r0.1_s1",
        ("bash", "train.sh", "--runs", "runs", "--name", "r0.1_s1", "--seconds", "0.1", "--words", "[a b]"),
        "pretrain", "r0.1_s1", ckpt, done, minutes=12,
    )  # fmt: skip
    receipt = "runs/study/small/knn/r0.1_s1_seed1.json"
    assert jobs["knn/r0.1_s1_seed1"] == Job(
        "knn/r0.1_s1_seed1",
        ("python", "measure.py", "--seconds", "0.05", "--task", "knn", "--ckpt", ckpt, "--seeds", "1",
         "--records", "records", "--receipt", receipt),
        "knn", "r0.1_s1", ckpt, receipt, needs=(done,), task="knn", seeds=(1,), minutes=2,
    )  # fmt: skip
    assert jobs["knn/random_seed0"].needs == ()
    # A checkpoint comes before what measures it.
    order = [job.receipt for job in jobs.values()]
    assert all(order.index(needed) < order.index(job.receipt) for job in jobs.values() for needed in job.needs)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"tasks__knn__comand": "x"}, "tasks.knn.comand: unknown key; did you mean command?"),
    ({"check_points": {}}, "check_points: unknown key; did you mean checkpoints?"),
    ({"tasks": None}, "the file: 'tasks' is a required property"),
    ({"tasks__knn__command": None}, "tasks.knn: 'command' is a required property"),
    (
        {"tasks__knn__command": "python measure.py {rocords}", "paths": {"records": "."}},
        "tasks.knn.command: {rocords}: unknown placeholder; did you mean records?",
    ),
    (
        {"tasks__knn__command": "python mesure.py"},
        "tasks.knn.command: mesure.py: no such file; did you mean measure.py?",
    ),
    ({"tasks__knn__command": "python 'measure.py"}, "tasks.knn.command: python 'measure.py: No closing quotation"),
    ({"tasks__knn__command": "python {"}, "tasks.knn.command: {:"),
    ({"tasks__knn__command": ""}, "tasks.knn.command: '' should be non-empty"),
    ({"tasks__knn__only": ["rendom"]}, "tasks.knn.only: rendom: matches no checkpoint; did you mean random?"),
    ({"tasks__knn__only": "r1"}, "tasks.knn.only: 'r1' is not of type 'array'"),
    ({"tasks__knn__seeds": ["0"]}, "tasks.knn.seeds[0]: '0' is not of type 'integer'"),
    ({"tasks__knn__seeds": [0, 0]}, "knn/r0_seed0 occurs 2 times"),
    ({"tasks__knn__needs": ["linear"]}, "tasks.knn.needs: linear: no task above it"),
    ({"tasks__pretrain": {"command": "true"}}, "tasks: 'pretrain' does not match"),
    ({"tasks__k/n": {"command": "true"}}, "tasks: 'k/n' does not match"),
    ({"tasks__knn__minutes": "two"}, "tasks.knn.minutes: 'two' is not of type 'number'"),
    ({"tasks__knn__minutes": -1}, "tasks.knn.minutes: -1 is less than the minimum of 0"),
    ({"tasks__knn__gpus": 1.5}, "tasks.knn.gpus: 1.5 is not of type 'integer'"),
    ({"checkpoints__ours__name": "r"}, "pretrain/r occurs 2 times; is a placeholder missing in a name?"),
    ({"checkpoints__ours__name": "r/{ratio}"}, "checkpoints.ours.name: r/0: may hold"),
    ({"checkpoints__ours__over": {"ratio": 1}}, "checkpoints.ours.over.ratio: 1 is not of type 'array'"),
    ({"checkpoints__ours__over": {"ratio": [True]}}, "checkpoints.ours.over.ratio[0]: True is not of type"),
    (
        {"checkpoints__ours__pretrain": "--ratio {ratoi}"},
        "checkpoints.ours.pretrain: {ratoi}: unknown placeholder; did you mean ratio?",
    ),
    ({"checkpoints__ours__ckpt": "random:x"}, "checkpoints.ours: give either pretrain (arguments) or ckpt"),
    ({"checkpoints__random__ckpt": "random"}, "checkpoints.random.ckpt: random: no such file"),
    ({"checkpoints__ours": "random:x"}, "checkpoints.ours: 'random:x' is not of type 'object'"),
    ({"pretrain": "bash run.sh"}, "pretrain: run.sh: no such file"),
    ({"after": ["python tables.py"]}, "after: tables.py: no such file"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=lambda value: next(iter(value)) if value else "")
def test_a_mistake_is_one_line(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write(tmp_path, **changes)
    assert main(["--study", "small.yaml"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"study: error: small.yaml: {message}")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_one_command_for_several_seeds_after_another_task_with_options_of_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    random = {"name": "random", "ckpt": "random:resnet18", "title": "nothing learnt", "options": "--records 'my own'"}
    file = small.write(
        tmp_path, state="kept", checkpoints__random=random, tasks__linear__seeds=[[0, 1], 2],
        tasks__linear__needs=["knn"],
    )  # fmt: skip
    study = load(file)
    jobs = {job.name: job for job in study.jobs}
    assert study.folder == Path("kept/small")
    both, alone = jobs["linear/random_seed0-1"], jobs["linear/random_seed2"]
    assert (both.seeds, alone.seeds, both.title) == ((0, 1), (2,), "nothing learnt")
    assert both.receipt == "kept/small/linear/random_seed0-1.json"
    assert " ".join(both.command).endswith(f"--seeds 0 1 --records records --receipt {both.receipt} --records my own")
    assert both.needs == alone.needs == (jobs["knn/random_seed0"].receipt,)
    assert jobs["linear/r0_seed2"].needs == (jobs["pretrain/r0"].receipt, jobs["knn/r0_seed0"].receipt)
    assert {job.name for job in study.select(["linear/r0_seed2"])} == {"pretrain/r0", "knn/r0_seed0", "linear/r0_seed2"}


def test_a_key_that_occurs_twice_is_a_mistake(tmp_path: Path) -> None:
    file = small.write(tmp_path)
    file.write_text(file.read_text() + "after: []\nafter: []\n")
    with pytest.raises(ValueError, match="after: occurs 2 times"):
        load(file)


def test_no_yaml_is_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    for text in ("a: [", "just words", "[1, 2]", ""):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"small\.yaml"):
            load(file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--job", "2"], "--job: unknown option; did you mean --jobs?"),
        (["--jobs", "0"], 'Parser key "jobs": Not of type PositiveInt'),
        (["--study", "small.yaml", "--path", "data"], "--path data: must be KEY=VALUE"),
        (["--study", "small.yaml", "--slurm", "gpu"], "--slurm gpu: must be KEY=VALUE"),
        (["--study", "dask"], "--study dask: no such study or file; did you mean desk?"),
        (["--study", "smal.yaml"], "--study smal.yaml: no such study or file; there are desk, engines, paper"),
        (["--study", "small.yaml", "--only", "knm"], "--only knm: matches no job of small; did you mean knn?"),
        (["--study", "small.yaml", "--path", "imagnet=/x"], "--path imagnet: unknown"),
        (["--study", "small.yaml", "--launcher", "slum"], "argument --launcher: invalid choice: 'slum'"),
        (["--study", "small.yaml", "--slurm", "partition=gpu"], "--slurm: there is no sbatch here"),
        (
            ["--study", "small.yaml", "--slurm", "a=b", "--launcher", "local"],
            "--launcher local: --slurm runs the study",
        ),
    ],
)
def test_wrong_options_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", "")
    small.write(tmp_path)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_data_that_do_not_exist_are_reported_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write(tmp_path, paths={"images": "nowhere"}, checkpoints__ours__pretrain="--seconds 0 --name {images}")
    assert main(["--study", "small.yaml"]) == 2
    assert "paths.images: nowhere: no such folder; name yours: --path images=FOLDER" in capsys.readouterr().err
    assert main(["--study", "small.yaml", "--dry-run"]) == 0  # a list needs no data
    assert "--name nowhere" in capsys.readouterr().out
    (job,) = [j for j in load(tmp_path / "small.yaml", {"images": "/data"}).jobs if j.name == "pretrain/r0"]
    assert job.command[-1] == "/data"
