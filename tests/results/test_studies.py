"""The studies that come with the project: their commands are such as the benchmarks take, their tasks have tables."""

from __future__ import annotations

import importlib
import io
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from pretrain.config import parse
from results.plan import PRETRAIN, Cell, load
from results.registry import TASKS
from results.study import STUDIES
from transfer.classification import options

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def cells(study: str) -> tuple[Cell, ...]:
    return load(STUDIES / f"{study}.yaml").cells


def split(cell: Cell) -> tuple[str, list[str]]:
    """Script and arguments."""
    place = next(i for i, word in enumerate(cell.command) if word.endswith((".py", ".sh")))
    return cell.command[place], list(cell.command[place + 1 :])


def distinct(study: str) -> list[Cell]:
    """One cell of each family and task: the others differ in names and seeds."""
    seen = {}
    for cell in cells(study):
        script, words = split(cell)
        seen.setdefault((script, *(word for word in words if word.startswith("--")), cell.task), cell)
    return list(seen.values())


@pytest.mark.parametrize("cell", distinct("desk") + distinct("paper"), ids=lambda cell: cell.name)
def test_its_script_takes_the_command(cell: Cell) -> None:
    script, words = split(cell)
    err = io.StringIO()
    with redirect_stderr(err):
        try:
            if cell.task is None:
                assert script == "pretrain/run.sh"
                assert parse(words).runs == "runs"
                return
            module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
            parser = module.parser()
            given = options.parse(parser, words) if "--recipe" in words else parser.parse_args(words)
        except SystemExit:
            pytest.fail(err.getvalue())
    assert (given.ckpt, given.seeds, given.records) == (cell.ckpt, [cell.seed], cell.records)
    assert cell.task in TASKS
    if "task" in given and given.task is not None:
        assert given.task == cell.task


def test_the_desk_study_asks_what_the_paper_asks() -> None:
    checkpoints = {cell.row[0] for cell in cells("desk")}
    assert {f"desk_r{ratio}_s{seed}" for ratio in ("0", "0.1", "0.3", "0.6", "1") for seed in (0, 1)} <= checkpoints
    assert {f"{name}_s{seed}" for name in ("random", "desk_ce") for seed in (0, 1)} <= checkpoints
    assert {"desk_supcon_s0", "desk_info_nce_s0"} <= checkpoints
    tasks = {cell.task for cell in cells("desk")}
    assert {None, "knn", "linear", "finetune", "lowshot", "fashion-fpn", "fashion-fcn"} <= tasks
    for checkpoint in checkpoints:  # every task on each, but for third seeds
        wanted = {None, "knn", "linear"} if checkpoint.endswith("_s2") else tasks
        assert {c.task for c in cells("desk") if c.row[0] == checkpoint} | {None} == wanted
    assert all(cell.minutes for cell in cells("desk"))


def test_the_paper_study_is_the_papers() -> None:
    study = cells("paper")
    trained = [parse(split(cell)[1]) for cell in study if cell.name.startswith(PRETRAIN)]
    assert [c.labels.ratio for c in trained if c.model.loss == "unicon"] == [0, 0.1, 0.3, 0.6, 1]
    assert [c.model.loss for c in trained if c.model.loss != "unicon"] == ["supcon", "info_nce"]
    assert {
        "linear",
        "knn",
        "finetune",
        "coco-c4-1x",
        "coco-fpn-1x",
        "voc-c4-24k",
        "voc12aug-fcn-20k",
        "voc07-svm",
        "voc07-lowshot",
    } <= {cell.task for cell in study}
    for checkpoint in {cell.row[0] for cell in study}:
        assert sorted(c.seed for c in study if (c.row[0], c.task) == (checkpoint, "voc-c4-24k")) == [0, 1, 2, 3, 4]
    # 800 epochs in MoCo's pace; two fine-tunings of one task are told apart by their lists.
    assert {cell.minutes * cell.gpus / 60 for cell in study if cell.minutes and cell.task is None} == {4 * 53 * 8}
    assert len({cell.where for cell in study if cell.task == "finetune"}) == 2
