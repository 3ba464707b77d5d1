"""Resolved configs of mmdet's tasks against the protocols, options and titles. Run by test_detect.py on its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from converters import VerificationError
from converters.backbone import Backbone
from transfer.benchmark import read_checkpoint
from transfer.changes import flat
from transfer.detect import main, parser
from transfer.detection.mmdet_engine import OPERATIONS, config, run
from transfer.openmmlab.resolve import Resolved
from transfer.openmmlab.weights import ModelBackbone, backbone_of
from transfer.tasks import DETECTION, MMDET

R18, R50 = (read_checkpoint(f"random:{arch}", 0) for arch in ("resnet18", "resnet50"))
run.register()

# Copied from the sources that the tasks name, not from our YAML files: mmselfsup's changes of mmdet's configs, MoCo's
# schedule and sizes. Compared key by key with what a task resolves to on its published number of GPUs.
SIZES = [[1333, side] for side in (640, 672, 704, 736, 768, 800)]
COMMON: dict[str, Any] = {
    "model.data_preprocessor.mean": [123.675, 116.28, 103.53], "model.data_preprocessor.std": [58.395, 57.12, 57.375],
    "model.data_preprocessor.bgr_to_rgb": True, "model.backbone.type": "ResNet", "model.backbone.depth": 50,
    "model.backbone.style": "pytorch", "model.backbone.frozen_stages": -1, "model.backbone.norm_eval": False,
    "model.backbone.norm_cfg.type": "SyncBN", "model.backbone.norm_cfg.requires_grad": True,
    "model.backbone.init_cfg": None, "optim_wrapper.type": "OptimWrapper",
}  # fmt: skip
SGD = {
    "optim_wrapper.optimizer.type": "SGD", "optim_wrapper.optimizer.lr": 0.02, "optim_wrapper.optimizer.momentum": 0.9,
    "optim_wrapper.optimizer.weight_decay": 1e-4, "optim_wrapper.paramwise_cfg.norm_decay_mult": 0.0, "batch": 16,
    "param_scheduler.0.type": "LinearLR", "param_scheduler.0.start_factor": 1e-3, "param_scheduler.0.end": 1000,
    "param_scheduler.1.type": "MultiStepLR", "param_scheduler.1.gamma": 0.1,
    "train_dataloader.dataset.pipeline.2.scales": SIZES, "val_dataloader.dataset.pipeline.1.scale": [1333, 800],
}  # fmt: skip
ONE_X = {"param_scheduler.1.milestones": [60_000, 80_000], "max_iters": 90_000}
TWO_X = {"param_scheduler.1.milestones": [120_000, 160_000], "max_iters": 180_000}
RPN = {
    "model.train_cfg.rpn.sampler.num": 256, "model.train_cfg.rpn.sampler.pos_fraction": 0.5,
    "model.train_cfg.rpn.assigner.pos_iou_thr": 0.7, "model.train_cfg.rpn.assigner.neg_iou_thr": 0.3,
    "model.rpn_head.anchor_generator.ratios": [0.5, 1.0, 2.0],
}  # fmt: skip
HEADS = {
    "model.train_cfg.rcnn.sampler.num": 512, "model.train_cfg.rcnn.sampler.pos_fraction": 0.25,
    "model.train_cfg.rcnn.assigner.pos_iou_thr": 0.5, "model.test_cfg.rcnn.score_thr": 0.05,
    "model.test_cfg.rcnn.nms.iou_threshold": 0.5, "model.test_cfg.rcnn.max_per_img": 100,
}  # fmt: skip
FPN = RPN | HEADS | {
    "model.neck.type": "FPN", "model.neck.norm_cfg.type": "SyncBN", "model.neck.out_channels": 256,
    "model.neck.in_channels": [256, 512, 1024, 2048], "model.rpn_head.anchor_generator.scales": [8],
    "model.rpn_head.anchor_generator.strides": [4, 8, 16, 32, 64], "model.train_cfg.rpn_proposal.nms_pre": 2000,
    "model.train_cfg.rpn_proposal.max_per_img": 1000, "model.test_cfg.rpn.max_per_img": 1000,
}  # fmt: skip
A = FPN | {"model.roi_head.bbox_head.type": "Shared2FCBBoxHead"}
B = FPN | {
    "model.roi_head.bbox_head.type": "Shared4Conv1FCBBoxHead", "model.roi_head.bbox_head.norm_cfg.type": "SyncBN",
}  # fmt: skip
C4 = RPN | HEADS | {
    "model.roi_head.shared_head.type": "Res5ExtraNorm", "model.roi_head.shared_head.style": "pytorch",
    "model.roi_head.shared_head.norm_eval": False, "model.roi_head.shared_head.norm_cfg.type": "SyncBN",
    "model.rpn_head.anchor_generator.scales": [2, 4, 8, 16, 32], "model.rpn_head.anchor_generator.strides": [16],
    "model.train_cfg.rpn_proposal.nms_pre": 12000, "model.train_cfg.rpn_proposal.max_per_img": 2000,
    "model.test_cfg.rpn.nms_pre": 6000, "model.test_cfg.rpn.max_per_img": 1000,
    "model.roi_head.bbox_roi_extractor.roi_layer.output_size": 14,
}  # fmt: skip
BOXES = {"model.roi_head.bbox_head.num_classes": 80, "val_evaluator.metric": ["bbox"]}
MASKS = {
    "model.roi_head.bbox_head.num_classes": 80, "model.roi_head.mask_head.num_classes": 80,
    "val_evaluator.metric": ["bbox", "segm"],
}  # fmt: skip
SYNC_MASKS = MASKS | {"model.roi_head.mask_head.norm_cfg.type": "SyncBN"}
DETR = {"optim_wrapper.optimizer.type": "AdamW", "optim_wrapper.optimizer.lr": 2e-4, "batch": 32, "max_iters": 184_850}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "coco-fpn-1x": SGD | A | MASKS | ONE_X, "coco-fpn-2x": SGD | A | MASKS | TWO_X,
    "coco-fpn-b-1x": SGD | B | SYNC_MASKS | ONE_X, "coco-fpn-b-2x": SGD | B | SYNC_MASKS | TWO_X,
    "coco-faster-fpn-1x": SGD | A | BOXES | ONE_X, "coco-faster-fpn-2x": SGD | A | BOXES | TWO_X,
    "coco-faster-fpn-b-1x": SGD | B | BOXES | ONE_X, "coco-faster-fpn-b-2x": SGD | B | BOXES | TWO_X,
    "coco-c4-1x": SGD | C4 | MASKS | ONE_X,
    "voc-c4-24k": {key: value for key, value in (SGD | C4).items() if "train_dataloader" not in key} | {
        "model.roi_head.bbox_head.num_classes": 20, "param_scheduler.0.end": 100, "max_iters": 24_000,
        "param_scheduler.1.milestones": [18_000, 22_000],
        "val_dataloader.dataset.ann_file": "VOC2007/ImageSets/Main/test.txt",
        "train_dataloader.dataset.datasets.0.pipeline.2.scales": [[1333, side] for side in range(480, 801, 32)],
        "train_dataloader.dataset.datasets.1.ann_file": "VOC2012/ImageSets/Main/trainval.txt",
    },
    "coco-retinanet-1x": SGD | ONE_X | {
        "model.type": "RetinaNet", "model.neck.norm_cfg.type": "SyncBN", "optim_wrapper.optimizer.lr": 0.01,
        "model.bbox_head.num_classes": 80, "model.train_cfg.assigner.pos_iou_thr": 0.5,
        "model.train_cfg.assigner.neg_iou_thr": 0.4, "model.bbox_head.anchor_generator.scales_per_octave": 3,
        "model.bbox_head.anchor_generator.strides": [8, 16, 32, 64, 128],
    },
    "coco-fcos-1x": SGD | ONE_X | {
        "model.type": "FCOS", "optim_wrapper.optimizer.lr": 0.01, "optim_wrapper.clip_grad.max_norm": 35,
        "optim_wrapper.paramwise_cfg.bias_lr_mult": 2.0, "param_scheduler.0.type": "ConstantLR",
        "param_scheduler.0.start_factor": None, "param_scheduler.0.end": 500, "model.neck.num_outs": 5,
    },
    "coco-cascade-mask-1x": SGD | ONE_X | {
        "model.type": "CascadeRCNN", "model.roi_head.num_stages": 3, "model.train_cfg.rcnn.2.assigner.pos_iou_thr": 0.7,
        "model.roi_head.bbox_head.2.num_classes": 80, "model.roi_head.bbox_head.0.reg_class_agnostic": True,
    },
    "cityscapes-instance": SGD | A | {
        "model.roi_head.bbox_head.num_classes": 8, "model.roi_head.mask_head.num_classes": 8, "batch": 8,
        "optim_wrapper.optimizer.lr": 0.01, "param_scheduler.1.milestones": [18_000], "max_iters": 24_000,
        "train_dataloader.dataset.pipeline.2.scales": [[2048, side] for side in range(800, 1025, 32)],
        "val_dataloader.dataset.pipeline.1.scale": [2048, 1024], "val_evaluator.type": "CityscapesAP",
    },
    "coco-deformable-detr-50e": DETR | {
        "model.num_queries": 300, "param_scheduler.0.milestones": [147_880], "optim_wrapper.clip_grad.max_norm": 0.1,
        "optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult": 0.1, "model.backbone.out_indices": [1, 2, 3],
    },
}  # fmt: skip
PROCESSES = {"coco-deformable-detr-50e": 16}


def resolve(task: str, *options: str, backbone: Backbone = R50, kind: str = "cpu", processes: int = 1) -> Resolved:
    parsed = parser().parse(["--engine", "mmdet", "--task", task, *options])
    return config.resolve(parsed, backbone, kind, processes)


def test_every_task_of_the_issue_is_compared_with_its_protocol() -> None:
    assert set(MMDET.names()) == PROTOCOLS.keys() | {"fashion-fpn"}


@pytest.mark.parametrize("task", PROTOCOLS)
def test_a_resolved_task_equals_its_protocol(task: str) -> None:
    found = flat(resolve(task, kind="cuda", processes=PROCESSES.get(task, 8)).config)
    wanted = COMMON | PROTOCOLS[task]
    assert not {key: (found.get(key), value) for key, value in wanted.items() if found.get(key) != value}
    assert (found["engine"], found["operations"]) == ("mmdet", OPERATIONS)
    pipelines = [value for key, value in found.items() if re.search(r"train_dataloader.*pipeline.*\.type$", key)]
    assert "RandomFlip" in pipelines


@pytest.mark.parametrize("task", MMDET.names())
def test_a_config_opens_with_command_cost_and_published_scores(task: str) -> None:
    head = [line for line in MMDET.find(task).read_text().splitlines() if line.startswith("# ")]
    assert head[0].startswith(f"# python transfer/detect.py --ckpt CHECKPOINT --task {task} --engine mmdet")
    assert any(line.startswith("# Cost: ") for line in head)
    assert any(line.startswith("# Published") for line in head)
    assert MMDET.describe(task) in head[1]


def test_engines_and_operations_have_columns_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--engine", "mmdet", "--ckpt", "random", "--task", "fashion-fpn", "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["task"], planned["config_hash"]) == ("fashion-fpn-mmdet", "fa1f12ccd507")
    assert planned["config"]["operations"] == "torchvision"
    assert planned["takes"]["parameters"] > 15_000_000


def test_one_process_gets_plain_batch_norm_and_a_scaled_schedule() -> None:
    one = resolve("coco-fpn-b-1x")
    norms = {value for key, value in flat(one.config).items() if key.endswith("norm_cfg.type")}
    assert norms == {"BN"}
    assert "BN replaces SyncBN (4 settings): one process" in one.changes
    assert (one.batch, one.config["max_iters"], one.config["param_scheduler"][0]["end"]) == (2, 720_000, 8_000)
    assert one.config["optim_wrapper"]["optimizer"]["lr"] == pytest.approx(0.0025)
    assert "changed" not in resolve("fashion-fpn", "--cfg-options", "model.neck.norm_cfg.type=BN", backbone=R18).title


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "fashion-fpn", "--amp"], "--amp: on the CPU it is bfloat16, which cannot hold the boxes of"),
        (["--task", "fashion-fpn", "--num-gpus", "2"], "start the processes yourself: torchrun"),
        (["--task", "fashion-fpn", "SOLVER.MAX_ITER", "9"], "--engine mmdet has --cfg-options KEY=VALUE"),
        (["--task", "lvis-v1-fpn"], "--task lvis-v1-fpn: no such task or file; there are cityscapes-instance"),
        (["--task", "coco-c4-1x", "--ckpt", "random:resnext50_32x4d"], "use an FPN task"),
        (["--task", "fashion-fpn", "--cfg-options", "model.backbone.style=caffe"], "do not change it"),
        (["--task", "fashion-fpn", "--cfg-options", "model.test_cfg.rcn.score_thr=0"], "has no model.test_cfg.rcn"),
        (["--task", "fashion-fpn", "--resume", "--force"], "leave one of them out"),
    ],
)  # fmt: skip
@pytest.mark.fault("a newcomer's mistakes", "detect", "options that mmdet, its heads or its networks do not have")
def test_a_mistake_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--engine", "mmdet", "--ckpt", "random", "--dry-run", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.fault("a newcomer's mistakes", "detect", "options of mmdet without --engine mmdet")
def test_options_of_mmdet_need_its_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--ckpt", "random", "--task", "fashion-fpn", "--amp", "--accumulate", "2", "--dry-run"]) == 2
    assert "--amp, --accumulate: for --engine mmdet" in capsys.readouterr().err


def test_bfloat16_is_only_refused_where_there_are_boxes_of_regions() -> None:
    assert resolve("coco-retinanet-1x", "--amp").config["optim_wrapper"]["type"] == "CpuAmpOptimWrapper"
    assert resolve("coco-fpn-1x", "--amp", kind="cuda").config["optim_wrapper"]["type"] == "AmpOptimWrapper"


OWN = """
_base_ = ["mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"]
train_dataloader = dict(dataset=dict(data_root="mine"))
val_dataloader = dict(dataset=dict(data_root="mine"))
"""


def test_a_users_config_of_mmdet_counts_iterations(tmp_path: Path) -> None:
    """mmdet's 1x schedule of epochs on COCO is 12 times 7,330 iterations of 8 times 2 images."""
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    with pytest.raises(ValueError, match=r"mine.py: its schedule counts epochs; add images = dict"):
        resolve(str(path))
    path.write_text(OWN + "images = dict(train=117266, val=5000)\n")
    found = resolve(str(path), kind="cuda", processes=8)
    assert (found.batch, found.config["max_iters"]) == (16, 12 * 7330)
    (warm_up, steps) = found.config["param_scheduler"]
    assert (warm_up["end"], steps["milestones"], steps["end"]) == (500, [8 * 7330, 11 * 7330], 12 * 7330)
    assert found.cfg.default_hooks.checkpoint.interval == 7330
    assert found.config["val_evaluator"] == {"type": "CocoAP", "metric": ["bbox"]}
    path.write_text(OWN + "images = dict(train=9, val=5)\nval_dataloader['dataset']['type'] = 'LVISV1Dataset'\n")
    with pytest.raises(ValueError, match=r"val_dataloader.dataset.type='LVISV1Dataset': use one of CocoDataset, VOC"):
        resolve(str(path))


def test_the_last_stage_of_a_c4_detector_is_loaded_and_compared() -> None:
    from mmdet.registry import MODELS

    found = resolve("coco-c4-1x")
    model = MODELS.build(found.cfg.model)
    model.init_weights()
    weights = ModelBackbone.of(R50)
    with pytest.raises(VerificationError):
        R50.compare(backbone_of(model))
    assert weights.load(model) == 318
    head = model.roi_head.shared_head
    assert (head.layer4[2].conv3.weight == R50.tensors["layer4.2.conv3.weight"]).all()
    assert head.norm.weight.eq(1).all()
    assert head.norm.num_features == 2048
    head.layer4[2].conv3.weight.data[0] += 1
    with pytest.raises(VerificationError, match=r"layer4.2.conv3.weight"):
        R50.compare(backbone_of(model))


def test_both_engines_have_the_tasks_of_the_study() -> None:
    assert "fashion-fpn" in {*MMDET.names()} & {*DETECTION.names()}
