"""A study file expands to its cells; a mistake in it is one line that names the key and the nearest name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from results.plan import Cell, load
from results.study import main
from tests.results import small_study as small

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_cells_are_every_combination(tmp_path: Path) -> None:
    file = small.write(
        tmp_path,
        checkpoints__ours={
            "name": "r{ratio}_s{seed}", "over": {"ratio": [0, 0.1], "seed": [0, 1]}, "minutes": 12,
            "pretrain": "--seconds {ratio} --words '[a b]'",
        },
        tasks__linear__only=["r0.1_*"],
    )  # fmt: skip
    cells = {cell.name: cell for cell in load(file).cells}
    names = [f"r{ratio}_s{seed}" for ratio in ("0", "0.1") for seed in (0, 1)]
    assert [n for n in cells if n.startswith("pretrain/")] == [f"pretrain/{n}" for n in names]
    assert [n for n in cells if n.startswith("knn/")] == [
        f"knn/{n}/seed{s}" for n in [*names, "random"] for s in (0, 1)
    ]
    assert [n for n in cells if n.startswith("linear/")] == [
        f"linear/r0.1_s{i}/seed{s}" for i in (0, 1) for s in (0, 1)
    ]
    ckpt = "runs/r0.1_s1/last.pth"
    assert cells["pretrain/r0.1_s1"] == Cell(
        "pretrain/r0.1_s1",
        ("bash", "train.sh", "--runs", "runs", "--name", "r0.1_s1", "--seconds", "0.1", "--words", "[a b]"),
        ckpt, minutes=12,
    )  # fmt: skip
    assert cells["knn/r0.1_s1/seed1"] == Cell(
        "knn/r0.1_s1/seed1", ("python", "measure.py", ckpt, "1", "knn.jsonl", "0.05", "knn"), ckpt,
        needs="pretrain/r0.1_s1", task="knn", seed=1, records=Path("knn.jsonl"), minutes=0.1,
    )  # fmt: skip
    assert cells["knn/random/seed0"].needs is None
    assert not cells["knn/random/seed0"].is_file
    # A checkpoint comes before what measures it.
    order = list(cells)
    assert all(order.index(cell.needs) < order.index(name) for name, cell in cells.items() if cell.needs)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"tasks__knn__comand": "x"}, "tasks.knn.comand: unknown key; did you mean command?"),
    ({"check_points": {}}, "check_points: unknown key; did you mean checkpoints?"),
    ({"tasks": None}, "tasks: is missing"),
    ({"tasks__knn__records": None}, "tasks.knn.records: is missing"),
    ({"tasks__knn__command": "python measure.py {ckpt} {records}"}, "tasks.knn.command: {seed} is missing"),
    (
        {"tasks__knn__command": "python measure.py {ckpt} {seed} {records} {sede}"},
        "tasks.knn.command: {sede}: unknown placeholder; did you mean seed?",
    ),
    (
        {"tasks__knn__command": "python mesure.py {ckpt} {seed} {records}"},
        "tasks.knn.command: mesure.py: no such file; did you mean measure.py?",
    ),
    ({"tasks__knn__command": "python 'measure.py {ckpt} {seed} {records}"}, "tasks.knn.command:"),
    ({"tasks__knn__command": "{ckpt} {seed} {records} {"}, "tasks.knn.command: {:"),
    ({"tasks__knn__only": ["rendom"]}, "tasks.knn.only: rendom: matches no checkpoint; did you mean random?"),
    ({"tasks__knn__only": "r1"}, "tasks.knn.only: 'r1': must be a list"),
    ({"tasks__knn__seeds": ["0"]}, "tasks.knn.seeds: '0': seeds are whole numbers"),
    ({"tasks__knn__seeds": [0, 0]}, "tasks: knn/r0/seed0 comes 2 times"),
    ({"tasks__pretrain": {}}, "tasks.pretrain: a task may not be called pretrain"),
    ({"tasks__k/n": {}}, "tasks.k/n: a task may not be called k/n"),
    ({"tasks__knn__minutes": "two"}, "tasks.knn.minutes: 'two': must be a number"),
    ({"tasks__knn__minutes": -1}, "tasks.knn.minutes: -1: must be a number, 0 or more"),
    ({"tasks__knn__gpu_hours": 1}, "tasks.knn.gpu_hours: needs gpus"),
    (
        {
            "tasks__linear__command": "python measure.py {ckpt} {seed} {records} 0.05 knn",
            "tasks__linear__records": "knn.jsonl",
        },
        "tasks: python measure.py runs/r0/last.pth 0 knn.jsonl 0.05 knn comes 2 times",
    ),
    ({"checkpoints__ours__name": "r"}, "checkpoints: r comes 2 times; is a placeholder missing"),
    ({"checkpoints__ours__name": "r/{ratio}"}, "checkpoints.ours.name: r/0: may hold"),
    ({"checkpoints__ours__over": {"ratio": 1}}, "checkpoints.ours.over.ratio: 1: must be a list"),
    ({"checkpoints__ours__over": {"ratio": [True]}}, "checkpoints.ours.over.ratio: [True]: must be a list of numbers"),
    ({"checkpoints__ours__pretrain": "--ratio {ratoi}"}, "{ratoi}: unknown placeholder; did you mean ratio?"),
    ({"checkpoints__ours__ckpt": "random:x"}, "checkpoints.ours: one of pretrain (arguments) and ckpt"),
    ({"checkpoints__random__ckpt": "random"}, "checkpoints.random.ckpt: random: no such file"),
    ({"checkpoints__ours": "random:x"}, "checkpoints.ours: 'random:x': holds keys of its own"),
    ({"pretrain": "bash run.sh"}, "pretrain: run.sh: no such file"),
    ({"after": ["python tables.py"]}, "after: tables.py: no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=lambda value: next(iter(value)) if value else "")
def test_a_mistake_is_one_line(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write(tmp_path, **changes)
    assert main(["--study", "small.yaml"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("study: error: small.yaml: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_key_that_comes_twice_is_a_mistake(tmp_path: Path) -> None:
    file = small.write(tmp_path)
    file.write_text(file.read_text() + "after: []\nafter: []\n")
    with pytest.raises(ValueError, match="after: comes 2 times"):
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
        (["--job", "2"], "unrecognized arguments: --job 2; did you mean --jobs?"),
        (["--jobs", "0"], "argument --jobs: 0: must be 1 or more"),
        (["--path", "data"], "argument --path: data: is not KEY=VALUE"),
        (["--study", "desc"], "did you mean"),
        (["--study", "smal.yaml"], "smal.yaml: no such study file; did you mean small.yaml?"),
        (["--study", "small.yaml", "--only", "knm"], "--only knm: matches no cell of small; did you mean knn?"),
        (["--study", "small.yaml", "--path", "imagnet=/x"], "--path imagnet: unknown"),
        (["--study", "small.yaml", "--slurm", "time=3"], "--slurm: goes with --launcher slurm"),
        (["--study", "small.yaml", "--launcher", "slurm"], "--launcher slurm: there is no sbatch here"),
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
    code: object
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_data_that_are_not_there_are_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write(tmp_path, paths={"images": "nowhere"}, checkpoints__ours__pretrain="--seconds 0 --name {images}")
    assert main(["--study", "small.yaml"]) == 2
    assert "paths.images: nowhere: no such folder; name yours: --path images=FOLDER" in capsys.readouterr().err
    assert main(["--study", "small.yaml", "--dry-run"]) == 0  # a plan needs no data
    assert "--name nowhere" in capsys.readouterr().out
    (cell,) = [c for c in load(tmp_path / "small.yaml", {"images": "/data"}).cells if c.name == "pretrain/r0"]
    assert cell.command[-1] == "/data"
