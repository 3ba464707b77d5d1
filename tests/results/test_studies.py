"""The project's studies: what each job would record, by its own --dry-run, is what study and tables expect."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pretrain.config import parse
from results.record import Record
from results.record import write as write_record
from results.registry import TASKS
from results.study import STUDIES, without_recorded
from results.study_file import PRETRAIN, Job, Study, load
from transfer.layouts import LAYOUTS

ROOT = Path(__file__).parents[2]
DATA_SETS = {
    "coco-c4-1x": "coco",
    "voc-c4-24k": "voc",
    "voc12aug-fcn-20k": "voc12aug",
    "cityscapes-fcn-40k": "cityscapes",
}


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def split(job: Job) -> tuple[str, list[str]]:
    """Script and arguments; a launcher such as torchrun is left out."""
    index = next(i for i, word in enumerate(job.command) if word.endswith((".py", ".sh")))
    return job.command[index], list(job.command[index + 1 :])


def planned(job: Job) -> list[dict[str, Any]]:
    """What a job would record of two other networks of its arch."""
    script, words = split(job)
    for option, values in (("--ckpt", ["random:resnet50"]), ("--seeds", ["0", "1"])):
        index = words.index(option) + 1
        words[index : index + 1] = values
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main([*words, "--dry-run"])
    assert code == 0, err.getvalue()
    return [json.loads(line) for line in out.getvalue().splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The paper study on data sets of one file each."""
    root = tmp_path_factory.mktemp("data")
    parts = [part for name in DATA_SETS.values() for part in LAYOUTS[name].parts]
    parts += [f"imagenet/{part}/{name}/x.jpg" for part in ("train", "val") for name in "ab"]
    for part in parts:
        file = root / part.replace("*", "x")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x\n")
    (root / "subsets").mkdir()
    (root / "subsets/1percent.txt").write_text("a/x.jpg\n")
    (root / "subsets/10percent.txt").write_text("a/x.jpg\nb/x.jpg\n")
    paths = {"imagenet": root / "imagenet", "subsets": root / "subsets", "datasets": root}
    return load(STUDIES / "paper.yaml", {name: str(path) for name, path in paths.items()})


def test_the_paper_study_records_what_the_study_and_the_tables_look_for(paper: Study, tmp_path: Path) -> None:
    measurements = [job for job in paper.jobs if job.key != PRETRAIN]
    first = {job.key: job for job in reversed(measurements)}
    # One process per script: detectron2 and mmseg are never imported in the same one.
    scripts = {split(job)[0] for job in first.values()}
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(ProcessPoolExecutor(1, context)) for name in scripts}
        futures = {key: processes[split(job)[0]].submit(planned, job) for key, job in first.items()}
        plans = {key: future.result() for key, future in futures.items()}
    columns = {key: {(plan["task"], plan["config_hash"]) for plan in found} for key, found in plans.items()}
    assert all(len(found) == 1 for found in columns.values())  # a column for each task of the study ...
    assert len(set().union(*columns.values())) == len(columns)  # ... and a task for each column
    for key, (one, other) in plans.items():
        assert (one["seed"], other["seed"]) == (0, 1)
        assert one["path"] != other["path"]
        assert one["title"]
        assert one["task"] == first[key].task
        assert one["task"] in TASKS
    for job in measurements:  # those of a task differ in nothing but checkpoint and seed
        assert split(job)[1][:-8] == split(first[job.key])[1][:-8]
    # The records of all jobs are as many files, and stand in for every job.
    for job in measurements:
        plan, label = plans[job.key][0], f"paper/{job.key}"
        backbone = {"path": job.ckpt, "sha256": job.checkpoint, "format": "none", "arch": "resnet50"}
        record = Record(
            job.checkpoint, backbone, 0, plan["task"], plan["config"], plan["title"], job.seeds[0], {"x": 0.5}, "x", {},
            {"job": label},
        )  # fmt: skip
        write_record(tmp_path, record)
    assert len(list(tmp_path.rglob("*.json"))) == len(measurements) == 9 * (10 + 5)
    assert without_recorded(replace(paper, records=tmp_path), paper.jobs) == ()


def test_the_scripts_take_the_commands_of_the_studies_at_small_scale() -> None:
    seen = set()
    for job in [job for name in ("desk", "engines") for job in load(STUDIES / f"{name}.yaml").jobs]:
        script, words = split(job)
        names = tuple(word for word in words if word.startswith("--"))
        if (job.key, names) in seen:
            continue
        seen.add((job.key, names))
        if job.key == PRETRAIN:
            assert script == "pretrain/run.sh"
            assert parse(words).runs == "runs"
            continue
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        parser = module.parser()
        parse_words = getattr(module, "parse", None) or getattr(parser, "parse", parser.parse_args)
        given = parse_words(words)
        assert (given.ckpt, given.seeds, str(given.receipt)) == (job.ckpt, [*job.seeds], job.receipt)
        assert given.records == Path("results/records")
        assert job.task in TASKS
    assert len(seen) > 8


def test_the_desk_study_asks_what_the_paper_asks() -> None:
    jobs = load(STUDIES / "desk.yaml").jobs
    checkpoints = {job.checkpoint for job in jobs}
    assert {f"desk_r{ratio}_s{seed}" for ratio in ("0", "0.1", "0.3", "0.6", "1") for seed in range(3)} <= checkpoints
    assert {f"{name}_s{seed}" for name in ("random", "desk_ce") for seed in range(3)} <= checkpoints
    assert {"desk_supcon_s0", "desk_info_nce_s0"} <= checkpoints
    tasks = {job.task for job in jobs} - {""}
    assert tasks == {"knn", "linear", "finetune", "lowshot", "fashion-fpn", "fashion-fcn"}
    for checkpoint in checkpoints:  # every task on each
        assert {job.task for job in jobs if job.checkpoint == checkpoint} - {""} == tasks
    assert all(job.minutes for job in jobs)


def test_the_paper_study_is_the_papers(paper: Study) -> None:
    trained = [parse(split(job)[1]) for job in paper.jobs if job.key == PRETRAIN]
    assert [c.labels.ratio for c in trained if c.model.loss == "unicon"] == [0, 0.1, 0.3, 0.6, 1]
    assert [c.model.loss for c in trained if c.model.loss != "unicon"] == ["supcon", "info_nce"]
    assert {job.key for job in paper.jobs} >= {
        "linear", "knn", "finetune_1", "finetune_10", "coco-c4-1x", "coco-fpn-1x", "voc-c4-24k", "voc12aug-fcn-20k",
        "voc07-svm", "voc07-lowshot",
    }  # fmt: skip
    for checkpoint in {job.checkpoint for job in paper.jobs}:
        seeds = [job.seeds for job in paper.jobs if (job.checkpoint, job.task) == (checkpoint, "voc-c4-24k")]
        assert seeds == [(0,), (1,), (2,), (3,), (4,)]
    # 800 epochs in MoCo's pace.
    hours = {job.minutes * job.gpus / 60 for job in paper.jobs if job.minutes and job.key == PRETRAIN}
    assert hours == {4 * 53 * 8}
