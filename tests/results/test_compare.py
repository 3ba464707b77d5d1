"""The comparison of checkpoints on a user's data: what it expands to, what it refuses, what it shows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
import yaml

from results.comparison import main as show
from results.record import read_all
from results.record import write as write_record
from results.study_file import Study, load
from tests.pages import own_data
from tests.results.conftest import record
from tests.results.test_report import browser  # noqa: F401  a fixture
from tests.transfer import own_sets
from tests.transfer.garments import write_garments
from transfer import compare
from transfer.own_data import fitting

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, a checkpoint, a copy of it, and a broken one."""
    root = tmp_path_factory.mktemp("site")
    write_garments(root / "garments", 20, 10)
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), root / "mine.pth")
    shutil.copy(root / "mine.pth", root / "copy.pth")
    (root / "broken.pth").write_bytes((root / "mine.pth").read_bytes()[:100_000])
    own_sets.write_coco(root / "pets")
    return root


def expanded(root: Path, *words: str) -> tuple[Study, list[dict[str, Any]]]:
    """Return the study of a command line, and the facts of each of its benchmarks."""
    options = compare.parser().parse(["--size", "32", "--device", "cpu", *words])
    compare.check(options)
    tasks = fitting.fitting(options)
    checkpoints = compare.read(options)
    found = list(fitting.benchmarks(options, tasks))
    tree = compare.study(options, checkpoints, found, root / "out", "title")
    file = root / "compare.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return load(file), [{"task": one.task, "fraction": one.fraction, "words": one.words} for one in found]


