"""Tasks of mmdet on tiny data in the real trees: what works of build, load, train, evaluate and resume."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shutil
from pathlib import Path

import torch

from results.record import Record, read_all
from tests.transfer.detection_data import cityscapes, coco, voc
from transfer.detect import main

COLUMNS = ("builds", "tensors equal", "trains", "evaluates", "resumes to the same bits")
ROOT = Path(__file__).parents[2]


def make_data(root: Path) -> Path:
    """Write the trees of COCO, VOC and Cityscapes, and link Fashion-MNIST, from which scenes are made."""
    for make in (coco, voc, cityscapes):
        make(root)
    (root / "FashionMNIST").symlink_to((ROOT / "data" / "FashionMNIST").resolve())
    return root


def small(task: str, iterations: int = 2) -> list[str]:
    """Return the options of a few iterations of a task on small images."""
    train, val = "train_dataloader.dataset", "val_dataloader.dataset.pipeline.1.scale=(96,64)"
    scales = [f"{train}.pipeline.2.scales=[(96,64)]", val]
    if task.startswith("voc"):
        scales = [*(f"{train}.datasets.{i}.pipeline.2.scales=[(96,64)]" for i in (0, 1)), val]
    if "detr" in task:
        steps = ("0.0.scales=[(64,96)]", "1.0.scales=[(64,96)]", "1.1.crop_size=(40,60)", "1.2.scales=[(64,96)]")
        scales = [*(f"{train}.pipeline.3.transforms.{step}" for step in steps), val, "images.train=4", "images.val=2"]
    if task.startswith("fashion"):
        scales = ["scenes.train=4", "scenes.val=2"]
    stages = "cascade" in task
    sampled = [f"model.train_cfg.rcnn.{i}.sampler.num=16" for i in range(3)] if stages else []
    sampled = sampled or ["model.train_cfg.rcnn.sampler.num=16"]
    one_stage = any(name in task for name in ("retinanet", "fcos"))
    more = ["model.test_cfg.score_thr=0.0"] if one_stage else [*sampled, "model.test_cfg.rcnn.score_thr=0.0"]
    values = [] if "detr" in task else more
    values += [f"train_cfg.max_iters={iterations}", f"train_cfg.val_interval={iterations}"]
    values += ["default_hooks.checkpoint.interval=1", "default_hooks.logger.interval=1"]
    values += ["train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False"]
    values += ["val_dataloader.num_workers=0", "val_dataloader.persistent_workers=False"]
    return ["--batch", "2", "--device", "cpu", "--cfg-options", *scales, *values]


def run(task: str, root: Path, out: Path, *options: str, ckpt: str = "random:resnet50", status: int = 0) -> str:
    """Run the command on a task; return what it printed."""
    printed, errors = io.StringIO(), io.StringIO()
    given = ["--engine", "mmdet", "--task", task, "--ckpt", ckpt, "--data-root", str(root), "--out", str(out)]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        code = main([*given, "--records", str(out / "records"), *options])
    assert code == status, errors.getvalue()[-3000:]
    return printed.getvalue() if status == 0 else errors.getvalue()


def try_task(task: str, root: Path, out: Path, ckpt: str = "random:resnet50") -> tuple[dict[str, str], Record]:
    """Train a task for two iterations, evaluate it, and resume it from the first.

    Returns:
        A word for each of COLUMNS, and the record.
    """
    said = run(task, root, out / "whole", *small(task), ckpt=ckpt)
    equal, wanted = re.findall(r"backbone: (\d+) of (\d+) tensors", said)[0]
    (folder,) = (out / "whole").glob(f"*/{task}-mmdet/seed0")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    (record,) = read_all(out / "whole" / "records")
    again = out / "resumed" / folder.relative_to(out / "whole")
    shutil.copytree(folder, again)
    (again / "iter_2.pth").unlink()
    (again / "last_checkpoint").write_text(str(again / "iter_1.pth"))
    run(task, root, out / "resumed", "--resume", *small(task), ckpt=ckpt)
    states = [torch.load(path / "iter_2.pth", weights_only=False) for path in (folder, again)]  # made here
    (other,) = read_all(out / "resumed" / "records")
    same = all(torch.equal(tensor, states[1]["state_dict"][name]) for name, tensor in states[0]["state_dict"].items())
    good = record.metrics and all(0 <= value <= 1 for value in record.metrics.values())
    row = {
        "builds": "yes", "tensors equal": f"{equal} of {wanted}",
        "trains": "yes" if len(losses) == 2 and all(map(math.isfinite, losses)) else "no",
        "evaluates": "yes" if good else "no",
        "resumes to the same bits": "yes" if same and record.metrics == other.metrics else "no",
    }  # fmt: skip
    return row, record
