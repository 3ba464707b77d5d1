"""Pre-training from its command line: run folder, resuming, stopping, mistakes. Real processes, real images."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
import yaml

from common.cli import flatten, nest
from converters import read_backbone
from pretrain.checkpoint import describe
from pretrain.config import RENAMED, backbone_id, parse
from pretrain.data import load_data
from pretrain.train import main
from tests.pretrain.small_run import (
    ROOT,
    STEPS,
    assert_same_run,
    finish,
    losses,
    options,
    start,
    wait_for_step,
    weights,
    write_images,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with 24 images of each of three classes."""
    return write_images(tmp_path_factory.mktemp("garments"))


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run that nobody disturbed."""
    runs = tmp_path_factory.mktemp("reference")
    finish(start(options(folder, runs)))
    return runs / "r"


@pytest.mark.slow
def test_killed_at_several_steps_and_resumed_it_ends_in_the_same_bits(
    folder: Path, reference: Path, tmp_path: Path
) -> None:
    arguments = options(folder, tmp_path)
    for step in (1, 5, 8):  # before the first checkpoint, just after one, at the end of an epoch
        process = start(arguments)
        wait_for_step(process, tmp_path / "r", step)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(arguments))
    assert [step for step, _ in losses(tmp_path / "r")] == list(range(1, STEPS + 1))
    assert_same_run(reference, tmp_path / "r")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_state_and_the_exit_status_says_so(
    number: signal.Signals, status: int, folder: Path, reference: Path, tmp_path: Path
) -> None:
    arguments = options(folder, tmp_path, checkpoint__last_every=1000)
    process = start(arguments)
    wait_for_step(process, tmp_path / "r", 3)
    process.send_signal(number)
    assert "stopped at step" in finish(process, status)
    saved = torch.load(tmp_path / "r" / "last.pth", weights_only=True)
    assert 3 <= saved["step"] < STEPS
    finish(start(arguments))
    assert_same_run(reference, tmp_path / "r")


def test_a_truncated_checkpoint_is_named_and_the_previous_one_used(
    folder: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(folder, tmp_path, optim__epochs=1)
    assert main(arguments) == 0
    run = tmp_path / "r"
    expected = weights(run)
    content = (run / "last.pth").read_bytes()
    (run / "last.pth").write_bytes(content[: len(content) // 2])
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"{run / 'last.pth'}: truncated" in said
    assert f"continuing from {run / 'previous.pth'}" in said
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights(run).items())


def test_no_readable_checkpoint_is_an_error(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r").mkdir()
    torch.save({"state_dict": {}}, tmp_path / "r" / "last.pth")
    assert main(options(folder, tmp_path)) == 2
    assert "not a checkpoint of this project's pre-training" in capsys.readouterr().err


def test_another_configuration_is_refused_with_the_keys(
    folder: Path, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (reference / "last.pth").read_bytes()
    assert main(options(folder, reference.parent, model__temperature=0.1, labels__ratio=0.5)) == 2
    message = capsys.readouterr().err
    assert "model.temperature: 0.2 -> 0.1" in message
    assert "labels.ratio: 1.0 -> 0.5" in message
    assert len(message.splitlines()) == 1
    assert (reference / "last.pth").read_bytes() == before


def test_resume_never_leaves_a_run_alone(folder: Path, reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options(folder, reference.parent, resume="never")) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_a_finished_run_is_not_run_again(folder: Path, reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = weights(reference)
    files = {path: path.stat().st_mtime_ns for path in reference.rglob("*")}
    assert main(options(folder, reference.parent)) == 0
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*")} == files
    said = capsys.readouterr().out
    assert f"done: {STEPS} steps" in said
    assert f"transfer/knn.py --ckpt {reference / 'last.pth'}" in said
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(reference).items())


def test_the_run_folder_holds_what_was_run(reference: Path, folder: Path) -> None:
    config = yaml.safe_load((reference / "config.yaml").read_text())
    assert config["data"]["train"] == str(folder)
    environment = json.loads((reference / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"git_commit", "git_dirty", "device", "threads", "processes"} <= environment.keys()
    assert "--optim.batch 16" in (reference / "command.txt").read_text()
    assert len((reference / "labels.txt").read_text().splitlines()) == 64
    assert list((reference / "tensorboard").iterdir())
    summary = json.loads((reference / "summary.json").read_text())
    assert list(summary["knn"]) == ["0", "4", "8", "12"]


def test_every_metric_is_there_and_finite(reference: Path) -> None:
    rows = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    wanted = {
        "loss", "chance", "positives", "sim_positive", "sim_positive_key", "sim_negative", "embedding_std",
        "queue_fill", "queue_labelled", "batch_labelled", "grad_norm", "lr", "images_per_second", "data_time_fraction",
    }  # fmt: skip
    steps = [row for row in rows if "loss" in row]
    assert all(wanted <= row.keys() for row in steps)
    assert all(isinstance(row[name], float) for row in steps for name in wanted)
    assert steps[-1]["queue_fill"] == 1
    assert steps[0]["queue_fill"] == 0


def test_a_checkpoint_holds_tensors_and_builtins_and_the_papers_keys(reference: Path) -> None:
    saved = torch.load(reference / "last.pth", weights_only=True)
    assert {"encoder_q.conv1.weight", "encoder_q.fc.2.bias", "encoder_k.layer4.1.bn2.running_var"} <= saved[
        "state_dict"
    ].keys()
    assert saved["state_dict"]["queue"].shape == (128, 40)
    assert saved["meta"]["label_ratio"] == 1.0
    assert saved["meta"]["epochs"] == 3.0
    assert saved["meta"]["backbone_id"].startswith("unimoco-")


def identity(folder: Path, **changes: object) -> tuple[str, dict[str, Any]]:
    """The backbone_id of a run of three epochs and the other facts in its checkpoints, without training."""
    config = parse(options(folder, folder, **changes))
    data = load_data(config)
    return backbone_id(config, data.images, data.kept, 3), describe(config, data)


def test_a_checkpoint_carries_the_identity_that_needs_no_training(folder: Path, reference: Path) -> None:
    meta = torch.load(reference / "last.pth", weights_only=True)["meta"]
    expected, facts = identity(folder)
    assert (meta["backbone_id"], meta["seed"], meta["label_seed"]) == (expected, 0, 0)
    assert meta["data"] == facts["data"]


def test_label_seeds_are_two_pretrainings_of_one_backbone_id(folder: Path) -> None:
    (first, a), (second, b) = (identity(folder, labels__ratio=0.5, labels__seed=seed) for seed in (0, 1))
    assert first == second
    assert (a["label_seed"], b["label_seed"]) == (0, 1)
    assert a["labels_sha256"] != b["labels_sha256"]


def test_data_sets_of_equal_size_and_names_but_other_pixels_are_two_backbones(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*/*.png"):
        target = tmp_path / path.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(target), 255 - cv2.imread(str(path)))
    (first, a), (second, b) = identity(folder), identity(tmp_path)
    assert a["labels_sha256"] == b["labels_sha256"]  # the same names keep their label
    assert first != second


@pytest.mark.parametrize(("ratio", "labelled"), [(0, 0), (0.25, 16), (1, 64)])
def test_the_label_ratio_reaches_the_loss(ratio: float, labelled: int, folder: Path, tmp_path: Path) -> None:
    assert main(options(folder, tmp_path, labels__ratio=ratio, optim__epochs=1)) == 0
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    # An epoch is 4 batches of 16: all 64 images, each once.
    assert sum(row["batch_labelled"] * 16 for row in rows if "loss" in row) == labelled
    assert len((tmp_path / "r" / "labels.txt").read_text().splitlines()) == labelled


def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(folder, tmp_path, optim__base_lr=1e30, checkpoint__last_every=1, optim__warmup=0.5)
    assert main(arguments) == 3
    message = capsys.readouterr().err
    assert "is not finite (lr" in message
    assert "at step" in message
    assert all(torch.isfinite(tensor.double()).all() for tensor in weights(tmp_path / "r").values())


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_an_fp16_step_that_overflows_is_skipped_and_counted_and_the_run_continues(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**20))
    assert main(options(folder, tmp_path, optim__precision="fp16", optim__epochs=1.5)) == 0
    rows = [row for row in metrics(tmp_path / "r") if "loss" in row]
    skipped = [row["skipped_steps"] for row in rows]
    assert skipped[0] == 1 <= skipped[-1] < 6
    assert rows[-1]["loss_scale"] == 2.0 ** (20 - skipped[-1])
    assert ["grad_norm" in row for row in rows] == [a == b for a, b in pairwise([0, *skipped])]
    assert f"({skipped[-1]:.0f} skipped on fp16 overflow)" in capsys.readouterr().out


def test_resume_from_a_file_continues_the_own_run_once_there_is_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a Slurm job that was submitted with --resume FILE and is started again."""
    assert main(options(folder, tmp_path, name="first", checkpoint__keep_every=1)) == 0
    file = tmp_path / "first" / "epoch_0001.pth"
    arguments = options(folder, tmp_path, resume=file)
    (tmp_path / "r").mkdir()
    shutil.copy(tmp_path / "first" / "epoch_0002.pth", tmp_path / "r" / "last.pth")  # where the job was preempted
    capsys.readouterr()
    assert main(arguments) == 0
    assert [step for step, _ in losses(tmp_path / "r")] == [9, 10, 11, 12]
    assert f"{tmp_path / 'r'} has a later checkpoint than {file} (step 8 after step 4)" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "r")
    assert main(arguments) == 0
    assert [step for step, _ in losses(tmp_path / "r")] == list(range(5, STEPS + 1))
    assert main([*arguments, "--model.temperature=0.1"]) == 2