def test_a_copy_is_tied_and_nothing_is_measured_twice(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real commands, started as a user does."""
    words = ["--data", str(site / "garments"), "--tasks", "linear", "--size", "32", "--jobs", "2"]
    words += ["--ckpt", str(site / "mine.pth"), str(site / "copy.pth")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert compare.main([*words, "--dry-run"]) == 0
    assert "2 jobs: 0 done, 2 to do" in capfd.readouterr().out
    out = tmp_path / "runs" / "compare" / "garments"
    assert not out.exists()
    command = [sys.executable, "-m", "transfer.compare", *words]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"mine.pth and copy.pth are tied: 0.0 ± \d.\d points apart", done.stdout)
    assert "One pre-training of mine.pth and of copy.pth" in done.stdout
    numbers = pd.read_csv(out / "compare.csv")
    assert list(numbers["checkpoint"]) == ["mine.pth", "copy.pth"]
    assert list(numbers["measurements"]) == [3, 3]
    assert (numbers["seconds"] > 0).all()
    assert (numbers["low"] < numbers["mean"]).all()
    assert len(list((tmp_path / "runs" / "features").glob("*.features"))) == 2, "train and test, for both files"
    assert len(read_all(out / "records" / "copy.pth")) == 3
    assert compare.main([*words, "--dry-run"]) == 0
    assert "2 jobs: 2 done, 0 to do" in capfd.readouterr().out


def test_it_expands_to_what_fits(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site)
    words = ["--ckpt", "mine.pth", "random", "--data", "garments", "--fractions", "0.5", "1", "--seeds", "4", "5"]
    plan, found = expanded(tmp_path, *words)
    names = [job.name for job in plan.jobs if job.checkpoint == "random"]
    assert names == [
        "knn.drawn/random_seed4-5", "knn_0.5.drawn/random_seed4-5",
        "linear/random_seed4-5", "linear_0.5/random_seed4-5",
        "finetune/random_seed4", "finetune/random_seed5", "finetune_0.5/random_seed4", "finetune_0.5/random_seed5",
    ]  # fmt: skip
    jobs = {job.name: job for job in plan.jobs}
    assert jobs["knn/mine.pth_seed4"].needs == ("mine.pth",)
    first = jobs["knn/mine.pth_seed4"].receipt
    assert jobs["linear_0.5/mine.pth_seed4-5"].needs == ("mine.pth", first), "which has computed its features"
    assert jobs["finetune/mine.pth_seed4"].needs == ("mine.pth",)
    assert jobs["linear/random_seed4-5"].ckpt == "random:resnet18", "the network of the other"
    assert [one["fraction"] for one in found] == [1.0, 0.5] * 3
    assert "--k=[20]" in found[0]["words"]
    assert "--labels.ratio=0.5" in found[1]["words"]
    assert not any("labels" in word for word in found[0]["words"]), "the config of all labels is that of the command"
    _, boxes = expanded(tmp_path, "--ckpt", "mine.pth", "random", "--data", "pets")
    assert [one["task"] for one in boxes] == ["detect"]


def test_masks_and_boxes_of_one_folder_are_both_measured(site: Path, tmp_path: Path) -> None:
    folder = own_sets.write_coco(tmp_path / "scenes")
    (folder / "masks").mkdir()
    (folder / "classes.txt").write_text("ant\nbee\n")
    options = compare.parser().parse(["--ckpt", "a", "b", "--data", str(folder)])
    assert fitting.fitting(options) == ["detect", "segment"]
    options.tasks = ["knn"]
    with pytest.raises(ValueError, match="--tasks knn: "):
        fitting.fitting(options)


def test_a_folder_without_test_images_is_split(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site)
    _, found = expanded(tmp_path, "--ckpt", "mine.pth", "random", "--data", "garments/train", "--tasks", "knn")
    assert "--val-fraction=0.2" in found[0]["words"]


def test_names_tell_files_apart() -> None:
    def names(*words: str) -> list[str]:
        return compare.titles(compare.parser().parse(["--ckpt", *words]))

    assert names("runs/a/last.pth", "runs/b/last.pth", "x/moco.pth", "random") == ["a", "b", "moco.pth", "random"]
    assert names("x/moco.pth", "y/moco.pth", "timm:resnet50") == ["x/moco.pth", "y/moco.pth", "timm:resnet50"]
    assert names("r/a/last.pth", "s/a/last.pth") == ["r/a", "s/a"]
    assert names("a", "b", "--label", "one", "one") == ["one", "one"]


MISTAKES = [
    (["--ckpt", "mine.pth"], "give two or more to compare"),
    (["--ckpt", "mine.pth", "mine.pth"], "--ckpt mine.pth: given 2 times"),
    (["--ckpt", "mine.pth", "random", "--label", "one"], "1 names for 2 checkpoints"),
    (["--ckpt", "mine.pth", "random", "--fractions", "0"], "0: must be above 0 and at most 1"),
    (["--ckpt", "mine.pth", "random", "--fractions", "1.5"], "1.5: must be above 0 and at most 1"),
    (["--ckpt", "mine.pth", "random", "--fractions", "nan"], "nan: must be above 0 and at most 1"),
    (["--ckpt", "mine.pth", "random", "--fractions", "0.01"], "--fractions 0.01 is too small"),
    (["--ckpt", "mine.pth", "broken.pth"], "broken.pth"),
    (["--ckpt", "mine.pth", "typo.pth"], "typo.pth"),
    (["--ckpt", "mine.pth", "random", "--data", "typo"], "typo: no such file or folder"),
    (["--ckpt", "mine.pth", "random", "--tasks", "detect"], "--tasks detect: --data garments: no annotations"),
    (["--ckpt", "mine.pth", "random", "--tasks", "segment"], "--tasks segment: garments/images: no such file"),
    (["--ckpt", "mine.pth", "random", "--tasks", "svm"], "svm"),
    (["--ckpt", "mine.pth", "random", "--quick", "--tasks", "finetune"], "--quick is knn and linear"),
    (["--ckpt", "mine.pth", "random", "--data", "pets", "--fractions", "0.5", "1"], "detect has no fractions"),
    (["--ckpt", "mine.pth", "random", "--seeds", "0", "0"], "--seeds 0 0: one of them is given twice"),
]


@pytest.mark.fault("a newcomer's mistakes", "study", "a comparison with wrong checkpoints, data, labels, fractions")
@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_a_mistake_is_one_line_before_anything_runs(
    words: list[str], said: str, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(site)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("it runs"))
    data = [] if "--data" in words else ["--data", "garments"]
    assert compare.main([*words, *data, "--size", "32", "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert line.startswith("compare: error: ")
    assert said in line
    assert not (tmp_path / "out").exists()


def measured(folder: Path, title: str, task: str, fraction: float, accuracy: float, seeds: int, part: int) -> str:
    """Write records with values per test image; return the path of a receipt."""
    paths = []
    for seed in range(seeds):
        hits = np.random.default_rng([part, seed]).random(300) < accuracy
        config = {} if fraction == 1 else {"labels": {"ratio": fraction}}
        one = record(None, None, {"top1": float(hits.mean())}, task, config=config, seed=seed, per_image=f"{seed}.npz")
        one = replace(one, backbone_id="sha256-of-all", headline="top1")
        path = write_record(folder / "records" / title / f"{task}{fraction}", one)
        np.savez(path.with_name(f"{seed}.npz"), top1=hits)
        paths.append(str(path))
    return json.dumps(paths)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    """The page of four titles, one of them of two files, one without linear; and what was printed."""
    monkeypatch.chdir(tmp_path)
    files = {"mine_s0": "mine", "mine_s1": "mine", "dino": "=dino <b>", "copy": "copy of dino", "late": "late"}
    for name in files:
        Path(f"{name}.pth").write_bytes(name.encode())
    tree: dict[str, Any] = {
        "records": "records", "state": ".",
        "checkpoints": {n: {"name": n, "title": title, "ckpt": f"{n}.pth"} for n, title in files.items()},
        "tasks": {
            key: {"task": task, "command": "true", "seeds": [[0, 1, 2]]}
            for key, task in (("linear", "linear"), ("linear_0.1", "linear"), ("finetune", "finetune"))
        },
    }  # fmt: skip
    Path("compare.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    level = {"mine_s0": 0.9, "mine_s1": 0.9, "dino": 0.6, "copy": 0.6, "late": 0.5}
    for job in load(Path("compare.yaml")).jobs:
        if (job.checkpoint, job.task) == ("late", "finetune"):
            continue
        fraction = 0.1 if job.key.endswith("0.1") else 1.0
        part = (
            1
            if job.checkpoint == "copy"
            else 0
            if job.checkpoint == "mine_s0"
            else 2
            if "mine" in job.checkpoint
            else 1
        )
        Path(job.receipt).parent.mkdir(parents=True, exist_ok=True)
        accuracy = level[job.checkpoint] - 0.2 * (fraction < 1)
        Path(job.receipt).write_text(measured(tmp_path, job.checkpoint, job.task, fraction, accuracy, 3, part))
    assert show(["--study", "compare.yaml", "--out", "out", "--title", "birds <i>"]) == 0
    return tmp_path / "out" / "index.html", capsys.readouterr().out


def test_the_table_has_a_row_by_title(page: tuple[Path, str]) -> None:
    path, said = page
    numbers = pd.read_csv(path.with_name("compare.csv"))
    assert list(numbers["checkpoint"].unique()) == ["mine", "'=dino <b>", "copy of dino", "late"]
    mine = numbers[(numbers["checkpoint"] == "mine") & (numbers["task"] == "linear") & (numbers["fraction"] == 1)].iloc[
        0
    ]
    values = [np.random.default_rng([part, seed]).random(300) < 0.9 for part in (0, 2) for seed in range(3)]
    assert mine["mean"] == pytest.approx(100 * np.mean(values), abs=1e-3)
    assert (mine["pretrainings"], mine["measurements"], mine["test_images"]) == (2, 2, 300)
    assert mine["std"] == pytest.approx(100 * np.std([np.mean(values[:3]), np.mean(values[3:])], ddof=1), abs=1e-3)
    assert mine["low"] < mine["mean"] < mine["high"]
    assert (mine["seconds"], mine["images"]) == (6 * 60, 6 * 600)
    assert (
        "=dino <b> and copy of dino are tied: 0.0 ± " in said or "copy of dino and =dino <b> are tied: 0.0 ± " in said
    )
    assert "beats late by" in said
    assert "1 of 15 jobs are missing" in said
    assert said.index("fine-tuning") < said.index("are tied")


def test_the_page_is_one_file_with_verdicts_first(page: tuple[Path, str]) -> None:
    text = page[0].read_text()
    assert "birds &lt;i&gt;" in text
    assert "=dino &lt;b&gt;" in text
    assert "<b>&lt;" not in text
    assert text.index("id=verdicts") < text.index("id=table") < text.index("id=curves") < text.index("id=cost")
    assert text.count("<svg") == 2
    assert "10 % of labels" in text
    assert not [word for word in ("<script", "<link", "<img", "@import", "url(http") if word in text]


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_fits_the_window(page: tuple[Path, str], width: int, browser: Any) -> None:  # noqa: F811
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.get(f"file://{page[0]}")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    head = browser.find_element("css selector", "#table tbody th")
    assert head.value_of_css_property("position") == "sticky"
    browser.execute_script("document.querySelector('#table .scroll').scrollLeft = 9999")
    assert head.rect["x"] >= 0
    light = browser.find_element("tag name", "body").value_of_css_property("background-color")
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    assert browser.find_element("tag name", "body").value_of_css_property("background-color") != light


def test_a_study_of_which_nothing_is_done_says_where_its_logs_are(
    page: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("compare")
    assert show(["--study", "compare.yaml", "--out", "out"]) == 2
    assert "none of its 15 jobs is done; its logs are in compare" in capsys.readouterr().err


def test_the_commands_of_the_page_are_its_own(site: Path, tmp_path: Path) -> None:
    found = own_data("transfer/compare.sh", root=tmp_path)
    assert found
    for _, words in found:
        compare.check(compare.parser().parse(words))
