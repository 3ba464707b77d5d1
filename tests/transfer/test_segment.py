"""Segmentation. Tests that need mmseg run in processes of their own: it cannot share one with detectron2."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from results.record import read_all
from tests.inside import run_inside
from tests.transfer import mask_sets
from transfer.learning_curve import save_learning_curve
from transfer.segmentation.pictures import compose, overlay, predictions
from transfer.tasks import SEGMENTATION

ROOT = Path(__file__).parents[2]
ENTRY = str(ROOT / "transfer" / "segment.py")
INSIDE = sorted(Path(__file__).parent.glob("mmseg_*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("file", INSIDE, ids=lambda path: path.stem)
def test_inside_mmseg(file: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Run the tests of a file that imports mmseg."""
    run_inside(file, request, tmp_path)


@pytest.fixture
def garments(tmp_path: Path) -> Path:
    """A data root with Fashion-MNIST, from which the scenes are made."""
    (tmp_path / "FashionMNIST").symlink_to(ROOT / "data" / "FashionMNIST")
    return tmp_path


def command(root: Path, out: str, *more: str) -> list[str]:
    """Eight iterations with a ResNet-18 on 16 scenes, a checkpoint after every second."""
    sizes = {
        "scenes.train": 16, "scenes.val": 4, "scenes.size": 48, "train_cfg.max_iters": 8, "train_cfg.val_interval": 4,
        "param_scheduler.0.end": 8, "default_hooks.checkpoint.interval": 2, "default_hooks.logger.interval": 1,
        "model.data_preprocessor.size": "(32,32)", "train_dataloader.dataset.pipeline.2.scale": "(48,48)",
        "train_dataloader.dataset.pipeline.3.crop_size": "(32,32)",
    }  # fmt: skip
    values = [f"{key}={value}" for key, value in sizes.items()]
    return [
        ENTRY, "--ckpt", "random", "--task", "fashion-fcn", "--no-scale", "--data-root", str(root),
        "--out", str(root / out), "--records", str(root / f"{out}_records"), "--cfg-options", *values, *more,
    ]  # fmt: skip


