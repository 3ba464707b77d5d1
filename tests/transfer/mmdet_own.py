"""detect.py --engine mmdet on a user's data set. Run by test_detect.py in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from converters.backbone import is_counter
from results.record import read_all
from tests.transfer import own_sets
from transfer.benchmark import read_checkpoint
from transfer.detect import main, parser
from transfer.detection.mmdet_engine.config import read_task
from transfer.detection.mmdet_engine.data import find_data, list_parts
from transfer.openmmlab.config import LOADERS
from transfer.own_data import detection
from transfer.own_data.detection_task import write_task

torch.set_num_threads(1)
SMALL = ["train_dataloader.dataset.pipeline.2.scales=[(96,64)]", "val_dataloader.dataset.pipeline.1.scale=(96,64)"]
SMALL += ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "default_hooks.checkpoint.interval=1"]
SMALL += [f"{name}.{key}" for name in LOADERS[:2] for key in ("num_workers=0", "persistent_workers=False")]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    root.mkdir()
    return own_sets.write_coco(root, masks=True)


def run(data: Path, *options: str, settings: list[str] = SMALL) -> int:
    given = ["--ckpt", "random:resnet18", "--data", str(data), "--engine", "mmdet", "--device", "cpu", "--batch", "2"]
    given += ["--out", str(data.parent / "out"), "--records", str(data.parent / "records"), *options]
    return main([*given, *["--cfg-options"] * bool(settings), *settings])


@pytest.mark.parametrize("protocol", ["fpn", "c4", "retinanet", "fpn-frozen"])
def test_every_protocol_runs(protocol: str, pets: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sampled = [] if protocol == "retinanet" else ["model.train_cfg.rcnn.sampler.num=16"]
    assert run(pets, "--protocol", protocol, settings=[*SMALL, *sampled]) == 0
    said = capfd.readouterr()
    assert (
        "pets: 6 training images (1 without objects), 4 test images, 3 classes (ant, bee, cat), boxes and" in said.out
    )
    assert "100 epochs of the 5 training images with objects, 31 iterations of 16" in said.out
    assert "data check passed" in said.out
    assert "Traceback" not in said.err
    (record,) = read_all(pets.parent / "records")
    assert record.task == f"own-pets-{protocol}-mmdet"
    assert record.environment["data"] == "pets"
    assert record.config["identity"] == record.environment["data_identity"]
    assert str(pets.parent) not in json.dumps(record.config), "no path"
    kinds = {"bbox"} if protocol == "retinanet" else {"bbox", "segm"}
    assert {name.partition("/")[0] for name in record.metrics} == kinds
    (folder,) = (pets.parent / "out").glob(f"*/own-pets-{protocol}-mmdet/seed0")
    state = torch.load(folder / "iter_2.pth", weights_only=False)["state_dict"]  # made here
    tensors = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    before = read_checkpoint("random:resnet18", 0).tensors
    same = sum(torch.equal(value, before[name]) for name, value in tensors.items() if not is_counter(name))
    assert same == 100 if protocol == "fpn-frozen" else same < 10
    assert ("frozen backbone" in record.title) == (protocol == "fpn-frozen")
    assert [*(folder / "vis").iterdir()]


def made(data: Path, *options: str) -> tuple[Any, detection.DetectionData]:
    given = parser().parse(["--data", str(data), "--out", str(data.parent / "out"), *options])
    loaded = detection.load(given)
    cfg = read_task(str(write_task(loaded, "fpn", None, "mmdet")[0]))
    find_data(cfg, data)
    return cfg, loaded


def test_the_task_is_that_of_detectron2(pets: Path) -> None:
    """Iterations, steps, learning rate, sizes, classes and limits, which both take from the data."""
    cfg, data = made(pets)
    other = write_task(data, "fpn", None, "detectron2")[0]
    theirs = yaml.safe_load(other.read_text())
    solver, sizes = theirs["SOLVER"], theirs["INPUT"]
    assert cfg.train_cfg.max_iters == solver["MAX_ITER"] == 31
    assert cfg.param_scheduler[-1].milestones == solver["STEPS"]
    assert [row.end for row in cfg.param_scheduler] == [solver["WARMUP_ITERS"], solver["MAX_ITER"]]
    assert cfg.optim_wrapper.optimizer.lr == solver["BASE_LR"]
    train, val = cfg.train_dataloader.dataset.pipeline[2], cfg.val_dataloader.dataset.pipeline[1]
    assert train.scales == [(sizes["MAX_SIZE_TRAIN"], side) for side in sizes["MIN_SIZE_TRAIN"]]
    assert val.scale == (sizes["MAX_SIZE_TEST"], sizes["MIN_SIZE_TEST"])
    assert cfg.model.roi_head.mask_head.num_classes == theirs["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 3
    assert cfg.model.test_cfg.rcnn.max_per_img == theirs["TEST"]["DETECTIONS_PER_IMAGE"] == 100


@pytest.mark.fault("detection figures", "detect", "categories of one's own data that are not in the order of their ids")
def test_classes_are_those_of_the_file_in_any_order(pets: Path) -> None:
    """mmdet numbers classes as the file lists them; a figure of a class must be that of the class of its name."""
    content = json.loads((pets / "val.json").read_text())
    content["categories"].reverse()
    (pets / "val.json").write_text(json.dumps(content))
    cfg, _ = made(pets)
    (train,), (val,) = (list_parts(cfg, name) for name in LOADERS[:2])
    assert train.classes == val.classes == ("ant", "bee", "cat")
    from mmdet.registry import DATASETS

    ids = {row["id"]: row["name"] for row in content["categories"]}
    truth = {row["id"]: [] for row in content["images"]}  # type: dict[int, list[str]]
    for row in content["annotations"]:
        truth[row["image_id"]].append(ids[row["category_id"]])
    for image in DATASETS.build({**val.config, "serialize_data": False}).load_data_list():
        assert sorted(train.classes[row["bbox_label"]] for row in image["instances"]) == sorted(truth[image["img_id"]])


def test_areas_that_are_missing_are_those_of_the_masks_and_no_file_of_the_user_is_changed(pets: Path) -> None:
    before = (pets / "train.json").read_bytes()
    cfg, _ = made(pets)
    file = Path(cfg.train_dataloader.dataset.ann_file)
    assert (pets / "train.json").read_bytes() == before
    rows = json.loads(file.read_text())["annotations"]
    assert all(0 < row["area"] < row["bbox"][2] * row["bbox"][3] for row in rows), "a mask leaves out a part of its box"


@pytest.mark.fault("third-party exceptions", "detect", "a malformed file of one's own data with mmdet")
def test_a_malformed_file_is_one_line_of_the_check(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((pets / "train.json").read_text())
    del content["annotations"][0]["bbox"]
    (pets / "train.json").write_text(json.dumps(content))
    assert run(pets, "--check-data", settings=[]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "train.json" in line
    assert "bbox" in line