def test_a_checkpoint_of_an_earlier_version_resumes_and_converts(
    folder: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options had other names in it, and there was no count of skipped steps."""
    assert main(options(folder, tmp_path, checkpoint__keep_every=1)) == 0
    run = tmp_path / "r"
    old = torch.load(run / "epoch_0002.pth", weights_only=True)
    rows = {new: name for name, new in RENAMED.items()}
    old["config"] = nest({rows.get(name, name): value for name, value in flatten(old["config"]).items()})
    assert old["config"]["model"]["queue"] == 40
    old["progress"]["said"] = old["progress"].pop("warned")
    del old["skipped_steps"], old["config"]["recipe"], old["meta"]["backbone_id"]
    shutil.rmtree(run)
    run.mkdir()
    torch.save(old, run / "last.pth")
    assert read_backbone(str(run / "last.pth")).meta["method"] == "unimoco"
    given = options(folder, tmp_path, checkpoint__keep_every=1)
    with_old_names = [{"--model.queue_size": "--model.queue"}.get(word, word) for word in given]
    assert main(with_old_names) == 0
    assert "deprecated: model.queue is now model.queue_size" in capsys.readouterr().err
    assert [step for step, _ in losses(run)] == [9, 10, 11, 12]
    one, two = weights(reference), weights(run)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_the_start_states_recipe_size_and_views(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--recipe", "my_folder", *options(folder, tmp_path, optim__epochs=1, optim__warmup=0)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("recipe my_folder, views of 32 px: crops of 20% to 100% of the area, flip 50%, ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__train": "/no/such/folder"}, "/no/such/folder: no such file or folder"),
        ({"labels__list": "/no/list.txt"}, "labels.list=/no/list.txt: no such file"),
        ({"optim__batch": 500, "model__bn_groups": 2}, "64 training images do not fill a batch"),
        ({"optim__batch": 15}, "does not make 2 batch-norm groups"),
        ({"model__arch": "vgg11"}, "model.arch=vgg11: not a ResNet"),
        ({"monitor__holdout": 72}, "monitor.holdout=72"),
        ({"resume": "/no/checkpoint.pth"}, "/no/checkpoint.pth: no such checkpoint"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    changes: dict[str, object], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options(folder, tmp_path, **changes)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "r").exists()


def test_a_corrupt_image_is_named_and_skipped_until_there_are_too_many(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").symlink_to(folder)
    manifest = tmp_path / "list.tsv"
    lines = [f"images/{path.relative_to(folder)}" for path in sorted(folder.glob("*/*.png"))]
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    manifest.write_text("\n".join([*lines, "broken.png"]) + "\n")
    arguments = options(manifest, tmp_path / "runs", monitor__holdout=0, optim__batch=24, optim__epochs=2)
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.out.count("broken.png: not an image") == 1
    assert main([*arguments, "--name", "strict", "--data.max_corrupt", "0"]) == 2
    assert "more than data.max_corrupt=0.0 allows" in capsys.readouterr().err


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_through_the_front_door(folder: Path, tmp_path: Path) -> None:
    environment = os.environ | {"NPROC": "2", "OMP_NUM_THREADS": "1", "UNIMOCO_ENV": sys.prefix}
    done = subprocess.run(
        ["bash", str(ROOT / "pretrain" / "run.sh"), "--recipe", "my_folder", *options(folder, tmp_path)],
        env=environment, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"done: {STEPS} steps" in done.stdout
    assert len(torch.load(tmp_path / "r" / "last.pth", weights_only=True)["rng"]) == 2
    assert [step for step, _ in losses(tmp_path / "r")] == list(range(1, STEPS + 1))


@pytest.mark.fault("a newcomer's mistakes", "pretrain", "a longer schedule for a finished run")
def test_a_longer_schedule_names_the_way_and_is_another_pretraining(
    folder: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(folder, reference.parent, optim__epochs=4)
    assert main(given) == 2
    way = f"; or train on from it with another schedule: --resume {reference / 'last.pth'} --name NEW\n"
    assert capsys.readouterr().err.endswith(way)
    given = options(folder, tmp_path, optim__epochs=4, resume=reference / "last.pth")
    assert main(given) == 0
    assert [step for step, _ in losses(tmp_path / "r")] == list(range(STEPS + 1, STEPS + 5))
    saved = torch.load(tmp_path / "r" / "last.pth", weights_only=True)
    assert saved["earlier_schedules"] == [{"step": STEPS, "changed": ["optim.epochs: 3.0 -> 4.0"]}]
    config = parse(given)
    data = load_data(config)
    assert saved["meta"]["backbone_id"] != backbone_id(config, data.images, data.kept, 4)  # of 4 epochs in one go
    assert main([*given, "--optim.base_lr=0.1"]) == 2


@pytest.mark.fault("a newcomer's mistakes", "pretrain", "fewer epochs than the recipe's warm-up")
def test_a_warm_up_longer_than_the_training_names_the_fix(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--recipe=my_folder", f"--data.train={folder}", f"--runs={tmp_path}", "--optim.epochs=2"]
    assert main(given) == 2
    assert "add --optim.warmup 0.2, or more epochs" in capsys.readouterr().err


@pytest.mark.fault("a newcomer's mistakes", "pretrain", "two runs of one name at once")
def test_a_second_run_of_a_name_is_told_who_is_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(folder, tmp_path)
    process = start(given, "import time, pretrain.run\npretrain.run.train = lambda *_: time.sleep(600)")
    lock, deadline = tmp_path / ".r.lock", time.monotonic() + 60
    while not (lock.exists() and lock.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        assert main(given) == 2
        holder = rf"{tmp_path}/r is in use by process {process.pid} on \S+ since [\d-]+ [\d:]+; "
        message = rf"pretrain: error: {holder}wait for it, or give another --name\n"
        assert re.fullmatch(message, capsys.readouterr().err)
    finally:
        process.kill()  # the system releases the lock
        process.communicate()
    assert main(given) == 0
    assert not lock.exists()