def run(arguments: list[str], *launcher: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_resumes_bit_identically(garments: Path) -> None:
    whole = run(command(garments, "whole"))
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [sys.executable, *command(garments, "killed")], env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.time() + 200
    while not list(garments.glob("killed/*/*/*/last_checkpoint")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.time() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (garments / "killed_records").exists()
    resumed = run([*command(garments, "killed"), "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    assert "backbone:" not in resumed.stdout, "the backbone was loaded over trained weights"
    states = []
    for name in ("whole", "killed"):
        (file,) = garments.glob(f"{name}/*/*/*/iter_8.pth")
        states.append(torch.load(file, weights_only=False)["state_dict"])  # mmengine's own, made a minute ago
    assert states[0].keys() == states[1].keys()
    different = [key for key in states[0] if not torch.equal(states[0][key], states[1][key])]
    assert not different, f"{len(different)} of {len(states[0])} tensors differ, {different[:3]}"
    (one,), (other,) = (read_all(garments / f"{name}_records") for name in ("whole", "killed"))
    assert one.metrics == other.metrics
    assert one.matches(other)


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_make_one_record(garments: Path) -> None:
    arguments = command(garments, "two", "train_cfg.max_iters=2", "train_cfg.val_interval=2")
    done = run(arguments, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert done.returncode == 0, done.stderr
    (record,) = read_all(garments / "two_records")
    assert record.config["batch"] == 4
    assert record.environment["processes"] == 2
    assert "each process has its own statistics" in done.stdout
    assert done.stdout.count("metric ") == 1, "the table is printed once"


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.fault("segmentation figures", "segment", "a wrong mask where two processes train: both stop, none waits")
def test_two_processes_stop_with_one_line_where_the_data_are_wrong(tmp_path: Path) -> None:
    wrong = mask_sets.write_set(tmp_path) / "masks" / "train" / "1.png"
    mask_sets.write_mask(wrong, np.full((16, 20), 7, np.uint8))
    arguments = mask_sets.command(tmp_path, mask_sets.write_task(tmp_path / "task.yaml"))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(ENTRY))
    done = run(arguments, *launcher)
    assert done.returncode
    lines = [line for line in done.stderr.splitlines() if line.startswith("segment: error: ")]
    assert set(lines) == {f"segment: error: {wrong}: labels [7] are neither below 3 nor 255 (ignored)"}
    assert len(lines) <= 2, "one of each process; torchrun may stop the second before it prints"
    assert not (tmp_path / "out").exists()


def test_comments_of_configs_quote_no_measured_scores() -> None:
    for file in SEGMENTATION.folder.rglob("*.yaml"):
        assert not re.search(r"Measured here|\d ± \d|iterations of [\d.]+ s", file.read_text()), file


def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    done = run([*command(tmp_path, "out"), "--ckpt", "/no/such/file.pth"])
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "/no/such/file.pth" in done.stderr
    assert not list(tmp_path.iterdir())


def test_every_task_opens_with_command_cost_and_published_scores() -> None:
    assert len(SEGMENTATION.names()) == 8
    for name in SEGMENTATION.names():
        head = [line for line in SEGMENTATION.find(name).read_text().splitlines() if line.startswith("# ")]
        assert head[0].startswith("# python transfer/segment.py --ckpt")
        for part in (f"--task {name}", "\n# Cost:", "\n# Published"):
            assert part in "\n".join(head), f"{name} lacks {part}"


def test_an_overlay_shows_classes_and_dims_the_rest() -> None:
    image = np.full((2, 3, 3), (30, 60, 90), np.uint8)
    labels = np.array([[0, 1, 255], [2, 1, 0]])
    palette = np.array([[0, 0, 0], [200, 0, 0], [0, 100, 0]], np.uint8)
    shown = overlay(image, labels, palette, strength=0.5)
    assert shown[0, 0].tolist() == shown[0, 2].tolist() == [24, 24, 24]
    assert shown[0, 1].tolist() == [130, 30, 30]
    assert shown[1, 0].tolist() == [30, 80, 30]


@pytest.mark.parametrize(("samples", "classes"), [(1, 2), (1, 19), (1, 150), (3, 40)])
def test_the_legend_lies_inside_the_picture_and_covers_nothing(samples: int, classes: int, tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 80, 3), np.uint8))
    truth = np.arange(3200).reshape(40, 80) % classes
    names = [f"television receiver {i}" for i in range(classes)]
    palette = np.random.default_rng(0).integers(1, 256, (classes, 3))
    figure = compose([(str(tmp_path / "a.png"), truth, truth)] * samples, names, palette)
    figure.savefig(tmp_path / "p.png", dpi=110)
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1
    assert len(figure.legends[0].get_texts()) == classes
    for axes in figure.axes:
        assert axes.get_window_extent().y0 >= box.y1, "the legend covers a picture"
        assert axes.get_window_extent().height > 0.6 * 110 * 2.7 * 40 / 80, "the pictures keep their size"


def test_pictures_are_written(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 30, 3), np.uint8))
    truth, found = np.zeros((20, 30), np.uint8), np.ones((20, 30), np.uint8)
    truth[0] = 255
    predictions(
        [(str(tmp_path / "a.png"), truth, found)], ["x", "y"], [[0, 0, 0], [9, 9, 9]], tmp_path / "vis" / "p.png"
    )
    (tmp_path / "m.jsonl").write_text('{"step": 1, "loss": 2.0, "lr": 0.1}\n{"step": 1, "val/mIoU": 0.1}\n')
    save_learning_curve(tmp_path / "m.jsonl", tmp_path / "curve.png", "val/mIoU", 0.01)
    for name in ("vis/p.png", "curve.png"):
        assert cv2.imread(str(tmp_path / name)) is not None
