"""Resolved configs against the protocols, for several networks. Run by test_segment.py in a process of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules

from converters import VerificationError, backbone_state
from transfer.benchmark import read_checkpoint
from transfer.openmmlab.config import LOADERS, datasets
from transfer.openmmlab.resolve import Resolved
from transfer.segment import parser
from transfer.segmentation import config
from transfer.tasks import SEGMENTATION

register_all_modules()
D8 = {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4), "contract_dilation": True}
POLY = {"lr": 0.01, "weight_decay": 5e-4, "scheduler": "PolyLR", "power": 0.9, "eta_min": 1e-4}
HEAD = {"type": "FCNHead", "channels": 512, "num_convs": 2, "concat_input": True, "dropout_ratio": 0.1}
AUXILIARY = {"type": "FCNHead", "channels": 256, "num_convs": 1, "in_index": 2, "weight": 0.4, "dropout_ratio": 0.1}
D16 = {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2), "contract_dilation": False}
MOCO = {"type": "FCNHead", "channels": 256, "num_convs": 2, "dilation": 6, "concat_input": False, "dropout_ratio": 0}
MOCO_TRANSFORMS = ["RandomResize", "RandomCrop", "RandomFlip"]
TRANSFORMS = [*MOCO_TRANSFORMS, "PhotoMetricDistortion"]
# iterations, batch, crop, classes, align_corners, test, backbone, head, auxiliary, optimiser, transforms
PROTOCOLS: dict[str, tuple[Any, ...]] = {
    # DenseCL: VOC12+aug 512, 20k, 16; Cityscapes 769, 40k, 8, slide 769/513; ADE20K 512, 80k, 16
    "voc12aug-fcn-20k": (20000, 16, 512, 21, False, "whole", D8, HEAD, AUXILIARY, POLY, TRANSFORMS),
    "cityscapes-fcn-40k": (40000, 8, 769, 19, True, "slide", D8, HEAD, AUXILIARY, POLY, TRANSFORMS),
    "ade20k-fcn-80k": (80000, 16, 512, 150, False, "whole", D8, HEAD, AUXILIARY, POLY, TRANSFORMS),
    # MoCo, appendix A.5: crop 513 / 769, batch 16, lr .003 / .01, 30k / 90k, x0.1 at 70 % and 90 %, wd 1e-4
    "voc12aug-fcn16s-30k": (
        30000, 16, 513, 21, True, "whole", D16, MOCO, None,
        {"lr": 0.003, "weight_decay": 1e-4, "scheduler": "MultiStepLR", "milestones": [21000, 27000], "gamma": 0.1},
        MOCO_TRANSFORMS,
    ),
    "cityscapes-fcn16s-90k": (
        90000, 16, 769, 19, True, "whole", D16, MOCO, None,
        {"lr": 0.01, "weight_decay": 1e-4, "scheduler": "MultiStepLR", "milestones": [63000, 81000], "gamma": 0.1},
        MOCO_TRANSFORMS,
    ),
    # mmseg's zoo
    "voc12aug-deeplabv3-20k": (
        20000, 16, 512, 21, False, "whole", D8,
        {"type": "ASPPHead", "channels": 512, "dilations": (1, 12, 24, 36), "dropout_ratio": 0.1},
        AUXILIARY, POLY, TRANSFORMS,
    ),
    "ade20k-upernet-80k": (
        80000, 16, 512, 150, False, "whole", {"strides": (1, 2, 2, 2), "dilations": (1, 1, 1, 1)},
        {"type": "UPerHead", "channels": 512, "pool_scales": (1, 2, 3, 6), "dropout_ratio": 0.1},
        AUXILIARY, POLY, TRANSFORMS,
    ),
}  # fmt: skip
# Processes of the published batch and images of each; mmseg's zoo and DenseCL: 4 GPUs; MoCo: 8
PROCESSES = {"cityscapes-fcn-40k": (4, 2), "voc12aug-fcn16s-30k": (8, 2), "cityscapes-fcn16s-90k": (8, 2)}
IMAGES = {"voc12aug": (10582, 1449), "cityscapes": (2975, 500), "ade20k": (20210, 2000)}
# Training and test sets: images, masks, list of names
SPLITS: dict[str, tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]] = {
    "voc12aug": (
        [
            ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/train.txt"),
            ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation/aug.txt"),
        ],
        [("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/val.txt")],
    ),
    "cityscapes": ([("leftImg8bit/train", "gtFine/train", "")], [("leftImg8bit/val", "gtFine/val", "")]),
    "ade20k": (
        [("images/training", "annotations/training", "")], [("images/validation", "annotations/validation", "")],
    ),
}  # fmt: skip
BASE_SCALES = {"voc12aug": (2048, 512), "ade20k": (2048, 512), "cityscapes-fcn": (2049, 1025)}


def resolve(task: str, *options: str, arch: str = "resnet50", kind: str = "cpu", processes: int = 1) -> Resolved:
    parsed = parser().parse(["--task", task, *options])
    return config.resolve(parsed, read_checkpoint(f"random:{arch}", 0), kind, processes)


def pipeline(loader: Any) -> dict[str, Any]:
    (steps, *others) = [dataset.pipeline for dataset in datasets(loader)]
    assert all(other == steps for other in others)
    return {step.type: step for step in steps}


def holds(found: Any, wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        own = found.loss_decode.loss_weight if name == "weight" else found[name]
        assert (tuple(own) if isinstance(value, tuple) else own) == value, name


def test_every_task_is_compared_with_its_protocol() -> None:
    assert set(PROTOCOLS) | {"fashion-fcn"} == set(SEGMENTATION.names())


def norms(cfg: Any) -> list[Any]:
    """Every norm_cfg of a config, at any depth."""
    inner = cfg.values() if isinstance(cfg, dict) else cfg
    found = [norm for value in inner if isinstance(value, dict | list | tuple) for norm in norms(value)]
    return [cfg["norm_cfg"], *found] if isinstance(cfg, dict) and "norm_cfg" in cfg else found


@pytest.mark.parametrize("task", PROTOCOLS)
def test_a_published_task_has_several_processes_and_synchronised_batch_norm(task: str) -> None:
    cfg, auxiliary = config.read_task(task), PROTOCOLS[task][8]
    found = norms(cfg.model)
    assert len(found) == (3 if auxiliary else 2), "of the backbone and of each head"
    assert all(norm == {"type": "SyncBN", "requires_grad": True} for norm in found)
    assert (cfg.reference_processes, cfg.train_dataloader.batch_size) == PROCESSES.get(task, (4, 4))
    (said,) = [note for note in resolve(task).changes if "BN replaces SyncBN" in note]
    assert f"({len(found)} settings)" in said
    assert all(norm.type == "BN" for norm in norms(resolve(task).cfg.model))


@pytest.mark.parametrize("task", PROTOCOLS)
def test_a_task_names_its_splits_and_their_sizes(task: str) -> None:
    cfg = resolve(task).cfg
    start = task.partition("-")[0]
    assert (cfg.images.train, cfg.images.val) == IMAGES[start]
    train, val = SPLITS[start]
    for name, wanted in zip(LOADERS, (train, val, val), strict=True):
        found = [
            (dataset.data_prefix.img_path, dataset.data_prefix.seg_map_path, dataset.get("ann_file", ""))
            for dataset in datasets(cfg[name])
        ]
        assert found == wanted, name
        assert all(dataset.data_root == cfg.data_root for dataset in datasets(cfg[name])), name


@pytest.mark.parametrize("task", PROTOCOLS)
def test_a_resolved_config_equals_its_protocol(task: str) -> None:
    iterations, batch, crop, classes, corners, mode, backbone, head, auxiliary, optimiser, transforms = PROTOCOLS[task]
    cfg = resolve(task, "--batch", str(batch)).cfg  # the published batch on one device: nothing is scaled
    assert (cfg.train_cfg.max_iters, cfg.train_dataloader.batch_size) == (iterations, batch)
    assert tuple(cfg.model.data_preprocessor.size) == (crop, crop)
    holds(cfg.model.backbone, {"type": "ResNet", "depth": 50, "style": "pytorch", "frozen_stages": -1, **backbone})
    assert cfg.model.backbone.norm_eval is False
    assert cfg.model.pretrained is None
    holds(cfg.model.decode_head, {"weight": 1.0, **head, "num_classes": classes, "align_corners": corners})
    assert ("auxiliary_head" in cfg.model) == (auxiliary is not None)
    # Of what the paper leaves open: ignored pixels do not dilute the loss of MoCo's FCN; mmseg's counts them.
    assert cfg.model.decode_head.loss_decode.get("avg_non_ignore", False) == (auxiliary is None)
    if auxiliary:
        holds(cfg.model.auxiliary_head, {**auxiliary, "num_classes": classes, "align_corners": corners})
    holds(cfg.model.data_preprocessor, {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]})
    assert cfg.model.data_preprocessor.bgr_to_rgb is True
    assert cfg.model.test_cfg.mode == mode
    if mode == "slide":
        holds(cfg.model.test_cfg, {"crop_size": (769, 769), "stride": (513, 513)})
    holds(cfg.optim_wrapper.optimizer, {"type": "SGD", "momentum": 0.9, "lr": optimiser["lr"]})
    assert cfg.optim_wrapper.optimizer.weight_decay == optimiser["weight_decay"]
    (schedule,) = cfg.param_scheduler
    assert schedule.type == optimiser["scheduler"]
    holds(schedule, {k: v for k, v in optimiser.items() if k not in ("lr", "weight_decay", "scheduler")})
    assert schedule.get("end", iterations) == iterations
    assert schedule.by_epoch is cfg.log_processor.by_epoch is cfg.default_hooks.checkpoint.by_epoch is False
    assert cfg.optim_wrapper.clip_grad is None
    steps = pipeline(cfg.train_dataloader)
    assert [
        name for name in steps if name not in ("LoadImageFromFile", "LoadAnnotations", "PackSegInputs")
    ] == transforms
    assert tuple(steps["RandomCrop"].crop_size) == (crop, crop)
    assert steps["RandomCrop"].get("cat_max_ratio") == (0.75 if auxiliary else None)
    assert steps["RandomFlip"].prob == 0.5
    assert tuple(steps["RandomResize"].ratio_range) == (0.5, 2.0)
    for start, scale in BASE_SCALES.items():
        if task.startswith(start) and auxiliary:
            assert tuple(steps["RandomResize"].scale) == tuple(pipeline(cfg.val_dataloader)["Resize"].scale) == scale
    if not auxiliary:
        assert "Resize" not in pipeline(cfg.val_dataloader), "MoCo evaluates at the original size"
    assert all(dataset.get("reduce_zero_label", False) == (classes == 150) for dataset in datasets(cfg.val_dataloader))


def test_one_device_trains_four_times_as_long_on_a_quarter_of_the_batch() -> None:
    plan = resolve("voc12aug-fcn-20k")
    assert (plan.batch, plan.cfg.train_dataloader.batch_size, plan.cfg.train_cfg.max_iters) == (4, 4, 80000)
    assert plan.cfg.optim_wrapper.optimizer.lr == pytest.approx(0.0025)
    (schedule,) = plan.cfg.param_scheduler
    assert (schedule.end, schedule.eta_min) == (80000, pytest.approx(0.25e-4))
    assert plan.cfg.train_cfg.val_interval == 8000
    assert "20000" in plan.changes[0]
    assert "80000" in plan.changes[0]
    assert any("BN replaces SyncBN" in note for note in plan.changes)
    moco = resolve("cityscapes-fcn16s-90k").cfg
    assert moco.param_scheduler[0].milestones == [8 * 63000, 8 * 81000]


def test_accumulated_gradients_keep_the_published_schedule() -> None:
    plan = resolve("cityscapes-fcn-40k", "--accumulate", "4")
    assert (plan.batch, plan.cfg.train_dataloader.batch_size) == (8, 2)
    assert plan.cfg.optim_wrapper.optimizer.lr == 0.01
    assert plan.cfg.optim_wrapper.accumulative_counts == 4
    assert plan.cfg.train_cfg.max_iters == plan.cfg.param_scheduler[0].end == 160000  # mmengine counts batches
    assert "40000 iterations of 8" in plan.title


def test_no_scale_keeps_the_published_schedule() -> None:
    cfg = resolve("voc12aug-fcn-20k", "--no-scale").cfg
    assert (cfg.train_dataloader.batch_size, cfg.train_cfg.max_iters) == (16, 20000)
    assert cfg.optim_wrapper.optimizer.lr == 0.01
    assert cfg.param_scheduler[0].eta_min == 1e-4
    spread = resolve("voc12aug-fcn-20k", "--no-scale", "--accumulate", "4").cfg
    assert (spread.train_dataloader.batch_size, spread.train_cfg.max_iters) == (4, 80000)
    with pytest.raises(ValueError, match="leave one of them out"):
        resolve("voc12aug-fcn-20k", "--no-scale", "--batch", "8")


@pytest.mark.parametrize(
    ("arch", "widths"), [("resnet18", (256, 512)), ("resnet34", (256, 512)), ("resnet101", (1024, 2048))]
)
def test_heads_get_the_widths_of_the_backbone(arch: str, widths: tuple[int, int]) -> None:
    cfg = resolve("voc12aug-fcn-20k", arch=arch).cfg
    assert (cfg.model.auxiliary_head.in_channels, cfg.model.decode_head.in_channels) == widths
    assert cfg.model.backbone.depth == int(arch.removeprefix("resnet"))
    upernet = resolve("ade20k-upernet-80k", arch=arch).cfg.model.decode_head.in_channels
    assert upernet == [widths[1] // 8, widths[1] // 4, widths[1] // 2, widths[1]]


@pytest.mark.parametrize("arch", ["resnet18", "resnext50_32x4d", "resnet50d"])
def test_every_tensor_of_other_networks_is_loaded(arch: str) -> None:
    plan = resolve("voc12aug-fcn16s-30k", arch=arch)
    model = MODELS.build(plan.cfg.model)
    assert plan.weights.load(model) == len(plan.weights.backbone.tensors)
    with torch.no_grad():
        next(model.backbone.layer4[0].bn1.parameters())[3] += 1
    with pytest.raises(VerificationError, match=r"layer4\.0\.bn1\.weight"):
        plan.weights.backbone.compare(backbone_state(model.state_dict(), "openmmlab"))


def test_a_network_that_mmseg_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match="openmmlab builds no wide_resnet50_2"):
        resolve("voc12aug-fcn-20k", arch="wide_resnet50_2")


def test_a_model_with_another_backbone_is_refused() -> None:
    plan = resolve("voc12aug-fcn-20k", "--cfg-options", "model.backbone.base_channels=32", arch="resnet18")
    with pytest.raises(VerificationError, match="different"):
        plan.weights.load(MODELS.build(plan.cfg.model))


def test_a_title_follows_from_network_processes_and_norm() -> None:
    published = resolve("cityscapes-fcn-40k", kind="cuda", processes=4).title
    assert published == (
        "FCNHead on ResNet-50, stride 8, SyncBN, cityscapes, 40000 iterations of 8, crop 769x769, "
        "SGD lr 0.01 wd 0.0005 PolyLR, slide image, single scale"
    )
    alone = resolve("cityscapes-fcn-40k", arch="resnext50_32x4d").title
    assert "FCNHead on ResNeXt-50, stride 8, BN, cityscapes, 160000 iterations of 2" in alone
    assert resolve("cityscapes-fcn-40k", processes=4).title.endswith("single scale, batch norm of each process")
